//! Keeps the set of enrolled pods equal to the set that the snapshot wishes for.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::enrol::{self, EnrolError, Setting};
use super::enrolled::EnrolledPod;
use super::listeners::Accepting;
use super::{find, plumbing};
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
    /// Those whose connections are ending, and the tasks that wait for it.
    leavers: Vec<Arc<EnrolledPod>>,
    leaving: JoinSet<Arc<EnrolledPod>>,
}

enum Known {
    Enrolled(Arc<EnrolledPod>),
    Refused { pod: Arc<LocalPod>, why: String },
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
            leavers: Vec::new(),
            leaving: JoinSet::new(),
        };
        (manager, table, receiver)
    }

    /// Works until `stop`. `first` is told when the pods of the first snapshot have been tried. Before a
    /// source has spoken nobody is let go: what a former agent enrolled stays closed.
    ///
    /// Stopping enrols nobody out: the kernel goes on refusing captured connections until an agent is
    /// back. Only those that were leaving already are seen off.
    pub async fn run(mut self, stop: CancellationToken, first: impl FnOnce() + Send) {
        let synced = tokio::select! {
            () = stop.cancelled() => return,
            synced = self.snapshots.wait_for(|s| s.is_synced()) => synced.is_ok(),
        };
        if !synced {
            return;
        }
        self.sync().await;
        self.forget_strangers(&HashSet::new());
        first();
        let mut audit = tokio::time::interval(AUDIT);
        audit.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                changed = self.snapshots.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.sync().await;
                }
                _ = audit.tick() => self.audit().await,
                Some(left) = self.leaving.join_next() => self.left(left),
            }
        }
        while let Some(left) = self.leaving.join_next().await {
            self.left(left);
        }
    }

    /// Enrols whom the snapshot adds, lets go whom it no longer has, and brings the rest up to date.
    async fn sync(&mut self) {
        let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
        let wanted: HashMap<PodUid, Arc<LocalPod>> =
            snapshot.local_pods().map(|p| (p.uid.clone(), Arc::clone(p))).collect();

        let gone: Vec<PodUid> = self
            .known
            .iter()
            .filter(|(uid, known)| wanted.get(*uid).is_none_or(|w| !known.is_same(w)))
            .map(|(uid, _)| uid.clone())
            .collect();
        self.let_go(&gone, wanted.values()).await;
        self.publish_destinations(&snapshot);
        for (uid, pod) in wanted {
            match self.known.get(&uid) {
                Some(Known::Enrolled(enrolled)) => self.apply_plan(enrolled, &snapshot),
                _ => self.enrol(uid, pod, &snapshot).await,
            }
        }
        self.publish();
    }

    async fn enrol(&mut self, uid: PodUid, pod: Arc<LocalPod>, snapshot: &Snapshot) {
        let known = match self.try_enrol(&pod, snapshot).await {
            Ok(enrolled) => {
                tracing::info!(uid = %uid, pod = %pod.name, namespace = %pod.namespace,
                    identity = %pod.identity, capture = ?enrolled.capture, "pod enrolled");
                Known::Enrolled(enrolled)
            }
            Err(e) => {
                tracing::error!(uid = %uid, pod = %pod.name, namespace = %pod.namespace, error = %e,
                    "pod not enrolled; it will be tried again");
                Known::Refused { pod, why: e.to_string() }
            }
        };
        self.known.insert(uid, known);
    }

    async fn try_enrol(
        &self,
        pod: &Arc<LocalPod>,
        snapshot: &Snapshot,
    ) -> Result<Arc<EnrolledPod>, EnrolError> {
        let in_use = |cookie| self.leavers.iter().any(|p| p.netns.cookie() == cookie);
        let started = enrol::enrol(&self.setting, Arc::clone(pod), snapshot, in_use).await?;
        let enrolled = Arc::clone(&started.pod);
        // Nobody receives only while the agent is stopping.
        let _ = self.started.send(started);
        Ok(enrolled)
    }

    /// Takes pods out of the kernel at once, and lets their live connections end by themselves.
    ///
    /// A namespace in which one of `wanted` lives is to be enrolled again, under another description: it
    /// stays closed until then, and for as long as that fails.
    async fn let_go(&mut self, uids: &[PodUid], wanted: impl Iterator<Item = &Arc<LocalPod>>) {
        if uids.is_empty() {
            return;
        }
        let wanted: HashSet<NetnsCookie> =
            wanted.filter_map(|p| Netns::open(&p.netns).ok()).map(|n| n.cookie()).collect();
        let mut some_were_refused = false;
        for uid in uids {
            match self.known.remove(uid) {
                Some(Known::Enrolled(pod)) => self.leave(pod, &wanted).await,
                Some(Known::Refused { .. }) => some_were_refused = true,
                None => {}
            }
        }
        if some_were_refused {
            self.forget_strangers(&wanted);
        }
    }

    async fn leave(&mut self, pod: Arc<EnrolledPod>, wanted: &HashSet<NetnsCookie>) {
        let (uid, cookie) = (&pod.pod.uid, pod.netns.cookie());
        if wanted.contains(&cookie) {
            tracing::info!(%uid, pod = %pod.pod.name, namespace = %pod.pod.namespace,
                "pod is to be enrolled anew; its new connections are refused until then");
        } else {
            if let Err(e) = self.setting.kernel.unenrol(cookie) {
                tracing::error!(%uid, error = %e, "cannot take the pod out of the kernel's maps");
            }
            tracing::info!(%uid, pod = %pod.pod.name, namespace = %pod.pod.namespace,
                "pod is leaving the mesh");
        }
        self.leavers.push(Arc::clone(&pod));
        self.publish();
        pod.close_listeners().await;
        let drain = self.setting.drain;
        self.leaving.spawn(async move {
            pod.drain(tokio::time::sleep(drain), Cause::PodGone).await;
            pod
        });
    }

    /// The last connection of a pod that was leaving has ended; until then they needed its rule.
    fn left(&mut self, left: Result<Arc<EnrolledPod>, JoinError>) {
        let Ok(pod) = left else { return };
        self.leavers.retain(|p| !Arc::ptr_eq(p, &pod));
        self.restore(&pod.netns);
        let back =
            |known: &Known| known.pod().name == pod.pod.name && known.pod().namespace == pod.pod.namespace;
        if !self.known.values().any(back) {
            self.setting.telemetry.forget_pod(&pod.pod.namespace, &pod.pod.name);
        }
        self.publish();
    }

    /// Takes back what a namespace was given, unless somebody in it is of the mesh, or is just leaving.
    fn restore(&self, netns: &Netns) {
        let cookie = netns.cookie();
        let leaving = self.leavers.iter().any(|p| p.netns.cookie() == cookie);
        let enrolled = self.setting.kernel.enrolled().is_ok_and(|all| all.contains(&cookie));
        if !leaving
            && !enrolled
            && let Err(e) = plumbing::give_back(&*self.setting.kernel, netns, self.setting.numbers)
        {
            tracing::warn!(netns = %netns.path().display(), error = %e, "the namespace keeps its rule");
        }
    }

    fn apply_plan(&self, enrolled: &EnrolledPod, snapshot: &Snapshot) {
        let plan = snapshot.inbound_policy(&enrolled.pod).kernel_plan();
        if let Err(e) = self.setting.kernel.set_inbound(enrolled.netns.cookie(), &plan) {
            tracing::error!(pod = %enrolled.pod.name, error = %e,
                "the kernel keeps the former rules for plaintext to this pod");
        }
    }

    fn publish_destinations(&self, snapshot: &Snapshot) {
        if let Err(e) = self.setting.destinations.publish(snapshot) {
            tracing::error!(error = %e, "the kernel keeps its former view of destinations");
        }
    }

    /// Repairs what someone else took from a namespace, lets go of pods whose namespace ended, and
    /// tries again those that were refused.
    async fn audit(&mut self) {
        let mut ended = Vec::new();
        for (uid, known) in &self.known {
            let Known::Enrolled(p) = known else { continue };
            if p.netns.is_stale() {
                ended.push(uid.clone());
                continue;
            }
            let whole = plumbing::is_whole(&p.netns, &p.pod.addresses, self.setting.numbers);
            if !whole.unwrap_or(false) && p.capture == crate::bpf::CaptureMode::Mark {
                let repaired =
                    plumbing::install(&p.netns, &p.pod.addresses, self.setting.wanted, self.setting.numbers);
                tracing::warn!(uid = %uid, repaired = repaired.is_ok(),
                    "the pod's namespace had lost its mark rule; until now its captured connections were held back");
            }
        }
        for uid in ended {
            tracing::info!(uid = %uid, "the pod's network namespace is gone");
            if let Some(Known::Enrolled(p)) = self.known.get(&uid) {
                p.cut.end(Cause::PodGone);
            }
            self.let_go(&[uid], std::iter::empty()).await;
        }
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let again: Vec<Arc<LocalPod>> = snapshot
            .local_pods()
            .filter(|p| !matches!(self.known.get(&p.uid), Some(Known::Enrolled(_))))
            .cloned()
            .collect();
        for pod in again {
            let before = match self.known.get(&pod.uid) {
                Some(Known::Refused { why, .. }) => Some(why.clone()),
                _ => None,
            };
            match self.try_enrol(&pod, &snapshot).await {
                Ok(enrolled) => {
                    tracing::info!(uid = %pod.uid, pod = %pod.name, "pod enrolled at a later try");
                    self.known.insert(pod.uid.clone(), Known::Enrolled(enrolled));
                }
                Err(e) => self.note_refusal(pod, e, before.as_deref()),
            }
        }
        self.publish();
    }

    /// Logs only what is news.
    fn note_refusal(&mut self, pod: Arc<LocalPod>, e: EnrolError, before: Option<&str>) {
        let why = e.to_string();
        if before != Some(&why) {
            tracing::error!(uid = %pod.uid, pod = %pod.name, error = %why, "pod still not enrolled");
        }
        self.known.insert(pod.uid.clone(), Known::Refused { pod, why });
    }

    /// Opens the namespaces that the kernel keeps closed for nobody: a former agent enrolled them, or
    /// this one did before their pods were refused, and by now they are none of ours. Those of `wanted`
    /// are, although they could not be enrolled this time.
    fn forget_strangers(&self, wanted: &HashSet<NetnsCookie>) {
        let ours: HashSet<NetnsCookie> = self
            .known
            .values()
            .filter_map(|known| match known {
                Known::Enrolled(p) => Some(p.netns.cookie()),
                Known::Refused { pod, .. } => Some(Netns::open(&pod.netns).ok()?.cookie()),
            })
            .collect();
        let strangers: HashSet<NetnsCookie> = match self.setting.kernel.enrolled() {
            Ok(all) => all.into_iter().filter(|c| !ours.contains(c) && !wanted.contains(c)).collect(),
            Err(e) => {
                tracing::error!(error = %e, "cannot list what the maps hold");
                return;
            }
        };
        if strangers.is_empty() {
            return;
        }
        for cookie in &strangers {
            tracing::info!(%cookie, "forgetting a namespace that is no pod of this node's any more");
            if let Err(e) = self.setting.kernel.unenrol(*cookie) {
                tracing::error!(%cookie, error = %e, "cannot forget it");
            }
        }
        for netns in find::by_cookie(&strangers) {
            self.restore(&netns);
        }
    }

    fn publish(&self) {
        let known = self.known.values().map(|known| match known {
            Known::Enrolled(p) => PodState::Enrolled(Arc::clone(p)),
            Known::Refused { pod, why } => PodState::Refused { pod: Arc::clone(pod), why: why.clone() },
        });
        let leaving = self.leavers.iter().cloned().map(PodState::Leaving);
        let enrolled = self.known.values().filter(|known| matches!(known, Known::Enrolled(_))).count();
        self.setting.telemetry.pods_enrolled(enrolled);
        self.table.store(Arc::new(known.chain(leaving).collect()));
    }
}

impl Known {
    fn pod(&self) -> &LocalPod {
        match self {
            Self::Enrolled(p) => &p.pod,
            Self::Refused { pod, .. } => pod,
        }
    }

    fn is_same(&self, wanted: &LocalPod) -> bool {
        match self {
            Self::Enrolled(p) => *p.pod == *wanted && !p.netns.is_stale(),
            Self::Refused { pod, .. } => **pod == *wanted,
        }
    }
}

/// How often namespaces are looked at. A lost rule holds connections back, it leaks nothing, so this is
/// the longest time that a pod is without new connections.
const AUDIT: Duration = Duration::from_secs(5);
