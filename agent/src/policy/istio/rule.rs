//! One rule of an AuthorizationPolicy: `from`, `to` and `when`.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::condition;
use super::list::{Effect, Reader, objects};
use crate::model::TrustDomain;
use crate::policy::values::fits;
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
    let principal = |text: &str| principal(text, settings);
    let trust_domain = |text: &str| trust_domain(text, settings);
    let account = |text: &str| service_account(text, &namespace).map(|account| vec![account]);
    let mut read = Match {
        principals: list.any_of("principals", principal),
        not_principals: list.none_of("notPrincipals", principal),
        namespaces: list.any_of("namespaces", name),
        not_namespaces: list.none_of("notNamespaces", name),
        source_ips: list.any_of("ipBlocks", net),
        not_source_ips: list.none_of("notIpBlocks", net),
        remote_ips: list.any_of("remoteIpBlocks", net),
        not_remote_ips: list.none_of("notRemoteIpBlocks", net),
        service_accounts: list.any_of("serviceAccounts", account),
        not_service_accounts: list.none_of("notServiceAccounts", account),
        trust_domains: list.any_of("trustDomains", trust_domain),
        not_trust_domains: list.none_of("notTrustDomains", trust_domain),
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
        hosts: list.any_of("hosts", name),
        not_hosts: list.none_of("notHosts", name),
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

/// A [`pattern`] for what never has an asterisk itself: one that stands for nothing cannot be right.
pub(super) fn name(text: &str) -> Result<Vec<StringMatch>, String> {
    let rest = text.strip_prefix('*').or_else(|| text.strip_suffix('*')).unwrap_or(text);
    match rest.contains('*') {
        true => Err(format!("{text:?} has an asterisk that is not at one end: it matches nothing")),
        false => Ok(vec![pattern(text)]),
    }
}

/// `cluster.local` as a policy's trust domain means the mesh's, whatever that is called; and that, as each of its
/// aliases, means all of them.
pub(super) fn principal(text: &str, settings: &Settings) -> Result<Vec<StringMatch>, String> {
    // No part of an identity has a colon but its scheme.
    if text.contains(':') {
        return Err(format!("{text:?} is no principal: trust-domain/ns/namespace/sa/name, without a scheme"));
    }
    let as_is = name(text)?;
    Ok(match text.split_once('/') {
        Some(("cluster.local", rest)) => {
            names(settings).map(|own| pattern(&format!("{own}/{rest}"))).collect()
        }
        // `*op/sa/web` is no trust domain that ends with `op`.
        Some((domain, rest)) if !domain.starts_with('*') || rest.starts_with("ns/") => {
            by_all_names(domain, as_is, settings, |own| format!("{own}/{rest}"))
        }
        _ => as_is,
    })
}

/// The mesh's, by one of its names or by a pattern, means all of its names.
pub(super) fn trust_domain(text: &str, settings: &Settings) -> Result<Vec<StringMatch>, String> {
    if text.contains(['/', ':']) {
        return Err(format!("{text:?} is no trust domain"));
    }
    Ok(by_all_names(text, name(text)?, settings, ToString::to_string))
}

/// `as_is` where `domain` is none of the mesh's names; otherwise with every name that it does not fit itself.
fn by_all_names(
    domain: &str,
    as_is: Vec<StringMatch>,
    settings: &Settings,
    spell: impl Fn(&TrustDomain) -> String,
) -> Vec<StringMatch> {
    let domain = pattern(domain);
    let fits = |own: &&TrustDomain| fits(&domain, own.as_str().as_bytes());
    if !names(settings).any(|own| fits(&own)) {
        return as_is;
    }
    let others = names(settings).filter(|own| !fits(own)).map(|own| pattern(&spell(own)));
    as_is.into_iter().chain(others).collect()
}

fn names(settings: &Settings) -> impl Iterator<Item = &TrustDomain> {
    std::iter::once(&settings.trust_domain).chain(&settings.trust_domain_aliases)
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
