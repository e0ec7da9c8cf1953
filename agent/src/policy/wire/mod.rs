//! `istio.security.Authorization`: Istio's policies as istiod sends them to proxies that look at connections.
//!
//! It is the very shape of [`Policy`], so that this is no more than reading; but what other readers of it drop is kept
//! from making a rule wider (docs/decisions/0006): bad values, and the fields of a newer istiod.

mod unknown;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use underpass_proto::Message as _;
use underpass_proto::istio::security as sent;
use underpass_proto::istio::security::string_match::MatchType;

use super::istio::authorization::Whole;
use super::istio::list::{Effect, Reader};
use super::{
    Action, Defect, DefectKind, Group, Kind, Match, Policy, ResourceRef, Rule, Scope, ServiceAccount,
    StringMatch,
};
use crate::model::cidr;
use unknown::Known;

/// One policy, and what of it could not be taken as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub policy: Policy,
    pub defects: Vec<Defect>,
}

/// Reads what is sent under `name` (`namespace/name`).
///
/// There is a policy whatever the bytes: one that is left out because it is not understood opens what it closes.
/// Where not even the workloads are known that it is for, it denies all of the mesh's.
pub fn read(name: &str, bytes: &[u8]) -> Read {
    let (namespace, own_name) = name.split_once('/').unwrap_or(("", name));
    let resource =
        ResourceRef { kind: Kind::Authorization, namespace: namespace.into(), name: own_name.into() };
    let mut defects = Vec::new();
    let mut whole = Whole { resource: &resource, defects: &mut defects, defect: None };
    let (message, unknown) = match decode(bytes) {
        Ok(decoded) => decoded,
        Err(why) => {
            whole.refuse("", DefectKind::Invalid, &why);
            (sent::Authorization { action: sent::Action::Deny.into(), ..Default::default() }, BTreeMap::new())
        }
    };
    let (action, effect) = action(&mut whole, message.action);
    let scope = scope(&mut whole, message.scope);
    let named = is_named(&mut whole, name, &message);
    let defect = whole.defect;

    let reader = Reader { resource: &resource, effect, defects: &mut defects, broken: None };
    let groups = Groups { reader, unknown }.read(message.groups);
    let policy = Policy {
        kind: Kind::Authorization,
        namespace: resource.namespace.clone(),
        name: resource.name.clone(),
        scope: if named { scope } else { Scope::Global },
        action,
        dry_run: named && message.dry_run,
        groups,
        defect,
    };
    Read { policy, defects }
}

/// The message, and which unknown fields it has where.
fn decode(bytes: &[u8]) -> Result<(sent::Authorization, BTreeMap<String, u32>), String> {
    let message = sent::Authorization::decode(bytes).map_err(|e| e.to_string())?;
    let unknown = unknown::find(bytes, &AUTHORIZATION).map_err(|e| e.to_string())?;
    Ok((message, unknown))
}

fn action(whole: &mut Whole<'_>, number: i32) -> (Action, Effect) {
    match sent::Action::try_from(number) {
        Ok(sent::Action::Allow) => (Action::Allow, Effect::Admits),
        Ok(sent::Action::Deny) => (Action::Deny, Effect::Denies),
        Err(_) => {
            whole.refuse("action", DefectKind::Unsupported, &format!("{number} is no action that is known"));
            (Action::Deny, Effect::Denies)
        }
    }
}

fn scope(whole: &mut Whole<'_>, number: i32) -> Scope {
    match sent::Scope::try_from(number) {
        Ok(sent::Scope::Global) => Scope::Global,
        Ok(sent::Scope::Namespace) => Scope::Namespace,
        Ok(sent::Scope::WorkloadSelector) => Scope::WorkloadSelector,
        Err(_) => {
            whole.refuse("scope", DefectKind::Unsupported, &format!("{number} is no scope that is known"));
            Scope::Global
        }
    }
}

/// Whether it is the policy that it is sent as. If it were taken under its own name, it would stand in for another.
fn is_named(whole: &mut Whole<'_>, name: &str, message: &sent::Authorization) -> bool {
    let (namespace, own_name) = (&message.namespace, &message.name);
    let named = !namespace.is_empty() && !own_name.is_empty() && format!("{namespace}/{own_name}") == name;
    if !named && whole.defect.is_none() {
        let what = format!("it is sent as {name:?} and calls itself {namespace:?}/{own_name:?}");
        whole.refuse("name", DefectKind::Invalid, &what);
    }
    named
}

struct Groups<'a> {
    reader: Reader<'a>,
    unknown: BTreeMap<String, u32>,
}

impl Groups<'_> {
    fn read(mut self, groups: Vec<sent::Group>) -> Vec<Group> {
        // What it says of the policy may say that there is more to its groups.
        let all = self.has_unknown("").then(|| self.reader.broken.take()).flatten();
        match (&all, self.reader.effect) {
            (Some(_), Effect::Denies) => vec![Group::default()],
            _ => {
                let groups = groups.into_iter().enumerate();
                let groups = groups.map(|(at, group)| self.group(&format!("groups[{at}]"), group));
                groups.map(|group| Group { never: group.never.or_else(|| all.clone()), ..group }).collect()
            }
        }
    }

    fn group(&mut self, at: &str, group: sent::Group) -> Group {
        self.reader.broken = None;
        // Of a condition on its rules nothing is left but that it may hold.
        let everything = self.has_unknown(at);
        let rules = group.rules.into_iter().enumerate();
        let rules = rules.filter_map(|(r, rule)| self.rule(&format!("{at}.rules[{r}]"), rule)).collect();
        match self.reader.effect {
            Effect::Admits => Group { rules, never: self.reader.broken.take() },
            Effect::Denies if everything => Group::default(),
            Effect::Denies => Group { rules, never: None },
        }
    }

    /// None where nothing of it narrows the group.
    fn rule(&mut self, at: &str, rule: sent::Rules) -> Option<Rule> {
        let mut everything = self.has_unknown(at);
        let mut matches = Vec::with_capacity(rule.matches.len());
        for (m, fields) in rule.matches.into_iter().enumerate() {
            let before = self.reader.defects.len();
            let fields = self.fields(&format!("{at}.matches[{m}]"), fields);
            // One that was sent without values never holds; one of which no value is left may.
            if fields == Match::default() && self.reader.defects.len() > before {
                everything = true;
            }
            matches.push(fields);
        }
        (!everything).then_some(Rule { matches })
    }

    fn fields(&mut self, at: &str, fields: sent::Match) -> Match {
        self.has_unknown(at);
        let mut list = List { groups: self, at };
        Match {
            namespaces: list.any_of("namespaces", fields.namespaces, string),
            not_namespaces: list.none_of("not_namespaces", fields.not_namespaces, string),
            principals: list.any_of("principals", fields.principals, string),
            not_principals: list.none_of("not_principals", fields.not_principals, string),
            source_ips: list.any_of("source_ips", fields.source_ips, net),
            not_source_ips: list.none_of("not_source_ips", fields.not_source_ips, net),
            destination_ips: list.any_of("destination_ips", fields.destination_ips, net),
            not_destination_ips: list.none_of("not_destination_ips", fields.not_destination_ips, net),
            destination_ports: list.any_of("destination_ports", fields.destination_ports, port),
            not_destination_ports: list.none_of("not_destination_ports", fields.not_destination_ports, port),
            service_accounts: list.any_of("service_accounts", fields.service_accounts, account),
            not_service_accounts: list.none_of("not_service_accounts", fields.not_service_accounts, account),
            ..Match::default()
        }
    }

    fn has_unknown(&mut self, at: &str) -> bool {
        let unknown = self.unknown.get(at).copied();
        if let Some(number) = unknown {
            self.reader.defect(at, DefectKind::Unsupported, &no_field(number));
        }
        unknown.is_some()
    }
}

struct List<'a, 'r> {
    groups: &'a mut Groups<'r>,
    at: &'a str,
}

impl List<'_, '_> {
    /// Where nothing can be said of one value, the whole list says nothing.
    fn any_of<V, T>(&mut self, name: &str, values: Vec<V>, read: fn(V) -> Result<T, String>) -> Vec<T> {
        let (values, bad) = self.values(name, values, read);
        if bad { Vec::new() } else { values }
    }

    /// A value of which nothing can be said excludes nothing from what is denied.
    fn none_of<V, T>(&mut self, name: &str, values: Vec<V>, read: fn(V) -> Result<T, String>) -> Vec<T> {
        self.values(name, values, read).0
    }

    fn values<V, T>(
        &mut self,
        name: &str,
        values: Vec<V>,
        read: fn(V) -> Result<T, String>,
    ) -> (Vec<T>, bool) {
        let field = format!("{}.{name}", self.at);
        let Groups { reader, unknown } = &mut *self.groups;
        let values = values.into_iter().enumerate();
        reader.readable(
            &field,
            values.map(|(at, value)| match unknown.get(&format!("{field}[{at}]")) {
                Some(number) => Err(no_field(*number)),
                None => read(value).map(|value| vec![value]),
            }),
        )
    }
}

fn no_field(number: u32) -> String {
    format!("field {number} is not known")
}

fn string(value: sent::StringMatch) -> Result<StringMatch, String> {
    Ok(match value.match_type.ok_or("it says nothing of what is meant")? {
        MatchType::Exact(text) => StringMatch::Exact(text.into()),
        MatchType::Prefix(text) => StringMatch::Prefix(text.into()),
        MatchType::Suffix(text) => StringMatch::Suffix(text.into()),
        MatchType::Presence(()) => StringMatch::Presence,
    })
}

/// A length that is left out is 0: every address of the family.
fn net(value: sent::Address) -> Result<IpNet, String> {
    let sent::Address { address, length } = value;
    let ip = match (<[u8; 4]>::try_from(&*address), <[u8; 16]>::try_from(&*address)) {
        (Ok(v4), _) => IpAddr::from(v4),
        (_, Ok(v6)) => IpAddr::from(v6),
        _ => return Err(format!("{} bytes are no address: 4 or 16 are", address.len())),
    };
    let net = u8::try_from(length).ok().and_then(|length| IpNet::new(ip, length).ok());
    net.map(cidr::canonical).ok_or_else(|| format!("{ip}/{length} is no address range"))
}

fn port(value: u32) -> Result<u16, String> {
    let port = u16::try_from(value).ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("{value} is no port: 1 to 65535"))
}

fn account(value: sent::ServiceAccountMatch) -> Result<ServiceAccount, String> {
    let sent::ServiceAccountMatch { namespace, service_account } = value;
    if namespace.is_empty() || service_account.is_empty() {
        return Err(format!("{namespace:?}/{service_account:?} is no service account"));
    }
    Ok(ServiceAccount { namespace: namespace.into(), service_account: Arc::from(service_account) })
}

const AUTHORIZATION: Known = Known { values: &[1, 2, 3, 4, 6], lists: &[(5, "groups", &GROUP)] };
const GROUP: Known = Known { values: &[], lists: &[(1, "rules", &RULES)] };
const RULES: Known = Known { values: &[], lists: &[(2, "matches", &MATCH)] };
const MATCH: Known = Known {
    values: &[9, 10],
    lists: &[
        (1, "namespaces", &STRING),
        (2, "not_namespaces", &STRING),
        (3, "principals", &STRING),
        (4, "not_principals", &STRING),
        (5, "source_ips", &ADDRESS),
        (6, "not_source_ips", &ADDRESS),
        (7, "destination_ips", &ADDRESS),
        (8, "not_destination_ips", &ADDRESS),
        (11, "service_accounts", &ADDRESS),
        (12, "not_service_accounts", &ADDRESS),
    ],
};
const STRING: Known = Known { values: &[1, 2, 3, 4], lists: &[] };
/// And a service account: both have two fields.
const ADDRESS: Known = Known { values: &[1, 2], lists: &[] };
