//! Keeps the set of enrolled pods equal to the set that the snapshot wishes for.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::enrol::{self, EnrolError, Setting};
use super::enrolled::EnrolledPod;
use super::listeners::Accepting;
use super::{find, plumbing};
use crate::bpf;
use crate::discovery::Snapshot;
use crate::model::{Cause, LocalPod, NetnsCookie, PodUid};
use crate::sys::netns::Netns;

/// What the rest of the agent sees of it.
pub type Table = BTreeMap<PodUid, PodState>;

/// A local pod and how far its enrolment is.
#[derive(Clone, Debug)]
pub enum PodState {
    Enrolled(Arc<EnrolledPod>),
    /// Not enrolled, why, and it is tried again on a timer.
    Refused {
        pod: Arc<LocalPod>,
        why: String,
    },
    /// Taken out of the snapshot; its live connections are ending.
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
    leaving: JoinSet<PodUid>,
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
            leaving: JoinSet::new(),
        };
        (manager, table, receiver)
    }

    /// Works until `stop`. `first` is told when the pods of the first snapshot have been tried. Before a
    /// source has spoken nobody is let go: what a former agent enrolled stays closed.
    ///
    /// Stopping enrols nobody out: the kernel goes on refusing captured connections until an agent is
    /// back.
    pub async fn run(mut self, stop: CancellationToken, first: impl FnOnce() + Send) {
        let synced = tokio::select! {
            () = stop.cancelled() => return,
            synced = self.snapshots.wait_for(|s| s.is_synced()) => synced.is_ok(),
        };
        if !synced {
            return;
        }
        self.sync().await;
        self.forget_strangers();
        first();
        let mut audit = tokio::time::interval(AUDIT);
        audit.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.snapshots.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.sync().await;
                }
                _ = audit.tick() => self.audit().await,
                Some(_) = self.leaving.join_next() => self.publish(),
            }
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
        for uid in gone {
            self.let_go(&uid, wanted.get(&uid).map(|w| &**w)).await;
        }
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
        let known = match enrol::enrol(&self.setting, Arc::clone(&pod), snapshot).await {
            Ok(started) => {
                tracing::info!(uid = %uid, pod = %pod.name, namespace = %pod.namespace,
                    identity = %pod.identity, capture = ?started.pod.capture, "pod enrolled");
                let enrolled = Arc::clone(&started.pod);
                // Nobody receives only while the agent is stopping.
                let _ = self.started.send(started);
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

    /// Takes a pod out of the kernel at once, and lets its live connections end by themselves. One that
    /// `comes_back` in the same namespace stays closed meanwhile: between two descriptions, or if the
    /// new one cannot be enrolled, nothing of it may pass in plaintext.
    async fn let_go(&mut self, uid: &PodUid, comes_back: Option<&LocalPod>) {
        let enrolled = match self.known.remove(uid) {
            Some(Known::Enrolled(enrolled)) => enrolled,
            Some(Known::Refused { pod, .. }) => {
                if comes_back.is_none_or(|w| w.netns != pod.netns) {
                    self.open_up(&pod);
                }
                return;
            }
            None => return,
        };
        let cookie = enrolled.netns.cookie();
        let stays = comes_back.is_some_and(|w| w.netns == enrolled.pod.netns) && !enrolled.netns.is_stale();
        let told = if stays {
            self.setting.kernel.set_listeners(cookie, &bpf::Listeners::default())
        } else {
            self.setting.kernel.unenrol(cookie)
        };
        if let Err(e) = told {
            tracing::error!(uid = %uid, error = %e, "cannot take the pod out of the kernel's maps");
        }
        tracing::info!(uid = %uid, pod = %enrolled.pod.name, namespace = %enrolled.pod.namespace,
            "pod is leaving the mesh");
        let uid = uid.clone();
        let setting = Arc::clone(&self.setting);
        let table = Arc::clone(&self.table);
        insert(&table, uid.clone(), PodState::Leaving(Arc::clone(&enrolled)));
        enrolled.close_listeners().await;
        self.leaving.spawn(async move {
            enrolled.drain(tokio::time::sleep(setting.drain), Cause::PodGone).await;
            // Live connections needed the rule until now. The same namespace may have been enrolled
            // again meanwhile, under another uid or with other addresses.
            let again = setting.kernel.enrolled().is_ok_and(|all| all.contains(&cookie));
            if !again && let Err(e) = plumbing::remove(&enrolled.netns, setting.numbers) {
                tracing::debug!(uid = %uid, error = %e, "the namespace keeps its rule");
            }
            remove_if_leaving(&table, &uid);
            setting.telemetry.forget_pod(&enrolled.pod.namespace, &enrolled.pod.name);
            uid
        });
    }

    /// Lets go of the namespace of a pod that was never enrolled, or not again: an agent before us, or
    /// its former description, may have left it closed.
    fn open_up(&self, pod: &LocalPod) {
        let Ok(netns) = Netns::open(&pod.netns) else { return };
        let cookie = netns.cookie();
        let closed = self.setting.kernel.enrolled().is_ok_and(|all| all.contains(&cookie));
        let of_another = self.known.values().any(|k| k.cookie() == Some(cookie));
        if !closed || of_another {
            return;
        }
        if let Err(e) = self.setting.kernel.unenrol(cookie) {
            tracing::error!(uid = %pod.uid, error = %e, "cannot take the pod out of the kernel's maps");
        }
        if let Err(e) = plumbing::remove(&netns, self.setting.numbers) {
            tracing::debug!(uid = %pod.uid, error = %e, "the namespace keeps its rule");
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
            if !whole.unwrap_or(false) && p.capture == bpf::CaptureMode::Mark {
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
            self.let_go(&uid, None).await;
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
            match enrol::enrol(&self.setting, Arc::clone(&pod), &snapshot).await {
                Ok(started) => {
                    tracing::info!(uid = %pod.uid, pod = %pod.name, "pod enrolled at a later try");
                    self.known.insert(pod.uid.clone(), Known::Enrolled(Arc::clone(&started.pod)));
                    let _ = self.started.send(started);
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

    /// Namespaces that a former agent enrolled and that are no pod of ours any more.
    fn forget_strangers(&self) {
        let ours: HashSet<NetnsCookie> = self.known.values().filter_map(Known::cookie).collect();
        let strangers: HashSet<NetnsCookie> = match self.setting.kernel.enrolled() {
            Ok(all) => all.into_iter().filter(|c| !ours.contains(c)).collect(),
            Err(e) => {
                tracing::error!(error = %e, "cannot list what the maps hold");
                return;
            }
        };
        // A pod of ours that could not be enrolled this time stays closed, as its row is.
        let refused: HashSet<NetnsCookie> = self
            .known
            .values()
            .filter_map(|k| match k {
                Known::Refused { pod, .. } => Netns::open(&pod.netns).ok(),
                Known::Enrolled(_) => None,
            })
            .map(|n| n.cookie())
            .collect();
        let strangers: HashSet<NetnsCookie> = strangers.difference(&refused).copied().collect();
        for netns in find::by_cookie(&strangers) {
            if let Err(e) = plumbing::remove(&netns, self.setting.numbers) {
                tracing::warn!(netns = %netns.path().display(), error = %e, "the namespace keeps its rule");
            }
        }
        for cookie in strangers {
            tracing::info!(%cookie, "forgetting a namespace that is no pod of this node's any more");
            if let Err(e) = self.setting.kernel.unenrol(cookie) {
                tracing::error!(%cookie, error = %e, "cannot forget it");
            }
        }
    }

    fn publish(&self) {
        let mut next: Table = self
            .table
            .load()
            .iter()
            .filter(|(_, s)| matches!(s, PodState::Leaving(_)))
            .map(|(u, s)| (u.clone(), s.clone()))
            .collect();
        for (uid, known) in &self.known {
            let state = match known {
                Known::Enrolled(p) => PodState::Enrolled(Arc::clone(p)),
                Known::Refused { pod, why } => PodState::Refused { pod: Arc::clone(pod), why: why.clone() },
            };
            next.insert(uid.clone(), state);
        }
        let enrolled = next.values().filter(|s| matches!(s, PodState::Enrolled(_))).count();
        self.setting.telemetry.pods_enrolled(enrolled);
        self.table.store(Arc::new(next));
    }
}

impl Known {
    fn cookie(&self) -> Option<NetnsCookie> {
        match self {
            Self::Enrolled(p) => Some(p.netns.cookie()),
            Self::Refused { .. } => None,
        }
    }

    fn is_same(&self, wanted: &LocalPod) -> bool {
        match self {
            Self::Enrolled(p) => *p.pod == *wanted && !p.netns.is_stale(),
            Self::Refused { pod, .. } => **pod == *wanted,
        }
    }
}

fn insert(table: &ArcSwap<Table>, uid: PodUid, state: PodState) {
    table.rcu(|t| {
        let mut next = Table::clone(t);
        next.insert(uid.clone(), state.clone());
        next
    });
}

fn remove_if_leaving(table: &ArcSwap<Table>, uid: &PodUid) {
    table.rcu(|t| {
        let mut next = Table::clone(t);
        if matches!(next.get(uid), Some(PodState::Leaving(_))) {
            next.remove(uid);
        }
        next
    });
}

/// How often namespaces are looked at. A lost rule holds connections back, it leaks nothing, so this is
/// the longest time that a pod is without new connections.
const AUDIT: Duration = Duration::from_secs(5);
