//! All groups of several policies of one action, asked which of them is the first that holds.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::index::{Index, WORTH_IT};
use super::matcher::{AllOf, Matcher, Values};
use super::peer::Peer;
use super::ports::PortSet;
use super::tri::Tri;
use super::verdict::By;

#[derive(Debug)]
pub(super) struct RuleList {
    policies: Vec<Arc<Matcher>>,
    /// For every group of all counted through, its policy and which of its groups it is.
    places: Vec<(u32, u32)>,
    /// Of many.
    index: Option<Index>,
    /// For connections of which no request is known.
    of_connection: Option<Box<OfConnection>>,
    http: PortSet,
}

/// Groups that differ in what they ask of requests only are one here.
#[derive(Debug)]
struct OfConnection {
    groups: Vec<AllOf>,
    /// The first of all groups counted through that looks like this one.
    first: Vec<u32>,
    index: Option<Index>,
}

/// Comparable by what was compiled; the rest follows from it.
impl PartialEq for RuleList {
    fn eq(&self, other: &Self) -> bool {
        self.policies == other.policies
    }
}

impl Eq for RuleList {}

impl Default for RuleList {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

/// The first group that holds, and the first of which it depends on what is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) yes: Option<u32>,
    /// Means nothing where one holds.
    pub(super) depends: Option<u32>,
}

impl RuleList {
    pub(super) fn new(policies: Vec<Arc<Matcher>>) -> Self {
        let mut places = Vec::new();
        let mut http = PortSet::none();
        for (policy, at) in policies.iter().zip(0..) {
            places.extend((0..).zip(&policy.groups).map(|(group, _)| (at, group)));
            policy.groups.iter().for_each(|group| http.add(&group.request_ports()));
        }
        let groups = policies.iter().flat_map(|policy| &policy.groups);
        let index = index(groups);
        let of_connection = (!http.is_empty()).then(|| Box::new(OfConnection::new(&policies)));
        Self { policies, places, index, of_connection, http }
    }

    pub(super) fn policies(&self) -> &[Arc<Matcher>] {
        &self.policies
    }

    pub(super) fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    pub(super) fn find(&self, peer: &Peer<'_>) -> Found {
        if peer.request.is_none()
            && let Some(of_connection) = &self.of_connection
        {
            return of_connection.find(peer);
        }
        let judge = |at: usize| self.group(at).map_or(Tri::No, |group| group.judge(peer));
        find(self.index.as_ref(), self.places.len(), peer, judge)
    }

    /// Whether some group holds.
    pub(super) fn judge(&self, peer: &Peer<'_>) -> Tri {
        match self.find(peer) {
            Found { yes: Some(_), .. } => Tri::Yes,
            Found { depends: Some(_), .. } => Tri::Depends,
            Found { .. } => Tri::No,
        }
    }

    /// Every policy that holds, with the first of its groups that does.
    pub(super) fn all(&self, peer: &Peer<'_>) -> Vec<By> {
        let first = |policy: &Arc<Matcher>| {
            let at = policy.groups.iter().position(|group| group.judge(peer) == Tri::Yes)?;
            Some(By { resource: policy.resource.clone(), rule: u32::try_from(at).ok() })
        };
        self.policies.iter().filter_map(first).collect()
    }

    /// Whether one of them depends on the request, be others certain.
    pub(super) fn depends(&self, peer: &Peer<'_>) -> bool {
        let depends = |policy: &Arc<Matcher>| policy.judge(peer) == Tri::Depends;
        self.of_connection.is_some() && self.policies.iter().any(depends)
    }

    /// Which group it is that was found.
    pub(super) fn by(&self, at: u32) -> Option<By> {
        let (policy, rule) = *self.places.get(usize::try_from(at).ok()?)?;
        let policy = self.policies.get(usize::try_from(policy).ok()?)?;
        Some(By { resource: policy.resource.clone(), rule: Some(rule) })
    }

    pub(super) fn looks_at_requests(&self, port: u16) -> bool {
        self.http.contains(port)
    }

    pub(super) fn named_ports(&self) -> BTreeSet<u16> {
        let rules = self.policies.iter().flat_map(|m| &m.groups).flat_map(|group| &group.rules);
        let fields = rules.flat_map(|rule| rule.fields.iter().flatten()).flat_map(|fields| &fields.0);
        let ports = fields.filter_map(|field| match &field.values {
            Values::Ports(ports) => Some(ports.iter()),
            _ => None,
        });
        ports.flatten().collect()
    }

    fn group(&self, at: usize) -> Option<&AllOf> {
        let (policy, group) = *self.places.get(at)?;
        self.policies.get(usize::try_from(policy).ok()?)?.groups.get(usize::try_from(group).ok()?)
    }
}

impl OfConnection {
    fn new(policies: &[Arc<Matcher>]) -> Self {
        let groups = policies.iter().flat_map(|policy| &policy.policy.groups);
        let mut seen = HashSet::new();
        let (mut first, mut compiled) = (Vec::new(), Vec::new());
        for (at, group) in (0..).zip(groups) {
            let group = AllOf::of_connection(group);
            if !seen.contains(&group) {
                first.push(at);
                compiled.push(AllOf::new(&group));
                seen.insert(group);
            }
        }
        Self { index: index(compiled.iter()), groups: compiled, first }
    }

    fn find(&self, peer: &Peer<'_>) -> Found {
        let judge = |at: usize| self.groups.get(at).map_or(Tri::No, |group| group.judge(peer));
        let found = find(self.index.as_ref(), self.groups.len(), peer, judge);
        let first = |at: Option<u32>| self.first.get(usize::try_from(at?).ok()?).copied();
        Found { yes: first(found.yes), depends: first(found.depends) }
    }
}

fn index<'a>(groups: impl Iterator<Item = &'a AllOf> + Clone) -> Option<Index> {
    let many = groups.clone().nth(WORTH_IT - 1).is_some();
    many.then(|| Index::new(&groups.map(AllOf::requirements).collect::<Vec<_>>()))
}

fn find(index: Option<&Index>, all: usize, peer: &Peer<'_>, judge: impl Fn(usize) -> Tri) -> Found {
    let mut found = Found::default();
    // Lists are in ascending order, so that each is left as soon as it can no longer improve on what was found.
    let mut look = |at: u32| {
        if found.yes.is_some_and(|yes| yes <= at) {
            return false;
        }
        match usize::try_from(at).map_or(Tri::No, &judge) {
            Tri::Yes => {
                found.yes = Some(at);
                false
            }
            Tri::Depends => {
                found.depends = Some(found.depends.map_or(at, |first| first.min(at)));
                true
            }
            Tri::No => true,
        }
    };
    match index {
        None => {
            (0..).take(all).all(look);
        }
        Some(index) => index.each(peer, &mut |list| {
            list.iter().all(|at| look(*at));
        }),
    }
    found
}
