//! The lists that a running agent gives: `underpass pods` and its sisters.

use serde_json::Value;

use super::args::Query;
use super::{Answer, client, output, table};

/// A list of the admin API, and its columns.
pub(super) struct List {
    path: &'static str,
    columns: &'static [Column],
}

/// A header, and an item's cell under it.
type Column = (&'static str, fn(&Value) -> String);

pub(super) fn run(list: &List, query: &Query) -> anyhow::Result<Answer> {
    let value = client::ask(&query.place.socket()?, "GET", list.path, "")?;
    output::print(&output::render(&value, query.output, || list.table(&value))?)
}

impl List {
    pub(super) fn table(&self, items: &Value) -> String {
        let headers: Vec<_> = self.columns.iter().map(|(header, _)| *header).collect();
        let items = items.as_array().map(Vec::as_slice).unwrap_or_default();
        let rows = items.iter().map(|item| self.columns.iter().map(|(_, cell)| cell(item)).collect());
        table::table(&headers, rows)
    }
}

pub(super) const PODS: List = List {
    path: "/pods",
    columns: &[
        ("NAMESPACE", |v| text(v, "/namespace")),
        ("NAME", |v| text(v, "/name")),
        ("STATE", |v| text(v, "/state")),
        ("IDENTITY", |v| text(v, "/identity")),
        ("ADDRESSES", |v| joined(v, "/addresses")),
        ("CAPTURE", |v| text(v, "/capture")),
        ("MTLS", |v| text(v, "/mtls/mode")),
        ("POLICIES", |v| joined(v, "/policies")),
        ("CONNECTIONS", |v| text(v, "/connections")),
        ("REASON", |v| text(v, "/reason")),
    ],
};

pub(super) const WORKLOADS: List = List {
    path: "/workloads",
    columns: &[
        ("NAMESPACE", |v| text(v, "/namespace")),
        ("NAME", |v| text(v, "/name")),
        ("ADDRESSES", |v| joined(v, "/addresses")),
        ("NODE", |v| text(v, "/node")),
        ("PROTOCOL", |v| text(v, "/protocol")),
        ("HEALTH", |v| text(v, "/health")),
        ("IDENTITY", |v| text(v, "/identity")),
    ],
};

pub(super) const SERVICES: List = List {
    path: "/services",
    columns: &[
        ("NAMESPACE", |v| text(v, "/namespace")),
        ("NAME", |v| text(v, "/name")),
        ("HOSTNAME", |v| text(v, "/hostname")),
        ("VIPS", |v| each(v, "/vips", |vip| of(vip).trim_end_matches("/32").trim_end_matches("/128").into())),
        ("PORTS", |v| {
            each(v, "/ports", |p| format!("{}>{}", text(p, "/service_port"), text(p, "/target_port")))
        }),
        ("ENDPOINTS", |v| format!("{}/{}", text(v, "/healthy"), text(v, "/endpoints"))),
    ],
};

pub(super) const POLICIES: List = List {
    path: "/policies",
    columns: &[
        ("NAMESPACE", |v| text(v, "/namespace")),
        ("NAME", |v| text(v, "/name")),
        ("ACTION", |v| text(v, "/action")),
        ("DRY RUN", |v| text(v, "/dry_run")),
        ("SCOPE", |v| text(v, "/scope")),
        ("GROUPS", |v| v.pointer("/groups").and_then(Value::as_array).map_or(0, Vec::len).to_string()),
        ("DEFECT", |v| text(v, "/defect")),
    ],
};

/// The columns of `istioctl ztunnel-config certificate`, and ours.
pub(super) const CERTIFICATES: List = List {
    path: "/certificates",
    columns: &[
        ("CERTIFICATE NAME", |v| text(v, "/identity")),
        ("TYPE", |v| v["kind"].as_str().unwrap_or("Leaf").into()),
        ("STATUS", |v| certificate_status(&text(v, "/state")).into()),
        ("VALID CERT", |v| match v["link_valid"].as_bool() {
            Some(valid) => valid.to_string(),
            None => matches!(&*text(v, "/state"), "valid" | "renewal_failing").to_string(),
        }),
        ("SERIAL NUMBER", |v| text(v, "/serial")),
        ("NOT AFTER", |v| text(v, "/not_after")),
        ("NOT BEFORE", |v| text(v, "/not_before")),
        ("RENEWAL DUE", |v| text(v, "/renewal_due")),
        ("ISSUER", |v| text(v, "/issuer")),
        ("TRUST DOMAIN", |v| text(v, "/trust_domain")),
        ("LAST ERROR", |v| text(v, "/last_error")),
    ],
};

pub(super) const CONNECTIONS: List = List {
    path: "/connections",
    columns: &[
        ("ID", |v| text(v, "/id")),
        ("DIRECTION", |v| text(v, "/direction")),
        ("STATE", |v| text(v, "/state")),
        ("SOURCE", |v| party(v, "/source")),
        ("SOURCE ADDRESS", |v| text(v, "/source/addr")),
        ("DESTINATION", |v| party(v, "/destination")),
        ("DESTINATION ADDRESS", |v| {
            let target = text(v, "/hbone_addr");
            if target.is_empty() { text(v, "/destination/addr") } else { target }
        }),
        ("MTLS", |v| text(v, "/mtls")),
        ("SENT", |v| text(v, "/bytes_sent")),
        ("RECEIVED", |v| text(v, "/bytes_received")),
        ("AGE", |v| age(v.pointer("/age_ms").and_then(Value::as_u64).unwrap_or(0))),
    ],
};

/// istioctl's words.
fn certificate_status(state: &str) -> &str {
    match state {
        "valid" => "Available",
        "renewal_failing" => "Available (renewal failing)",
        "fetching" => "Initializing",
        "failed" => "Unavailable",
        "expired" => "Expired",
        "not_yet_valid" => "Not valid yet",
        other => other,
    }
}

fn party(value: &Value, pointer: &str) -> String {
    let [namespace, workload] =
        ["namespace", "workload"].map(|field| text(value, &format!("{pointer}/{field}")));
    match (namespace.is_empty(), workload.is_empty()) {
        (true, _) => workload,
        (false, true) => namespace,
        (false, false) => format!("{namespace}/{workload}"),
    }
}

/// Two units at most, as kubectl shows ages.
pub(super) fn age(ms: u64) -> String {
    let seconds = ms / 1000;
    let (days, hours, minutes, rest) =
        (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => format!("{minutes}m{rest}s"),
        (0, ..) => format!("{hours}h{minutes}m"),
        _ => format!("{days}d{hours}h"),
    }
}

/// The field as text; empty when it is not there.
pub(super) fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).map(of).unwrap_or_default()
}

fn of(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

fn joined(value: &Value, pointer: &str) -> String {
    each(value, pointer, of)
}

fn each(value: &Value, pointer: &str, show: impl Fn(&Value) -> String) -> String {
    let items = value.pointer(pointer).and_then(Value::as_array);
    items.into_iter().flatten().map(show).collect::<Vec<_>>().join(",")
}
