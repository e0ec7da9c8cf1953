//! What a decision about a connection or request costs when there are many policies or rules, beside one when
//! there are few; what compiling them costs, and what they take up.

use std::fmt::Write as _;
use std::hint::black_box;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use underpass::model::workload::WorkloadMtls;
use underpass::policy::{
    Action, Compiled, Conn, Group, Kind, Match, MtlsDefaults, PathMatch, Policy, PolicySet, Request, Rule,
    Scope, ServiceAccount, StringMatch, Subject,
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

/// Every shape of every kind.
fn rows() -> impl Iterator<Item = (&'static str, Policies, &'static str, Differing)> {
    let of =
        |(shape, policies)| KINDS.iter().map(move |(kind, differing)| (shape, policies, *kind, *differing));
    SHAPES.into_iter().flat_map(of)
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
    for (at, (shape, policies, kind, differing)) in rows().enumerate() {
        eprintln!("{shape}, {kind}");
        let row = row(policies, differing, grown(at)? / MANY as u64);
        let _ = writeln!(table, "| {MANY} {shape}, by {kind} |{row}");
    }
    Ok(table)
}

/// By how many bytes this process grows when it compiles a row's policies. Only a fresh one tells: what another row
/// has freed stays a process's.
///
/// # Errors
/// There is no such row, or what the process takes up could not be read.
pub fn footprint(row: usize) -> Result<u64> {
    let (_, policies, _, differing) = rows().nth(row).context("there is no such row")?;
    let before = resident()?;
    let kept = compile(policies(MANY, differing), &PolicySet::default());
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

fn row(policies: Policies, differing: Differing, bytes: u64) -> String {
    let written = policies(MANY, differing);
    let begun = Instant::now();
    let (set, many) = compile(written, &PolicySet::default());
    let compiling = begun.elapsed();
    let mut changed = policies(MANY, differing);
    if let Some(policy) = changed.first_mut() {
        policy.groups.push(Group::default());
    }
    let begun = Instant::now();
    let kept = compile(changed, &set);
    let change = begun.elapsed();
    drop(kept);
    let (_set, few) = compile(policies(FEW, differing), &PolicySet::default());
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

fn compile(policies: Vec<Policy>, before: &PolicySet) -> (PolicySet, Compiled) {
    let set = before.next(policies, MtlsDefaults::default(), None);
    let named: [Arc<str>; 0] = [];
    let compiled = set.compile(&Subject::named("own", &named, &WorkloadMtls::default()));
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
