//! The mesh at one moment, indexed by everything that a connection is looked up by.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;
use time::OffsetDateTime;

use crate::model::workload::{NetworkMode, TunnelProtocol};
use crate::model::{CidrTable, LocalPod, PodUid, Service, SpiffeId, TrustDomain, Workload, cidr};
use crate::policy::own::Exception;
use crate::policy::{Compiled, PolicySet, Subject};

use super::endpoints::{Candidate, ServiceEntry};
use super::state::{State, UnknownDestinations};

/// Immutable. Lookups take constant time, whatever the size of the mesh.
#[derive(Debug)]
pub struct Snapshot {
    revision: u64,
    trust_domain: Option<TrustDomain>,
    network: Arc<str>,
    ranges: Vec<IpNet>,
    range_table: CidrTable<()>,
    unknown: UnknownDestinations,
    workloads: HashMap<Arc<str>, WorkloadEntry>,
    by_address: HashMap<IpAddr, Arc<str>>,
    services: HashMap<Arc<str>, Arc<ServiceEntry>>,
    /// Several services may claim one address; in the order of their keys.
    by_vip: CidrTable<Vec<Arc<ServiceEntry>>>,
    by_host: HashMap<Arc<str>, Vec<Arc<ServiceEntry>>>,
    policies: PolicySet,
    local_pods: HashMap<PodUid, Arc<LocalPod>>,
}

impl Snapshot {
    /// Counts up with every change; 0 before anything is known.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether a source has spoken. An unsynced snapshot is empty because nothing is known, not
    /// because there is nothing: pods must not be un-enrolled on its word.
    pub fn is_synced(&self) -> bool {
        self.revision > 0
    }

    /// None before anything is known.
    pub fn trust_domain(&self) -> Option<&TrustDomain> {
        self.trust_domain.as_ref()
    }

    /// The network that this node's addresses belong to.
    pub fn network(&self) -> &Arc<str> {
        &self.network
    }

    /// The workload at an address of our network. Workloads that share their node's addresses are
    /// never found this way.
    pub fn workload(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        let uid = self.by_address.get(&ip.to_canonical())?;
        self.workload_by_uid(uid)
    }

    pub fn workload_by_uid(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid).map(|entry| &entry.workload)
    }

    /// Who is known to be at the address of a client that proves nothing. Whoever can take the address for its own
    /// counts for it, and so does whoever got it a moment ago.
    pub fn known_at(&self, ip: IpAddr) -> Option<&SpiffeId> {
        self.workload(ip).map(|workload| &workload.identity)
    }

    /// The workload that a pod of this node is: at one of its addresses, and under its name and
    /// identity. An address that another workload had before it does not count.
    pub fn workload_of(&self, pod: &LocalPod) -> Option<&Arc<Workload>> {
        pod.addresses.iter().filter_map(|ip| self.workload(*ip)).find(|workload| {
            workload.namespace == pod.namespace
                && workload.name == pod.name
                && workload.identity == pod.identity
        })
    }

    /// The service at a virtual address, the most specific range first. Where several services claim
    /// the same, the client's namespace wins, then the canonical one. It may not be visible to the client.
    pub fn service_by_vip(&self, ip: IpAddr, client_namespace: &str) -> Option<&Arc<Service>> {
        self.service_entry_by_vip(ip, client_namespace).map(|entry| &entry.service)
    }

    /// By `namespace/hostname`.
    pub fn service_by_key(&self, key: &str) -> Option<&Arc<Service>> {
        self.services.get(key).map(|entry| &entry.service)
    }

    /// All services of a host name, in the order of their keys.
    pub fn services_by_host(&self, host: &str) -> impl Iterator<Item = &Arc<Service>> {
        self.by_host.get(host).into_iter().flatten().map(|entry| &entry.service)
    }

    /// The usable endpoints of a service's port with the target port of each; empty for an unknown
    /// service or port.
    pub fn endpoints(&self, key: &str, service_port: u16) -> impl Iterator<Item = (&Arc<Workload>, u16)> {
        let pool = self.services.get(key).and_then(|entry| entry.pool(service_port));
        pool.into_iter().flat_map(|pool| pool.endpoints()).map(|e| (&e.workload, e.target_port))
    }

    /// What decides about connections to this workload, by its present description: one that is gone
    /// admits nobody.
    pub fn policies_for(&self, workload: &Workload) -> Arc<Compiled> {
        match self.workloads.get(&workload.uid) {
            Some(entry) => entry.compiled(&self.policies),
            None => Arc::new(Compiled::deny_unknown_workload()),
        }
    }

    /// What decides about connections to a pod of this node. A pod without a workload admits nobody.
    pub fn inbound_policy(&self, pod: &LocalPod) -> Arc<Compiled> {
        match self.workload_of(pod) {
            Some(workload) => self.policies_for(workload),
            None => Arc::new(Compiled::deny_unknown_workload()),
        }
    }

    pub fn policies(&self) -> &PolicySet {
        &self.policies
    }

    /// Everybody's exceptions from mutual TLS that were understood, in force or not.
    pub fn exceptions(&self) -> impl Iterator<Item = &Arc<Exception>> {
        self.policies.resources().into_iter().flat_map(|resources| resources.own.exceptions())
    }

    /// The moment that exceptions are judged at.
    pub fn now(&self) -> Option<OffsetDateTime> {
        self.policies.now()
    }

    /// The pods of this node that are to be meshed, in no particular order.
    pub fn local_pods(&self) -> impl ExactSizeIterator<Item = &Arc<LocalPod>> {
        self.local_pods.values()
    }

    pub fn local_pod(&self, uid: &PodUid) -> Option<&Arc<LocalPod>> {
        self.local_pods.get(uid)
    }

    pub fn mesh_ranges(&self) -> &[IpNet] {
        &self.ranges
    }

    pub fn in_mesh_ranges(&self, ip: IpAddr) -> bool {
        self.range_table.contains(ip)
    }

    pub fn unknown_destinations(&self) -> UnknownDestinations {
        self.unknown
    }

    /// In no particular order.
    pub fn workloads(&self) -> impl ExactSizeIterator<Item = &Arc<Workload>> {
        self.workloads.values().map(|entry| &entry.workload)
    }

    /// In no particular order.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        self.services.values().map(|entry| &entry.service)
    }

    pub(super) fn service_entry_by_vip(
        &self,
        ip: IpAddr,
        client_namespace: &str,
    ) -> Option<&Arc<ServiceEntry>> {
        let claims = self.by_vip.lookup(ip)?;
        let by = |fits: &dyn Fn(&Service) -> bool| claims.iter().find(|entry| fits(&entry.service));
        by(&|s| &*s.namespace == client_namespace)
            .or_else(|| by(&|s| s.canonical && s.is_visible_to(client_namespace)))
            .or_else(|| by(&|s| s.is_visible_to(client_namespace)))
            .or(claims.first())
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = (IpAddr, &Workload)> {
        self.by_address.iter().filter_map(|(ip, uid)| Some((*ip, self.workloads.get(uid)?.workload.as_ref())))
    }

    /// The identity that a workload has to prove, as a list that routes can share.
    pub(super) fn expected(&self, workload: &Workload) -> Arc<[SpiffeId]> {
        match self.workloads.get(&workload.uid) {
            Some(entry) => entry.expected.clone(),
            None => Arc::from([workload.identity.clone()]),
        }
    }

    pub(super) fn unsynced() -> Self {
        Self {
            revision: 0,
            trust_domain: None,
            network: "".into(),
            ranges: Vec::new(),
            range_table: CidrTable::default(),
            unknown: UnknownDestinations::Refuse,
            workloads: HashMap::new(),
            by_address: HashMap::new(),
            services: HashMap::new(),
            by_vip: CidrTable::default(),
            by_host: HashMap::new(),
            policies: PolicySet::default(),
            local_pods: HashMap::new(),
        }
    }

    /// Indexes a state. Where two entries claim one key the later wins, where two workloads claim one
    /// address the likelier owner does ([`claim`]).
    pub fn build(revision: u64, state: State) -> Self {
        Self { revision, ..Self::unsynced().next(state, OffsetDateTime::now_utc()) }
    }

    /// What comes after this one, `now` or later. What is the same in both is not compiled again.
    pub fn next(&self, state: State, now: OffsetDateTime) -> Self {
        let policies = self.policies.next(state.policies, state.mtls, state.resources);
        let mut snapshot = Self {
            revision: self.revision + 1,
            trust_domain: Some(state.trust_domain),
            network: state.network,
            range_table: state.ranges.iter().copied().collect(),
            ranges: state.ranges.into_iter().map(cidr::canonical).collect(),
            unknown: state.unknown,
            policies: policies.with_sent_defects(state.policy_defects).at(now),
            ..Self::unsynced()
        };
        snapshot.add_workloads(state.workloads, self);
        snapshot.add_services(state.services);
        snapshot.local_pods =
            state.local_pods.into_iter().map(|pod| (pod.uid.clone(), Arc::new(pod))).collect();
        snapshot.compiled()
    }

    /// The same mesh as its next revision, at a later moment: what has lapsed by then holds no more.
    pub(super) fn later(&self, now: OffsetDateTime) -> Self {
        let workloads = self.workloads.iter().map(|(uid, entry)| (uid.clone(), entry.anew()));
        let later = Self {
            revision: self.revision + 1,
            trust_domain: self.trust_domain.clone(),
            network: self.network.clone(),
            ranges: self.ranges.clone(),
            range_table: self.ranges.iter().copied().collect(),
            unknown: self.unknown,
            workloads: workloads.collect(),
            by_address: self.by_address.clone(),
            services: self.services.clone(),
            by_vip: self.by_vip.clone(),
            by_host: self.by_host.clone(),
            policies: self.policies.at(now),
            local_pods: self.local_pods.clone(),
        };
        later.compiled()
    }

    /// Ours are asked about per connection; others only when somebody wants an explanation.
    fn compiled(self) -> Self {
        for pod in self.local_pods.values() {
            self.inbound_policy(pod);
        }
        self
    }

    fn add_workloads(&mut self, workloads: Vec<Workload>, before: &Self) {
        for workload in workloads {
            let before = before.workloads.get(&workload.uid);
            self.workloads.insert(workload.uid.clone(), WorkloadEntry::new(workload, before));
        }
        for (uid, entry) in &self.workloads {
            let workload = &entry.workload;
            if workload.network != self.network || workload.network_mode == NetworkMode::HostNetwork {
                continue;
            }
            for ip in &workload.addresses {
                let holder = self.by_address.entry(ip.to_canonical()).or_insert_with(|| uid.clone());
                if self.workloads.get(holder).is_some_and(|other| claim(&other.workload) < claim(workload)) {
                    *holder = uid.clone();
                }
            }
        }
    }

    fn add_services(&mut self, services: Vec<Service>) {
        let mut members: HashMap<&str, Vec<Candidate<'_>>> = HashMap::new();
        // In the order of their uids, so that equal meshes choose alike.
        let mut entries: Vec<&WorkloadEntry> = self.workloads.values().collect();
        entries.sort_by(|a, b| a.workload.uid.cmp(&b.workload.uid));
        for entry in entries {
            for key in entry.workload.services.keys() {
                let candidate = Candidate { workload: &entry.workload, own: &entry.expected };
                members.entry(key).or_default().push(candidate);
            }
        }
        for service in services {
            let key: Arc<str> = service.key().into();
            let members = members.get(&*key).map_or(&[][..], Vec::as_slice);
            let entry = ServiceEntry::new(service, members, &self.network);
            self.services.insert(key, Arc::new(entry));
        }
        let mut entries: Vec<_> = self.services.iter().collect();
        entries.sort_by_key(|(key, _)| (*key).clone());
        for (_, entry) in entries {
            for vip in &entry.service.vips {
                self.by_vip.entry(*vip).push(entry.clone());
            }
            self.by_host.entry(entry.service.hostname.clone()).or_default().push(entry.clone());
        }
    }
}

/// Ranks workloads that claim one address: a pod before an external endpoint, a meshed one before
/// another, and the rest by uid so that the outcome never depends on order.
fn claim(workload: &Workload) -> (bool, bool, &str) {
    (workload.uid.contains("//Pod/"), workload.protocol == TunnelProtocol::Hbone, &workload.uid)
}

#[derive(Debug)]
struct WorkloadEntry {
    workload: Arc<Workload>,
    expected: Arc<[SpiffeId]>,
    compiled: OnceLock<Arc<Compiled>>,
    /// Of the snapshot before, to be kept where it still holds.
    before: Option<Arc<Compiled>>,
}

impl WorkloadEntry {
    fn new(workload: Workload, before: Option<&Self>) -> Self {
        let expected = Arc::from([workload.identity.clone()]);
        let before = before.and_then(|entry| entry.compiled.get().or(entry.before.as_ref()).cloned());
        Self { workload: Arc::new(workload), expected, compiled: OnceLock::new(), before }
    }

    /// To be compiled again.
    fn anew(&self) -> Self {
        let before = self.compiled.get().or(self.before.as_ref()).cloned();
        let (workload, expected) = (self.workload.clone(), self.expected.clone());
        Self { workload, expected, compiled: OnceLock::new(), before }
    }

    fn compiled(&self, policies: &PolicySet) -> Arc<Compiled> {
        let compile = || policies.recompile(&Subject::from(&*self.workload), self.before.as_ref());
        self.compiled.get_or_init(compile).clone()
    }
}
