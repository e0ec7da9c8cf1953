//! All groups of several policies of one action, asked which of them is the first that holds.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::matcher::{AllOf, Matcher, Values};
use super::peer::Peer;
use super::ports::PortSet;
use super::tri::Tri;
use super::verdict::By;

#[derive(Debug)]
pub(super) struct RuleList {
    policies: Vec<Arc<Matcher>>,
    /// Where each policy's groups begin, of all groups counted through.
    starts: Vec<u32>,
    groups: u32,
    http: PortSet,
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

/// The first group that holds, and the first of which it depends on the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) yes: Option<u32>,
    /// Only searched for as long as none holds.
    pub(super) depends: Option<u32>,
}

impl RuleList {
    pub(super) fn new(policies: Vec<Arc<Matcher>>) -> Self {
        let mut groups = 0;
        let mut starts = Vec::with_capacity(policies.len());
        let mut http = PortSet::none();
        for policy in &policies {
            starts.push(groups);
            groups += u32::try_from(policy.groups.len()).unwrap_or(u32::MAX);
            policy.groups.iter().for_each(|group| http.add(&group.request_ports()));
        }
        Self { policies, starts, groups, http }
    }

    pub(super) fn policies(&self) -> &[Arc<Matcher>] {
        &self.policies
    }

    pub(super) fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    pub(super) fn find(&self, peer: &Peer<'_>) -> Found {
        let mut found = Found::default();
        for at in 0..self.groups {
            match self.group(at).map_or(Tri::No, |group| group.judge(peer)) {
                Tri::Yes => {
                    found.yes = Some(at);
                    break;
                }
                Tri::Depends if found.depends.is_none() => found.depends = Some(at),
                Tri::Depends | Tri::No => {}
            }
        }
        found
    }

    /// Every policy that holds, with the first of its groups that does.
    pub(super) fn all(&self, peer: &Peer<'_>) -> Vec<By> {
        let first = |policy: &Arc<Matcher>| {
            let at = policy.groups.iter().position(|group| group.judge(peer) == Tri::Yes)?;
            Some(By { resource: policy.resource.clone(), rule: u32::try_from(at).ok() })
        };
        self.policies.iter().filter_map(first).collect()
    }

    /// Which group it is that was found.
    pub(super) fn by(&self, at: u32) -> Option<By> {
        let (policy, rule) = self.place(at)?;
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

    fn group(&self, at: u32) -> Option<&AllOf> {
        let (policy, group) = self.place(at)?;
        policy.groups.get(usize::try_from(group).ok()?)
    }

    fn place(&self, at: u32) -> Option<(&Arc<Matcher>, u32)> {
        // Policies without groups begin where the next one does.
        let policy = self.starts.partition_point(|start| *start <= at).checked_sub(1)?;
        Some((self.policies.get(policy)?, at - self.starts.get(policy)?))
    }
}
