//! What a decision about a connection or request costs when there are many policies or rules, beside one when
//! there are few; what compiling them costs, and what they take up.

use std::fmt::Write as _;
use std::hint::black_box;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use underpass::model::workload::{PodFacts, WorkloadMtls};
use underpass::policy::{
    Action, Compiled, Conn, Group, Kind, Match, MtlsDefaults, Object, PathMatch, Policy, PolicySet, Request,
    Resources, Rule, Scope, ServiceAccount, Settings, StringMatch, Subject,
};

use super::cost;
use crate::load::stats::median;

const FEW: usize = 10;
const MANY: usize = 10_000;
/// Each decides with few and with many, one right after the other.
const ROUNDS: usize = 21;
/// Of one measurement.
const RUN: Duration = Duration::from_millis(10);

/// How the rules differ from each other.
type Differing = fn(usize) -> Match;

/// So many rules that differ so.
type Policies = fn(usize, Differing) -> Vec<Policy>;

/// So many of Linkerd's resources, beside a Server.
type Objects = fn(usize) -> Vec<Value>;

const KINDS: &[(&str, Differing)] = &[
    ("principals", |n| Match { principals: vec![exact(format!("td/ns/n{n}/sa/a"))], ..Match::default() }),
    ("namespaces", |n| Match { namespaces: vec![exact(format!("n{n}"))], ..Match::default() }),
    ("service accounts", |n| Match {
        service_accounts: vec![ServiceAccount {
            namespace: "n".into(),
            service_account: format!("a{n}").into(),
        }],
        ..Match::default()
    }),
    ("address ranges", |n| Match {
        source_ips: vec![format!("172.{}.{}.0/24", 16 + n / 256, n % 256).parse().expect("a range")],
        ..Match::default()
    }),
    ("ports", |n| Match { destination_ports: vec![number(20_000 + n)], ..Match::default() }),
    ("paths of one client", |n| Match {
        namespaces: vec![exact("shop".into())],
        paths: vec![PathMatch::String(StringMatch::Prefix(format!("/p{n}/").into()))],
        ..Match::default()
    }),
    ("hosts", |n| Match { hosts: vec![exact(format!("h{n}.example"))], ..Match::default() }),
];

const SHAPES: [(&str, Policies); 3] =
    [("rules of one policy", rules), ("policies that apply", applying), ("policies of others", others)];

const LINKERD: &[(&str, Objects)] = &[
    ("routes, by path", |n| {
        (0..n).map(|n| route(n, json!({"path": {"type": "Exact", "value": format!("/p{n}")}}))).collect()
    }),
    ("routes, by prefix", |n| {
        (0..n).map(|n| route(n, json!({"path": {"value": format!("/p{n}/")}}))).collect()
    }),
    ("routes, by header", |n| {
        let header = |n| json!({"headers": [{"name": "x-team", "value": format!("t{n}")}]});
        (0..n).map(|n| route(n, header(n))).collect()
    }),
    ("routes and their authorizations", |n| {
        let one = |n| [route(n, json!({"path": {"value": format!("/p{n}")}})), admit("HTTPRoute", n)];
        (0..n).flat_map(one).collect()
    }),
    ("authorizations of a Server, by account", |n| (0..n).map(|n| admit("Server", n)).collect()),
    ("identities of one authorization", |n| {
        let name = |n| format!("a{n}.shop.serviceaccount.identity.linkerd.td");
        let identities: Vec<_> = (0..n).map(name).collect();
        authentication("MeshTLSAuthentication", json!({"identities": identities}))
    }),
    ("networks of one authorization", |n| {
        let cidr = |n: usize| json!({"cidr": format!("172.{}.{}.0/24", 16 + n / 256, n % 256)});
        let networks: Vec<_> = (0..n).map(cidr).collect();
        authentication("NetworkAuthentication", json!({"networks": networks}))
    }),
    ("Servers and authorizations of others", |n| {
        let one = |n: usize| {
            [server(), admit("Server", n)].map(|mut object| {
                object["metadata"]["namespace"] = json!(format!("n{n}"));
                object
            })
        };
        (0..n).flat_map(one).collect()
    }),
];

/// What is measured, by the number of what it is made of.
struct Row {
    name: String,
    of: Box<dyn Fn(usize) -> State>,
}

/// Every shape of every kind, and Linkerd's.
fn rows() -> Vec<Row> {
    let linkerd = LINKERD.iter().map(|(kind, objects)| Row {
        name: format!("of Linkerd's {kind}"),
        of: Box::new(|n| State::Objects(read(objects(n)))),
    });
    SHAPES.into_iter().flat_map(of_every_kind).chain(linkerd).collect()
}

fn of_every_kind((shape, policies): (&'static str, Policies)) -> impl Iterator<Item = Row> {
    KINDS.iter().map(move |(kind, differing)| Row {
        name: format!("{shape}, by {kind}"),
        of: Box::new(move |n| State::Policies(policies(n, *differing))),
    })
}

/// Runs everything. The answer is a markdown table.
///
/// # Errors
/// What a process takes up could not be read.
pub fn run() -> Result<String> {
    let mut table = String::new();
    let _ = writeln!(
        table,
        "{} CPUs; medians of {ROUNDS} rounds. Nothing that is asked about matches any of the rules. Bytes are what a\n\
         fresh process grew by for each policy (or rule), as written and compiled.\n\n\
         | | {FEW} | {MANY} | ratio | bytes each | compiling {MANY} | one of them changed |\n|---|---|---|---|---|---|---|",
        cost::all_cpus().len()
    );
    for (at, row) in rows().iter().enumerate() {
        eprintln!("{}", row.name);
        let measured = row.measure(grown(at)? / MANY as u64);
        let _ = writeln!(table, "| {MANY} {} |{measured}", row.name);
    }
    Ok(table)
}

/// By how many bytes this process grows when it compiles what a row is made of. Only a fresh one tells: what another
/// row has freed stays a process's.
///
/// # Errors
/// There is no such row, or what the process takes up could not be read.
pub fn footprint(row: usize) -> Result<u64> {
    let rows = rows();
    let row = rows.get(row).context("there is no such row")?;
    let before = resident()?;
    let kept = compile((row.of)(MANY), &PolicySet::default());
    let grown = resident()?.saturating_sub(before);
    drop(kept);
    Ok(1024 * grown)
}

fn grown(row: usize) -> Result<u64> {
    let mut fresh = Command::new(std::env::current_exe().context("finding the benchmark's own program")?);
    let said = fresh.args(["footprint", &row.to_string()]).output().context("starting a fresh process")?;
    let text = String::from_utf8_lossy(&said.stdout);
    text.trim()
        .parse()
        .with_context(|| format!("a fresh process said {text:?} and ended with {}", said.status))
}

/// What decisions are made of.
enum State {
    Policies(Vec<Policy>),
    Objects(Vec<Arc<Object>>),
}

impl State {
    /// With one thing in it that is another.
    fn changed(mut self) -> Self {
        match &mut self {
            Self::Policies(policies) => {
                policies.first_mut().into_iter().for_each(|policy| policy.groups.push(Group::default()));
            }
            Self::Objects(objects) => drop(objects.pop()),
        }
        self
    }
}

impl Row {
    fn measure(&self, bytes: u64) -> String {
        let of = &self.of;
        let all = of(MANY);
        let begun = Instant::now();
        let (set, many) = compile(all, &PolicySet::default());
        let compiling = begun.elapsed();
        let changed = of(MANY).changed();
        let begun = Instant::now();
        let kept = compile(changed, &set);
        let change = begun.elapsed();
        drop(kept);
        let (_set, few) = compile(of(FEW), &PolicySet::default());
        let (mut of_few, mut of_many, mut ratios) = (vec![], vec![], vec![]);
        for _ in 0..ROUNDS {
            let (few, many) = (decisions(&few), decisions(&many));
            of_few.push(few);
            of_many.push(many);
            ratios.push(many / few);
        }
        let middle = |values: &[f64]| median(values).unwrap_or_default();
        format!(
            " {:.0} ns | {:.0} ns | {:.2} | {bytes} | {:.1} ms | {:.1} ms |",
            middle(&of_few),
            middle(&of_many),
            middle(&ratios),
            compiling.as_secs_f64() * 1e3,
            change.as_secs_f64() * 1e3
        )
    }
}

fn compile(state: State, before: &PolicySet) -> (PolicySet, Compiled) {
    let set = match state {
        State::Policies(policies) => before.next(policies, MtlsDefaults::default(), None),
        State::Objects(objects) => {
            let settings = Settings::new("td".parse().expect("a trust domain"));
            let resources = before.resources().map(|resources| &**resources);
            let resources = Resources::after(resources, &objects, settings);
            before.next([], MtlsDefaults::default(), Some(Arc::new(resources)))
        }
    };
    let named: [Arc<str>; 0] = [];
    let facts = PodFacts::default();
    let mtls = WorkloadMtls::default();
    let compiled = set.compile(&Subject { namespace: "own", policies: &named, mtls: &mtls, facts: &facts });
    (set, compiled)
}

/// Nanoseconds that one connection and one request on it take.
fn decisions(compiled: &Compiled) -> f64 {
    let source = "spiffe://td/ns/shop/sa/web".parse().ok();
    let conn = Conn::new(source, [10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 8080);
    let headers = http::HeaderMap::new();
    let request =
        Request { method: "GET", host: "shop.example", path: "/api/orders", query: None, headers: &headers };
    let begun = Instant::now();
    let mut n = 0_u32;
    while begun.elapsed() < RUN {
        for _ in 0..16 {
            black_box(compiled.on_connection(black_box(&conn)));
            black_box(compiled.evaluate(black_box(&conn), Some(black_box(&request))));
        }
        n += 16;
    }
    begun.elapsed().as_secs_f64() * 1e9 / f64::from(n)
}

fn rules(n: usize, differing: Differing) -> Vec<Policy> {
    vec![policy("own", "p", (0..n).map(|n| group(differing(n))).collect())]
}

fn applying(n: usize, differing: Differing) -> Vec<Policy> {
    (0..n).map(|n| policy("own", &format!("p{n}"), vec![group(differing(n))])).collect()
}

fn others(n: usize, differing: Differing) -> Vec<Policy> {
    let one = |n: usize| {
        let namespace = if n == 0 { "own".to_string() } else { format!("n{n}") };
        policy(&namespace, &format!("p{n}"), vec![group(differing(n))])
    };
    (0..n).map(one).collect()
}

/// As if from a cluster; with a Server in front of them.
fn read(objects: Vec<Value>) -> Vec<Arc<Object>> {
    let objects = std::iter::once(server()).chain(objects);
    objects.map(|object| Arc::new(Object::read(object).expect("an object"))).collect()
}

fn object(api: &str, kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": api, "kind": kind, "metadata": {"namespace": "own", "name": name}, "spec": spec})
}

fn server() -> Value {
    object("policy.linkerd.io/v1beta3", "Server", "s", json!({"podSelector": {}, "port": 8080}))
}

fn route(n: usize, matches: Value) -> Value {
    let parents = json!([{"group": "policy.linkerd.io", "kind": "Server", "name": "s"}]);
    let spec = json!({"parentRefs": parents, "rules": [{"matches": [matches]}]});
    object("policy.linkerd.io/v1beta3", "HTTPRoute", &format!("r{n}"), spec)
}

/// Admits one account to the Server, or to a route.
fn admit(kind: &str, n: usize) -> Value {
    let name = if kind == "Server" { "s".to_string() } else { format!("r{n}") };
    let target = json!({"group": "policy.linkerd.io", "kind": kind, "name": name});
    let required = json!([{"kind": "ServiceAccount", "name": format!("a{n}")}]);
    policy_of_linkerd(&format!("p{n}"), target, required)
}

/// Admits to the Server whom this authenticates.
fn authentication(kind: &str, spec: Value) -> Vec<Value> {
    let required = json!([{"group": "policy.linkerd.io", "kind": kind, "name": "x"}]);
    let target = json!({"group": "policy.linkerd.io", "kind": "Server", "name": "s"});
    vec![object("policy.linkerd.io/v1alpha1", kind, "x", spec), policy_of_linkerd("p", target, required)]
}

fn policy_of_linkerd(name: &str, target: Value, required: Value) -> Value {
    let spec = json!({"targetRef": target, "requiredAuthenticationRefs": required});
    object("policy.linkerd.io/v1alpha1", "AuthorizationPolicy", name, spec)
}

fn policy(namespace: &str, name: &str, groups: Vec<Group>) -> Policy {
    Policy {
        kind: Kind::Authorization,
        namespace: namespace.into(),
        name: name.into(),
        scope: Scope::Namespace,
        action: Action::Deny,
        dry_run: false,
        groups,
        defect: None,
    }
}

fn group(m: Match) -> Group {
    Group { rules: vec![Rule { matches: vec![m] }], never: None }
}

fn exact(text: String) -> StringMatch {
    StringMatch::Exact(text.into())
}

fn number(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

fn resident() -> Result<u64> {
    let pid = i32::try_from(std::process::id()).context("a process id")?;
    cost::resident_kib(&[pid])
}
