//! Which of many alternatives can hold at all: each is filed under the values of its most selective field, so
//! that a decision looks at few of them however many there are.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::CidrTable;

use super::matcher::{Fields, Values};
use super::peer::{Peer, header};

/// From here on looking up is cheaper than comparing one by one.
pub(super) const WORTH_IT: usize = 8;

/// Alternatives by their numbers, in ascending order wherever they are listed.
#[derive(Debug)]
pub(super) struct Index {
    filed: Vec<(Attribute, Filed)>,
    /// Those that no value narrows down.
    rest: Vec<u32>,
}

/// What is compared with the values of a field.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Attribute {
    Port,
    SourceIp,
    DestinationIp,
    TrustDomain,
    Namespace,
    Account,
    Principal,
    LinkerdIdentity,
    Sni,
    Method,
    Host,
    Path,
    Header(Arc<str>),
    HeaderLine(Arc<str>),
}

/// What one value asks for, at least.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key<'a> {
    Exact(Cow<'a, [u8]>),
    Prefix(&'a [u8]),
    Suffix(&'a [u8]),
    Net(IpNet),
    Port(u16),
}

/// What it holds for is a requirement of each: of a group, its rules; of a match, itself.
pub(super) type Requirements<'a> = Vec<&'a [Fields]>;

impl Index {
    /// Every alternative has a list of requirements, each of them a list of matches of which one has to hold.
    pub(super) fn new(alternatives: &[Requirements<'_>]) -> Self {
        Self::of((0..).zip(alternatives).collect(), &[])
    }

    /// Of alternatives that agree in these attributes, so that those tell nothing more.
    fn of(alternatives: Vec<(u32, &Requirements<'_>)>, settled: &[Attribute]) -> Self {
        let mut frequency: HashMap<(Attribute, Key<'_>), u32> = HashMap::new();
        let matches =
            alternatives.iter().flat_map(|(_, requirements)| requirements.iter().copied().flatten());
        for (attribute, keys) in matches.flat_map(|fields| narrowing(fields, settled)) {
            for key in keys {
                *frequency.entry((attribute.clone(), key)).or_default() += 1;
            }
        }
        let mut filed: HashMap<Attribute, Filed> = HashMap::new();
        let mut rest = Vec::new();
        for (at, requirements) in &alternatives {
            let best = requirements.iter().filter_map(|matches| best_of(matches, &frequency, settled));
            let Some((_, keys)) = best.min_by_key(|(most, _)| *most) else {
                rest.push(*at);
                continue;
            };
            for (attribute, keys) in keys {
                let file = filed.entry(attribute).or_default();
                keys.iter().for_each(|key| file.insert(key, *at));
            }
        }
        let mut filed: Vec<_> = filed.into_iter().collect();
        filed.sort_by(|a, b| a.0.cmp(&b.0));
        if settled.len() < DEEPEST {
            let by_number: HashMap<u32, &Requirements<'_>> = alternatives.into_iter().collect();
            for (attribute, filed) in &mut filed {
                let settled: Vec<_> = settled.iter().chain([&*attribute]).cloned().collect();
                filed.lists().for_each(|list| list.refine(&by_number, &settled));
            }
        }
        Self { filed, rest }
    }

    /// Shows lists of alternatives, in which every one is that can hold.
    pub(super) fn each<'a>(&'a self, peer: &Peer<'_>, show: &mut dyn FnMut(&'a [u32])) {
        show(&self.rest);
        for (attribute, filed) in &self.filed {
            match attribute.of(peer) {
                Known::Nothing => {}
                Known::Not => show(&filed.all),
                Known::Text(text) => filed.texts(&text, &mut |list| list.each(peer, show)),
                Known::Lines(lines) => {
                    lines.iter().for_each(|text| filed.texts(text, &mut |list| list.each(peer, show)))
                }
                Known::Ip(ip) => filed.nets.lookup_all(ip).for_each(|list| list.each(peer, show)),
                Known::Port(port) => {
                    filed.ports.get(&port).into_iter().for_each(|list| list.each(peer, show))
                }
            }
        }
    }
}

/// How many fields after each other tell alternatives apart.
const DEEPEST: usize = 3;

/// Those that share a value.
#[derive(Debug, Default)]
struct List {
    numbers: Vec<u32>,
    /// Of many, told apart by something else.
    finer: Option<Box<Index>>,
}

impl List {
    fn refine(&mut self, requirements: &HashMap<u32, &Requirements<'_>>, settled: &[Attribute]) {
        if self.numbers.len() < WORTH_IT {
            return;
        }
        let of = |at: &u32| Some((*at, *requirements.get(at)?));
        let finer = Index::of(self.numbers.iter().filter_map(of).collect(), settled);
        if finer.rest.len() < self.numbers.len() / 2 {
            self.finer = Some(Box::new(finer));
        }
    }

    fn each<'a>(&'a self, peer: &Peer<'_>, show: &mut dyn FnMut(&'a [u32])) {
        match &self.finer {
            None => show(&self.numbers),
            Some(finer) => finer.each(peer, show),
        }
    }
}

/// A field, and what its values ask for.
type Narrowing<'a> = (Attribute, Vec<Key<'a>>);

/// The fields that narrow, one for each of the matches, and how many alternatives share the most frequent of
/// their values. None: some match is not narrowed.
fn best_of<'a>(
    matches: &'a [Fields],
    frequency: &HashMap<(Attribute, Key<'a>), u32>,
    settled: &[Attribute],
) -> Option<(u32, Vec<Narrowing<'a>>)> {
    let mut most = 0;
    let mut chosen = Vec::with_capacity(matches.len());
    for fields in matches {
        let shared = |(attribute, keys): Narrowing<'a>| {
            let of = |key: &Key<'a>| frequency.get(&(attribute.clone(), key.clone())).copied().unwrap_or(0);
            (keys.iter().map(of).max().unwrap_or(0), (attribute, keys))
        };
        let (shared, field) = narrowing(fields, settled).map(shared).min_by_key(|(shared, _)| *shared)?;
        most = most.max(shared);
        chosen.push(field);
    }
    Some((most, chosen))
}

/// The positive fields of a match, of which every value asks for something, but for those that are settled.
fn narrowing<'a>(fields: &'a Fields, settled: &[Attribute]) -> impl Iterator<Item = Narrowing<'a>> {
    let positive = fields.0.iter().filter(|field| !field.negative);
    positive.filter_map(|field| {
        let (attribute, keys) = match &field.values {
            Values::Ports(ports) => (Attribute::Port, Some(ports.iter().map(Key::Port).collect())),
            Values::SourceIps(nets) | Values::RemoteIps(nets) => (Attribute::SourceIp, nets.keys()),
            Values::DestinationIps(nets) => (Attribute::DestinationIp, nets.keys()),
            Values::TrustDomains(names) => (Attribute::TrustDomain, names.keys()),
            Values::Namespaces(names) => (Attribute::Namespace, names.keys()),
            Values::Accounts(accounts) => (Attribute::Account, Some(accounts.keys())),
            Values::Principals(names) => (Attribute::Principal, names.keys()),
            Values::LinkerdIdentities(names) => (Attribute::LinkerdIdentity, names.keys()),
            Values::Snis(names) => (Attribute::Sni, names.keys()),
            Values::Methods(names) => (Attribute::Method, names.keys()),
            Values::Hosts(names) => (Attribute::Host, names.keys()),
            Values::Paths(paths) => (Attribute::Path, paths.keys()),
            Values::Header(name, values) => (Attribute::Header(name.clone()), values.keys()),
            Values::HeaderLine(name, values) => (Attribute::HeaderLine(name.clone()), values.keys()),
        };
        (!settled.contains(&attribute)).then_some((attribute, keys?))
    })
}

enum Known<'a> {
    /// Nothing fits it.
    Nothing,
    /// Everything may fit it.
    Not,
    Text(Cow<'a, [u8]>),
    /// Each of them.
    Lines(Vec<&'a [u8]>),
    Ip(IpAddr),
    Port(u16),
}

impl Attribute {
    fn of<'a>(&self, peer: &'a Peer<'_>) -> Known<'a> {
        let text = |text: &'a str| Known::Text(text.as_bytes().into());
        let identity = |given: Option<&'a str>| given.map_or(Known::Nothing, text);
        let ip = |ip: Option<IpAddr>| ip.map_or(Known::Not, Known::Ip);
        let request = |given: Option<&'a str>| given.map_or(Known::Not, text);
        match self {
            Self::Port => peer.port.map_or(Known::Nothing, Known::Port),
            Self::SourceIp => ip(peer.source_ip),
            Self::DestinationIp => ip(peer.destination_ip),
            Self::TrustDomain => text(peer.trust_domain()),
            Self::Namespace => text(peer.namespace()),
            // The part of the principal behind the trust domain.
            Self::Account => identity(peer.principal().and_then(|p| p.get(peer.trust_domain().len()..))),
            Self::Principal => identity(peer.principal()),
            Self::LinkerdIdentity => identity(peer.linkerd_identity()),
            Self::Sni => request(peer.sni),
            Self::Method => request(peer.request.map(|request| request.method)),
            Self::Host => request(peer.host()),
            Self::Path => request(peer.request.map(|request| request.path)),
            Self::Header(name) => match peer.request.map(|request| header(request, name)) {
                None => Known::Not,
                Some(None) => Known::Nothing,
                Some(Some(value)) => Known::Text(value),
            },
            Self::HeaderLine(name) => match peer.request {
                None => Known::Not,
                Some(request) => {
                    let lines = request.headers.get_all(&**name).iter();
                    Known::Lines(lines.map(http::HeaderValue::as_bytes).collect())
                }
            },
        }
    }
}

/// What an account is filed under.
pub(super) fn account_key(namespace: &str, account: &str) -> Key<'static> {
    Key::Exact(format!("/ns/{namespace}/sa/{account}").into_bytes().into())
}

#[derive(Debug, Default)]
struct Filed {
    exact: HashMap<Box<[u8]>, List>,
    prefixes: Affixes,
    suffixes: Affixes,
    nets: CidrTable<List>,
    ports: HashMap<u16, List>,
    /// All of them, for when it is not known what to look for.
    all: Vec<u32>,
}

impl Filed {
    fn insert(&mut self, key: &Key<'_>, at: u32) {
        let list = match key {
            Key::Exact(text) => self.exact.entry((**text).into()).or_default(),
            Key::Prefix(text) => self.prefixes.entry(text),
            Key::Suffix(text) => self.suffixes.entry(text),
            Key::Net(net) => self.nets.entry(*net),
            Key::Port(port) => self.ports.entry(*port).or_default(),
        };
        for list in [&mut list.numbers, &mut self.all] {
            if list.last() != Some(&at) {
                list.push(at);
            }
        }
    }

    fn lists(&mut self) -> impl Iterator<Item = &mut List> {
        let texts = [&mut self.exact, &mut self.prefixes.texts, &mut self.suffixes.texts];
        let texts = texts.into_iter().flat_map(HashMap::values_mut);
        texts.chain(self.ports.values_mut()).chain(self.nets.values_mut())
    }

    fn texts<'a>(&'a self, text: &[u8], show: &mut dyn FnMut(&'a List)) {
        if let Some(list) = self.exact.get(text) {
            show(list);
        }
        for n in self.prefixes.lengths(text) {
            if let Some(list) = self.prefixes.texts.get(&text[..n]) {
                show(list);
            }
        }
        for n in self.suffixes.lengths(text) {
            if let Some(list) = self.suffixes.texts.get(&text[text.len() - n..]) {
                show(list);
            }
        }
    }
}

/// Prefixes or suffixes: one lookup for each length that occurs.
#[derive(Debug, Default)]
struct Affixes {
    /// Ascending.
    lengths: Vec<usize>,
    texts: HashMap<Box<[u8]>, List>,
}

impl Affixes {
    fn entry(&mut self, text: &[u8]) -> &mut List {
        if let Err(at) = self.lengths.binary_search(&text.len()) {
            self.lengths.insert(at, text.len());
        }
        self.texts.entry(text.into()).or_default()
    }

    fn lengths(&self, text: &[u8]) -> impl Iterator<Item = usize> {
        self.lengths.iter().copied().take_while(|n| *n <= text.len())
    }
}
