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
        // The sentence about the resource is in the log's own fields.
        let why = match verdict {
            Verdict::Deny { why, .. } => why.to_string(),
            Verdict::Allow { .. } => verdict.to_string(),
        };
        Self { told: denial(verdict), why }
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
            let named = |by: &By| (by.resource.to_string().into(), by.rule);
            record.set_audit(&audited.iter().map(named).collect::<Vec<_>>());
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
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::discovery::Store;
    use crate::discovery::file::parse;
    use crate::policy::{Action, Group, Kind, Match, PathMatch, Policy, Rule, Scope, StringMatch};

    /// One local pod, and policies as given.
    fn mesh(policies: &str, attached: &str) -> String {
        format!(
            "mesh: {{}}
localPods:
- {{uid: p, name: server, namespace: shop, serviceAccount: server, netns: /run/netns/p, addresses: [10.0.0.1]}}
workloads:
- {{uid: p, name: server, namespace: shop, serviceAccount: server, workloadIps: [10.0.0.1], protocol: HBONE,
   authorizationPolicies: [{attached}]}}
policies: [{policies}]
"
        )
    }

    const DENY_BAD: &str = "{name: no-bad, namespace: shop, scope: NAMESPACE, action: DENY,
      groups: [{rules: [{matches: [{principals: [cluster.local/ns/shop/sa/bad]}]}]}]}";

    fn publish(store: &Store, policies: &str, attached: &str) {
        store.publish(parse(&mesh(policies, attached)).expect("a valid mesh").state);
    }

    fn conn(account: &str) -> Conn {
        let source: SpiffeId = format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap();
        Conn::new(Some(source), IpAddr::from([10, 0, 0, 2]), IpAddr::from([10, 0, 0, 1]), 80)
    }

    fn authorizer(store: &Store) -> Arc<Authorizer> {
        let pod = store.current().local_pods().next().expect("one pod").clone();
        Authorizer::new(pod, store.subscribe())
    }

    #[tokio::test]
    async fn a_new_policy_takes_back_exactly_the_permits_that_it_forbids() {
        let store = Store::new();
        publish(&store, "", "");
        let authorizer = authorizer(&store);
        let cut = Stop::default();
        tokio::spawn(Arc::clone(&authorizer).review(CancellationToken::new()));
        let bad = authorizer.authorize(ConnectionId(1), conn("bad"), &cut).expect("nothing forbids it yet");
        let good = authorizer.authorize(ConnectionId(2), conn("good"), &cut).expect("nothing forbids it");
        tokio::task::yield_now().await;

        publish(&store, DENY_BAD, "");
        assert_eq!(bad.stop().ended().await, Cause::PolicyRevoked);
        assert!(futures::poll!(std::pin::pin!(good.stop().ended())).is_pending());

        let denied = authorizer.authorize(ConnectionId(3), conn("bad"), &cut).err().expect("denied");
        assert_eq!(denied.told.policy.as_deref(), Some("shop/no-bad"));
        drop((bad, good));
        assert!(authorizer.live().is_empty(), "a permit that is dropped, or never given, leaves nothing");
    }

    #[tokio::test]
    async fn a_pod_that_is_no_workload_any_more_admits_nobody() {
        let store = Store::new();
        publish(&store, "", "");
        let authorizer = authorizer(&store);
        let cut = Stop::default();
        assert!(authorizer.authorize(ConnectionId(1), conn("good"), &cut).is_ok());
        store.publish(parse("mesh: {}").expect("a valid mesh").state);
        assert!(authorizer.authorize(ConnectionId(2), conn("good"), &cut).is_err());
    }

    #[tokio::test]
    async fn a_pod_that_leaves_keeps_what_the_present_policies_allow_to_what_it_was() {
        let store = Store::new();
        publish(&store, "", "");
        let authorizer = authorizer(&store);
        let cut = Stop::default();
        let bad = authorizer.authorize(ConnectionId(1), conn("bad"), &cut).expect("nothing forbids it yet");
        let good = authorizer.authorize(ConnectionId(2), conn("good"), &cut).expect("nothing forbids it");
        tokio::spawn(Arc::clone(&authorizer).review(CancellationToken::new()));
        tokio::task::yield_now().await;

        store.publish(parse("mesh: {}").expect("a valid mesh").state);
        tokio::task::yield_now().await;
        for kept in [&bad, &good] {
            assert!(futures::poll!(std::pin::pin!(kept.stop().ended())).is_pending());
        }
        assert!(authorizer.authorize(ConnectionId(3), conn("good"), &cut).is_err());

        let forbidden = format!("mesh: {{}}\npolicies: [{DENY_BAD}]");
        store.publish(parse(&forbidden).expect("a valid mesh").state);
        assert_eq!(bad.stop().ended().await, Cause::PolicyRevoked);
        assert!(futures::poll!(std::pin::pin!(good.stop().ended())).is_pending());
    }

    #[tokio::test]
    async fn a_policy_that_is_named_but_unknown_denies() {
        let store = Store::new();
        publish(&store, "", "shop/not-here");
        let authorizer = authorizer(&store);
        let cut = Stop::default();
        let denied = authorizer.authorize(ConnectionId(1), conn("good"), &cut).err().expect("denied");
        assert!(denied.why.contains("not-here") || denied.told.policy.as_deref() == Some("shop/not-here"));
    }

    /// A STRICT server, an exception for pods of `batch` until 2027, and a pod of `holder` at 10.0.0.3.
    fn with_holder(holder: &str) -> String {
        format!(
            "mesh: {{mtls: STRICT}}
localPods:
- {{uid: p, name: server, namespace: shop, serviceAccount: server, netns: /run/netns/p, addresses: [10.0.0.1]}}
workloads:
- {{uid: p, name: server, namespace: shop, serviceAccount: server, workloadIps: [10.0.0.1], protocol: HBONE}}
- {{uid: q, name: jobs, namespace: {holder}, serviceAccount: jobs, workloadIps: [10.0.0.3], protocol: TCP}}
resources:
- apiVersion: underpass.io/v1alpha1
  kind: PlaintextException
  metadata: {{name: batch, namespace: shop}}
  spec: {{from: [{{namespaces: [batch]}}], ports: [80], reason: r, until: 2027-01-01T00:00:00Z}}
"
        )
    }

    #[tokio::test]
    async fn plaintext_that_rests_on_an_exception_ends_when_it_lapses_or_the_address_is_anothers() {
        let time = Arc::new(Mutex::new(time::OffsetDateTime::from_unix_timestamp(1_798_761_599).unwrap()));
        let system = Arc::clone(&time);
        let store = Store::with_clock(move || *system.lock().unwrap());
        let publish = |holder: &str| store.publish(parse(&with_holder(holder)).expect("a valid mesh").state);
        publish("batch");
        let authorizer = authorizer(&store);
        let cut = Stop::default();
        tokio::spawn(Arc::clone(&authorizer).review(CancellationToken::new()));
        let from = |store: &Store, ip: [u8; 4]| {
            let conn = Conn::new(None, IpAddr::from(ip), IpAddr::from([10, 0, 0, 1]), 80);
            let at_source = at_source(&store.current(), &conn);
            Conn { at_source, ..conn }
        };
        let jobs = |id| authorizer.authorize(ConnectionId(id), from(&store, [10, 0, 0, 3]), &cut);
        let permit = jobs(1).expect("the exception admits it");
        let name = "PlaintextException.underpass.io/shop/batch";
        assert_eq!(permit.exception().map(|name| &**name), Some(name));
        let nobody = authorizer.authorize(ConnectionId(2), from(&store, [10, 0, 0, 4]), &cut).err();
        assert_eq!(nobody.expect("nobody is known there").told.reason, "strict_mtls");
        tokio::task::yield_now().await;

        publish("batch");
        tokio::task::yield_now().await;
        assert!(futures::poll!(std::pin::pin!(permit.stop().ended())).is_pending(), "nothing has changed");
        publish("other");
        assert_eq!(permit.stop().ended().await, Cause::PolicyRevoked);
        assert!(jobs(3).is_err(), "another pod has the address");

        publish("batch");
        let permit = jobs(4).expect("it has it back");
        tokio::task::yield_now().await;
        *time.lock().unwrap() += std::time::Duration::from_secs(1);
        store.lapse();
        assert_eq!(permit.stop().ended().await, Cause::PolicyRevoked);
        assert!(jobs(5).is_err(), "it has lapsed");
    }

    /// Forbids, or is the only one to allow, requests whose path begins with `/admin`.
    fn admin(action: Action) -> Policy {
        let paths = vec![PathMatch::String(StringMatch::Prefix("/admin".into()))];
        let matches = vec![Match { paths, ..Match::default() }];
        Policy {
            kind: Kind::IstioAuthorizationPolicy,
            namespace: "shop".into(),
            name: "admin".into(),
            scope: Scope::Namespace,
            action,
            dry_run: false,
            groups: vec![Group { rules: vec![Rule { matches }], never: None }],
            defect: None,
        }
    }

    fn publish_with(store: &Store, policies: &str, policy: Policy) {
        let mut state = parse(&mesh(policies, "")).expect("a valid mesh").state;
        state.policies.push(policy);
        store.publish(state);
    }

    fn ruling(permit: &Permit, path: &str) -> bool {
        let request =
            Request { method: "GET", host: "shop", path, query: None, headers: &http::HeaderMap::new() };
        let judge = permit.requests().expect("it depends on requests");
        matches!(judge.judge(&request), Ruling::Allow { .. })
    }

    #[tokio::test]
    async fn where_policy_depends_on_requests_each_is_judged_by_the_policy_of_now() {
        let store = Store::new();
        publish_with(&store, "", admin(Action::Deny));
        let authorizer = authorizer(&store);
        let cut = Stop::default();
        tokio::spawn(Arc::clone(&authorizer).review(CancellationToken::new()));
        let permit = authorizer.authorize(ConnectionId(1), conn("good"), &cut).expect("it may ask");
        assert_eq!([ruling(&permit, "/admin"), ruling(&permit, "/")], [false, true]);
        tokio::task::yield_now().await;
        let mut changes = permit.requests().expect("judged").changes();

        publish_with(&store, "", admin(Action::Allow));
        changes.changed().await.expect("it tells of the change");
        assert_eq!([ruling(&permit, "/admin"), ruling(&permit, "/")], [true, false]);

        // Without rules on requests it goes on as it is.
        publish(&store, "", "");
        changes.changed().await.expect("it tells of the change");
        assert_eq!([ruling(&permit, "/admin"), ruling(&permit, "/")], [true, true]);
        assert!(futures::poll!(std::pin::pin!(permit.stop().ended())).is_pending());

        publish(&store, DENY_BAD, "");
        changes.changed().await.expect("it tells of the change");
        assert!(futures::poll!(std::pin::pin!(permit.stop().ended())).is_pending());
        publish(&store, &DENY_BAD.replace("bad]", "good]"), "");
        assert_eq!(permit.stop().ended().await, Cause::PolicyRevoked);
    }

    #[tokio::test]
    async fn bytes_that_nobody_can_judge_end_when_policy_comes_to_depend_on_requests() {
        let store = Store::new();
        publish(&store, "", "");
        let authorizer = authorizer(&store);
        let cut = Stop::default();
        tokio::spawn(Arc::clone(&authorizer).review(CancellationToken::new()));
        let permit = authorizer.authorize(ConnectionId(1), conn("good"), &cut).expect("nothing forbids it");
        assert!(permit.requests().is_none(), "without rules on requests nobody reads them");
        tokio::task::yield_now().await;
        publish_with(&store, "", admin(Action::Deny));
        assert_eq!(permit.stop().ended().await, Cause::PolicyRevoked);
    }

    #[tokio::test]
    async fn what_has_gone_on_as_bytes_ends_when_policy_comes_to_depend_on_requests_again() {
        let store = Store::new();
        publish_with(&store, "", admin(Action::Deny));
        let authorizer = authorizer(&store);
        let cut = Stop::default();
        tokio::spawn(Arc::clone(&authorizer).review(CancellationToken::new()));
        let permit = authorizer.authorize(ConnectionId(1), conn("good"), &cut).expect("it may ask");
        let judge = permit.requests().expect("judged");
        assert!(matches!(judge.not_http(), Ruling::Deny { .. }), "what cannot be judged is denied");
        tokio::task::yield_now().await;

        let mut changes = judge.changes();
        publish(&store, "", "");
        changes.changed().await.expect("it tells of the change");
        assert!(matches!(judge.not_http(), Ruling::Allow { .. }));
        publish_with(&store, "", admin(Action::Deny));
        let ended = tokio::time::timeout(std::time::Duration::from_secs(10), permit.stop().ended()).await;
        assert_eq!(ended, Ok(Cause::PolicyRevoked), "bytes go on that nobody judges");
    }

    fn advice(permit: &Permit, path: Option<&str>) -> (Option<bool>, usize) {
        let headers = http::HeaderMap::new();
        let request =
            path.map(|path| Request { method: "GET", host: "shop", path, query: None, headers: &headers });
        let advice = permit.requests().expect("it depends on requests").advise(request.as_ref());
        (advice.would.map(|would| would.is_allow()), advice.audited.len())
    }

    #[tokio::test]
    async fn what_decides_nothing_asks_for_requests_and_binds_nobody() {
        let store = Store::new();
        publish_with(&store, "", Policy { dry_run: true, ..admin(Action::Deny) });
        let authorizer = authorizer(&store);
        let cut = Stop::default();
        tokio::spawn(Arc::clone(&authorizer).review(CancellationToken::new()));
        let permit = authorizer.authorize(ConnectionId(1), conn("good"), &cut).expect("nothing is refused");
        assert!(permit.requests().is_some_and(|judge| !judge.binding()));
        assert!(ruling(&permit, "/admin"), "it decides nothing");
        assert_eq!(advice(&permit, Some("/admin")), (Some(false), 0));
        assert_eq!(advice(&permit, Some("/")), (Some(true), 0));
        assert_eq!(advice(&permit, None), (Some(false), 0), "what is not HTTP");

        publish_with(&store, "", admin(Action::Audit));
        assert_eq!(advice(&permit, Some("/admin")), (None, 1));
        assert_eq!(advice(&permit, Some("/")), (None, 0));
        let other = authorizer.authorize(ConnectionId(2), conn("good"), &cut).expect("nothing is refused");
        assert!(other.requests().is_some_and(|judge| !judge.binding()));

        // In force, it ends what has passed as bytes, and binds what comes.
        tokio::task::yield_now().await;
        publish_with(&store, "", admin(Action::Deny));
        assert_eq!(permit.stop().ended().await, Cause::PolicyRevoked);
        let bound = authorizer.authorize(ConnectionId(3), conn("good"), &cut).expect("it may ask");
        assert!(bound.requests().is_some_and(|judge| judge.binding()));
    }

    #[tokio::test]
    async fn what_decides_nothing_whatever_is_requested_needs_no_requests() {
        let whole = |action, dry_run| Policy {
            groups: vec![Group { rules: Vec::new(), never: None }],
            dry_run,
            ..admin(action)
        };
        let other_port = |action| {
            let mut policy = admin(action);
            policy.groups[0].rules[0].matches[0].destination_ports = vec![81];
            policy
        };
        let store = Store::new();
        for policy in [
            whole(Action::Deny, true),
            whole(Action::Audit, false),
            other_port(Action::Audit),
            Policy { dry_run: true, ..other_port(Action::Deny) },
        ] {
            publish_with(&store, "", policy);
            let authorizer = authorizer(&store);
            let cut = Stop::default();
            let permit =
                authorizer.authorize(ConnectionId(1), conn("good"), &cut).expect("nothing is refused");
            assert!(permit.requests().is_none());
        }
    }

    /// The mesh with `bad` kept out, and everybody in this phase.
    fn publish_in_phase(store: &Store, phase: &str) {
        let resources = format!(
            "resources:
- {{apiVersion: underpass.io/v1alpha1, kind: Enforcement, metadata: {{name: moving, namespace: shop}}, spec: {{phase: {phase}}}}}
"
        );
        let text = mesh(DENY_BAD, "") + &resources;
        store.publish(parse(&text).expect("a valid mesh").state);
    }

    #[tokio::test]
    async fn a_turn_from_observe_to_enforce_ends_exactly_what_is_forbidden() {
        let store = Store::new();
        publish_in_phase(&store, "Observe");
        let authorizer = authorizer(&store);
        let cut = Stop::default();
        tokio::spawn(Arc::clone(&authorizer).review(CancellationToken::new()));
        let bad = authorizer.authorize(ConnectionId(1), conn("bad"), &cut).expect("nothing is refused");
        assert_eq!(bad.policy().map(|by| &**by), Some("Enforcement.underpass.io/shop/moving"));
        let good = authorizer.authorize(ConnectionId(2), conn("good"), &cut).expect("nothing is refused");
        tokio::task::yield_now().await;

        publish_in_phase(&store, "Enforce");
        assert_eq!(bad.stop().ended().await, Cause::PolicyRevoked);
        assert!(futures::poll!(std::pin::pin!(good.stop().ended())).is_pending());
        assert!(authorizer.authorize(ConnectionId(3), conn("bad"), &cut).is_err());
        publish_in_phase(&store, "Observed");
        assert!(authorizer.authorize(ConnectionId(3), conn("bad"), &cut).is_err(), "a typo opens nothing");
    }

    /// Everybody is admitted to the one port, by a route that does this with requests.
    fn publish_route(store: &Store, filters: &str, protocol: &str) {
        let text = mesh("", "")
            + &format!(
                "resources:
- {{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {{name: s, namespace: shop}}, spec: {{podSelector: {{}}, port: 80, accessPolicy: all-unauthenticated, proxyProtocol: {protocol}}}}}
- {{apiVersion: policy.linkerd.io/v1beta3, kind: HTTPRoute, metadata: {{name: r, namespace: shop}}, spec: {{parentRefs: [{{group: policy.linkerd.io, kind: Server, name: s}}], rules: [{{filters: [{filters}]}}]}}}}
"
            );
        store.publish(parse(&text).expect("a valid mesh").state);
    }

    const REMOVE: &str = "{type: RequestHeaderModifier, requestHeaderModifier: {remove: [x-admin]}}";

    #[tokio::test]
    async fn what_is_allowed_is_ruled_with_its_route_s_filters() {
        let store = Store::new();
        publish_route(&store, REMOVE, "unknown");
        let authorizer = authorizer(&store);
        let permit = authorizer.authorize(ConnectionId(1), conn("good"), &Stop::default()).expect("admitted");
        let judge = permit.requests().expect("every request is looked at");
        assert!(judge.binding());
        let asked = http::HeaderMap::new();
        let request = Request { method: "GET", host: "shop", path: "/", query: None, headers: &asked };
        let changed = |ruling| {
            let Ruling::Allow { filters, .. } = ruling else { return None };
            let mut headers = http::HeaderMap::new();
            headers.insert("x-admin", http::HeaderValue::from_static("1"));
            filters.change_request(&mut headers);
            Some(headers.is_empty())
        };
        assert_eq!(changed(judge.judge(&request)), Some(true));
        // By the policies of now.
        publish_route(&store, "", "unknown");
        assert_eq!(changed(judge.judge(&request)), Some(false));
        publish_route(&store, "{type: URLRewrite}", "unknown");
        assert_eq!(changed(judge.judge(&request)), None, "denied");
    }

    #[tokio::test]
    async fn bytes_that_may_be_requests_end_when_something_has_to_become_of_them() {
        let store = Store::new();
        publish_route(&store, "", "unknown");
        let authorizer = authorizer(&store);
        tokio::spawn(Arc::clone(&authorizer).review(CancellationToken::new()));
        let cut = Stop::default();
        let unread = authorizer.authorize(ConnectionId(1), conn("good"), &cut).expect("admitted");
        assert!(unread.requests().is_none());
        tokio::task::yield_now().await;
        publish_route(&store, REMOVE, "unknown");
        assert_eq!(unread.stop().ended().await, Cause::PolicyRevoked);

        // What is known to be none goes on, as long as that may pass.
        let bytes = authorizer.authorize(ConnectionId(2), conn("good"), &cut).expect("admitted");
        assert!(matches!(bytes.requests().expect("looked at").not_http(), Ruling::Allow { .. }));
        publish_route(&store, &REMOVE.replace("x-admin", "x-other"), "unknown");
        tokio::task::yield_now().await;
        assert!(futures::poll!(std::pin::pin!(bytes.stop().ended())).is_pending());
        publish_route(&store, REMOVE, "HTTP/1");
        assert_eq!(bytes.stop().ended().await, Cause::PolicyRevoked);
    }
}
