//! Lists of values of one field: a few compared one by one, many found by hash.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{CidrTable, cidr};

use super::index::{Key, account_key};
use super::rules::{PathMatch, ServiceAccount, StringMatch};
use super::template::PathTemplate;

/// From here on hashing is cheaper.
const MANY: usize = 8;

/// Compared as bytes: a header's value need not be UTF-8.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Strings {
    Few(Box<[StringMatch]>),
    Many(Box<ManyStrings>),
}

impl Strings {
    pub(super) fn new(values: &[StringMatch], form: impl Fn(&str) -> Cow<'_, str>) -> Self {
        // What is in form already is shared with the policy.
        let keep = |text: &Arc<str>| match form(text) {
            Cow::Borrowed(same) if same.len() == text.len() => text.clone(),
            other => Arc::from(&*other),
        };
        let values = values.iter().map(|value| match value {
            StringMatch::Exact(text) => StringMatch::Exact(keep(text)),
            StringMatch::Prefix(text) => StringMatch::Prefix(keep(text)),
            StringMatch::Suffix(text) => StringMatch::Suffix(keep(text)),
            StringMatch::Presence => StringMatch::Presence,
        });
        let few: Box<[StringMatch]> = values.collect();
        if few.len() < MANY {
            return Self::Few(few);
        }
        let mut many = ManyStrings::default();
        for value in &few {
            match value {
                StringMatch::Exact(text) => drop(many.exact.insert(text.as_bytes().into())),
                StringMatch::Prefix(text) => many.prefixes.insert(text.as_bytes()),
                StringMatch::Suffix(text) => many.suffixes.insert(text.as_bytes()),
                StringMatch::Presence => many.presence = true,
            }
        }
        Self::Many(Box::new(many))
    }

    /// What each value asks for. None: one asks for nothing that narrows.
    pub(super) fn keys(&self) -> Option<Vec<Key<'_>>> {
        match self {
            Self::Few(values) => values.iter().map(key).collect(),
            Self::Many(many) => many.keys(),
        }
    }

    pub(super) fn fit(&self, value: &[u8]) -> bool {
        match self {
            Self::Few(values) => values.iter().any(|one| fits(one, value)),
            Self::Many(many) => many.fit(value),
        }
    }
}

pub(super) fn as_is(text: &str) -> Cow<'_, str> {
    Cow::Borrowed(text)
}

pub(super) fn fits(one: &StringMatch, value: &[u8]) -> bool {
    match one {
        StringMatch::Exact(text) => value == text.as_bytes(),
        StringMatch::Prefix(text) => value.starts_with(text.as_bytes()),
        StringMatch::Suffix(text) => value.ends_with(text.as_bytes()),
        StringMatch::Presence => !value.is_empty(),
    }
}

fn key(one: &StringMatch) -> Option<Key<'_>> {
    match one {
        StringMatch::Exact(text) => Some(Key::Exact(text.as_bytes().into())),
        StringMatch::Prefix(text) if !text.is_empty() => Some(Key::Prefix(text.as_bytes())),
        StringMatch::Suffix(text) if !text.is_empty() => Some(Key::Suffix(text.as_bytes())),
        StringMatch::Prefix(_) | StringMatch::Suffix(_) | StringMatch::Presence => None,
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ManyStrings {
    exact: HashSet<Box<[u8]>>,
    prefixes: Affixes,
    suffixes: Affixes,
    presence: bool,
}

impl ManyStrings {
    fn keys(&self) -> Option<Vec<Key<'_>>> {
        if self.presence || self.prefixes.texts.contains(&[][..]) || self.suffixes.texts.contains(&[][..]) {
            return None;
        }
        let exact = self.exact.iter().map(|text| Key::Exact((&**text).into()));
        let prefixes = self.prefixes.texts.iter().map(|text| Key::Prefix(text));
        let suffixes = self.suffixes.texts.iter().map(|text| Key::Suffix(text));
        Some(exact.chain(prefixes).chain(suffixes).collect())
    }

    fn fit(&self, value: &[u8]) -> bool {
        (self.presence && !value.is_empty())
            || self.exact.contains(value)
            || self.prefixes.lengths(value).any(|n| self.prefixes.texts.contains(&value[..n]))
            || self.suffixes.lengths(value).any(|n| self.suffixes.texts.contains(&value[value.len() - n..]))
    }
}

/// Prefixes or suffixes: one lookup for each length that occurs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Affixes {
    /// Ascending.
    lengths: Vec<usize>,
    texts: HashSet<Box<[u8]>>,
}

impl Affixes {
    fn insert(&mut self, text: &[u8]) {
        if let Err(at) = self.lengths.binary_search(&text.len()) {
            self.lengths.insert(at, text.len());
        }
        self.texts.insert(text.into());
    }

    fn lengths(&self, value: &[u8]) -> impl Iterator<Item = usize> {
        self.lengths.iter().copied().take_while(|n| *n <= value.len())
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Paths {
    strings: Strings,
    templates: Box<[PathTemplate]>,
}

impl Paths {
    pub(super) fn new(values: &[PathMatch]) -> Self {
        let mut strings = Vec::new();
        let mut templates = Vec::new();
        for value in values {
            match value {
                PathMatch::String(value) => strings.push(value.clone()),
                PathMatch::Template(template) => templates.push(template.clone()),
            }
        }
        Self { strings: Strings::new(&strings, as_is), templates: templates.into() }
    }

    pub(super) fn keys(&self) -> Option<Vec<Key<'_>>> {
        let templates = self.templates.iter().map(|template| Key::Prefix(template.literal().as_bytes()));
        Some(self.strings.keys()?.into_iter().chain(templates).collect())
    }

    pub(super) fn fit(&self, path: &str) -> bool {
        self.strings.fit(path.as_bytes()) || self.templates.iter().any(|template| template.matches(path))
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Nets {
    /// Sorted.
    list: Box<[IpNet]>,
    /// Of many.
    table: Option<CidrTable<()>>,
}

impl Nets {
    pub(super) fn new(nets: &[IpNet]) -> Self {
        let mut list: Vec<_> = nets.iter().copied().map(cidr::canonical).collect();
        list.sort_unstable();
        list.dedup();
        let table = (list.len() >= MANY).then(|| list.iter().copied().collect());
        Self { list: list.into(), table }
    }

    pub(super) fn contain(&self, ip: IpAddr) -> bool {
        if ip.is_unspecified() {
            return self.list.iter().any(|net| covers_unknown(net, ip));
        }
        match &self.table {
            None => self.list.iter().any(|net| net.contains(&ip.to_canonical())),
            Some(table) => table.contains(ip),
        }
    }

    /// None: one holds every address.
    pub(super) fn keys(&self) -> Option<Vec<Key<'_>>> {
        self.list.iter().map(|net| (net.prefix_len() > 0).then_some(Key::Net(*net))).collect()
    }
}

/// An address that is not known is shown as the unspecified one: it is in no range but those of every address, of
/// either family, and those that are made of it alone (Linkerd's cluster has them).
pub(super) fn covers_unknown(net: &IpNet, unspecified: IpAddr) -> bool {
    net.prefix_len() == 0 || *net == IpNet::from(unspecified)
}

/// Sorted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ports(Box<[u16]>);

impl Ports {
    pub(super) fn new(ports: &[u16]) -> Self {
        let mut ports = ports.to_vec();
        ports.sort_unstable();
        ports.dedup();
        Self(ports.into())
    }

    pub(super) fn contain(&self, port: u16) -> bool {
        self.0.binary_search(&port).is_ok()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u16> {
        self.0.iter().copied()
    }
}

/// Accounts by namespace.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Accounts(HashMap<Arc<str>, HashSet<Arc<str>>>);

impl Accounts {
    pub(super) fn new(accounts: &[ServiceAccount]) -> Self {
        let mut by_namespace: HashMap<_, HashSet<_>> = HashMap::new();
        for account in accounts {
            let of = by_namespace.entry(account.namespace.clone()).or_default();
            of.insert(account.service_account.clone());
        }
        Self(by_namespace)
    }

    pub(super) fn keys(&self) -> Vec<Key<'_>> {
        let accounts = |(namespace, accounts): (&'_ Arc<str>, &'_ HashSet<Arc<str>>)| {
            accounts.iter().map(|account| account_key(namespace, account)).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(accounts).collect()
    }

    pub(super) fn contain(&self, namespace: &str, account: &str) -> bool {
        self.0.get(namespace).is_some_and(|accounts| accounts.contains(account))
    }
}
