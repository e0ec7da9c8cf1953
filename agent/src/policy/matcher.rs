//! One policy's groups, rules and matches, in the form that is asked per connection and request.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use crate::model::SpiffeId;

use super::index::{Index, Requirements, WORTH_IT};
use super::peer::{Peer, header};
use super::ports::PortSet;
use super::resource::ResourceRef;
use super::rules::{Group, Match, Policy, Rule, StringMatch};
use super::tri::Tri;
use super::values::{Accounts, Nets, Paths, Ports, Strings, as_is};

/// The compiled form of one policy.
#[derive(Debug)]
pub(super) struct Matcher {
    /// What it was made of.
    pub(super) policy: Arc<Policy>,
    pub(super) resource: Arc<ResourceRef>,
    name: Arc<str>,
    pub(super) groups: Box<[AllOf]>,
}

/// Those that decide alike, in whatever order they list their values.
impl PartialEq for Matcher {
    fn eq(&self, other: &Self) -> bool {
        self.resource == other.resource && self.groups == other.groups
    }
}

impl Eq for Matcher {}

impl Matcher {
    pub(super) fn new(policy: &Arc<Policy>) -> Self {
        Self {
            policy: policy.clone(),
            resource: Arc::new(policy.resource()),
            name: policy.key(),
            groups: policy.groups.iter().map(AllOf::new).collect(),
        }
    }

    /// `namespace/name` of the policy.
    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(super) fn judge(&self, peer: &Peer<'_>) -> Tri {
        Tri::any(self.groups.iter().map(|group| group.judge(peer)))
    }
}

/// A group: all of its rules hold. One that cannot be evaluated never holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AllOf {
    never: bool,
    pub(super) rules: Box<[AnyOf]>,
}

impl AllOf {
    pub(super) fn new(group: &Group) -> Self {
        let rules = group.rules.iter().map(|rule| AnyOf::new(&rule.matches)).collect();
        Self { never: group.never.is_some(), rules }
    }

    /// The same as far as it can be judged when no request is known. Groups that look alike then are judged alike.
    pub(super) fn of_connection(group: &Group) -> Group {
        let of_connection = |rule: &Rule| {
            let mut seen = HashSet::new();
            let matches = rule.matches.iter().map(without_request);
            Rule { matches: matches.filter(|m| seen.insert(m.clone())).collect() }
        };
        Group { rules: group.rules.iter().map(of_connection).collect(), never: group.never.clone() }
    }

    /// What has to hold for it to hold: of each rule, one of these matches.
    pub(super) fn requirements(&self) -> Requirements<'_> {
        match self.never {
            true => vec![&[]],
            false => self.rules.iter().filter_map(|rule| rule.fields.as_deref()).collect(),
        }
    }

    pub(super) fn judge(&self, peer: &Peer<'_>) -> Tri {
        if self.never { Tri::No } else { Tri::all(self.rules.iter().map(|rule| rule.judge(peer))) }
    }

    /// On which ports its answer can depend on the request.
    pub(super) fn request_ports(&self) -> PortSet {
        let mut ports = PortSet::none();
        let fields = self.rules.iter().filter_map(|rule| rule.fields.as_ref()).flatten();
        fields.filter(|fields| fields.is_of_request()).for_each(|fields| ports.add(&fields.ports()));
        if self.never || ports.is_empty() {
            return PortSet::none();
        }
        self.rules.iter().fold(ports, |ports, rule| ports.and(&rule.ports()))
    }
}

/// A rule: one of its matches holds, or it has none.
#[derive(Debug)]
pub(super) struct AnyOf {
    /// None: the rule had no matches, so it always holds.
    pub(super) fields: Option<Box<[Fields]>>,
    /// Of many.
    index: Option<Box<Index>>,
}

/// The index follows from the rest.
impl PartialEq for AnyOf {
    fn eq(&self, other: &Self) -> bool {
        self.fields == other.fields
    }
}

impl Eq for AnyOf {}

impl AnyOf {
    fn new(matches: &[Match]) -> Self {
        // A match without any value never holds, so it is left out; but a rule that is made of nothing
        // else never holds either, and must not turn into a rule without matches.
        let fields: Box<[_]> =
            matches.iter().map(Fields::new).filter(|fields| !fields.0.is_empty()).collect();
        let requirements = |fields| vec![std::slice::from_ref(fields)];
        let index = (fields.len() >= WORTH_IT)
            .then(|| Box::new(Index::new(&fields.iter().map(requirements).collect::<Vec<_>>())));
        Self { fields: (!matches.is_empty()).then_some(fields), index }
    }

    fn judge(&self, peer: &Peer<'_>) -> Tri {
        let Some(fields) = &self.fields else { return Tri::Yes };
        let Some(index) = &self.index else {
            return Tri::any(fields.iter().map(|fields| fields.judge(peer)));
        };
        let mut strongest = Tri::No;
        index.each(peer, &mut |list| {
            for fields in list.iter().filter_map(|at| fields.get(usize::try_from(*at).ok()?)) {
                if strongest == Tri::Yes {
                    break;
                }
                strongest = strongest.max(fields.judge(peer));
            }
        });
        strongest
    }

    /// The ports of connections for which it can hold.
    fn ports(&self) -> PortSet {
        let Some(fields) = &self.fields else { return PortSet::all() };
        let mut ports = PortSet::none();
        fields.iter().for_each(|fields| ports.add(&fields.ports()));
        ports
    }
}

/// A match: all of its fields hold. Cheapest comparisons first.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fields(pub(super) Box<[Field]>);

impl Fields {
    pub(super) fn new(m: &Match) -> Self {
        let mut fields = Vec::new();
        let mut add = |negative, values: Option<Values>| {
            fields.extend(values.map(|values| Field { negative, values }));
        };
        let same = |values: &[_]| Strings::new(values, as_is);
        let lower = |values: &[_]| Strings::new(values, lower_case);
        let principals = |values: &[_]| Strings::new(values, |text| Cow::Borrowed(strip_scheme(text)));
        for (negative, values) in [(false, &m.destination_ports), (true, &m.not_destination_ports)] {
            add(negative, some(values, |v| Values::Ports(Ports::new(v))));
        }
        for (negative, values) in [(false, &m.source_ips), (true, &m.not_source_ips)] {
            add(negative, some(values, |v| Values::SourceIps(Nets::new(v))));
        }
        for (negative, values) in [(false, &m.remote_ips), (true, &m.not_remote_ips)] {
            add(negative, some(values, |v| Values::RemoteIps(Nets::new(v))));
        }
        for (negative, values) in [(false, &m.destination_ips), (true, &m.not_destination_ips)] {
            add(negative, some(values, |v| Values::DestinationIps(Nets::new(v))));
        }
        for (negative, values) in [(false, &m.trust_domains), (true, &m.not_trust_domains)] {
            add(negative, some(values, |v| Values::TrustDomains(same(v))));
        }
        for (negative, values) in [(false, &m.namespaces), (true, &m.not_namespaces)] {
            add(negative, some(values, |v| Values::Namespaces(same(v))));
        }
        for (negative, values) in [(false, &m.service_accounts), (true, &m.not_service_accounts)] {
            add(negative, some(values, |v| Values::Accounts(Accounts::new(v))));
        }
        for (negative, values) in [(false, &m.principals), (true, &m.not_principals)] {
            add(negative, some(values, |v| Values::Principals(principals(v))));
        }
        add(false, some(&m.linkerd_identities, |v| Values::LinkerdIdentities(same(v))));
        for (negative, values) in [(false, &m.snis), (true, &m.not_snis)] {
            add(negative, some(values, |v| Values::Snis(same(v))));
        }
        for (negative, values) in [(false, &m.methods), (true, &m.not_methods)] {
            add(negative, some(values, |v| Values::Methods(same(v))));
        }
        for (negative, values) in [(false, &m.hosts), (true, &m.not_hosts)] {
            add(negative, some(values, |v| Values::Hosts(lower(v))));
        }
        for (negative, values) in [(false, &m.paths), (true, &m.not_paths)] {
            add(negative, some(values, |v| Values::Paths(Paths::new(v))));
        }
        for header in &m.headers {
            for (negative, values) in [(false, &header.one_of), (true, &header.none_of)] {
                add(negative, some(values, |v| Values::Header(header.name.clone(), same(v))));
            }
        }
        Self(fields.into())
    }

    pub(super) fn judge(&self, peer: &Peer<'_>) -> Tri {
        #[cfg(test)]
        JUDGED.with(|judged| judged.set(judged.get() + 1));
        Tri::all(self.0.iter().map(|field| field.judge(peer)))
    }

    fn is_of_request(&self) -> bool {
        self.0.iter().any(Field::is_of_request)
    }

    fn ports(&self) -> PortSet {
        self.0.iter().fold(PortSet::all(), |ports, field| match (&field.values, field.negative) {
            (Values::Ports(values), false) => ports.and(&PortSet::of(values.iter())),
            (Values::Ports(values), true) => ports.and(&PortSet::of(values.iter()).not()),
            _ => ports,
        })
    }
}

#[cfg(test)]
thread_local! {
    /// How many matches were compared: what a decision costs.
    pub(super) static JUDGED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// One that depends on the request where the given one does, and is the same in everything else.
fn without_request(m: &Match) -> Match {
    let looks_at_headers = m.headers.iter().any(|h| !(h.one_of.is_empty() && h.none_of.is_empty()));
    let connection = Match {
        hosts: Vec::new(),
        not_hosts: Vec::new(),
        methods: Vec::new(),
        not_methods: Vec::new(),
        paths: Vec::new(),
        not_paths: Vec::new(),
        headers: Vec::new(),
        ..m.clone()
    };
    let looks = looks_at_headers || Match { headers: Vec::new(), ..m.clone() }.is_of_request();
    Match { methods: if looks { vec![StringMatch::Presence] } else { Vec::new() }, ..connection }
}

fn some<V>(values: &[V], compile: impl Fn(&[V]) -> Values) -> Option<Values> {
    (!values.is_empty()).then(|| compile(values))
}

/// One of the values fits; negative: none does.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) negative: bool,
    pub(super) values: Values,
}

impl Field {
    fn judge(&self, peer: &Peer<'_>) -> Tri {
        Tri::of(self.values.fit(peer).map(|fit| fit != self.negative))
    }

    pub(super) fn is_of_request(&self) -> bool {
        use Values::{Header, HeaderLine, Hosts, Methods, Paths};
        matches!(self.values, Hosts(_) | Methods(_) | Paths(_) | Header(..) | HeaderLine(..))
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Values {
    Ports(Ports),
    SourceIps(Nets),
    RemoteIps(Nets),
    DestinationIps(Nets),
    TrustDomains(Strings),
    Namespaces(Strings),
    Accounts(Accounts),
    Principals(Strings),
    LinkerdIdentities(Strings),
    Snis(Strings),
    Methods(Strings),
    /// In lower case.
    Hosts(Strings),
    Paths(Paths),
    Header(Arc<str>, Strings),
    /// One of the lines in which the header is sent, where others join them.
    HeaderLine(Arc<str>, Strings),
}

impl Values {
    /// None: what they are compared with is not known.
    fn fit(&self, peer: &Peer<'_>) -> Option<bool> {
        Some(match self {
            Self::Ports(ports) => peer.port.is_some_and(|port| ports.contain(port)),
            // As long as no proxy in front is trusted to say where a client was before it.
            Self::SourceIps(nets) | Self::RemoteIps(nets) => nets.contain(peer.source_ip?),
            Self::DestinationIps(nets) => nets.contain(peer.destination_ip?),
            Self::TrustDomains(names) => names.fit(peer.trust_domain().as_bytes()),
            Self::Namespaces(names) => names.fit(peer.namespace().as_bytes()),
            Self::Accounts(accounts) => peer
                .identity
                .and_then(SpiffeId::account)
                .is_some_and(|(namespace, account)| accounts.contain(namespace, account)),
            Self::Principals(names) => peer.principal().is_some_and(|name| names.fit(name.as_bytes())),
            Self::LinkerdIdentities(names) => {
                peer.linkerd_identity().is_some_and(|name| names.fit(name.as_bytes()))
            }
            Self::Snis(names) => names.fit(peer.sni?.as_bytes()),
            Self::Methods(names) => names.fit(peer.request?.method.as_bytes()),
            Self::Hosts(names) => names.fit(peer.host()?.as_bytes()),
            Self::Paths(paths) => paths.fit(peer.request?.path),
            Self::Header(name, values) => header(peer.request?, name).is_some_and(|value| values.fit(&value)),
            Self::HeaderLine(name, values) => {
                peer.request?.headers.get_all(&**name).iter().any(|line| values.fit(line.as_bytes()))
            }
        })
    }
}

fn lower_case(text: &str) -> Cow<'_, str> {
    match text.bytes().any(|b| b.is_ascii_uppercase()) {
        true => Cow::Owned(text.to_ascii_lowercase()),
        false => Cow::Borrowed(text),
    }
}

pub(super) fn strip_scheme(principal: &str) -> &str {
    principal.strip_prefix("spiffe://").unwrap_or(principal)
}
