//! `underpass_unauthorized_*`: whom policy refused, by server and client. The rows have the numbers already, and
//! the bound on their labels.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::table::{Client, Row, Table};
use crate::telemetry::metrics::labels::push;
use crate::telemetry::{Kind, MetricInfo};

const LABELS: &[&str] = &[
    "source_workload_namespace",
    "source_workload",
    "source_principal",
    "destination_workload_namespace",
    "destination_workload",
    "connection_security_policy",
];

pub(in crate::telemetry) const UNAUTHORIZED_CONNECTIONS: MetricInfo = MetricInfo {
    name: "underpass_unauthorized_connections_total",
    kind: Kind::Counter,
    help: "Connections that policy refused or ended, by client and server; plaintext from no known workload has no source; what there was no room for is unknown throughout",
    labels: LABELS,
};
pub(in crate::telemetry) const UNAUTHORIZED_REQUESTS: MetricInfo = MetricInfo {
    name: "underpass_unauthorized_requests_total",
    kind: Kind::Counter,
    help: "Requests that policy refused, by client and server, in the same way",
    labels: LABELS,
};
pub(in crate::telemetry) const ROWS: MetricInfo = MetricInfo {
    name: "underpass_observed_rows",
    kind: Kind::Gauge,
    help: "Pairs of a client and a server's port that were observed in the last 30 days, 10000 at most",
    labels: &[],
};
pub(in crate::telemetry) const LEFT_OUT: MetricInfo = MetricInfo {
    name: "underpass_observed_left_out_total",
    kind: Kind::Counter,
    help: "Connections of pairs for which there was no row left",
    labels: &[],
};

pub(super) fn render(table: &Table) -> String {
    let mut pairs: BTreeMap<[&str; 6], [u64; 2]> = BTreeMap::new();
    let principals: Vec<(&Row, String)> = table.rows().filter(|row| denied(row)).map(named).collect();
    for (row, principal) in &principals {
        let count = pairs.entry(labels(row, principal)).or_default();
        count[0] += row.counts.denied;
        count[1] += row.requests.denied;
    }
    let rest = [table.left_out.denied, table.left_out.requests_denied];
    if rest != [0, 0] {
        pairs.insert([""; 6], rest);
    }
    let mut out = String::new();
    family(&UNAUTHORIZED_CONNECTIONS, pairs.iter().map(|(labels, [count, _])| (labels, *count)), &mut out);
    family(&UNAUTHORIZED_REQUESTS, pairs.iter().map(|(labels, [_, count])| (labels, *count)), &mut out);
    let numbers =
        [(&ROWS, "gauge", table.rows().len() as u64), (&LEFT_OUT, "counter", table.left_out.connections)];
    for (info, kind, value) in numbers {
        let MetricInfo { name, help, .. } = info;
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    }
    out
}

fn denied(row: &Row) -> bool {
    row.counts.denied > 0 || row.requests.denied > 0
}

fn named(row: &Row) -> (&Row, String) {
    let principal = match &row.client {
        Client::Proven(id) => id.to_string(),
        Client::Workload { .. } | Client::Address(_) => String::new(),
    };
    (row, principal)
}

fn labels<'a>(row: &'a Row, principal: &'a str) -> [&'a str; 6] {
    let (namespace, workload, security) = match &row.client {
        Client::Proven(id) => (id.namespace().unwrap_or_default(), "", "mutual_tls"),
        Client::Workload { namespace, name, .. } => (&**namespace, &**name, "none"),
        Client::Address(_) => ("", "", "none"),
    };
    [namespace, workload, principal, &row.server.namespace, &row.server.name, security]
}

fn family<'a>(info: &MetricInfo, values: impl Iterator<Item = (&'a [&'a str; 6], u64)>, out: &mut String) {
    let values: Vec<_> = values.filter(|(_, count)| *count > 0).collect();
    if values.is_empty() {
        return;
    }
    let MetricInfo { name, help, .. } = info;
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
    for (labels, count) in values {
        let mut rendered = String::new();
        for (name, value) in LABELS.iter().zip(labels) {
            push(&mut rendered, name, value);
        }
        let _ = writeln!(out, "{name}{rendered}}} {count}");
    }
}
