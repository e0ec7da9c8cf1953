//! One policy's groups, rules and matches, in the form that is asked per connection.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{CidrTable, SpiffeId};

use super::compiled::Conn;
use super::rules::{Group, Match, ServiceAccount, StringMatch};

/// The compiled form of one policy.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Matcher {
    name: Arc<str>,
    pub(super) groups: Vec<Vec<AnyOf>>,
}

impl Matcher {
    pub(super) fn new(name: Arc<str>, groups: &[Group]) -> Self {
        let groups = groups
            .iter()
            .map(|group| group.rules.iter().map(|rule| AnyOf::new(&rule.matches)).collect())
            .collect();
        Self { name, groups }
    }

    /// `namespace/name` of the policy.
    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(super) fn matches(&self, peer: &Peer<'_>) -> bool {
        self.groups.iter().any(|rules| rules.iter().all(|rule| rule.holds(peer)))
    }
}

/// A connection's attributes in the form in which matches compare them.
pub(super) struct Peer<'a> {
    identity: Option<&'a SpiffeId>,
    /// The SPIFFE id without its scheme, as policies write principals.
    principal: Option<String>,
    source_ip: IpAddr,
    destination_ip: IpAddr,
    destination_port: u16,
}

impl<'a> Peer<'a> {
    pub(super) fn of(conn: &'a Conn) -> Self {
        let identity = conn.source.as_ref();
        Self {
            identity,
            principal: identity.map(|id| strip_scheme(&id.to_string()).to_string()),
            source_ip: conn.source_ip,
            destination_ip: conn.destination_ip,
            destination_port: conn.destination_port,
        }
    }
}

/// A rule: one of its matches holds, or it has none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AnyOf {
    /// None: the rule had no matches, so it always holds.
    pub(super) fields: Option<Vec<Fields>>,
}

impl AnyOf {
    fn new(matches: &[Match]) -> Self {
        // A match without any value never holds, so it is left out; but a rule that is made of nothing
        // else never holds either, and must not turn into a rule without matches.
        let fields = matches.iter().map(Fields::new).filter(|fields| !fields.is_empty()).collect();
        Self { fields: (!matches.is_empty()).then_some(fields) }
    }

    fn holds(&self, peer: &Peer<'_>) -> bool {
        match &self.fields {
            None => true,
            Some(fields) => fields.iter().any(|fields| fields.hold(peer)),
        }
    }
}

/// A match: each field with a positive and a negative list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) namespace: Field<Strings>,
    pub(super) principal: Field<Strings>,
    pub(super) service_account: Field<HashSet<ServiceAccount>>,
    pub(super) source_ip: Field<CidrTable<()>>,
    pub(super) destination_ip: Field<CidrTable<()>>,
    pub(super) port: Field<BTreeSet<u16>>,
}

impl Fields {
    fn new(m: &Match) -> Self {
        Self {
            namespace: Field::new(&m.namespaces, &m.not_namespaces, Strings::new),
            principal: Field::new(&m.principals, &m.not_principals, Strings::principals),
            service_account: Field::new(&m.service_accounts, &m.not_service_accounts, |v| {
                v.iter().cloned().collect()
            }),
            source_ip: Field::new(&m.source_ips, &m.not_source_ips, |v| v.iter().copied().collect()),
            destination_ip: Field::new(&m.destination_ips, &m.not_destination_ips, |v| {
                v.iter().copied().collect()
            }),
            port: Field::new(&m.destination_ports, &m.not_destination_ports, |v| v.iter().copied().collect()),
        }
    }

    fn is_empty(&self) -> bool {
        self.namespace.is_empty()
            && self.principal.is_empty()
            && self.service_account.is_empty()
            && self.source_ip.is_empty()
            && self.destination_ip.is_empty()
            && self.port.is_empty()
    }

    /// Cheapest comparisons first.
    fn hold(&self, peer: &Peer<'_>) -> bool {
        self.port.holds(|ports| ports.contains(&peer.destination_port))
            && self.source_ip.holds(|nets| nets.contains(peer.source_ip))
            && self.destination_ip.holds(|nets| nets.contains(peer.destination_ip))
            && self.namespace.holds(|names| names.fit(peer.identity.map_or("", SpiffeId::namespace)))
            && self.principal.holds(|names| peer.principal.as_ref().is_some_and(|p| names.fit(p)))
            && self.service_account.holds(|accounts| {
                peer.identity.is_some_and(|id| {
                    accounts.contains(&ServiceAccount {
                        namespace: id.namespace().into(),
                        service_account: id.service_account().into(),
                    })
                })
            })
    }
}

/// `one_of`: none, or one value fits. `none_of`: none, or no value fits.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Field<T> {
    pub(super) one_of: Option<T>,
    pub(super) none_of: Option<T>,
}

impl<T> Field<T> {
    fn new<V>(one_of: &[V], none_of: &[V], compile: impl Fn(&[V]) -> T) -> Self {
        let list = |values: &[V]| (!values.is_empty()).then(|| compile(values));
        Self { one_of: list(one_of), none_of: list(none_of) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.one_of.is_none() && self.none_of.is_none()
    }

    pub(super) fn holds(&self, fits: impl Fn(&T) -> bool) -> bool {
        self.one_of.as_ref().is_none_or(&fits) && !self.none_of.as_ref().is_some_and(&fits)
    }
}

/// A list of string matches; exact values, of which there may be thousands, by hash.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Strings {
    exact: HashSet<Arc<str>>,
    prefixes: Vec<Arc<str>>,
    suffixes: Vec<Arc<str>>,
    presence: bool,
}

impl Strings {
    fn new(values: &[StringMatch]) -> Self {
        let mut strings = Self::default();
        for value in values {
            match value {
                StringMatch::Exact(s) => drop(strings.exact.insert(s.clone())),
                StringMatch::Prefix(s) => strings.prefixes.push(s.clone()),
                StringMatch::Suffix(s) => strings.suffixes.push(s.clone()),
                StringMatch::Presence => strings.presence = true,
            }
        }
        strings
    }

    fn principals(values: &[StringMatch]) -> Self {
        let strip = |s: &Arc<str>| Arc::from(strip_scheme(s));
        let values: Vec<_> = values
            .iter()
            .map(|value| match value {
                StringMatch::Exact(s) => StringMatch::Exact(strip(s)),
                StringMatch::Prefix(s) => StringMatch::Prefix(strip(s)),
                StringMatch::Suffix(s) => StringMatch::Suffix(strip(s)),
                StringMatch::Presence => StringMatch::Presence,
            })
            .collect();
        Self::new(&values)
    }

    pub(super) fn fit(&self, value: &str) -> bool {
        (self.presence && !value.is_empty())
            || self.exact.contains(value)
            || self.prefixes.iter().any(|prefix| value.starts_with(&**prefix))
            || self.suffixes.iter().any(|suffix| value.ends_with(&**suffix))
    }
}

fn strip_scheme(principal: &str) -> &str {
    principal.strip_prefix("spiffe://").unwrap_or(principal)
}
