//! Who can serve a service's port, and the weighted choice among them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use rand::Rng;

use crate::model::workload::{BalancingMode, Health, LoadBalancing};
use crate::model::{Service, SpiffeId, Workload};

/// A service with the endpoints of each of its ports, worked out when the mesh changed.
#[derive(Debug)]
pub(super) struct ServiceEntry {
    pub(super) service: Arc<Service>,
    pools: BTreeMap<u16, Pool>,
}

impl ServiceEntry {
    /// `members` are the workloads that name the service.
    pub(super) fn new(service: Service, members: &[Candidate<'_>], network: &str) -> Self {
        let members: Vec<Member<'_>> = members
            .iter()
            .map(|c| Member { workload: c.workload, expected: expected(&service, c.workload, c.own) })
            .collect();
        let pools = service
            .ports
            .iter()
            .map(|p| (p.service_port, Pool::new(&service, p.service_port, p.target_port, &members, network)))
            .collect();
        Self { service: Arc::new(service), pools }
    }

    /// None when the service has no such port.
    pub(super) fn pool(&self, service_port: u16) -> Option<&Pool> {
        self.pools.get(&service_port)
    }
}

/// A workload that may be an endpoint, with the list that is its own identity.
pub(super) struct Candidate<'a> {
    pub(super) workload: &'a Arc<Workload>,
    pub(super) own: &'a Arc<[SpiffeId]>,
}

/// The endpoints of one service port.
#[derive(Debug)]
pub(super) struct Pool {
    endpoints: Vec<Endpoint>,
    /// The sum of the weights up to and including the endpoint of the same index.
    cumulative: Vec<u64>,
    left_out: LeftOut,
}

#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) workload: Arc<Workload>,
    pub(super) target_port: u16,
    /// The service's alternative names and the workload's own identity.
    pub(super) expected: Arc<[SpiffeId]>,
}

impl Endpoint {
    /// In the family that the client dialled where there is one.
    ///
    /// None only for a workload without addresses, which no pool takes in.
    pub(super) fn address(&self, dialled: IpAddr) -> Option<IpAddr> {
        let addresses = &self.workload.addresses;
        let same_family = addresses.iter().find(|ip| ip.to_canonical().is_ipv4() == dialled.is_ipv4());
        same_family.or(addresses.first()).map(|ip| ip.to_canonical())
    }
}

impl Pool {
    /// By weight: in logarithmic time, or linear where the client's own place counts. A client that is no
    /// workload is in no place.
    pub(super) fn pick(
        &self,
        balancing: &LoadBalancing,
        client: Option<&Workload>,
        rng: &mut impl Rng,
    ) -> Option<&Endpoint> {
        if balancing.mode != BalancingMode::Unspecified && !balancing.routing_preference.is_empty() {
            return self.pick_near(balancing, client, rng);
        }
        let total = *self.cumulative.last()?;
        let at = rng.random_range(0..total);
        self.endpoints.get(self.cumulative.partition_point(|sum| *sum <= at))
    }

    fn pick_near(
        &self,
        balancing: &LoadBalancing,
        client: Option<&Workload>,
        rng: &mut impl Rng,
    ) -> Option<&Endpoint> {
        let rank = |e: &Endpoint| client.map_or(0, |client| balancing.rank(client, &e.workload));
        let wanted = match balancing.mode {
            BalancingMode::Strict => balancing.routing_preference.len(),
            BalancingMode::Failover | BalancingMode::Unspecified => self.endpoints.iter().map(rank).max()?,
        };
        let near: Vec<&Endpoint> = self.endpoints.iter().filter(|e| rank(e) == wanted).collect();
        let total: u64 = near.iter().map(|e| u64::from(e.workload.capacity)).sum();
        let mut at = if total == 0 { return None } else { rng.random_range(0..total) };
        near.into_iter().find(|e| {
            let weight = u64::from(e.workload.capacity);
            let found = at < weight;
            at = at.saturating_sub(weight);
            found
        })
    }

    pub(super) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Why there is none, in words.
    pub(super) fn why_empty(&self) -> String {
        let LeftOut { unhealthy, foreign, weightless, unaddressed, unmapped } = self.left_out;
        let reasons: Vec<String> = [
            (unhealthy, "unhealthy"),
            (foreign, "in another network"),
            (weightless, "of capacity 0"),
            (unaddressed, "without an address"),
            (unmapped, "without a target port"),
        ]
        .into_iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, what)| format!("{n} {what}"))
        .collect();
        if !self.endpoints.is_empty() {
            "no endpoint is as near as its routing preference asks".into()
        } else if reasons.is_empty() {
            "it has no endpoints".into()
        } else {
            format!("endpoints: {}", reasons.join(", "))
        }
    }

    fn new(service: &Service, port: u16, target: u16, members: &[Member<'_>], network: &str) -> Self {
        let mut pool = Self { endpoints: Vec::new(), cumulative: Vec::new(), left_out: LeftOut::default() };
        let key = service.key();
        let mut total = 0;
        for Member { workload, expected } in members {
            let own = workload.services.get(&*key).into_iter().flatten().find(|m| m.service_port == port);
            let target_port = own.map(|m| m.target_port).filter(|p| *p != 0).unwrap_or(target);
            let left_out = if workload.health == Health::Unhealthy && !service.allow_unhealthy {
                &mut pool.left_out.unhealthy
            } else if &*workload.network != network {
                &mut pool.left_out.foreign
            } else if workload.capacity == 0 {
                &mut pool.left_out.weightless
            } else if workload.addresses.is_empty() {
                &mut pool.left_out.unaddressed
            } else if target_port == 0 {
                &mut pool.left_out.unmapped
            } else {
                total += u64::from(workload.capacity);
                pool.cumulative.push(total);
                let (workload, expected) = ((*workload).clone(), expected.clone());
                pool.endpoints.push(Endpoint { workload, target_port, expected });
                continue;
            };
            *left_out += 1;
        }
        pool
    }
}

struct Member<'a> {
    workload: &'a Arc<Workload>,
    expected: Arc<[SpiffeId]>,
}

/// How many endpoints cannot be used, by the first reason that applies.
#[derive(Clone, Copy, Debug, Default)]
struct LeftOut {
    unhealthy: usize,
    foreign: usize,
    weightless: usize,
    unaddressed: usize,
    unmapped: usize,
}

/// Sorted and without repetition, since tunnels are pooled by this list.
fn expected(service: &Service, workload: &Workload, own: &Arc<[SpiffeId]>) -> Arc<[SpiffeId]> {
    if service.subject_alt_names.is_empty() {
        return own.clone();
    }
    let mut all = service.subject_alt_names.clone();
    all.push(workload.identity.clone());
    all.sort();
    all.dedup();
    all.into()
}
