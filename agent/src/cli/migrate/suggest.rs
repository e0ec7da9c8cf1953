//! `underpass migrate suggest`: the AuthorizationPolicies that admit what was observed in mutual TLS.
//!
//! Names and labels are others' words: each stands in quotes as JSON has them, which YAML reads alike, and what
//! stands in a comment keeps to its line.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

use clap::Args;

use super::gather::{Observers, must_have, servers};
use super::report::from;
use crate::cli::output::printable;
use crate::cli::{Answer, output};
use crate::model::{SpiffeId, TrustDomain};
use crate::telemetry::{ObservedServer, ObservedView, OutcomeView, Seen, is_churning_label};

const EXAMPLES: &str = "\
Examples:
  underpass migrate suggest shop                         to read, and to correct
  underpass migrate suggest shop --observed n1.json --observed n2.json > shop.yaml
  underpass migrate report -f shop.yaml --namespace shop --observed n1.json --observed n2.json
  kubectl apply -f shop.yaml";

/// The namespace of the servers, and what was observed.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SuggestArgs {
    /// Whose workloads are to be protected
    pub namespace: String,
    #[command(flatten)]
    pub observers: Observers,
}

pub(super) fn run(args: &SuggestArgs) -> anyhow::Result<Answer> {
    let observed = args.observers.gather()?;
    must_have(&observed, &args.namespace)?;
    output::print(&suggest(&observed, &args.namespace))
}

/// YAML, the same for the same observations.
pub(super) fn suggest(observed: &ObservedView, namespace: &str) -> String {
    let mut out = String::new();
    head(observed, namespace, &mut out);
    let mut targets: BTreeMap<Labels, Target<'_>> = BTreeMap::new();
    for server in servers(observed, Some(namespace)) {
        targets.entry(stable(server)).or_default().add(server);
    }
    let mut names = BTreeSet::new();
    for (labels, target) in &targets {
        if labels.is_empty() {
            let what = target.called();
            comment(&mut out, &format!("{what}: no policy, for it has no lasting label to select it by"));
            continue;
        }
        let selector = selector(labels, targets.keys());
        let others = targets.iter().filter(|(other, _)| *other != labels && selects(&selector, other));
        let others: Vec<String> = others.map(|(_, other)| other.called()).collect();
        target.write(namespace, &name(target, &mut names), &selector, &others, &mut out);
    }
    out
}

type Labels = BTreeMap<Arc<str>, Arc<str>>;

fn head(observed: &ObservedView, namespace: &str, out: &mut String) {
    comment(out, &format!("Namespace {namespace}: admits what was observed in mutual TLS, and nobody else."));
    for agent in &observed.agents {
        comment(out, &format!("Observed on {} from {} to {}.", agent.node, agent.since, agent.until));
        let left = agent.left_out.connections;
        if left > 0 {
            comment(
                out,
                &format!("There was no room to keep {left} connections of it: some may be missing below."),
            );
        }
    }
    comment(
        out,
        "What came to pods on other nodes, and what comes once a month, is not among it: read before you apply.",
    );
}

/// Pods that the same labels select.
#[derive(Default)]
struct Target<'a> {
    servers: Vec<&'a ObservedServer>,
    /// By port and client.
    clients: BTreeMap<(u16, Option<SpiffeId>, String), Client<'a>>,
}

/// One client of one port, on however many nodes.
#[derive(Default)]
struct Client<'a> {
    admitted: u64,
    denied: u64,
    requests: u64,
    /// The last of which policy said anything.
    last: Option<&'a Seen>,
}

impl<'a> Target<'a> {
    fn add(&mut self, server: &'a ObservedServer) {
        self.servers.push(server);
        for seen in &server.clients {
            // In plaintext nobody is proved: each is told by its place.
            let place = if seen.client.identity.is_some() { String::new() } else { from(&seen.client) };
            let client = self.clients.entry((seen.port, seen.client.identity.clone(), place)).or_default();
            client.admitted = client.admitted.saturating_add(seen.connections.allowed);
            client.denied = client.denied.saturating_add(seen.connections.denied);
            client.requests =
                client.requests.saturating_add(seen.requests.allowed).saturating_add(seen.requests.denied);
            let says = |seen: &Seen| (seen.last.is_some(), seen.last_seen.clone());
            if client.last.is_none_or(|last| says(last) <= says(seen)) {
                client.last = Some(seen);
            }
        }
    }

    fn called(&self) -> String {
        let names: BTreeSet<_> = self.servers.iter().map(|server| &*server.name).collect();
        names.into_iter().collect::<Vec<_>>().join(", ")
    }

    fn write(&self, namespace: &str, name: &str, selector: &Labels, others: &[String], out: &mut String) {
        out.push_str("---\n");
        comment(out, &self.called());
        if !others.is_empty() {
            let others = others.join(", ");
            comment(
                out,
                &format!("WARNING: these labels also select {others}: whom this admits, it admits there"),
            );
        }
        let mut ports_of: BTreeMap<u16, BTreeSet<&SpiffeId>> = BTreeMap::new();
        for ((port, identity, place), client) in &self.clients {
            match (identity, client.not_admitted(identity.as_ref(), self)) {
                (Some(identity), None) => drop(ports_of.entry(*port).or_default().insert(identity)),
                (_, why) => {
                    let who = identity.as_ref().map_or_else(|| place.clone(), ToString::to_string);
                    let why = why.unwrap_or_default();
                    comment(out, &format!("not admitted: {who} to port {port}: {why}"));
                }
            }
        }
        for port in self.never_seen() {
            comment(out, &format!("not admitted: port {port} is declared, and nobody was seen there"));
        }
        if ports_of.is_empty() {
            comment(out, "Nobody was seen in mutual TLS: this admits nobody.");
        }
        let q = quoted;
        let mut line = |text: &str| {
            out.push_str(text);
            out.push('\n');
        };
        line("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:");
        line(&format!("  name: {}\n  namespace: {}", q(name), q(namespace)));
        line("spec:\n  selector:\n    matchLabels:");
        selector.iter().for_each(|(key, value)| line(&format!("      {}: {}", q(key), q(value))));
        line("  action: ALLOW");
        // Ports with the same clients stand in one rule.
        let mut rules: BTreeMap<BTreeSet<&SpiffeId>, Vec<u16>> = BTreeMap::new();
        ports_of.into_iter().for_each(|(port, clients)| rules.entry(clients).or_default().push(port));
        if !rules.is_empty() {
            line("  rules:");
        }
        let mut rules: Vec<_> = rules.into_iter().collect();
        rules.sort_by(|(_, a), (_, b)| a.cmp(b));
        for (clients, ports) in rules {
            line("  - from:\n    - source:\n        principals:");
            clients.iter().for_each(|id| line(&format!("        - {}", q(&principal(id)))));
            line("    to:\n    - operation:\n        ports:");
            ports.iter().for_each(|port| line(&format!("        - {}", q(&port.to_string()))));
        }
    }

    /// Of the ports that its pods declare.
    fn never_seen(&self) -> BTreeSet<u16> {
        let declared = self.servers.iter().flat_map(|server| server.pod.ports.iter().map(|port| port.port));
        declared.filter(|port| !self.clients.keys().any(|(seen, ..)| seen == port)).collect()
    }
}

impl Client<'_> {
    /// Why no rule names it; none where one does.
    fn not_admitted(&self, identity: Option<&SpiffeId>, target: &Target<'_>) -> Option<String> {
        let Some(last) = self.last else { return Some("nothing is known of it".into()) };
        let when = |what: &str| format!("{what}, last seen {}", last.last_seen);
        let Some(identity) = identity else {
            let expected = last.client.expected_identity.as_ref();
            let expected = expected.map_or("nobody knows whose address it is".to_owned(), |id| {
                format!("in the mesh it would be {}", principal(id))
            });
            let count = self.admitted;
            return Some(when(&format!("plaintext proves no identity ({count} connections; {expected})")));
        };
        if self.admitted == 0 {
            let refused = self.denied > 0;
            return Some(when(if refused { "policy refused every connection" } else { "it reached nobody" }));
        }
        if last.last == Some(OutcomeView::Denied) {
            return Some(when("policy refused its last connection"));
        }
        if let Some(would) = &last.would {
            return Some(when(&format!("its last connection would have been {would}")));
        }
        if self.requests > 0 {
            // By its connection it would be admitted with any request.
            return Some(when("policy judges its requests one by one, and goes on to admit them"));
        }
        let alias = TrustDomain::cluster_local();
        let differs = |server: &&ObservedServer| *server.identity.trust_domain() != alias;
        if *identity.trust_domain() == alias && target.servers.iter().any(differs) {
            return Some(when("its principal would also name the same account of this mesh's trust domain"));
        }
        None
    }
}

/// As policies write it.
fn principal(id: &SpiffeId) -> String {
    id.to_string().trim_start_matches("spiffe://").to_owned()
}

/// Those labels of a server that stay from revision to revision, and that can stand in a selector.
fn stable(server: &ObservedServer) -> Labels {
    let labels = server.pod.labels.iter();
    let kept = labels.filter(|(key, value)| {
        !is_churning_label(key) && !OF_A_REVISION.contains(&&***key) && is_label(key, value)
    });
    kept.map(|(key, value)| (Arc::clone(key), Arc::clone(value))).collect()
}

const OF_A_REVISION: [&str; 10] = [
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "version",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "helm.sh/chart",
    "istio.io/rev",
    "service.istio.io/canonical-revision",
    "security.istio.io/tlsMode",
    "topology.istio.io/network",
];

/// Kubernetes' own rule for labels.
fn is_label(key: &str, value: &str) -> bool {
    let word = |text: &str| {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        text.len() <= 63
            && ends(text.chars().next())
            && ends(text.chars().last())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let domain = |text: &str| text.len() <= 253 && text.split('.').all(word);
    word(name) && prefix.is_none_or(domain) && (value.is_empty() || word(value))
}

/// The labels by which people name a workload, where they select nothing else; all of them otherwise.
fn selector<'a>(labels: &Labels, all: impl Iterator<Item = &'a Labels>) -> Labels {
    let named = NAMING.iter().find(|keys| labels.contains_key(keys[0])).map(|keys| {
        let named = labels.iter().filter(|(key, _)| keys.contains(&&***key));
        named.map(|(key, value)| (Arc::clone(key), Arc::clone(value))).collect::<Labels>()
    });
    match named {
        Some(named) if !all.filter(|other| *other != labels).any(|other| selects(&named, other)) => named,
        _ => labels.clone(),
    }
}

const NAMING: [&[&str]; 5] = [
    &["app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component"],
    &["app", "component", "tier", "role"],
    &["k8s-app"],
    &["name"],
    &["run"],
];

fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// A name that Kubernetes takes and no other of these has.
fn name(target: &Target<'_>, taken: &mut BTreeSet<String>) -> String {
    let first = target.servers.iter().map(|server| &*server.name).min().unwrap_or_default();
    let plain: String = first
        .chars()
        .take(200)
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .collect();
    let wished = format!("observed-{}", plain.trim_matches('-'));
    let wished = wished.trim_matches('-').to_owned();
    let mut name = wished.clone();
    let mut count = 1;
    while !taken.insert(name.clone()) {
        count += 1;
        name = format!("{wished}-{count}");
    }
    name
}

fn comment(out: &mut String, text: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "# {}", printable(text));
}

/// As a JSON string: YAML takes none of it for anything else.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
