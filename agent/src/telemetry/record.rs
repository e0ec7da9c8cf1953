//! One connection's record: opened at capture, filled in as facts become known, finished with a cause
//! on every exit.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use crate::model::{
    Cause, ClientAddr, ConnectionId, Direction, LocalPod, NextHop, OriginalDst, Service, SpiffeId, Workload,
    ports,
};

use super::access::{self, Line};
use super::metrics::traffic::{Key, Series, Side, Traffic};
use super::observed::{Event, Outcome, Sight};
use super::view::{ConnectionState, ConnectionView, PartyView};
use super::{Telemetry, lock};

/// What is known of a connection when it is captured.
#[derive(Clone, Debug)]
pub struct Opened {
    pub id: ConnectionId,
    pub direction: Direction,
    /// The pod on this node that the connection belongs to.
    pub pod: Arc<LocalPod>,
    pub client: ClientAddr,
    pub destination: OriginalDst,
}

/// One end of a connection, as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct Party {
    pub workload: Option<Arc<Workload>>,
    /// The identity that it has, or is expected to have. It is shown only if mutual TLS proved it
    /// ([`Record::set_mtls`]).
    pub identity: Option<SpiffeId>,
}

/// Who refused a connection, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The resource, where it was one.
    pub policy: Option<Arc<str>>,
    /// Which of its rules, counted from 0.
    pub rule: Option<u32>,
    /// One word.
    pub reason: &'static str,
}

/// Adds to an open connection's record; to one that is finished it adds nothing.
#[derive(Clone)]
pub struct Teller {
    live: Arc<Live>,
}

impl Teller {
    pub fn denied(&self, denial: &Denial) {
        let mut facts = lock(&self.live.facts);
        facts.policy.clone_from(&denial.policy);
        (facts.rule, facts.reason) = (denial.rule, Some(denial.reason));
        facts.is_denied = true;
    }
}

impl std::fmt::Debug for Teller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Teller").field(&self.live.opened.id).finish()
    }
}

/// Counts the requests of one connection, where each is judged by itself.
#[derive(Clone)]
pub struct RequestTeller {
    telemetry: Telemetry,
    live: Arc<Live>,
}

impl RequestTeller {
    pub fn allowed(&self) {
        self.live.requests_allowed.fetch_add(1, Ordering::Relaxed);
    }

    pub fn denied(&self, denial: &Denial) {
        let mut facts = lock(&self.live.facts);
        facts.request_denial = Some(denial.clone());
        if let Some(sight) = self.live.sight(&facts) {
            self.telemetry.inner.observed.add(&sight, Event::RequestDenied(denial));
        }
    }
}

/// Bytes of the application's stream, not of the tunnel's.
#[derive(Debug, Default)]
pub struct Counts {
    /// From client to server.
    pub sent: AtomicU64,
    /// From server to client.
    pub received: AtomicU64,
}

/// An open connection. Dropping it unfinished records [`Cause::Internal`], which is a defect.
#[must_use = "a record that is dropped is recorded as an internal error"]
pub struct Record {
    telemetry: Telemetry,
    live: Arc<Live>,
    finished: bool,
}

impl Record {
    pub(super) fn open(telemetry: Telemetry, opened: Opened) -> Self {
        let live = Arc::new(Live {
            opened,
            started: Instant::now(),
            since: SystemTime::now(),
            counts: Arc::default(),
            requests_allowed: AtomicU64::new(0),
            facts: Mutex::default(),
        });
        telemetry.inner.shard(live.opened.id).insert(live.opened.id, Arc::clone(&live));
        Self { telemetry, live, finished: false }
    }

    pub fn id(&self) -> ConnectionId {
        self.live.opened.id
    }

    pub fn direction(&self) -> Direction {
        self.live.opened.direction
    }

    pub fn set_source(&self, party: Party) {
        lock(&self.live.facts).source = party;
    }

    pub fn set_destination(&self, party: Party) {
        lock(&self.live.facts).destination = party;
    }

    /// The service that the client addressed.
    pub fn set_service(&self, service: Arc<Service>) {
        lock(&self.live.facts).service = Some(service);
    }

    /// Where the tunnel's TCP connection goes, or the endpoint of a plain one (`dst.addr` in the log,
    /// which until then is the original destination).
    pub fn set_next_hop(&self, hop: NextHop) {
        lock(&self.live.facts).next_hop = Some(hop);
    }

    /// The address inside CONNECT (`dst.hbone_addr` in the log).
    pub fn set_hbone_addr(&self, target: SocketAddr) {
        lock(&self.live.facts).hbone_addr = Some(target);
    }

    /// Both identities are proved by mutual TLS.
    pub fn set_mtls(&self, proved: bool) {
        lock(&self.live.facts).mtls = proved;
    }

    /// What the answer would be if the policies that only run dry were in force.
    pub fn set_dry_run(&self, would: String, would_allow: bool) {
        self.telemetry.inner.metrics.policy.dry_run(would_allow);
        let mut facts = lock(&self.live.facts);
        (facts.dry_run, facts.would_deny) = (Some(would), !would_allow);
    }

    /// How far policy is enforced for the workload, where it is not all the way.
    pub fn set_phase(&self, phase: &'static str) {
        lock(&self.live.facts).phase = Some(phase);
    }

    /// The AUDIT policies that match, each with its rule (`<policy>#<rule>`) or without.
    pub fn set_audit(&self, matching: &[(Arc<str>, Option<u32>)]) {
        for (policy, _) in matching {
            self.telemetry.inner.metrics.policy.audited(policy);
        }
        lock(&self.live.facts).add_audit(matching);
    }

    /// As [`Self::set_dry_run`] and [`Self::set_audit`], of requests, which are counted one by one.
    pub fn set_advice_on_requests(
        &self,
        would: Option<String>,
        would_deny: bool,
        matching: &[(Arc<str>, Option<u32>)],
    ) {
        let mut facts = lock(&self.live.facts);
        facts.would_deny |= would_deny;
        facts.dry_run = would.or(facts.dry_run.take());
        facts.add_audit(matching);
    }

    /// Policy refuses the connection, or ends it.
    pub fn set_denial(&self, denial: &Denial) {
        self.teller().denied(denial);
    }

    /// Policy refuses a request of the connection, and not the connection.
    pub fn set_denied_request(&self, denial: &Denial) {
        let mut facts = lock(&self.live.facts);
        if !facts.is_denied {
            facts.policy.clone_from(&denial.policy);
            (facts.rule, facts.reason) = (denial.rule, Some(denial.reason));
        }
    }

    /// For whoever ends the connection later on and knows why.
    pub fn teller(&self) -> Teller {
        Teller { live: Arc::clone(&self.live) }
    }

    /// Its requests are judged one by one from now on: by itself it is not allowed yet.
    pub fn requests(&self) -> RequestTeller {
        lock(&self.live.facts).by_request = true;
        RequestTeller { telemetry: self.telemetry.clone(), live: Arc::clone(&self.live) }
    }

    /// The exception by which it comes in plaintext where mutual TLS is asked for.
    pub fn set_exception(&self, name: impl Into<Arc<str>>) {
        lock(&self.live.facts).exception = Some(name.into());
    }

    /// What both ends' lines of one connection have in common.
    pub fn set_trace(&self, id: u128) {
        lock(&self.live.facts).trace = Some(id);
    }

    /// The policy that decided (`namespace/name`), allowing or denying.
    pub fn set_policy(&self, name: impl Into<Arc<str>>) {
        lock(&self.live.facts).policy = Some(name.into());
    }

    /// Every fact is set and bytes may flow: the connection counts as opened from now on.
    /// One that ends before this was refused, and counts as opened and closed then.
    pub fn established(&self) {
        let mut facts = lock(&self.live.facts);
        facts.established = true;
        self.live.settle(&mut facts, &self.telemetry.inner.metrics.traffic);
    }

    /// Where delivery counts its bytes; live connections' counts reach the metrics at every scrape.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.live.counts
    }

    /// Ends the connection: metrics and the access log line. `detail` tells a human what failed; it
    /// may hold what a peer sent, and is escaped.
    pub fn finish(mut self, cause: Cause, detail: Option<String>) {
        self.close(cause, detail.as_deref());
    }

    fn close(&mut self, cause: Cause, detail: Option<&str>) {
        self.finished = true;
        let inner = &self.telemetry.inner;
        let mut facts = lock(&self.live.facts);
        self.live.settle(&mut facts, &inner.metrics.traffic);
        self.live.add_bytes(&mut facts);
        if let Some(series) = &facts.series {
            inner.metrics.traffic.closed(series, cause);
        }
        if !facts.established && !cause.is_success() {
            inner.metrics.own.refused(self.live.opened.direction, cause);
        }
        if let Some(reason) = facts.reason.filter(|_| facts.is_denied) {
            inner.metrics.policy.denied(reason, facts.policy.as_ref());
        }
        if let Some(sight) = self.live.sight(&facts) {
            let denial = self.live.denial(&facts, cause);
            inner.observed.add(&sight, self.live.ended(&facts, denial.as_ref()));
        }
        if let Some(log) = &inner.log {
            let line = self.live.line(&facts, cause, detail);
            access::with_line(inner.format, &line, |bytes| log.push(bytes));
        }
        // Only now, so that a scrape between the two never sees fewer bytes than before.
        inner.shard(self.live.opened.id).remove(&self.live.opened.id);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.finished {
            self.close(Cause::Internal, Some("the connection's task ended without saying why"));
        }
    }
}

/// What the list of live connections shares with the connection's own task.
pub(super) struct Live {
    pub(super) opened: Opened,
    started: Instant,
    since: SystemTime,
    counts: Arc<Counts>,
    requests_allowed: AtomicU64,
    facts: Mutex<Facts>,
}

#[derive(Default)]
struct Facts {
    source: Party,
    destination: Party,
    service: Option<Arc<Service>>,
    next_hop: Option<NextHop>,
    hbone_addr: Option<SocketAddr>,
    policy: Option<Arc<str>>,
    rule: Option<u32>,
    reason: Option<&'static str>,
    phase: Option<&'static str>,
    /// The connection itself is what those denied.
    is_denied: bool,
    dry_run: Option<String>,
    would_deny: bool,
    /// Of the last request that was refused.
    request_denial: Option<Denial>,
    by_request: bool,
    audit: Option<String>,
    exception: Option<Arc<str>>,
    trace: Option<u128>,
    mtls: bool,
    established: bool,
    /// The counters of this connection's label set, once the facts that make the labels are known.
    series: Option<Arc<Series>>,
    /// What of `counts` has been added to the series.
    added_sent: u64,
    added_received: u64,
}

impl Facts {
    fn add_audit(&mut self, matching: &[(Arc<str>, Option<u32>)]) {
        let mut audit = self.audit.take().unwrap_or_default();
        for (policy, rule) in matching {
            let told = match rule {
                Some(rule) => format!("{policy}#{rule}"),
                None => policy.to_string(),
            };
            if audit.split(' ').all(|one| one != told) {
                audit.push_str(if audit.is_empty() { "" } else { " " });
                audit.push_str(&told);
            }
        }
        self.audit = (!audit.is_empty()).then_some(audit);
    }

    /// Whether the application was: where requests are judged, by one of them.
    fn has_reached(&self, requests_allowed: u64) -> bool {
        if self.by_request { requests_allowed > 0 } else { self.established }
    }

    fn would_deny(&self) -> Option<&str> {
        self.dry_run.as_deref().filter(|_| self.would_deny)
    }
}

impl Live {
    /// Adds what the connection has carried since the last scrape. A connection that is still being
    /// decided has no label set yet, and waits.
    pub(super) fn report(&self, traffic: &Traffic) {
        let mut facts = lock(&self.facts);
        if facts.series.is_some() {
            self.add_bytes(&mut facts);
            if let Some(series) = &facts.series {
                traffic.touch(series);
            }
        }
    }

    fn settle(&self, facts: &mut Facts, traffic: &Traffic) {
        if facts.series.is_none() {
            facts.series = Some(traffic.opened(&self.key(facts)));
        }
    }

    fn add_bytes(&self, facts: &mut Facts) {
        let Some(series) = &facts.series else { return };
        let sent = self.counts.sent.load(Ordering::Relaxed);
        let received = self.counts.received.load(Ordering::Relaxed);
        // Istio counts what the server receives as "received", whichever side reports.
        series.received.fetch_add(sent.saturating_sub(facts.added_sent), Ordering::Relaxed);
        series.sent.fetch_add(received.saturating_sub(facts.added_received), Ordering::Relaxed);
        facts.added_sent = sent;
        facts.added_received = received;
    }

    /// Tells an open connection to whoever asks what is observed.
    pub(super) fn tell_open(&self, add: &mut dyn FnMut(&Sight<'_>, Event<'_>)) {
        let facts = lock(&self.facts);
        let requests_allowed = self.requests_allowed.load(Ordering::Relaxed);
        if let Some(sight) = self.sight(&facts).filter(|_| facts.has_reached(requests_allowed)) {
            add(&sight, Event::Open { requests_allowed, would_deny: facts.would_deny() });
        }
    }

    /// Who connects to what; none where it is not known, as of a tunnel of which no connection came.
    fn sight<'a>(&'a self, facts: &'a Facts) -> Option<Sight<'a>> {
        let target = if facts.mtls { facts.hbone_addr? } else { self.opened.destination.0 };
        if self.opened.direction != Direction::Inbound || ports::ALL.contains(&target.port()) {
            return None;
        }
        Some(Sight {
            pod: &self.opened.pod,
            server: facts.destination.workload.as_ref(),
            identity: if facts.mtls { Some(facts.source.identity.as_ref()?) } else { None },
            // Not what a client only says of itself, which has no uid.
            client: facts.source.workload.as_deref().filter(|workload| !workload.uid.is_empty()),
            client_ip: self.opened.client.0.ip(),
            target,
        })
    }

    /// What policy refused it for, if it did.
    fn denial(&self, facts: &Facts, cause: Cause) -> Option<Denial> {
        if let Some(reason) = facts.reason.filter(|_| facts.is_denied) {
            return Some(Denial { policy: facts.policy.clone(), rule: facts.rule, reason });
        }
        if cause == Cause::NotHttp {
            return Some(Denial { policy: None, rule: None, reason: Cause::NotHttp.as_str() });
        }
        let nothing = facts.by_request && self.requests_allowed.load(Ordering::Relaxed) == 0;
        facts.request_denial.clone().filter(|_| nothing)
    }

    fn ended<'a>(&self, facts: &'a Facts, denial: Option<&'a Denial>) -> Event<'a> {
        let requests_allowed = self.requests_allowed.load(Ordering::Relaxed);
        let outcome = match denial {
            Some(denial) => Outcome::Denied(denial),
            None if facts.has_reached(requests_allowed) => Outcome::Allowed,
            None => Outcome::Unreached,
        };
        Event::Ended { outcome, requests_allowed, would_deny: facts.would_deny() }
    }

    fn key<'a>(&'a self, facts: &'a Facts) -> Key<'a> {
        let (source, destination) = self.ends(facts);
        Key {
            reporter: self.opened.direction.reporter(),
            mtls: facts.mtls,
            source: side(&source),
            destination: side(&destination),
            service: facts.service.as_deref().map(|s| [&*s.hostname, &*s.namespace, &*s.name]),
        }
    }

    fn line<'a>(&'a self, facts: &'a Facts, cause: Cause, detail: Option<&'a str>) -> Line<'a> {
        let (source, destination) = self.ends(facts);
        Line {
            id: self.opened.id,
            direction: self.opened.direction,
            source,
            destination,
            client: self.opened.client,
            original: self.opened.destination,
            next_hop: facts.next_hop,
            hbone_addr: facts.hbone_addr,
            service: facts.service.as_deref(),
            policy: facts.policy.as_deref(),
            rule: facts.rule,
            reason: facts.reason,
            phase: facts.phase,
            dry_run: facts.dry_run.as_deref(),
            audit: facts.audit.as_deref(),
            exception: facts.exception.as_deref(),
            trace: facts.trace,
            established: facts.established,
            sent: self.counts.sent.load(Ordering::Relaxed),
            received: self.counts.received.load(Ordering::Relaxed),
            duration: self.started.elapsed(),
            now: SystemTime::now(),
            cause,
            detail,
        }
    }

    /// Source and destination; our own end is the pod when nobody named its workload.
    fn ends<'a>(&'a self, facts: &'a Facts) -> (End<'a>, End<'a>) {
        let end = |party: &'a Party, ours| End {
            workload: party.workload.as_deref(),
            pod: if ours { Some(&*self.opened.pod) } else { None },
            identity: party.identity.as_ref().filter(|_| facts.mtls),
        };
        let outbound = self.opened.direction == Direction::Outbound;
        (end(&facts.source, outbound), end(&facts.destination, !outbound))
    }

    pub(super) fn view(&self) -> ConnectionView {
        let facts = lock(&self.facts);
        let (source, destination) = self.ends(&facts);
        ConnectionView {
            id: self.opened.id,
            direction: self.opened.direction,
            state: if facts.established { ConnectionState::Established } else { ConnectionState::Opening },
            pod: self.opened.pod.uid.clone(),
            source: party_view(&source, self.opened.client.0),
            destination: party_view(
                &destination,
                facts.next_hop.map_or(self.opened.destination.0, |hop| hop.0),
            ),
            original_destination: self.opened.destination.0,
            hbone_addr: facts.hbone_addr,
            service: facts.service.as_ref().map(|s| Arc::clone(&s.hostname)),
            mtls: facts.mtls,
            policy: facts.policy.clone(),
            bytes_sent: self.counts.sent.load(Ordering::Relaxed),
            bytes_received: self.counts.received.load(Ordering::Relaxed),
            since: access::clock::rfc3339(self.since),
            age_ms: self.started.elapsed().as_millis() as u64,
        }
    }
}

/// One end of the connection as log and metrics show it.
#[derive(Clone, Copy)]
pub(super) struct End<'a> {
    pub(super) workload: Option<&'a Workload>,
    pub(super) pod: Option<&'a LocalPod>,
    /// Proved by mutual TLS.
    pub(super) identity: Option<&'a SpiffeId>,
}

impl<'a> End<'a> {
    /// Not what a client only says of itself, which has no uid: that labels metrics and names nobody.
    fn known(&self) -> Option<&'a Workload> {
        self.workload.filter(|workload| !workload.uid.is_empty())
    }

    /// The pod's name, or what it is an instance of.
    pub(super) fn name(&self) -> Option<&'a str> {
        match (self.known(), self.pod) {
            (Some(workload), _) if !workload.name.is_empty() => Some(&workload.name),
            (Some(workload), _) => Some(&*workload.canonical_name).filter(|name| !name.is_empty()),
            (None, Some(pod)) => Some(&pod.name),
            (None, None) => None,
        }
    }

    pub(super) fn namespace(&self) -> Option<&'a str> {
        match (self.workload, self.pod, self.identity) {
            (Some(workload), ..) => Some(&*workload.namespace).filter(|namespace| !namespace.is_empty()),
            (None, Some(pod), _) => Some(&pod.namespace),
            (None, None, Some(identity)) => identity.namespace(),
            (None, None, None) => None,
        }
    }

    pub(super) fn cluster(&self) -> Option<&'a str> {
        self.known().map(|workload| &*workload.cluster).filter(|cluster| !cluster.is_empty())
    }
}

fn side<'a>(end: &End<'a>) -> Side<'a> {
    let of = |field: fn(&Workload) -> &Arc<str>| end.workload.map_or("", |workload| &**field(workload));
    Side {
        workload: of(|w| &w.workload_name),
        canonical_service: of(|w| &w.canonical_name),
        canonical_revision: of(|w| &w.canonical_revision),
        namespace: end.namespace().unwrap_or_default(),
        cluster: of(|w| &w.cluster),
        principal: end.identity,
    }
}

fn party_view(end: &End<'_>, addr: SocketAddr) -> PartyView {
    PartyView {
        addr,
        workload: end.name().map(Into::into),
        namespace: end.namespace().map(Into::into),
        identity: end.identity.cloned(),
        cluster: end.cluster().map(Into::into),
    }
}

#[cfg(test)]
mod tests;
