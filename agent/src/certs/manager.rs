//! Who holds which certificate.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::entry::{Entry, Workshop};
use super::{CertError, CertView, Clock, Identity, Issuer};
use crate::model::SpiffeId;
use crate::tls::TrustBundles;

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
}

struct Held {
    entry: Arc<Entry>,
    task: AbortHandle,
    leases: usize,
}

impl Manager {
    /// Must be called within a tokio runtime, which then runs the renewals.
    pub fn new(issuer: Arc<dyn Issuer>, config: &Config) -> Self {
        Self::with_clock(issuer, config, Clock::system(), rand::random)
    }

    /// As [`Self::new`], with the time and the die (uniform in 0.0..1.0) handed in.
    pub fn with_clock(
        issuer: Arc<dyn Issuer>,
        config: &Config,
        clock: Clock,
        die: impl Fn() -> f64 + Send + Sync + 'static,
    ) -> Self {
        let workshop = Workshop {
            issuer,
            clock,
            deadline: config.deadline,
            slots: Semaphore::new(config.concurrency.max(1)),
            die: Box::new(die),
        };
        let inner =
            Inner { workshop: Arc::new(workshop), runtime: Handle::current(), held: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Holds a certificate for `identity` until the lease is dropped. The first lease starts the fetch;
    /// this call itself does not wait.
    pub fn lease(&self, identity: &SpiffeId) -> Lease {
        let mut held = self.inner.held();
        let slot = held.entry(identity.clone()).or_insert_with(|| {
            let entry = Arc::new(Entry::new(identity.clone()));
            let task = self.inner.runtime.spawn(entry.clone().keep_fresh(self.inner.workshop.clone()));
            Held { entry, task: task.abort_handle(), leases: 0 }
        });
        slot.leases += 1;
        Lease { identity: identity.clone(), entry: slot.entry.clone(), manager: self.inner.clone() }
    }

    /// Every leased identity and the state of its certificate, by name.
    pub fn list(&self) -> Vec<CertView> {
        let Workshop { issuer, clock, .. } = &*self.inner.workshop;
        let now = clock.now();
        let mut views: Vec<CertView> =
            self.inner.held().values().map(|h| h.entry.view(issuer.name(), h.leases, now)).collect();
        views.sort_by(|a, b| a.identity.cmp(&b.identity));
        views
    }

    /// Whether every new handshake is judged by exactly these roots, in the trust domains that they are for.
    pub fn judges_by(&self, roots: &TrustBundles) -> bool {
        let now = self.inner.workshop.clock.now();
        let held = self.inner.held();
        held.values().filter_map(|held| held.entry.current(now)).all(|identity| {
            let trusted = identity.trust().now();
            let set = |b: &TrustBundles, d| b.roots(d).map(|root| root.to_vec()).collect::<BTreeSet<_>>();
            roots.domains().all(|domain| set(roots, domain) == set(&trusted.bundles, domain))
        })
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
    pub async fn ready(&self) -> Result<Arc<Identity>, CertError> {
        self.entry.ready(&self.manager.workshop.clock).await
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
