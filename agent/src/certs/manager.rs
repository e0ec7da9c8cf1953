//! Who holds which certificate.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::entry::{Entry, VouchedBy};
use super::failures::Failures;
use super::slots::Slots;
use super::trust::{self, TrustFiles};
use super::view::{TrustView, samples};
use super::workshop::{Signing, Workshop};
use super::{CertError, CertView, Clock, Identity, Issuer, Nudge};
use crate::model::SpiffeId;
use crate::telemetry::{CertificateSamples, Telemetry};
use crate::tls::{InUse, TrustBundles};

/// How the manager deals with its issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long one call may take.
    pub deadline: Duration,
    /// How many calls may be under way at once; at least one is allowed.
    pub concurrency: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(30), concurrency: 8 }
    }
}

/// Holds one certificate for each identity that is leased. Clones share it.
#[derive(Clone)]
pub struct Manager {
    inner: Arc<Inner>,
}

struct Inner {
    workshop: Arc<Workshop>,
    runtime: Handle,
    held: Mutex<HashMap<SpiffeId, Held>>,
    /// Locked after `held`.
    failures: Failures,
    /// Ends with the last handle.
    attendant: Mutex<Option<AbortHandle>>,
}

struct Held {
    entry: Arc<Entry>,
    task: AbortHandle,
    leases: usize,
}

/// What else the manager works with.
pub struct Surroundings {
    pub clock: Clock,
    /// Uniform in 0.0..1.0.
    pub die: Box<dyn Fn() -> f64 + Send + Sync>,
    /// Configured roots and revocation lists. The manager follows them.
    pub trust: TrustFiles,
    /// Where live tunnels are counted.
    pub in_use: InUse,
    /// Where attempts are counted.
    pub telemetry: Option<Telemetry>,
}

impl Default for Surroundings {
    /// The machine's clock, real dice, no files, nobody who counts.
    fn default() -> Self {
        Self {
            clock: Clock::system(),
            die: Box::new(rand::random),
            trust: TrustFiles::default(),
            in_use: InUse::default(),
            telemetry: None,
        }
    }
}

impl Manager {
    /// Must be called within a tokio runtime, which then runs the renewals.
    pub fn new(issuer: Arc<dyn Issuer>, config: &Config) -> Self {
        Self::within(issuer, config, Surroundings::default())
    }

    /// As [`Self::new`], with the time and the die (uniform in 0.0..1.0) handed in.
    pub fn with_clock(
        issuer: Arc<dyn Issuer>,
        config: &Config,
        clock: Clock,
        die: impl Fn() -> f64 + Send + Sync + 'static,
    ) -> Self {
        Self::within(issuer, config, Surroundings { clock, die: Box::new(die), ..Surroundings::default() })
    }

    /// As [`Self::new`], with everything handed in.
    pub fn within(issuer: Arc<dyn Issuer>, config: &Config, around: Surroundings) -> Self {
        let nudges = issuer.nudges();
        let workshop = Workshop {
            roots: issuer.roots(),
            issuer,
            slots: Slots::new(config.concurrency, around.clock.clone()),
            clock: around.clock,
            deadline: config.deadline,
            die: around.die,
            files: around.trust,
            in_use: around.in_use,
            signing: Mutex::default(),
            telemetry: around.telemetry,
        };
        let runtime = Handle::current();
        let inner = Arc::new(Inner {
            workshop: Arc::new(workshop),
            runtime,
            held: Mutex::default(),
            failures: Failures::default(),
            attendant: Mutex::default(),
        });
        let attendant = inner.runtime.spawn(attend(Arc::downgrade(&inner), inner.workshop.clone(), nudges));
        *inner.attendant.lock().unwrap_or_else(PoisonError::into_inner) = Some(attendant.abort_handle());
        if let Some(telemetry) = &inner.workshop.telemetry {
            let asked = Arc::downgrade(&inner);
            telemetry.watch_certificates(move || asked.upgrade().map(|i| i.samples()).unwrap_or_default());
        }
        Self { inner }
    }

    /// Holds a certificate for `identity` until the lease is dropped. The first lease starts the fetch, or
    /// goes on with the back-off in which the last one before it has left; this call itself does not wait.
    pub fn lease(&self, identity: &SpiffeId) -> Lease {
        let mut held = self.inner.held();
        let slot = held.entry(identity.clone()).or_insert_with(|| {
            let before = self.inner.failures.take(identity);
            let entry = Arc::new(Entry::new(identity.clone(), &self.inner.workshop, before));
            let task = self.inner.runtime.spawn(entry.clone().keep_fresh(self.inner.workshop.clone()));
            Held { entry, task: task.abort_handle(), leases: 0 }
        });
        slot.leases += 1;
        Lease { identity: identity.clone(), entry: slot.entry.clone(), manager: self.inner.clone() }
    }

    /// Every leased identity and the state of its certificate, by name.
    pub fn list(&self) -> Vec<CertView> {
        self.inner.list()
    }

    /// The configured files and the roots and lists in force.
    pub fn trust(&self) -> TrustView {
        self.inner.trust()
    }

    /// Whether every new handshake is judged by exactly these roots of the issuer's, in the trust domains
    /// that they are for, beside what files add.
    pub fn judges_by(&self, roots: &TrustBundles) -> bool {
        let wanted = trust::compose(roots, &self.inner.workshop.files.now()).bundles;
        let entries: Vec<_> = self.inner.held().values().map(|h| h.entry.clone()).collect();
        entries.iter().all(|entry| {
            let judged = &entry.trusted().bundles;
            let set = |b: &TrustBundles, d| b.roots(d).map(|root| root.to_vec()).collect::<BTreeSet<_>>();
            roots.domains().all(|domain| set(&wanted, domain) == set(judged, domain))
        })
    }

    /// Who vouches for each certificate that is held. Cheaper than [`Self::list`].
    pub fn vouched_by(&self) -> Vec<VouchedBy> {
        let now = self.inner.workshop.clock.now();
        let entries: Vec<_> = self.inner.held().values().map(|h| h.entry.clone()).collect();
        entries.iter().filter_map(|entry| entry.vouched_by(now)).collect()
    }

    /// Live tunnels by the root that the peer's certificate rests on.
    pub fn tunnels_by_root(&self) -> BTreeMap<[u8; 32], usize> {
        self.inner.workshop.in_use.by_root()
    }
}

impl Inner {
    /// Remembers what `entry` owes its issuer, if it does. Called with `held` locked, so that no lease that
    /// is taken meanwhile misses it.
    fn let_go(&self, entry: &Entry) {
        let Workshop { issuer, clock, .. } = &*self.workshop;
        if let Some(setback) = entry.setback(&self.workshop) {
            let view = entry.view(issuer.name(), 0, clock.now());
            self.failures.remember(entry.identity(), setback, view);
        }
    }

    fn list(&self) -> Vec<CertView> {
        let Workshop { issuer, clock, .. } = &*self.workshop;
        let now = clock.now();
        // Out of the lock: each view takes a moment, and leases are taken and dropped meanwhile.
        let entries: Vec<_> = self.held().values().map(|h| (h.entry.clone(), h.leases)).collect();
        let mut views: Vec<CertView> =
            entries.iter().map(|(entry, leases)| entry.view(issuer.name(), *leases, now)).collect();
        let held: BTreeSet<_> = entries.iter().map(|(entry, _)| entry.identity()).collect();
        views.extend(self.failures.told().into_iter().filter(|view| !held.contains(&view.identity)));
        views.sort_by(|a, b| a.identity.cmp(&b.identity));
        views
    }

    fn trust(&self) -> TrustView {
        let entries: Vec<_> = self.held().values().map(|h| h.entry.clone()).collect();
        let mut bundles = self.workshop.compose(&TrustBundles::new()).bundles;
        for entry in entries {
            bundles.add_all(&entry.trusted().bundles);
        }
        let files = &self.workshop.files;
        TrustView::new(&bundles, &files.now().revoked, files.list())
    }

    fn samples(&self) -> CertificateSamples {
        let now = self.workshop.clock.now();
        samples(&self.list(), &self.trust(), now)
    }
}

/// Takes in what the issuer and the files have to say, until the manager is gone.
async fn attend(inner: Weak<Inner>, workshop: Arc<Workshop>, nudges: Option<UnboundedReceiver<Nudge>>) {
    tokio::join!(
        workshop.files.clone().follow(),
        on_change(inner.clone(), workshop.clone(), Some(workshop.files.subscribe())),
        on_change(inner.clone(), workshop.clone(), workshop.roots.clone()),
        heed(inner, workshop.clone(), nudges),
    );
}

async fn on_change<T>(inner: Weak<Inner>, workshop: Arc<Workshop>, told: Option<watch::Receiver<T>>) {
    let Some(mut told) = told else { return };
    while told.changed().await.is_ok() {
        for entry in entries(&inner) {
            entry.recompose(&workshop);
        }
    }
}

async fn heed(inner: Weak<Inner>, workshop: Arc<Workshop>, nudges: Option<UnboundedReceiver<Nudge>>) {
    let Some(mut nudges) = nudges else { return };
    while let Some(nudge) = nudges.recv().await {
        match nudge {
            Nudge::Identity(identity) => {
                let entry = inner.upgrade().and_then(|i| i.held().get(&identity).map(|h| h.entry.clone()));
                match (entry, inner.upgrade()) {
                    (Some(entry), _) => entry.nudge(),
                    // There is one now: whoever comes for it need not wait.
                    (None, Some(inner)) => drop(inner.failures.take(&identity)),
                    (None, None) => {}
                }
            }
            Nudge::SignedByOthers { authority, within } => {
                // First for those that are on their way.
                workshop.set_signing(Signing { authority, within });
                for entry in entries(&inner) {
                    entry.heed_signing(&workshop);
                }
            }
        }
    }
}

fn entries(inner: &Weak<Inner>) -> Vec<Arc<Entry>> {
    let Some(inner) = inner.upgrade() else { return Vec::new() };
    inner.held().values().map(|held| held.entry.clone()).collect()
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(attendant) = &*self.attendant.lock().unwrap_or_else(PoisonError::into_inner) {
            attendant.abort();
        }
    }
}

/// Keeps one identity's certificate alive. Clones count as leases of their own.
pub struct Lease {
    identity: SpiffeId,
    entry: Arc<Entry>,
    manager: Arc<Inner>,
}

impl Lease {
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// The certificate for the next handshake; `None` when there is none that is valid now. Never waits.
    pub fn current(&self) -> Option<Arc<Identity>> {
        self.entry.current(self.manager.workshop.clock.now())
    }

    /// Waits for a valid certificate. Fails when an attempt that ends while we wait fails; the manager
    /// goes on trying, so whoever can afford to wait just calls again.
    ///
    /// Whoever waits here goes before those who warm up and before renewals.
    pub async fn ready(&self) -> Result<Arc<Identity>, CertError> {
        let _waiter = self.entry.urgency().wait();
        self.warm_up().await
    }

    /// As [`Self::ready`], for whoever prepares for connections that are yet to come.
    pub async fn warm_up(&self) -> Result<Arc<Identity>, CertError> {
        self.entry.ready(&self.manager.workshop.clock).await
    }

    /// Why the latest attempt failed, if it did. The manager tries again when its back-off has passed.
    pub fn last_error(&self) -> Option<CertError> {
        self.entry.last_error()
    }
}

impl Lease {
    /// Ready when a newer certificate than `held` serves new handshakes. Does not count as a lease.
    pub fn renewed(&self, held: &Arc<Identity>) -> impl Future<Output = ()> + Send + use<> {
        self.superseded(held, false)
    }

    /// As [`Self::renewed`], for one that another authority has signed: what rests on `held` rests on a
    /// root that may be about to go.
    pub fn signed_by_another(&self, held: &Arc<Identity>) -> impl Future<Output = ()> + Send + use<> {
        self.superseded(held, true)
    }

    fn superseded(&self, held: &Arc<Identity>, by_others: bool) -> impl Future<Output = ()> + Send + use<> {
        let (entry, clock, held) =
            (self.entry.clone(), self.manager.workshop.clock.clone(), Arc::clone(held));
        async move { entry.superseded(&clock, &held, by_others).await }
    }
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        // Ours keeps the entry alive, so it is still the one in the table.
        if let Some(held) = self.manager.held().get_mut(&self.identity) {
            held.leases += 1;
        }
        Self { identity: self.identity.clone(), entry: self.entry.clone(), manager: self.manager.clone() }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut held = self.manager.held();
        if let Some(slot) = held.get_mut(&self.identity) {
            slot.leases -= 1;
            if slot.leases == 0 {
                slot.task.abort();
                held.remove(&self.identity);
                self.manager.let_go(&self.entry);
            }
        }
    }
}

impl Inner {
    fn held(&self) -> MutexGuard<'_, HashMap<SpiffeId, Held>> {
        // No code of ours panics while holding it, and each change to the table is a single step.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager").field("identities", &self.inner.held().len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(&self.identity.to_string()).finish()
    }
}
