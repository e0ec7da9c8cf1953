//! `underpass migrate report`: which of the observed connections STRICT, or a set of policies, would refuse.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::gather::{Observers, must_have, servers, was_admitted};
use super::judge::{Judge, Judged};
use crate::cli::args::Output;
use crate::cli::output::printable;
use crate::cli::why::{self, MeshArgs};
use crate::cli::{Answer, output, table};
use crate::model::TrustDomain;
use crate::telemetry::{ClientView, LeftOut, ObservedView, Seen, Transport};

const EXAMPLES: &str = "\
Examples:
  underpass migrate report                            whom STRICT in the whole mesh would refuse
  underpass migrate report -f k8s/ --namespace shop   whom these policies would refuse
  underpass migrate report -o json > n1.json          on each node; then, on one of them:
  underpass migrate report --observed n1.json --observed n2.json

Exit codes:
  0  nothing that was observed would be refused
  3  something would be
  1  it could not be looked at, or nothing was observed; 2: the command line is wrong";

/// What was observed, and what it is judged by.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReportArgs {
    #[command(flatten)]
    pub observers: Observers,
    /// Kubernetes YAML or JSON with the policies to judge by, of both dialects, a file or a folder of them; may be
    /// repeated. Without it the question is STRICT
    #[arg(short = 'f', long = "file", value_name = "FILE|DIR")]
    pub files: Vec<PathBuf>,
    /// Take STRICT for the mesh's mode where the policies of -f do not say otherwise
    #[arg(long)]
    pub strict: bool,
    /// Only connections to this namespace
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

pub(super) fn run(args: &ReportArgs) -> anyhow::Result<Answer> {
    let observed = args.observers.gather()?;
    if let Some(namespace) = &args.namespace {
        must_have(&observed, namespace)?;
    }
    let settings = args.mesh.settings_in(trust_domain(&observed));
    let objects = match args.files.is_empty() {
        true => Vec::new(),
        false => why::read(&args.files, &settings.trust_domain)?.objects,
    };
    let strict = args.strict || args.files.is_empty();
    let judge = Judge::new(objects, settings, strict)?;
    let report = Report::new(observed, &judge, args.namespace.as_deref(), strict);
    output::print(&output::render(&report, args.output, || report.told())?)?;
    Ok(if report.summary.refused.pairs == 0 { Answer::Yes } else { Answer::Denied })
}

/// The servers', where all of them are of one.
fn trust_domain(observed: &ObservedView) -> TrustDomain {
    let mut domains = servers(observed, None).map(|server| server.identity.trust_domain());
    let first = domains.next().cloned().unwrap_or_default();
    if domains.all(|other| *other == first) { first } else { TrustDomain::default() }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    /// Whether STRICT was taken for the mesh's mode.
    strict: bool,
    pub(super) summary: Summary,
    /// Those that would be refused first.
    pub(super) pairs: Vec<Pair>,
    /// What of the policies could not be taken as it stands, and counts as what is safe.
    defects: Vec<String>,
    /// What all of this is of; `--observed` takes it.
    pub(super) observed: ObservedView,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Summary {
    pub(super) refused: Count,
    pub(super) by_request: Count,
    pub(super) unknown: Count,
    pub(super) admitted: Count,
    /// Policy refuses them today, or they came to nothing: no question of what would change.
    pub(super) never_admitted: Count,
    pub(super) left_out: LeftOut,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Count {
    pub(super) pairs: usize,
    connections: u64,
}

/// All of one client's connections to one port of a server that are judged alike.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Pair {
    pub(super) verdict: &'static str,
    pub(super) from: String,
    pub(super) transport: Transport,
    /// Proved by mutual TLS.
    pub(super) identity: Option<String>,
    pub(super) to: String,
    pub(super) port: u16,
    /// Admitted ones, those that are open now among them.
    pub(super) connections: u64,
    open: u64,
    /// Of these, from addresses that were not kept and are not judged.
    from_other_addresses: u64,
    last_seen: String,
    pub(super) reason: String,
    pub(super) policy: Option<String>,
}

impl Report {
    pub(super) fn new(observed: ObservedView, judge: &Judge, namespace: Option<&str>, strict: bool) -> Self {
        let mut summary = Summary::default();
        for left in observed.agents.iter().map(|agent| agent.left_out) {
            summary.left_out.connections = summary.left_out.connections.saturating_add(left.connections);
            summary.left_out.denied = summary.left_out.denied.saturating_add(left.denied);
            summary.left_out.requests_denied =
                summary.left_out.requests_denied.saturating_add(left.requests_denied);
        }
        let mut pairs: BTreeMap<_, Pair> = BTreeMap::new();
        for server in servers(&observed, namespace) {
            let policy = judge.compile(server);
            let to = format!("{}/{}", server.namespace, server.name);
            for seen in &server.clients {
                if !was_admitted(seen) {
                    let counts = seen.connections;
                    summary.never_admitted.add(counts.denied.saturating_add(counts.unreached));
                    continue;
                }
                let judged = judge.judge(server, &policy, seen);
                let identity = seen.client.identity.as_ref().map(ToString::to_string);
                let key = (judged.clone(), from(&seen.client), identity, to.clone(), seen.port);
                pairs.entry(key).or_insert_with_key(|key| Pair::new(key, seen)).add(seen);
            }
        }
        for pair in pairs.values() {
            let count = match pair.verdict {
                REFUSED => &mut summary.refused,
                BY_REQUEST => &mut summary.by_request,
                UNKNOWN => &mut summary.unknown,
                _ => &mut summary.admitted,
            };
            count.add(pair.connections);
        }
        Self { strict, summary, pairs: pairs.into_values().collect(), defects: judge.defects(), observed }
    }

    pub(super) fn told(&self) -> String {
        let shown = self.pairs.iter().filter(|pair| pair.verdict != ADMITTED);
        let mut out = String::new();
        if self.pairs.iter().any(|pair| pair.verdict != ADMITTED) {
            let headers = [
                "VERDICT",
                "FROM",
                "IDENTITY",
                "TO",
                "PORT",
                "CONNECTIONS",
                "OPEN",
                "LAST SEEN",
                "POLICY",
                "REASON",
            ];
            out += &table::table(&headers, shown.map(Pair::row));
            out.push('\n');
        }
        let Summary { refused, by_request, unknown, admitted, never_admitted, left_out } = &self.summary;
        let what = if self.strict { "STRICT" } else { "these policies" };
        out += &format!("{what} would refuse {refused} and admit {admitted}\n");
        if by_request.pairs > 0 {
            out += &format!("not judged: {by_request}, where policy looks at requests, which are not kept\n");
        }
        if unknown.pairs > 0 {
            out += &format!("not judged: {unknown}\n");
        }
        if never_admitted.pairs > 0 {
            out +=
                &format!("left aside: {never_admitted} that policy refuses today, or that reached nobody\n");
        }
        let elsewhere: u64 =
            self.pairs.iter().fold(0, |sum, pair| sum.saturating_add(pair.from_other_addresses));
        if elsewhere > 0 {
            out += &format!(
                "not judged: {elsewhere} connections from further addresses of clients that are judged\n"
            );
        }
        if left_out.connections > 0 {
            out += &format!("not kept: {} connections for which there was no room\n", left_out.connections);
        }
        for agent in &self.observed.agents {
            let (node, since, until) =
                (printable(&agent.node), printable(&agent.since), printable(&agent.until));
            out += &format!("observed on {node} from {since} to {until}\n");
        }
        for defect in &self.defects {
            out += &format!("not as written: {}\n", printable(defect));
        }
        out
    }
}

const REFUSED: &str = "refuse";
const BY_REQUEST: &str = "by_request";
const UNKNOWN: &str = "unknown";
const ADMITTED: &str = "admit";

impl Pair {
    fn new(key: &(Judged, String, Option<String>, String, u16), seen: &Seen) -> Self {
        let (judged, from, identity, to, port) = key;
        let (verdict, reason, policy) = match judged {
            Judged::Refused { reason, policy } => (REFUSED, reason.clone(), policy.clone()),
            Judged::ByRequest => (BY_REQUEST, "it depends on the request".into(), None),
            Judged::Unknown(why) => (UNKNOWN, (*why).into(), None),
            Judged::Admitted => (ADMITTED, String::new(), None),
        };
        Self {
            verdict,
            from: from.clone(),
            transport: seen.client.transport,
            identity: identity.clone(),
            to: to.clone(),
            port: *port,
            connections: 0,
            open: 0,
            from_other_addresses: 0,
            last_seen: String::new(),
            reason,
            policy,
        }
    }

    fn add(&mut self, seen: &Seen) {
        self.connections = self.connections.saturating_add(seen.connections.allowed);
        self.open = self.open.saturating_add(seen.connections.open);
        self.from_other_addresses =
            self.from_other_addresses.saturating_add(seen.client.from_other_addresses);
        if self.last_seen < seen.last_seen {
            self.last_seen.clone_from(&seen.last_seen);
        }
    }

    fn row(&self) -> Vec<String> {
        let identity = self.identity.as_deref().unwrap_or("plaintext");
        vec![
            self.verdict.into(),
            self.from.clone(),
            identity.trim_start_matches("spiffe://").into(),
            self.to.clone(),
            self.port.to_string(),
            self.connections.to_string(),
            self.open.to_string(),
            self.last_seen.clone(),
            self.policy.clone().unwrap_or_default(),
            self.reason.clone(),
        ]
    }
}

/// Of what it is an instance, by its address; else its service account, or its whole identity; else its address.
pub(super) fn from(client: &ClientView) -> String {
    match (&client.namespace, &client.workload, &client.identity) {
        (Some(namespace), Some(workload), _) => format!("{namespace}/{workload}"),
        (_, _, Some(id)) => match (id.namespace(), id.service_account()) {
            (Some(namespace), Some(account)) => format!("{namespace}/{account}"),
            _ => id.to_string(),
        },
        _ => client.addresses.first().map(ToString::to_string).unwrap_or_default(),
    }
}

impl Count {
    fn add(&mut self, connections: u64) {
        self.pairs += 1;
        self.connections = self.connections.saturating_add(connections);
    }
}

impl std::fmt::Display for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let s = |n: u64| if n == 1 { "" } else { "s" };
        let Self { pairs, connections } = self;
        write!(f, "{pairs} pair{} ({connections} connection{})", s(*pairs as u64), s(*connections))
    }
}
