//! Istio's labels of a TCP connection, rendered once for each distinct set of them.

use crate::model::SpiffeId;

/// In the order in which ztunnel writes them. Its optional locality labels are not offered.
pub(in crate::telemetry) const LABELS: &[&str] = &[
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
];

/// The facts that decide which counters a connection belongs to. Empty means unknown.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::telemetry) struct Key<'a> {
    pub(in crate::telemetry) reporter: &'static str,
    pub(in crate::telemetry) mtls: bool,
    pub(in crate::telemetry) source: Side<'a>,
    pub(in crate::telemetry) destination: Side<'a>,
    /// Host name, namespace, name.
    pub(in crate::telemetry) service: Option<[&'a str; 3]>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(in crate::telemetry) struct Side<'a> {
    pub(in crate::telemetry) workload: &'a str,
    pub(in crate::telemetry) canonical_service: &'a str,
    pub(in crate::telemetry) canonical_revision: &'a str,
    pub(in crate::telemetry) namespace: &'a str,
    pub(in crate::telemetry) cluster: &'a str,
    pub(in crate::telemetry) principal: Option<&'a SpiffeId>,
}

/// A key with its own strings.
pub(super) struct OwnedKey {
    reporter: &'static str,
    mtls: bool,
    source: OwnedSide,
    destination: OwnedSide,
    service: Option<[Box<str>; 3]>,
}

struct OwnedSide {
    strings: [Box<str>; 5],
    principal: Option<SpiffeId>,
}

/// `{reporter="source",…}` in the two pieces around the value of `response_flags`, which is the one
/// label that differs among a connection's counters.
pub(super) struct Rendered {
    pub(super) before_flags: Box<str>,
    pub(super) after_flags: Box<str>,
}

impl<'a> Key<'a> {
    /// What is left when there is no room for another label set.
    pub(super) fn folded(&self) -> Key<'static> {
        Key {
            reporter: self.reporter,
            mtls: self.mtls,
            source: Side::default(),
            destination: Side::default(),
            service: None,
        }
    }

    pub(super) fn owned(&self) -> OwnedKey {
        OwnedKey {
            reporter: self.reporter,
            mtls: self.mtls,
            source: OwnedSide::of(&self.source),
            destination: OwnedSide::of(&self.destination),
            service: self.service.map(|parts| parts.map(Into::into)),
        }
    }

    pub(super) fn render(&self) -> Rendered {
        let mut out = String::with_capacity(1024);
        let [hostname, namespace, name] = self.service.unwrap_or_default();
        push(&mut out, "reporter", self.reporter);
        self.source.render(&mut out, SOURCE);
        push(&mut out, "destination_service", hostname);
        push(&mut out, "destination_service_namespace", namespace);
        push(&mut out, "destination_service_name", name);
        self.destination.render(&mut out, DESTINATION);
        push(&mut out, "request_protocol", "tcp");
        out.push_str(",response_flags=\"");
        let before_flags = out.into_boxed_str();
        let mut out = String::from("\"");
        push(&mut out, "connection_security_policy", if self.mtls { "mutual_tls" } else { UNKNOWN });
        out.push('}');
        Rendered { before_flags, after_flags: out.into_boxed_str() }
    }
}

const UNKNOWN: &str = "unknown";

type SideNames = [&'static str; 8];
const SOURCE: SideNames = [
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
];
const DESTINATION: SideNames = [
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
];

impl Side<'_> {
    fn render(&self, out: &mut String, names: SideNames) {
        let principal = self.principal.map(ToString::to_string).unwrap_or_default();
        // Istio's `app` and `version` are the canonical service and its revision again.
        let values = [
            self.workload,
            self.canonical_service,
            self.canonical_revision,
            self.namespace,
            &principal,
            self.canonical_service,
            self.canonical_revision,
            self.cluster,
        ];
        for (name, value) in names.into_iter().zip(values) {
            push(out, name, value);
        }
    }
}

pub(in crate::telemetry) fn push(out: &mut String, name: &str, value: &str) {
    out.push(if out.is_empty() { '{' } else { ',' });
    out.push_str(name);
    out.push_str("=\"");
    for c in if value.is_empty() { UNKNOWN } else { value }.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out.push('"');
}

impl OwnedKey {
    pub(super) fn as_key(&self) -> Key<'_> {
        Key {
            reporter: self.reporter,
            mtls: self.mtls,
            source: self.source.as_side(),
            destination: self.destination.as_side(),
            service: self.service.as_ref().map(|[a, b, c]| [&**a, &**b, &**c]),
        }
    }
}

impl OwnedSide {
    fn of(side: &Side<'_>) -> Self {
        let strings =
            [side.workload, side.canonical_service, side.canonical_revision, side.namespace, side.cluster];
        Self { strings: strings.map(Into::into), principal: side.principal.cloned() }
    }

    fn as_side(&self) -> Side<'_> {
        let [workload, canonical_service, canonical_revision, namespace, cluster] = &self.strings;
        Side {
            workload,
            canonical_service,
            canonical_revision,
            namespace,
            cluster,
            principal: self.principal.as_ref(),
        }
    }
}
