//! One rule of an AuthorizationPolicy: `from`, `to` and `when`.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::condition;
use super::list::{Effect, Reader, objects};
use crate::policy::{
    DefectKind, Group, Match, PathMatch, PathTemplate, Rule, ServiceAccount, Settings, StringMatch,
};

pub(super) fn read(reader: &mut Reader<'_>, field: &str, value: &Value, settings: &Settings) -> Group {
    reader.broken = None;
    let mut rules = Vec::new();
    // `- ` alone is null, and as `{}` it matches everything.
    let none = Map::new();
    let fields = match value {
        Value::Object(fields) => fields,
        Value::Null => &none,
        _ => {
            reader.defect(field, DefectKind::Invalid, "it is no object");
            &none
        }
    };
    reader.unknown_fields(field, fields, &["from", "to", "when"]);
    rules.extend(alternatives(reader, field, fields, "from", "source", |reader, field, fields| {
        source(reader, field, fields, settings)
    }));
    rules.extend(alternatives(reader, field, fields, "to", "operation", operation));
    for (field, fields) in objects(reader, &format!("{field}.when"), fields.get("when")) {
        rules.extend(condition::read(reader, &field, fields, settings));
    }
    let never = reader.broken.take().filter(|_| reader.effect == Effect::Admits);
    Group { rules, never }
}

/// One of `from` or `to`. None where nothing of it narrows the rule.
fn alternatives(
    reader: &mut Reader<'_>,
    field: &str,
    fields: &Map<String, Value>,
    list: &str,
    inner: &str,
    read: impl Fn(&mut Reader<'_>, &str, &Map<String, Value>) -> Match,
) -> Option<Rule> {
    let items = objects(reader, &format!("{field}.{list}"), fields.get(list));
    let given = fields.get(list).and_then(Value::as_array).map_or(0, Vec::len);
    let mut matches = Vec::with_capacity(items.len());
    // An entry that could not be read may match anything.
    let mut everything = items.len() < given;
    for (field, fields) in items {
        reader.unknown_fields(&field, fields, &[inner]);
        let path = format!("{field}.{inner}");
        let fields = match fields.get(inner) {
            Some(Value::Object(fields)) if fields.values().any(|value| !is_empty(value)) => fields,
            _ => {
                reader.defect(&path, DefectKind::Invalid, "it says nothing: at least one field must be set");
                everything = true;
                continue;
            }
        };
        match read(reader, &path, fields) {
            read if read == Match::default() => everything = true,
            read => matches.push(read),
        }
    }
    (!everything && !matches.is_empty()).then_some(Rule { matches })
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

fn source(reader: &mut Reader<'_>, field: &str, fields: &Map<String, Value>, settings: &Settings) -> Match {
    let namespace = reader.resource.namespace.clone();
    let mut list = List { reader, field, fields };
    let principal = |text: &str| Ok(principal(text, settings));
    let account = |text: &str| service_account(text, &namespace).map(|account| vec![account]);
    let mut read = Match {
        principals: list.any_of("principals", principal),
        not_principals: list.none_of("notPrincipals", principal),
        namespaces: list.any_of("namespaces", string),
        not_namespaces: list.none_of("notNamespaces", string),
        source_ips: list.any_of("ipBlocks", net),
        not_source_ips: list.none_of("notIpBlocks", net),
        remote_ips: list.any_of("remoteIpBlocks", net),
        not_remote_ips: list.none_of("notRemoteIpBlocks", net),
        service_accounts: list.any_of("serviceAccounts", account),
        not_service_accounts: list.none_of("notServiceAccounts", account),
        trust_domains: list.any_of("trustDomains", string),
        not_trust_domains: list.none_of("notTrustDomains", string),
        ..Match::default()
    };
    for name in ["requestPrincipals", "notRequestPrincipals"] {
        if fields.get(name).is_some_and(|value| !is_empty(value)) {
            let what = "tokens of requests are not checked on a node";
            reader.defect(&format!("{field}.{name}"), DefectKind::Unsupported, what);
        }
    }
    let set = |name: &str| fields.get(name).is_some_and(|value| !is_empty(value));
    if (set("serviceAccounts") || set("notServiceAccounts"))
        && ["principals", "notPrincipals", "namespaces", "notNamespaces"].into_iter().any(set)
    {
        let what = "serviceAccounts cannot be set beside principals or namespaces";
        reader.defect(&format!("{field}.serviceAccounts"), DefectKind::Invalid, what);
        read.service_accounts.clear();
        read.not_service_accounts.clear();
    }
    reader.unknown_fields(
        field,
        fields,
        &[
            "principals",
            "notPrincipals",
            "requestPrincipals",
            "notRequestPrincipals",
            "namespaces",
            "notNamespaces",
            "ipBlocks",
            "notIpBlocks",
            "remoteIpBlocks",
            "notRemoteIpBlocks",
            "serviceAccounts",
            "notServiceAccounts",
            "trustDomains",
            "notTrustDomains",
        ],
    );
    read
}

fn operation(reader: &mut Reader<'_>, field: &str, fields: &Map<String, Value>) -> Match {
    let mut list = List { reader, field, fields };
    let read = Match {
        hosts: list.any_of("hosts", string),
        not_hosts: list.none_of("notHosts", string),
        destination_ports: list.any_of("ports", port),
        not_destination_ports: list.none_of("notPorts", port),
        methods: list.any_of("methods", string),
        not_methods: list.none_of("notMethods", string),
        paths: list.any_of("paths", path),
        not_paths: list.none_of("notPaths", path),
        ..Match::default()
    };
    reader.unknown_fields(
        field,
        fields,
        &["hosts", "notHosts", "ports", "notPorts", "methods", "notMethods", "paths", "notPaths"],
    );
    read
}

struct List<'a, 'r> {
    reader: &'a mut Reader<'r>,
    field: &'a str,
    fields: &'a Map<String, Value>,
}

impl List<'_, '_> {
    fn any_of<T>(&mut self, name: &str, read: impl Fn(&str) -> Result<Vec<T>, String>) -> Vec<T> {
        self.reader.any_of(&format!("{}.{name}", self.field), self.fields.get(name), read)
    }

    fn none_of<T>(&mut self, name: &str, read: impl Fn(&str) -> Result<Vec<T>, String>) -> Vec<T> {
        self.reader.none_of(&format!("{}.{name}", self.field), self.fields.get(name), read)
    }
}

/// `*`, `prefix*`, `*suffix` or the whole.
pub(super) fn pattern(text: &str) -> StringMatch {
    if text == "*" {
        StringMatch::Presence
    } else if let Some(prefix) = text.strip_suffix('*') {
        StringMatch::Prefix(prefix.into())
    } else if let Some(suffix) = text.strip_prefix('*') {
        StringMatch::Suffix(suffix.into())
    } else {
        StringMatch::Exact(text.into())
    }
}

pub(super) fn string(text: &str) -> Result<Vec<StringMatch>, String> {
    Ok(vec![pattern(text)])
}

/// `cluster.local` as a policy's trust domain means the mesh's, whatever that is called; and that, as each of its
/// aliases, means all of them.
pub(super) fn principal(text: &str, settings: &Settings) -> Vec<StringMatch> {
    let text = text.strip_prefix("spiffe://").unwrap_or(text);
    let own = || std::iter::once(&settings.trust_domain).chain(&settings.trust_domain_aliases);
    match text.split_once('/') {
        Some((domain, rest)) if domain == "cluster.local" || own().any(|own| own.as_str() == domain) => {
            own().map(|own| pattern(&format!("{own}/{rest}"))).collect()
        }
        _ => vec![pattern(text)],
    }
}

/// `namespace/name`, or the name of one of the policy's own namespace.
pub(super) fn service_account(text: &str, own: &Arc<str>) -> Result<ServiceAccount, String> {
    let (namespace, name) = text.split_once('/').unwrap_or((own, text));
    if text.contains('*') || namespace.is_empty() || name.is_empty() || name.contains('/') {
        return Err(format!("{text:?} is no service account: namespace/name or name, without wildcard"));
    }
    Ok(ServiceAccount { namespace: namespace.into(), service_account: name.into() })
}

/// An address or a range.
pub(super) fn net(text: &str) -> Result<Vec<IpNet>, String> {
    let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    net.map(|net| vec![net]).map_err(|_| format!("{text:?} is no address and no address range"))
}

pub(super) fn port(text: &str) -> Result<Vec<u16>, String> {
    match text.parse::<u16>() {
        Ok(port) if port > 0 && text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(vec![port]),
        _ => Err(format!("{text:?} is no port: 1 to 65535")),
    }
}

fn path(text: &str) -> Result<Vec<PathMatch>, String> {
    if PathTemplate::is_template(text) {
        return PathTemplate::parse(text)
            .map(|template| vec![PathMatch::Template(template)])
            .map_err(|e| e.to_string());
    }
    Ok(vec![PathMatch::String(pattern(text))])
}
