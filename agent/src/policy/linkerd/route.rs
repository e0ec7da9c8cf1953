//! HTTPRoute and GRPCRoute with a Server as parent: which of its requests have authorizations of their own.

use std::sync::Arc;

use serde_json::Value;
use time::OffsetDateTime;

use super::super::object::Object;
use super::super::resource::{Defect, DefectKind, Kind, ResourceRef};
use super::LINKERD_GROUP;
use super::clients::is_dns_label;
use super::filters::{self, Filter};
use super::matching::{Host, Path, RequestMatch, Text};
use super::read::{Faults, Fields, Node, Reference};

/// A route before anybody has been admitted to it.
#[derive(Debug)]
pub(super) struct RouteSpec {
    pub(super) resource: ResourceRef,
    pub(super) created: Option<OffsetDateTime>,
    /// Servers of its own namespace.
    pub(super) servers: Vec<Arc<str>>,
    pub(super) hostnames: Vec<Host>,
    pub(super) rules: Vec<RuleSpec>,
    /// Why it could not be understood: what of it can be, nobody is admitted to.
    pub(super) broken: Option<Arc<str>>,
    /// What is told of it, whatever else there is.
    pub(super) defects: Vec<Defect>,
}

#[derive(Debug, Default)]
pub(super) struct RuleSpec {
    /// Without any written, one that always holds.
    pub(super) matches: Vec<RequestMatch>,
    pub(super) filters: Arc<[Filter]>,
}

pub(super) const HOLDS: &str = "nobody is admitted to the requests that it may be for";

const PARENT: [&str; 6] = ["group", "kind", "namespace", "name", "sectionName", "port"];
const RULE: [&str; 7] =
    ["name", "matches", "filters", "backendRefs", "timeouts", "retry", "sessionPersistence"];

impl RouteSpec {
    pub(super) fn read(object: &Object, faults: &mut Faults) -> Self {
        let known = ["parentRefs", "hostnames", "rules", "useDefaultGateways"];
        let fields = Node::spec(&object.spec).fields(&known, faults);
        let mut servers = Vec::new();
        for node in fields.items("parentRefs", faults) {
            servers.extend(parent(&node, object, faults));
        }
        if servers.is_empty() {
            // What gateways make of their routes is theirs to say.
            if !names_a_server(object) {
                faults.defects.clear();
            }
            return Self {
                resource: faults.resource.clone(),
                created: object.created(),
                servers,
                hostnames: Vec::new(),
                rules: Vec::new(),
                broken: None,
                defects: std::mem::take(&mut faults.defects),
            };
        }
        let mut hostnames = Vec::new();
        for node in fields.items("hostnames", faults) {
            hostnames.extend(hostname(&node, faults));
        }
        let grpc = faults.resource.kind == Kind::GrpcRoute;
        let always = || vec![if grpc { RequestMatch::any_rpc() } else { RequestMatch::any() }];
        let mut rules = Vec::new();
        match fields.get("rules") {
            None => rules.push(RuleSpec { matches: always(), ..RuleSpec::default() }),
            Some(node) => {
                for node in node.items(faults) {
                    let fields = node.fields(&RULE, faults);
                    let mut matches = Vec::new();
                    for node in fields.items("matches", faults) {
                        let read = if grpc { rpc_match } else { http_match };
                        matches.push(read(&node, faults));
                    }
                    let matches = if matches.is_empty() { always() } else { matches };
                    let filters = filters::read(&fields, &matches, faults);
                    rules.push(RuleSpec { matches, filters });
                }
                // One without rules takes no request, and is there all the same.
                if rules.is_empty() {
                    rules.push(RuleSpec::default());
                }
            }
        }
        Self {
            resource: faults.resource.clone(),
            created: object.created(),
            servers,
            hostnames,
            rules,
            broken: faults.broken(),
            defects: std::mem::take(&mut faults.defects),
        }
    }
}

fn names_a_server(object: &Object) -> bool {
    let parents = object.spec.get("parentRefs").and_then(Value::as_array);
    parents.into_iter().flatten().any(|parent| parent.get("kind").is_some_and(|kind| kind == "Server"))
}

/// The Server that it is a route of, if it is one.
fn parent(node: &Node<'_>, object: &Object, faults: &mut Faults) -> Option<Arc<str>> {
    let fields = node.fields(&PARENT, faults);
    let mut text = |key, default| match fields.get(key) {
        None => Some(default),
        Some(node) => node.text(faults),
    };
    let own_group = &*object.group;
    let (group, kind) = (text("group", own_group)?, text("kind", "Gateway")?);
    let (namespace, name) = (text("namespace", "")?, text("name", "")?);
    let namespace = if namespace.is_empty() { &*object.meta.namespace } else { namespace };
    let parent = Reference { group, kind, name, namespace: Some(namespace) };
    if kind == "Server" && group != LINKERD_GROUP {
        let message = format!("{} is no parent: a Server is of group {LINKERD_GROUP}", parent.title());
        faults.tell(DefectKind::Invalid, &node.path, message);
    }
    if !parent.is(LINKERD_GROUP, "Server") {
        return None;
    }
    if namespace != &*object.meta.namespace {
        faults.invalid(&node.path, "a Server is a parent in its own namespace only");
        return None;
    }
    for key in ["port", "sectionName"] {
        if let Some(node) = fields.get(key) {
            faults.invalid(&node.path, "a Server is named without it");
        }
    }
    if name.is_empty() {
        faults.invalid(&node.path, "it has no name");
        return None;
    }
    Some(name.into())
}

fn hostname(node: &Node<'_>, faults: &mut Faults) -> Option<Host> {
    let text = node.text(faults)?;
    let (wild, name) = text.strip_prefix("*.").map_or((false, text), |rest| (true, rest));
    if !name.split('.').all(is_dns_label) || name.parse::<std::net::IpAddr>().is_ok() {
        faults.invalid(&node.path, format_args!("{text:?} is no host name"));
        return None;
    }
    Some(if wild { Host::Below(name.into()) } else { Host::Exact(name.into()) })
}

fn http_match(node: &Node<'_>, faults: &mut Faults) -> RequestMatch {
    let fields = node.fields(&["path", "headers", "queryParams", "method"], faults);
    let mut found = RequestMatch::any();
    if let Some(path) = fields.get("path").and_then(|node| http_path(&node, faults)) {
        found.path = path;
    }
    found.method = fields.get("method").and_then(|node| {
        const ALL: [&str; 9] =
            ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
        let text = node.text(faults)?;
        if !ALL.contains(&text) {
            faults.invalid(&node.path, format_args!("{text:?} is no method"));
            return None;
        }
        Some(text.into())
    });
    headers(&fields, &mut found, faults);
    for node in fields.items("queryParams", faults) {
        let Some((name, text)) = named_text(&node, faults) else { continue };
        // Of several of one name the first counts.
        if !found.queries.iter().any(|(other, _)| **other == *name) {
            found.queries.push((name.into(), text));
        }
    }
    found
}

fn http_path(node: &Node<'_>, faults: &mut Faults) -> Option<Path> {
    let fields = node.fields(&["type", "value"], faults);
    let kind = fields.get("type").map_or(Some("PathPrefix"), |node| node.text(faults))?;
    let value = fields.get("value").map_or(Some("/"), |node| node.text(faults))?;
    let at = fields.path("value");
    match kind {
        "Exact" | "PathPrefix" if !value.starts_with('/') => {
            faults.invalid(&at, format_args!("{value:?} does not begin with \"/\""));
            None
        }
        "Exact" => Some(Path::Exact(value.into())),
        "PathPrefix" => Some(Path::prefix(value)),
        "RegularExpression" => Some(Path::Pattern(pattern(value, &at, faults)?)),
        other => {
            faults.invalid(&fields.path("type"), format_args!("{other:?} is no way to compare a path"));
            None
        }
    }
}

fn rpc_match(node: &Node<'_>, faults: &mut Faults) -> RequestMatch {
    let fields = node.fields(&["method", "headers"], faults);
    let mut found = RequestMatch::any_rpc();
    if let Some(path) = fields.get("method").and_then(|node| rpc_method(&node, faults)) {
        found.path = path;
    }
    headers(&fields, &mut found, faults);
    found
}

fn rpc_method(node: &Node<'_>, faults: &mut Faults) -> Option<Path> {
    let fields = node.fields(&["type", "service", "method"], faults);
    let kind = fields.get("type").map_or(Some("Exact"), |node| node.text(faults))?;
    let mut part = |key| match fields.get(key) {
        None => Some(None),
        Some(node) => {
            let text = node.text(faults)?;
            compare(kind, text, &node.path, &fields.path("type"), faults).map(Some)
        }
    };
    let (service, method) = (part("service")?, part("method")?);
    Some(Path::Rpc { service, method })
}

fn headers(fields: &Fields<'_>, found: &mut RequestMatch, faults: &mut Faults) {
    for node in fields.items("headers", faults) {
        let Some((name, text)) = named_text(&node, faults) else { continue };
        let Ok(name) = name.parse::<http::HeaderName>() else {
            faults.invalid(&format!("{}.name", node.path), format_args!("{name:?} is no header's name"));
            continue;
        };
        if !found.headers.iter().any(|(other, _)| *other == name) {
            found.headers.push((name, text));
        }
    }
}

/// `{type, name, value}` of headers and query parameters.
fn named_text<'a>(node: &Node<'a>, faults: &mut Faults) -> Option<(&'a str, Text)> {
    let fields = node.fields(&["type", "name", "value"], faults);
    let kind = fields.get("type").map_or(Some("Exact"), |node| node.text(faults))?;
    let name = fields.required("name", faults)?.name(faults)?;
    let value = fields.required("value", faults)?.text(faults)?;
    let text = compare(kind, value, &fields.path("value"), &fields.path("type"), faults)?;
    Some((name, text))
}

fn compare(kind: &str, value: &str, at: &str, kind_at: &str, faults: &mut Faults) -> Option<Text> {
    match kind {
        "Exact" => Some(Text::Exact(value.into())),
        "RegularExpression" => pattern(value, at, faults).map(Text::Pattern),
        other => {
            faults.invalid(kind_at, format_args!("{other:?} is no way to compare a text"));
            None
        }
    }
}

fn pattern(text: &str, at: &str, faults: &mut Faults) -> Option<super::matching::Pattern> {
    match super::matching::Pattern::new(text) {
        Ok(pattern) => Some(pattern),
        Err(e) => {
            faults.invalid(at, format_args!("{text:?} is no regular expression that can be used: {e}"));
            None
        }
    }
}
