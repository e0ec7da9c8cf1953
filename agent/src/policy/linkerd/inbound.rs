//! What Linkerd's resources say of one workload.

use std::collections::BTreeMap;
use std::sync::Arc;

use time::OffsetDateTime;

use super::super::matcher::Matcher;
use super::super::peer::Peer;
use super::super::resource::{Defect, ResourceRef};
use super::super::rule_list::RuleList;
use super::super::rules::Policy;
use super::super::set::Lists;
use super::super::tri::Tri;
use super::filters::Filter;
use super::matching::{Host, RequestMatch};
use super::routes::Routes;
use super::server::Protocol;

/// By port of the workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// Ports that a Server takes, and others for which not everything is as elsewhere.
    pub ports: BTreeMap<u16, Arc<PortPolicy>>,
    /// All the rest: the default inbound policy.
    pub other: Arc<PortPolicy>,
    /// Of its control plane: a part of its identities.
    pub linkerd_namespace: Arc<str>,
    /// In what the workload says itself.
    pub defects: Vec<Defect>,
}

impl Inbound {
    pub fn on_port(&self, port: u16) -> &Arc<PortPolicy> {
        self.ports.get(&port).unwrap_or(&self.other)
    }

    /// Whether something on the port (none: any that is not named) is let through only to tell of it.
    pub fn audits(&self, port: Option<u16>) -> bool {
        let policy = port.map_or(&self.other, |port| self.on_port(port));
        policy.otherwise == Otherwise::Audit
    }

    /// Whether requests to the port are, one by one.
    pub fn audits_requests(&self, port: u16) -> bool {
        self.audits(Some(port)) && self.on_port(port).looks_at_requests()
    }
}

/// What holds on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPolicy {
    /// The Server, or the default policy.
    pub by: Arc<ResourceRef>,
    pub protocol: Protocol,
    /// Where there are any, a request has to be one of theirs.
    pub routes: Arc<Routes>,
    /// One of them has to admit the client; of a request, one of these or of its route's.
    pub authorizations: Authorizations,
    /// What becomes of clients that none admits.
    pub otherwise: Otherwise,
    /// Why it could not be understood. Nobody is admitted then.
    pub broken: Option<Arc<str>>,
    /// Servers that would take the port as well, and do not.
    pub shadowed: Vec<Arc<ResourceRef>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Otherwise {
    Deny,
    /// They are let through, and told of.
    Audit,
}

/// One rule of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub by: Arc<ResourceRef>,
    pub rule: u32,
    /// Any, where there are none.
    pub hostnames: Vec<Host>,
    /// One of them has to hold.
    pub matches: Vec<RequestMatch>,
    /// What becomes of a request that is admitted.
    pub filters: Arc<[Filter]>,
    pub created: Option<OffsetDateTime>,
    pub authorizations: Authorizations,
    /// Why it could not be understood; then `matches` holds more often than what is written.
    pub broken: Option<Arc<str>>,
}

/// Who is admitted.
#[derive(Debug, PartialEq, Eq)]
pub struct Authorization {
    pub policy: Arc<Policy>,
    pub(super) matcher: Arc<Matcher>,
}

impl Authorization {
    pub(super) fn new(policy: Policy) -> Arc<Self> {
        let policy = Arc::new(policy);
        Arc::new(Self { matcher: Arc::new(Matcher::new(&policy)), policy })
    }
}

/// Alternatives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorizations {
    all: Arc<[Arc<Authorization>]>,
    list: Arc<RuleList>,
    /// Of the pod's probes. Apart from the others, so that pods with other probes share those.
    pub(super) probes: Option<Arc<Authorization>>,
}

impl Authorizations {
    pub(super) fn new(all: Vec<Arc<Authorization>>, lists: &Lists) -> Self {
        let list = lists.get(all.iter().map(|one| one.matcher.clone()).collect());
        Self { all: all.into(), list, probes: None }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Authorization>> {
        self.all.iter().chain(&self.probes)
    }

    /// Whether one of them admits the client.
    pub(super) fn judge(&self, peer: &Peer<'_>) -> Tri {
        Tri::any(
            [self.list.judge(peer)].into_iter().chain(self.probes.iter().map(|one| one.matcher.judge(peer))),
        )
    }

    /// Which of them admits the client, and the request where it is known.
    pub(super) fn admit(&self, peer: &Peer<'_>) -> Option<Arc<ResourceRef>> {
        if let Some(at) = self.list.find(peer).yes {
            return Some(self.list.by(at)?.resource);
        }
        let probes = self.probes.iter().find(|one| one.matcher.judge(peer) == Tri::Yes);
        probes.map(|one| one.matcher.resource.clone())
    }
}
