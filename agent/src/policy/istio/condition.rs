//! One condition under `when`.

use serde_json::{Map, Value};

use super::list::Reader;
use super::rule::{name, net, port, principal, service_account, string, trust_domain};
use crate::policy::{DefectKind, HeaderMatch, Match, Rule, Settings};

/// None where nothing of it narrows the rule.
pub(super) fn read(
    reader: &mut Reader<'_>,
    field: &str,
    fields: &Map<String, Value>,
    settings: &Settings,
) -> Option<Rule> {
    reader.unknown_fields(field, fields, &["key", "values", "notValues"]);
    let Some(key) = fields.get("key").and_then(Value::as_str) else {
        reader.defect(&format!("{field}.key"), DefectKind::Invalid, "a condition has a key");
        return None;
    };
    let given = |name| fields.get(name).and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if !given("values") && !given("notValues") {
        reader.defect(field, DefectKind::Invalid, "a condition has values or notValues");
        return None;
    }
    let namespace = reader.resource.namespace.clone();
    let mut both = Both { reader, field, fields };
    let mut read = Match::default();
    match key {
        "source.ip" => (read.source_ips, read.not_source_ips) = both.read(net),
        "remote.ip" => (read.remote_ips, read.not_remote_ips) = both.read(net),
        "destination.ip" => (read.destination_ips, read.not_destination_ips) = both.read(net),
        "destination.port" => (read.destination_ports, read.not_destination_ports) = both.read(port),
        "source.namespace" => (read.namespaces, read.not_namespaces) = both.read(name),
        "source.trustDomain" => {
            (read.trust_domains, read.not_trust_domains) = both.read(|text| trust_domain(text, settings));
        }
        "source.principal" => {
            (read.principals, read.not_principals) = both.read(|text| principal(text, settings));
        }
        "source.serviceAccount" | "source.serviceaccount" => {
            (read.service_accounts, read.not_service_accounts) =
                both.read(|text| service_account(text, &namespace).map(|account| vec![account]));
        }
        "connection.sni" => (read.snis, read.not_snis) = both.read(name),
        _ => match header(key) {
            Some(name) => {
                let (one_of, none_of) = both.read(string);
                if !(one_of.is_empty() && none_of.is_empty()) {
                    read.headers = vec![HeaderMatch { name: name.into(), one_of, none_of }];
                }
            }
            None => {
                let (kind, what) = if key.starts_with("request.auth.") {
                    (DefectKind::Unsupported, format!("{key}: tokens of requests are not checked on a node"))
                } else if key.starts_with("experimental.envoy.filters.") {
                    (DefectKind::Unsupported, format!("{key}: there is no Envoy on a node"))
                } else {
                    (DefectKind::Invalid, format!("{key:?} is no condition's key"))
                };
                reader.defect(&format!("{field}.key"), kind, &what);
                return None;
            }
        },
    }
    (read != Match::default()).then(|| Rule { matches: vec![read] })
}

struct Both<'a, 'r> {
    reader: &'a mut Reader<'r>,
    field: &'a str,
    fields: &'a Map<String, Value>,
}

impl Both<'_, '_> {
    fn read<T>(&mut self, read: impl Fn(&str) -> Result<Vec<T>, String>) -> (Vec<T>, Vec<T>) {
        let one_of = self.reader.any_of(&format!("{}.values", self.field), self.fields.get("values"), &read);
        let none_of =
            self.reader.none_of(&format!("{}.notValues", self.field), self.fields.get("notValues"), &read);
        (one_of, none_of)
    }
}

/// The name in `request.headers[name]`, in lower case. What HTTP/2 has instead of a request's first line goes by
/// its own names.
fn header(key: &str) -> Option<String> {
    let name = key.strip_prefix("request.headers[")?.strip_suffix(']')?;
    if [":authority", ":method", ":path"].contains(&name) {
        return Some(name.to_string());
    }
    http::HeaderName::from_bytes(name.as_bytes()).ok().map(|name| name.as_str().to_string())
}
