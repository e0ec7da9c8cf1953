//! Keeps the set of enrolled pods equal to the set that the snapshot wishes for.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tokio::task::{self, JoinSet};
use tokio_util::sync::CancellationToken;

use super::enrol::{Attempt, EnrolError, Setting};
use super::enrolled::EnrolledPod;
use super::listeners::Accepting;
use super::{find, forbidden, plumbing};
use crate::bpf;
use crate::discovery::Snapshot;
use crate::model::{Cause, LocalPod, NetnsCookie, PodUid};
use crate::sys::netns::Netns;

/// What the rest of the agent sees of it. A pod that was enrolled anew is there twice while connections
/// of before are ending.
pub type Table = Vec<PodState>;

/// A local pod and how far its enrolment is.
#[derive(Clone, Debug)]
pub enum PodState {
    Enrolled(Arc<EnrolledPod>),
    /// Not enrolled, why, and it is tried again on a timer.
    Refused {
        pod: Arc<LocalPod>,
        why: String,
        /// Its namespace, where the kernel holds it closed: nothing comes out of it to the mesh, or in.
        closed: Option<NetnsCookie>,
    },
    /// Taken out of the snapshot, or described otherwise by now; its live connections are ending.
    Leaving(Arc<EnrolledPod>),
}

impl PodState {
    /// The pod's connections, unless it has none because it is not enrolled.
    pub fn enrolled(&self) -> Option<&Arc<EnrolledPod>> {
        match self {
            Self::Enrolled(p) | Self::Leaving(p) => Some(p),
            Self::Refused { .. } => None,
        }
    }
}

/// A pod that has just been enrolled; whoever receives this accepts on its listeners.
#[derive(Debug)]
pub struct Started {
    pub pod: Arc<EnrolledPod>,
    pub listeners: Accepting,
}

pub struct Manager {
    setting: Arc<Setting>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    table: Arc<ArcSwap<Table>>,
    started: mpsc::UnboundedSender<Started>,
    known: HashMap<PodUid, Known>,
    enrolling: JoinSet<(PodUid, Result<Started, EnrolError>)>,
    /// Those whose connections are ending, and the tasks that wait for it.
    leavers: Vec<Arc<EnrolledPod>>,
    leaving: JoinSet<Arc<EnrolledPod>>,
    /// See [`Attempt::turn`].
    turn: Arc<tokio::sync::Mutex<()>>,
    /// What the kernel did not take; it is told again.
    owed: Owed,
}

#[derive(Default)]
struct Owed {
    plans: HashSet<PodUid>,
    destinations: bool,
}

enum Known {
    Enrolling {
        pod: Arc<LocalPod>,
        cookie: NetnsCookie,
        /// Of the snapshot whose plan it will have.
        revision: u64,
        task: task::Id,
        outdated: CancellationToken,
        /// Why the last try failed, if there was one, and what it left closed.
        before: Option<(String, Option<NetnsCookie>)>,
    },
    Enrolled(Arc<EnrolledPod>),
    Refused {
        pod: Arc<LocalPod>,
        why: String,
        closed: Option<NetnsCookie>,
    },
}

impl Manager {
    pub fn new(
        setting: Setting,
        snapshots: watch::Receiver<Arc<Snapshot>>,
    ) -> (Self, Arc<ArcSwap<Table>>, mpsc::UnboundedReceiver<Started>) {
        let table = Arc::new(ArcSwap::default());
        let (started, receiver) = mpsc::unbounded_channel();
        let manager = Self {
            setting: Arc::new(setting),
            snapshots,
            table: Arc::clone(&table),
            started,
            known: HashMap::new(),
            enrolling: JoinSet::new(),
            leavers: Vec::new(),
            leaving: JoinSet::new(),
            turn: Arc::default(),
            owed: Owed::default(),
        };
        (manager, table, receiver)
    }

    /// Works until `stop`. `first` is told when the pods of the first snapshot have been tried. Before a
    /// source has spoken nobody is let go: what a former agent enrolled stays closed.
    ///
    /// Stopping enrols nobody out: the kernel goes on refusing captured connections until an agent is
    /// back. Who was leaving already is seen off: whoever stops us also bounds their connections.
    pub async fn run(mut self, stop: CancellationToken, first: impl FnOnce() + Send) {
        self.work(stop, first).await;
        self.enrolling.shutdown().await;
        while let Some(gone) = self.leaving.join_next().await {
            self.left(gone);
        }
    }

    async fn work(&mut self, stop: CancellationToken, first: impl FnOnce() + Send) {
        let synced = tokio::select! {
            () = stop.cancelled() => return,
            synced = self.snapshots.wait_for(|s| s.is_synced()) => synced.is_ok(),
        };
        if !synced {
            return;
        }
        self.sync().await;
        self.forget_strangers();
        let mut first = Some(first);
        let mut audit = tokio::time::interval(AUDIT);
        audit.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if self.enrolling.is_empty()
                && let Some(first) = first.take()
            {
                first();
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.snapshots.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.sync().await;
                }
                Some(done) = self.enrolling.join_next() => self.tried(done).await,
                // The first try counts; a second one of those that failed must not hold `first` back.
                _ = audit.tick(), if first.is_none() => self.audit().await,
                Some(gone) = self.leaving.join_next() => self.left(gone),
            }
        }
    }

    /// Lets go whom the snapshot no longer has, brings up to date who stays, and enrols whom it adds:
    /// in this order, and without waiting for the last, which may take as long as a certificate.
    async fn sync(&mut self) {
        let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
        let wanted: HashMap<PodUid, Arc<LocalPod>> =
            snapshot.local_pods().map(|p| (p.uid.clone(), Arc::clone(p))).collect();

        let mut gone = Vec::new();
        for (uid, known) in &self.known {
            if wanted.get(uid).is_some_and(|w| known.is_same(w)) {
                continue;
            }
            match known {
                // Its result brings us back here.
                Known::Enrolling { outdated, .. } => outdated.cancel(),
                Known::Enrolled(_) | Known::Refused { .. } => gone.push(uid.clone()),
            }
        }
        if !gone.is_empty() {
            // By cookie: two paths may lead to one namespace.
            let stay: HashSet<NetnsCookie> =
                wanted.values().filter_map(|w| Netns::open(&w.netns).ok()).map(|n| n.cookie()).collect();
            for uid in gone {
                let cookie = self.known.get(&uid).and_then(Known::cookie);
                self.let_go(&uid, cookie.is_some_and(|c| stay.contains(&c))).await;
            }
        }
        self.publish_destinations(&snapshot);
        let enrolled: Vec<Arc<EnrolledPod>> = self.enrolled().cloned().collect();
        for pod in enrolled {
            self.apply_plan(&pod, &snapshot);
            self.update_addresses(&pod, &snapshot);
        }
        self.enrol_missing(&snapshot);
        self.publish();
    }

    fn enrolled(&self) -> impl Iterator<Item = &Arc<EnrolledPod>> {
        self.known.values().filter_map(|known| match known {
            Known::Enrolled(pod) => Some(pod),
            Known::Enrolling { .. } | Known::Refused { .. } => None,
        })
    }

    /// Begins with every pod that is neither enrolled nor on its way.
    fn enrol_missing(&mut self, snapshot: &Arc<Snapshot>) {
        for pod in snapshot.local_pods() {
            if let None | Some(Known::Refused { .. }) = self.known.get(&pod.uid) {
                self.enrol(pod, snapshot);
            }
        }
    }

    fn enrol(&mut self, pod: &Arc<LocalPod>, snapshot: &Arc<Snapshot>) {
        let before = match self.known.remove(&pod.uid) {
            Some(Known::Refused { why, closed, .. }) => Some((why, closed)),
            _ => None,
        };
        let closed = before.as_ref().and_then(|(_, closed)| *closed);
        let netns = match Netns::open(&pod.netns) {
            Ok(netns) => netns,
            Err(e) => {
                return self.refuse(Arc::clone(pod), &EnrolError::Namespace(e), closed, before);
            }
        };
        let cookie = netns.cookie();
        if let Some(former) = closed.filter(|former| *former != cookie) {
            self.open_up(former);
        }
        let holder = self.known.iter().find(|(_, k)| k.works_in(cookie)).map(|(uid, _)| uid.clone());
        if let Some(holder) = holder {
            let why = EnrolError::Held { path: pod.netns.display().to_string(), holder };
            return self.refuse(Arc::clone(pod), &why, None, before);
        }
        let outdated = CancellationToken::new();
        let attempt = Attempt {
            setting: Arc::clone(&self.setting),
            pod: Arc::clone(pod),
            netns,
            snapshot: Arc::clone(snapshot),
            turn: Arc::clone(&self.turn),
            outdated: outdated.clone(),
        };
        let uid = pod.uid.clone();
        let task = self.enrolling.spawn(async move { (uid, attempt.run().await) }).id();
        let (pod, revision) = (Arc::clone(pod), snapshot.revision());
        self.known
            .insert(pod.uid.clone(), Known::Enrolling { pod, cookie, revision, task, outdated, before });
    }

    /// Notes what became of a try, unless the pod is described otherwise by now: then that one goes and
    /// the new one is tried.
    async fn tried(&mut self, done: Result<(PodUid, Result<Started, EnrolError>), task::JoinError>) {
        let (uid, result) = match done {
            Ok((uid, result)) => (uid, result),
            Err(e) => {
                let is_it = |k: &Known| matches!(k, Known::Enrolling { task, .. } if *task == e.id());
                let Some(uid) = self.known.iter().find(|(_, k)| is_it(k)).map(|(uid, _)| uid.clone()) else {
                    return;
                };
                (uid, Err(EnrolError::Crashed))
            }
        };
        let Some(Known::Enrolling { pod, cookie, revision, before, .. }) = self.known.remove(&uid) else {
            return;
        };
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let wanted = snapshot.local_pod(&uid).is_some_and(|now| *now == pod);
        match result {
            Ok(started) => {
                self.known.insert(uid.clone(), Known::Enrolled(Arc::clone(&started.pod)));
                if wanted {
                    tracing::info!(uid = %uid, pod = %pod.name, namespace = %pod.namespace,
                        identity = %pod.identity, capture = ?started.pod.capture, "pod enrolled");
                    if snapshot.revision() != revision {
                        self.apply_plan(&started.pod, &snapshot);
                    }
                    // Nobody receives only while the agent is stopping.
                    let _ = self.started.send(started);
                }
            }
            Err(e) => {
                // By the kernel's word: what is not the pod's was not touched.
                let closed = self.setting.kernel.enrolled().is_ok_and(|all| all.contains(&cookie));
                self.refuse(pod, &e, closed.then_some(cookie), before);
            }
        }
        if wanted { self.publish() } else { self.sync().await }
    }

    /// Logs only what is news.
    fn refuse(
        &mut self,
        pod: Arc<LocalPod>,
        e: &EnrolError,
        closed: Option<NetnsCookie>,
        before: Option<(String, Option<NetnsCookie>)>,
    ) {
        let why = e.to_string();
        if before.is_none_or(|(before, _)| before != why) {
            tracing::error!(uid = %pod.uid, pod = %pod.name, namespace = %pod.namespace, error = %why,
                closed = closed.is_some(), "pod not enrolled; it will be tried again");
        }
        self.known.insert(pod.uid.clone(), Known::Refused { pod, why, closed });
    }

    /// Takes a pod out of the kernel at once, and lets its live connections end by themselves. One whose
    /// namespace `stays` a pod's remains closed meanwhile: between two descriptions, or if the new one
    /// cannot be enrolled, nothing of it may pass in plaintext.
    async fn let_go(&mut self, uid: &PodUid, stays: bool) {
        let enrolled = match self.known.remove(uid) {
            Some(Known::Enrolled(enrolled)) => enrolled,
            Some(Known::Refused { pod, closed, .. }) => {
                if !stays && let Some(cookie) = closed.or_else(|| self.remembered_at(&pod.netns)) {
                    self.open_up(cookie);
                }
                return;
            }
            Some(on_its_way @ Known::Enrolling { .. }) => {
                self.known.insert(uid.clone(), on_its_way);
                return;
            }
            None => return,
        };
        self.owed.plans.remove(uid);
        enrolled.leave();
        let cookie = enrolled.netns.cookie();
        let told = if stays && !enrolled.netns.is_stale() {
            self.setting.kernel.set_listeners(cookie, &bpf::Listeners::default())
        } else {
            self.setting.kernel.release(cookie)
        };
        if let Err(e) = told {
            tracing::error!(uid = %uid, error = %e, "cannot take the pod out of the kernel's maps");
        }
        tracing::info!(uid = %uid, pod = %enrolled.pod.name, namespace = %enrolled.pod.namespace,
            "pod is leaving the mesh");
        self.leavers.push(Arc::clone(&enrolled));
        self.publish();
        enrolled.close_listeners().await;
        let drain = tokio::time::sleep(self.setting.drain);
        self.leaving.spawn(async move {
            enrolled.drain(drain, Cause::PodGone).await;
            enrolled
        });
    }

    /// The last connection of one that was leaving has ended. Until now it needed the rule, and maybe
    /// somebody else does: the same namespace may be another pod's by now, or the same one's as described
    /// anew. Its metrics are those of its name, for which the same holds.
    fn left(&mut self, gone: Result<Arc<EnrolledPod>, task::JoinError>) {
        // One that failed keeps the trace of its namespace, for the next agent.
        let Ok(gone) = gone else { return };
        let cookie = gone.netns.cookie();
        self.leavers.retain(|p| !Arc::ptr_eq(p, &gone));
        if !self.is_in_use(cookie) {
            tidy(&self.setting, &gone.netns);
        }
        let (namespace, name) = (&gone.pod.namespace, &gone.pod.name);
        if !self.known.values().any(|k| k.pod().namespace == *namespace && k.pod().name == *name) {
            self.setting.telemetry.forget_pod(namespace, name);
        }
        self.publish();
    }

    /// Whether a pod of ours has this namespace, or connections in it that are ending.
    fn is_in_use(&self, namespace: NetnsCookie) -> bool {
        self.leavers.iter().any(|p| p.netns.cookie() == namespace)
            || self.known.values().any(|k| k.works_in(namespace))
    }

    /// Lets go of a namespace that was closed and is no pod's any more.
    fn open_up(&self, namespace: NetnsCookie) {
        if self.known.values().any(|k| k.works_in(namespace)) {
            return;
        }
        if let Err(e) = self.setting.kernel.release(namespace) {
            tracing::error!(netns = %namespace, error = %e, "cannot take the pod out of the kernel's maps");
        }
        if !self.is_in_use(namespace) {
            self.forget(&HashSet::from([namespace]));
        }
    }

    /// What an agent before us left in the namespace at this path.
    fn remembered_at(&self, path: &Path) -> Option<NetnsCookie> {
        let cookie = Netns::open(path).ok()?.cookie();
        self.setting.kernel.remembered().ok()?.contains(&cookie).then_some(cookie)
    }

    /// Not waited for: a namespace may have very many sockets.
    fn end_forbidden(&self, enrolled: &Arc<EnrolledPod>, snapshot: &Arc<Snapshot>) {
        let (setting, pod, snapshot) =
            (Arc::clone(&self.setting), Arc::clone(enrolled), Arc::clone(snapshot));
        task::spawn_blocking(move || {
            forbidden::end(&pod, &snapshot, &*setting.kernel, &setting.telemetry);
        });
    }

    fn apply_plan(&mut self, enrolled: &Arc<EnrolledPod>, snapshot: &Arc<Snapshot>) {
        let plan = snapshot.inbound_policy(&enrolled.pod).kernel_plan();
        match self.setting.kernel.set_inbound(enrolled.netns.cookie(), &plan) {
            Ok(()) => {
                self.owed.plans.remove(&enrolled.pod.uid);
                self.end_forbidden(enrolled, snapshot);
            }
            Err(e) => {
                self.owed.plans.insert(enrolled.pod.uid.clone());
                tracing::error!(pod = %enrolled.pod.name, error = %e,
                    "the kernel did not take all rules for plaintext to this pod; it will be told again");
            }
        }
    }

    fn update_addresses(&self, enrolled: &EnrolledPod, snapshot: &Snapshot) {
        if let Err(e) = enrolled.update_addresses(&*self.setting.kernel, snapshot) {
            tracing::error!(pod = %enrolled.pod.name, error = %e,
                "the kernel did not take the pod's addresses; it will be told again");
        }
    }

    fn publish_destinations(&mut self, snapshot: &Snapshot) {
        let told = self.setting.destinations.publish(snapshot);
        self.owed.destinations = told.is_err();
        if let Err(e) = told {
            tracing::error!(error = %e, "the kernel did not take all destinations; it will be told again");
        }
    }

    /// Repairs what someone else took from a namespace, lets go of pods whose namespace ended, tells the
    /// kernel what it did not take, and tries again those that were refused.
    async fn audit(&mut self) {
        let snapshot = Arc::clone(&self.snapshots.borrow());
        if self.owed.destinations {
            self.publish_destinations(&snapshot);
        }
        let enrolled: Vec<Arc<EnrolledPod>> = self.enrolled().cloned().collect();
        for p in enrolled {
            let uid = &p.pod.uid;
            if p.netns.is_stale() {
                tracing::info!(uid = %uid, "the pod's network namespace is gone");
                p.cut.end(Cause::PodGone);
                self.let_go(uid, false).await;
                continue;
            }
            let whole = plumbing::is_whole(&p.netns, &p.pod.addresses, self.setting.numbers);
            if !whole.unwrap_or(false) && p.capture == bpf::CaptureMode::Mark {
                let repaired =
                    plumbing::install(&p.netns, &p.pod.addresses, self.setting.wanted, self.setting.numbers);
                tracing::warn!(uid = %uid, repaired = repaired.is_ok(),
                    "the pod's namespace had lost its mark rule; until now its captured connections were held back");
            }
            self.update_addresses(&p, &snapshot);
            if self.owed.plans.contains(uid) {
                self.apply_plan(&p, &snapshot);
            } else {
                // Handshakes that had begun when the rules changed.
                self.end_forbidden(&p, &snapshot);
            }
        }
        self.enrol_missing(&snapshot);
        self.publish();
    }

    /// Namespaces that a former agent enrolled and that are no pod of ours any more.
    fn forget_strangers(&self) {
        let ours: HashSet<NetnsCookie> = self.known.values().filter_map(Known::cookie).collect();
        let strangers: HashSet<NetnsCookie> = match self.setting.kernel.remembered() {
            Ok(all) => all.into_iter().filter(|c| !ours.contains(c)).collect(),
            Err(e) => {
                tracing::error!(error = %e, "cannot list what the maps hold");
                return;
            }
        };
        for cookie in &strangers {
            tracing::info!(%cookie, "forgetting a namespace that is no pod of this node's any more");
        }
        self.forget(&strangers);
    }

    /// Tidies those that can still be found, and forgets the others.
    fn forget(&self, namespaces: &HashSet<NetnsCookie>) {
        let mut left = namespaces.clone();
        for netns in find::by_cookie(namespaces) {
            tidy(&self.setting, &netns);
            left.remove(&netns.cookie());
        }
        for cookie in left {
            if let Err(e) = self.setting.kernel.unenrol(cookie) {
                tracing::error!(%cookie, error = %e, "cannot forget a namespace");
            }
        }
    }

    fn publish(&self) {
        let known = self.known.values().filter_map(|known| match known {
            Known::Enrolled(p) => Some(PodState::Enrolled(Arc::clone(p))),
            Known::Refused { pod, why, closed }
            | Known::Enrolling { pod, before: Some((why, closed)), .. } => {
                Some(PodState::Refused { pod: Arc::clone(pod), why: why.clone(), closed: *closed })
            }
            Known::Enrolling { before: None, .. } => None,
        });
        let leaving = self.leavers.iter().cloned().map(PodState::Leaving);
        self.setting.telemetry.pods_enrolled(self.enrolled().count());
        self.table.store(Arc::new(known.chain(leaving).collect()));
    }
}

impl Known {
    fn pod(&self) -> &LocalPod {
        match self {
            Self::Enrolled(p) => &p.pod,
            Self::Enrolling { pod, .. } | Self::Refused { pod, .. } => pod,
        }
    }

    /// The namespace that the kernel holds for it, or is to hold. One that could not be tried stays
    /// closed if a former agent left it so.
    fn cookie(&self) -> Option<NetnsCookie> {
        match self {
            Self::Enrolled(p) => Some(p.netns.cookie()),
            Self::Enrolling { cookie, .. } => Some(*cookie),
            Self::Refused { pod, closed, .. } => {
                closed.or_else(|| Netns::open(&pod.netns).ok().map(|n| n.cookie()))
            }
        }
    }

    /// Whether it has this namespace, or is about to.
    fn works_in(&self, namespace: NetnsCookie) -> bool {
        match self {
            Self::Enrolled(p) => p.netns.cookie() == namespace,
            Self::Enrolling { cookie, .. } => *cookie == namespace,
            Self::Refused { closed, .. } => *closed == Some(namespace),
        }
    }

    fn is_same(&self, wanted: &LocalPod) -> bool {
        self.pod() == wanted && !matches!(self, Self::Enrolled(p) if p.netns.is_stale())
    }
}

/// Takes back what the namespace was given, and then the trace that says so.
fn tidy(setting: &Setting, netns: &Netns) {
    let cookie = netns.cookie();
    if let Err(e) = setting.kernel.release(cookie) {
        tracing::error!(netns = %cookie, error = %e, "cannot take a namespace out of the kernel's maps");
    }
    match plumbing::give_back(&*setting.kernel, netns, setting.numbers) {
        Ok(()) => {
            if let Err(e) = setting.kernel.unenrol(cookie) {
                tracing::error!(netns = %cookie, error = %e, "cannot forget a namespace");
            }
        }
        Err(e) => {
            tracing::warn!(netns = %netns.path().display(), error = %e, "the namespace keeps its rule");
        }
    }
}

/// How often namespaces are looked at. A lost rule holds connections back, it leaks nothing, so this is
/// the longest time that a pod is without new connections.
const AUDIT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
