//! Only here is a [`Permit`] made, and nothing is delivered without one. A permit can be taken back:
//! when a policy changes, every live connection of the pod is judged again. Where it depends on what is
//! requested, the permit is for requests only, each of which is judged by itself; where only what decides
//! nothing does, everything may pass and requests are told of.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::discovery::Snapshot;
use crate::lifecycle::Stop;
use crate::model::{Cause, ConnectionId, LocalPod, SpiffeId, Workload};
use crate::pods::denial;
use crate::policy::own::Phase;
use crate::policy::{
    By, Compiled, Conn, Connection, PathNormalization, Request, ResourceRef, Subject, Verdict,
};
use crate::proxy::http::{Advice, Judge, Ruling};
use crate::telemetry::{Denial, Record, Teller};

/// Judges connections to one pod.
pub struct Authorizer {
    pod: Arc<LocalPod>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    live: Mutex<HashMap<ConnectionId, Live>>,
    last: Mutex<Option<Last>>,
    /// Counts the changes of policy.
    changes: watch::Sender<u64>,
}

/// What the pod was when it was last of the mesh.
struct Last {
    workload: Arc<Workload>,
    /// What the policies of this revision say of it, once somebody has asked: each request does.
    judged: Option<(u64, Arc<Compiled>)>,
}

struct Live {
    conn: Conn,
    stop: Stop,
    per_request: bool,
    /// Known, of what was read of it.
    not_http: bool,
    record: Option<Teller>,
}

/// Policy allows this connection, until [`Permit::stop`] says otherwise.
pub struct Permit {
    id: ConnectionId,
    authorizer: Arc<Authorizer>,
    stop: Stop,
    policy: Option<Arc<str>>,
    exception: Option<Arc<str>>,
    requests: Option<Arc<dyn Judge>>,
}

/// Policy refuses this connection.
#[derive(Debug)]
pub struct Denied {
    pub told: Denial,
    pub why: String,
}

impl Denied {
    fn of(verdict: &Verdict) -> Self {
        // The resource is in the log's own fields.
        Self { told: denial(verdict), why: verdict.reason() }
    }
}

impl Authorizer {
    pub fn new(pod: Arc<LocalPod>, snapshots: watch::Receiver<Arc<Snapshot>>) -> Arc<Self> {
        let last = Mutex::new(snapshots.borrow().workload_of(&pod).map(Last::new));
        Arc::new(Self { pod, snapshots, live: Mutex::default(), last, changes: watch::Sender::new(0) })
    }

    pub fn authorize(self: &Arc<Self>, id: ConnectionId, conn: Conn, cut: &Stop) -> Result<Permit, Denied> {
        let stop = cut.child();
        // Judged and listed in one: a policy that changes meanwhile is seen by the review.
        let mut live = self.live();
        let Standing { policy, exception, per_request, advises } = self.judge(&conn)?;
        live.insert(
            id,
            Live { conn: conn.clone(), stop: stop.clone(), per_request, not_http: false, record: None },
        );
        drop(live);
        let authorizer = Arc::clone(self);
        let judge = || -> Arc<dyn Judge> {
            Arc::new(Requests { id, authorizer: Arc::clone(self), conn, binding: per_request })
        };
        let requests = (per_request || advises).then(judge);
        Ok(Permit { id, authorizer, stop, policy, exception, requests })
    }

    /// Tells what decides nothing, as far as it holds whatever is requested: the answer if everything were in
    /// force, where it is not, and which policies ask for a trace.
    pub fn note(&self, conn: &Conn, record: &Record) {
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let policy = snapshot.inbound_policy(&self.pod);
        if policy.phase().phase != Phase::Enforce {
            record.set_phase(policy.phase().phase.word());
        }
        match policy.dry_run_on_connection(conn) {
            Some(Connection::Allow(would) | Connection::Deny(would)) => {
                record.set_dry_run(would.to_string(), would.is_allow());
            }
            Some(Connection::PerRequest) | None => {}
        }
        let audited = policy.audited_on_connection(conn);
        if !audited.is_empty() {
            record.set_audit(&audited.iter().map(By::named).collect::<Vec<_>>());
        }
    }

    /// Judges the live connections again whenever the snapshot changes, until `stop`.
    pub async fn review(self: Arc<Self>, stop: CancellationToken) {
        let mut snapshots = self.snapshots.clone();
        let mut before = self.standing();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = snapshots.changed() => if changed.is_err() { return },
            }
            let policy = self.standing();
            let snapshot = Arc::clone(&self.snapshots.borrow());
            for live in self.live().values_mut() {
                // The address may be somebody else's by now.
                live.conn.at_source = at_source(&snapshot, &live.conn);
                let forbids = match policy.on_connection(&live.conn) {
                    Connection::Allow(_) => continue,
                    Connection::PerRequest if live.per_request => continue,
                    Connection::Deny(verdict) => verdict,
                    // What flows as bytes cannot be judged by its requests any more.
                    Connection::PerRequest => match (live.not_http, &live.conn) {
                        (true, conn) => policy.evaluate(conn, None),
                        (false, conn) => policy.unread(conn),
                    },
                };
                if forbids.is_allow() {
                    continue;
                }
                if let Some(record) = &live.record {
                    record.denied(&Denied::of(&forbids).told);
                }
                live.stop.end(Cause::PolicyRevoked);
            }
            if *policy != *before {
                self.changes.send_modify(|count| *count += 1);
            }
            before = policy;
        }
    }

    fn judge(&self, conn: &Conn) -> Result<Standing, Denied> {
        let name = |resource: &Arc<ResourceRef>| Arc::from(resource.to_string());
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let compiled = snapshot.inbound_policy(&self.pod);
        let (policy, exception, per_request) = match compiled.on_connection(conn) {
            Connection::PerRequest => (None, compiled.exception(conn).as_ref().map(name), true),
            Connection::Allow(verdict) => {
                (verdict.by().map(|by| name(&by.resource)), verdict.exception().map(name), false)
            }
            Connection::Deny(verdict) => return Err(Denied::of(&verdict)),
        };
        Ok(Standing { policy, exception, per_request, advises: compiled.advises_on_requests(conn) })
    }

    /// What live connections are judged by. A pod that leaves the mesh, or is described otherwise from now
    /// on, keeps those that the present policies allow to what it was: its drain ends them.
    fn standing(&self) -> Arc<Compiled> {
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(workload) = snapshot.workload_of(&self.pod) {
            *last = Some(Last::new(workload));
        } else if snapshot.local_pod(&self.pod.uid).is_none_or(|now| *now != self.pod)
            && let Some(last) = &mut *last
        {
            return last.judged_by(&snapshot);
        }
        snapshot.inbound_policy(&self.pod)
    }

    fn live(&self) -> MutexGuard<'_, HashMap<ConnectionId, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What policy says of a connection that it does not refuse.
struct Standing {
    /// Who allows it, where somebody has to.
    policy: Option<Arc<str>>,
    /// That it comes in plaintext where mutual TLS is asked for.
    exception: Option<Arc<str>>,
    /// Only its requests can tell.
    per_request: bool,
    /// They can tell more, which decides nothing.
    advises: bool,
}

/// Who is known to be at the address of a client that proves nothing.
fn at_source(snapshot: &Snapshot, conn: &Conn) -> Option<SpiffeId> {
    if conn.source.is_some() { None } else { snapshot.known_at(conn.source_ip).cloned() }
}

impl Last {
    fn new(workload: &Arc<Workload>) -> Self {
        Self { workload: Arc::clone(workload), judged: None }
    }

    fn judged_by(&mut self, snapshot: &Snapshot) -> Arc<Compiled> {
        match &self.judged {
            Some((revision, policy)) if *revision == snapshot.revision() => Arc::clone(policy),
            _ => {
                let policy = Arc::new(snapshot.policies().compile(&Subject::from(&*self.workload)));
                self.judged = Some((snapshot.revision(), Arc::clone(&policy)));
                policy
            }
        }
    }
}

impl Permit {
    /// Ends the connection when policy no longer allows it, or the pod's connections are cut.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Where to say who ended the connection, if policy does later on.
    pub fn tell(&self, record: Teller) {
        if let Some(live) = self.authorizer.live().get_mut(&self.id) {
            live.record = Some(record);
        }
    }

    /// Judges its requests, where policy depends on them: only what is allowed may be delivered then, unless
    /// the judge is not binding.
    pub fn requests(&self) -> Option<&Arc<dyn Judge>> {
        self.requests.as_ref()
    }

    /// The exception by which it comes in plaintext where mutual TLS is asked for.
    pub fn exception(&self) -> Option<&Arc<str>> {
        self.exception.as_ref()
    }

    /// `namespace/name` of the policy that allowed it, where one had to.
    pub fn policy(&self) -> Option<&Arc<str>> {
        self.policy.as_ref()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.authorizer.live().remove(&self.id);
    }
}

/// Judges the requests of one connection.
struct Requests {
    id: ConnectionId,
    authorizer: Arc<Authorizer>,
    conn: Conn,
    binding: bool,
}

impl Judge for Requests {
    fn binding(&self) -> bool {
        self.binding
    }

    fn advise(&self, request: Option<&Request<'_>>) -> Advice {
        let policy = self.authorizer.standing();
        // What holds for the whole connection was told when it began.
        if !policy.advises_on_requests(&self.conn) {
            return Advice::default();
        }
        let told = policy.audited_on_connection(&self.conn);
        let mut audited = policy.audited(&self.conn, request);
        audited.retain(|by| !told.contains(by));
        Advice { would: policy.dry_run(&self.conn, request), audited }
    }

    fn judge(&self, request: &Request<'_>) -> Ruling {
        let policy = self.authorizer.standing();
        match policy.evaluate(&self.conn, Some(request)).into() {
            Ruling::Allow { by, .. } => Ruling::Allow { by, filters: policy.filters(&self.conn, request) },
            denied => denied,
        }
    }

    fn not_http(&self) -> Ruling {
        // Judged and noted in one, as in `authorize`.
        let mut live = self.authorizer.live();
        let verdict = self.authorizer.standing().evaluate(&self.conn, None);
        if let Some(live) = live.get_mut(&self.id).filter(|_| verdict.is_allow()) {
            (live.per_request, live.not_http) = (false, true);
        }
        verdict.into()
    }

    fn normalization(&self) -> PathNormalization {
        let snapshot = Arc::clone(&self.authorizer.snapshots.borrow());
        snapshot.policies().resources().map(|r| r.settings.path_normalization).unwrap_or_default()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.authorizer.changes.subscribe()
    }
}

#[cfg(test)]
mod tests;
