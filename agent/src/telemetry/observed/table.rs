//! The rows.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::SystemTime;

use hashbrown::HashTable;

use super::owner::{lasting, owner};
use super::view::{
    ClientView, ConnectionCounts, DenialView, LeftOut, ObservedServer, OutcomeView, RequestCounts, Seen,
    Transport,
};
use super::{Event, Outcome, Sight, rfc3339};
use crate::model::workload::PodFacts;
use crate::model::{LocalPod, PodUid, SpiffeId, Workload};
use crate::telemetry::Denial;

#[derive(Clone, Default)]
pub(super) struct Table {
    rows: HashTable<Row>,
    hasher: RandomState,
    /// How many rows each client has.
    holders: HashMap<Client, usize>,
    /// How many rows are of clients that nobody knows.
    strangers: usize,
    servers: HashSet<Arc<Server>>,
    /// What each pod was found to be an instance of, until the next change of it.
    pods: HashMap<PodUid, (Option<Arc<Workload>>, Arc<Server>)>,
    pub(super) left_out: LeftOut,
}

pub(super) const MOST_ROWS: usize = 10_000;
/// Of one client: who tries every port takes no more. A scraper of every pod of a node stays far below.
pub(super) const MOST_OF_ONE: usize = 1_000;
/// Of all plaintext clients together that are at no workload's address.
pub(super) const MOST_OF_STRANGERS: usize = MOST_ROWS / 2;

/// All instances of one thing.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Server {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) identity: SpiffeId,
    known: bool,
    facts: PodFacts,
}

#[derive(Clone)]
pub(super) struct Row {
    pub(super) server: Arc<Server>,
    pub(super) client: Client,
    pub(super) port: u16,
    /// The workload of a client that is known by its identity: where it was last, by its address.
    place: Option<[Arc<str>; 2]>,
    addresses: Vec<IpAddr>,
    elsewhere: u64,
    destination: IpAddr,
    pub(super) counts: ConnectionCounts,
    pub(super) requests: RequestCounts,
    would_deny: u64,
    would: Option<Arc<str>>,
    denials: Vec<DenialView>,
    last: Option<OutcomeView>,
    first_seen: SystemTime,
    last_seen: SystemTime,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Client {
    Proven(SpiffeId),
    /// In plaintext, from a known workload's address.
    Workload {
        namespace: Arc<str>,
        name: Arc<str>,
        identity: SpiffeId,
    },
    Address(IpAddr),
}

/// The same, borrowed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum ClientRef<'a> {
    Proven(&'a SpiffeId),
    Workload { namespace: &'a str, name: &'a str, identity: &'a SpiffeId },
    Address(IpAddr),
}

impl Table {
    pub(super) fn add(&mut self, sight: &Sight<'_>, event: Event<'_>, now: SystemTime) {
        let server = self.server(sight.pod, sight.server);
        let client = ClientRef::of(sight);
        let key = (Arc::as_ptr(&server).addr(), client, sight.target.port());
        let hash = self.hasher.hash_one(key);
        if let Some(row) = self.rows.find_mut(hash, |row| row.key() == key) {
            return row.add(sight, event, now);
        }
        let holder = client.holder();
        let held = self.holders.get(&holder).copied().unwrap_or_default();
        let stranger = matches!(client, ClientRef::Address(_));
        if self.rows.len() >= MOST_ROWS
            || held >= MOST_OF_ONE
            || (stranger && self.strangers >= MOST_OF_STRANGERS)
        {
            return self.left_out.add(event);
        }
        self.holders.insert(holder, held + 1);
        self.strangers += usize::from(stranger);
        let mut row = Row::new(server, client, sight, now);
        row.add(sight, event, now);
        let hasher = &self.hasher;
        self.rows.insert_unique(hash, row, |row| hasher.hash_one(row.key()));
    }

    pub(super) fn prune(&mut self, before: SystemTime) {
        let (holders, strangers) = (&mut self.holders, &mut self.strangers);
        self.rows.retain(|row| {
            let stays = row.last_seen >= before;
            if !stays {
                *strangers -= usize::from(matches!(row.client, Client::Address(_)));
                let holder = row.client.as_ref().holder();
                let left = holders.get(&holder).map_or(0, |held| held.saturating_sub(1));
                match left {
                    0 => drop(holders.remove(&holder)),
                    left => drop(holders.insert(holder, left)),
                }
            }
            stays
        });
        self.pods.clear();
        self.servers.retain(|server| Arc::strong_count(server) > 1);
    }

    pub(super) fn rows(&self) -> impl ExactSizeIterator<Item = &Row> {
        self.rows.iter()
    }

    /// Sorted, so that two pages of the same say the same.
    pub(super) fn servers(&self) -> Vec<ObservedServer> {
        let mut by_server: BTreeMap<usize, (&Arc<Server>, Vec<Seen>)> = BTreeMap::new();
        for row in &self.rows {
            let at = Arc::as_ptr(&row.server).addr();
            by_server.entry(at).or_insert_with(|| (&row.server, Vec::new())).1.push(row.view());
        }
        let mut servers: Vec<_> =
            by_server.into_values().map(|(server, clients)| server.view(clients)).collect();
        servers.sort_by_cached_key(ObservedServer::order);
        servers
    }

    fn server(&mut self, pod: &LocalPod, workload: Option<&Arc<Workload>>) -> Arc<Server> {
        if let Some((before, server)) = self.pods.get(&pod.uid)
            && same(before.as_ref(), workload)
        {
            return Arc::clone(server);
        }
        let server = Server::new(pod, workload.map(|workload| &**workload));
        let server = match self.servers.get(&server) {
            Some(server) => Arc::clone(server),
            None => {
                let server = Arc::new(server);
                self.servers.insert(Arc::clone(&server));
                server
            }
        };
        self.pods.insert(pod.uid.clone(), (workload.cloned(), Arc::clone(&server)));
        server
    }
}

fn same(a: Option<&Arc<Workload>>, b: Option<&Arc<Workload>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

impl LeftOut {
    fn add(&mut self, event: Event<'_>) {
        match event {
            Event::Ended { outcome, .. } => {
                self.connections += 1;
                self.denied += u64::from(matches!(outcome, Outcome::Denied(_)));
            }
            Event::Open { .. } => self.connections += 1,
            Event::RequestDenied(_) => self.requests_denied += 1,
        }
    }
}

impl Server {
    fn new(pod: &LocalPod, workload: Option<&Workload>) -> Self {
        Self {
            namespace: Arc::clone(&pod.namespace),
            name: workload.map_or_else(|| Arc::clone(&pod.name), |workload| owner(workload).into()),
            identity: pod.identity.clone(),
            known: workload.is_some(),
            facts: workload.map_or(PodFacts::NONE, |workload| lasting(&workload.facts)),
        }
    }

    fn view(&self, mut clients: Vec<Seen>) -> ObservedServer {
        clients.sort_by_cached_key(Seen::order);
        ObservedServer {
            namespace: Arc::clone(&self.namespace),
            name: Arc::clone(&self.name),
            identity: self.identity.clone(),
            known: self.known,
            pod: self.facts.clone(),
            clients,
        }
    }
}

impl Row {
    fn new(server: Arc<Server>, client: ClientRef<'_>, sight: &Sight<'_>, now: SystemTime) -> Self {
        Self {
            server,
            client: client.to_owned(),
            port: sight.target.port(),
            place: None,
            addresses: Vec::new(),
            elsewhere: 0,
            destination: sight.target.ip(),
            counts: ConnectionCounts::default(),
            requests: RequestCounts::default(),
            would_deny: 0,
            would: None,
            denials: Vec::new(),
            last: None,
            first_seen: now,
            last_seen: now,
        }
    }

    fn key(&self) -> (usize, ClientRef<'_>, u16) {
        (Arc::as_ptr(&self.server).addr(), self.client.as_ref(), self.port)
    }

    fn add(&mut self, sight: &Sight<'_>, event: Event<'_>, now: SystemTime) {
        self.last_seen = now;
        self.destination = sight.target.ip();
        if !self.addresses.contains(&sight.client_ip) {
            match self.addresses.len() < MOST_ADDRESSES {
                true => self.addresses.push(sight.client_ip),
                false => self.elsewhere += 1,
            }
        }
        if let (Client::Proven(_), Some(workload)) = (&self.client, sight.client) {
            let name = owner(workload);
            if self.place.as_ref().is_none_or(|[_, now]| **now != *name) {
                self.place = Some([Arc::clone(&workload.namespace), name.into()]);
            }
        }
        match event {
            Event::Ended { outcome, requests_allowed, would_deny } => {
                self.requests.allowed += requests_allowed;
                self.would(would_deny);
                self.outcome(outcome);
            }
            Event::Open { requests_allowed, would_deny } => {
                self.requests.allowed += requests_allowed;
                self.would(would_deny);
                self.counts.open += 1;
                self.outcome(Outcome::Allowed);
            }
            Event::RequestDenied(denial) => {
                self.requests.denied += 1;
                self.denied(denial);
            }
        }
    }

    fn outcome(&mut self, outcome: Outcome<'_>) {
        match outcome {
            Outcome::Allowed => {
                self.counts.allowed += 1;
                self.last = Some(OutcomeView::Allowed);
            }
            Outcome::Denied(denial) => {
                self.counts.denied += 1;
                self.last = Some(OutcomeView::Denied);
                self.denied(denial);
            }
            // Says nothing of what policy would say the next time.
            Outcome::Unreached => self.counts.unreached += 1,
        }
    }

    fn would(&mut self, would_deny: Option<&str>) {
        self.would_deny += u64::from(would_deny.is_some());
        // What holds now, not what once held.
        if self.would.as_deref() != would_deny {
            self.would = would_deny.map(Into::into);
        }
    }

    fn denied(&mut self, denial: &Denial) {
        let same = |told: &&mut DenialView| {
            told.policy == denial.policy && told.rule == denial.rule && *told.reason == *denial.reason
        };
        if let Some(told) = self.denials.iter_mut().find(same) {
            told.count += 1;
        } else if self.denials.len() < MOST_DENIALS {
            let (policy, rule, reason) = (denial.policy.clone(), denial.rule, denial.reason.into());
            self.denials.push(DenialView { policy, rule, reason, count: 1 });
        } else if let Some(last) = self.denials.last_mut() {
            // The last place is everything else's.
            last.count += 1;
            (last.policy, last.rule) = (None, None);
            last.reason = "other".into();
        }
    }

    fn view(&self) -> Seen {
        let (identity, [namespace, workload], expected) = match &self.client {
            Client::Proven(id) => {
                let place = self.place.clone().map(|place| place.map(Some)).unwrap_or_default();
                (Some(id.clone()), place, None)
            }
            Client::Workload { namespace, name, identity } => {
                (None, [Some(Arc::clone(namespace)), Some(Arc::clone(name))], Some(identity.clone()))
            }
            Client::Address(_) => (None, [None, None], None),
        };
        Seen {
            client: ClientView {
                transport: if identity.is_some() { Transport::Mtls } else { Transport::Plaintext },
                identity,
                namespace,
                workload,
                expected_identity: expected,
                addresses: self.addresses.clone(),
                from_other_addresses: self.elsewhere,
            },
            port: self.port,
            destination: self.destination,
            connections: self.counts,
            requests: self.requests,
            would_deny: self.would_deny,
            would: self.would.clone(),
            denials: self.denials.clone(),
            last: self.last,
            first_seen: rfc3339(self.first_seen),
            last_seen: rfc3339(self.last_seen),
        }
    }
}

/// Of one row, each.
const MOST_ADDRESSES: usize = 8;
const MOST_DENIALS: usize = 4;

impl Client {
    fn as_ref(&self) -> ClientRef<'_> {
        match self {
            Self::Proven(id) => ClientRef::Proven(id),
            Self::Workload { namespace, name, identity } => ClientRef::Workload { namespace, name, identity },
            Self::Address(ip) => ClientRef::Address(*ip),
        }
    }
}

impl<'a> ClientRef<'a> {
    fn of(sight: &Sight<'a>) -> Self {
        match (sight.identity, sight.client) {
            (Some(id), _) => Self::Proven(id),
            (None, Some(workload)) => Self::Workload {
                namespace: &workload.namespace,
                name: owner(workload),
                identity: &workload.identity,
            },
            (None, None) => Self::Address(sight.client_ip),
        }
    }

    fn to_owned(self) -> Client {
        match self {
            Self::Proven(id) => Client::Proven(id.clone()),
            Self::Workload { namespace, name, identity } => Client::Workload {
                namespace: namespace.into(),
                name: name.into(),
                identity: identity.clone(),
            },
            Self::Address(ip) => Client::Address(ip),
        }
    }

    /// Who may have only so many rows. Whoever has one address of IPv6 has its whole network.
    fn holder(self) -> Client {
        match self {
            Self::Address(IpAddr::V6(ip)) => {
                let network = u128::from(ip) >> 64 << 64;
                Client::Address(Ipv6Addr::from(network).into())
            }
            Self::Address(IpAddr::V4(ip)) => Client::Address(Ipv4Addr::from(u32::from(ip) >> 8 << 8).into()),
            other => other.to_owned(),
        }
    }
}
