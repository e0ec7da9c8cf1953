//! Peers that are connected now: what each rests on, looked at again whenever trust changes.
//!
//! A chain is kept once for all tunnels of one identity whose peer showed it, and so it is verified once for
//! all of them. It is verified as of the first of those handshakes: that the peer's certificate has expired
//! since, or the list of its issuer is due, is no reason to end a tunnel (the peer is asked to come again by
//! GOAWAY), while a root that is gone, or a certificate taken back, is. For the same reason a root counts if
//! it is valid now *or* was then: one that expired is still there, and its successor may be younger than the
//! tunnel.
//!
//! No change is missed: a handshake enters its peer here first and verifies it again by the newest state
//! afterwards; who changes the state replaces it first and looks at everybody who is here afterwards.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::trust::State;
use super::verify::rests_on;
use super::{TlsError, Trusted, sha256};

/// Every live tunnel of those [`super::Trust`]s that were made with it. Clones share it.
#[derive(Clone, Default)]
pub struct InUse {
    registry: Arc<Registry>,
}

#[derive(Default)]
struct Registry {
    all: Mutex<Vec<Weak<State>>>,
    changed: Mutex<Changed>,
}

/// Whose peers are to be looked at again. One worker does it for the whole process, however many identities
/// hear of a change at once.
#[derive(Default)]
struct Changed {
    queue: VecDeque<Weak<State>>,
    is_worked_on: bool,
}

impl InUse {
    /// How many tunnels rest on each root, by the SHA-256 of its certificate.
    ///
    /// A tunnel that would stand by several roots counts for the one that is valid longest: the others may
    /// go without ending it.
    pub fn by_root(&self) -> BTreeMap<[u8; 32], usize> {
        let all: Vec<_> = lock(&self.registry.all).iter().filter_map(Weak::upgrade).collect();
        let mut counts = BTreeMap::new();
        for state in all {
            for entry in lock(&state.peers).values() {
                if let Verdict::Stands { root, .. } = *lock(&entry.peer.verdict) {
                    *counts.entry(root).or_default() += entry.tunnels;
                }
            }
        }
        counts
    }

    pub(super) fn enter(&self, state: &Arc<State>) {
        let mut all = lock(&self.registry.all);
        all.retain(|state| state.strong_count() > 0);
        all.push(Arc::downgrade(state));
    }

    /// Looks again at every peer of `state`, which has changed. Verifying takes a fraction of a millisecond
    /// for each, so it is kept off the runtime's own threads, where it would hold up all traffic.
    pub(super) fn review(&self, state: &Arc<State>) {
        if lock(&state.peers).is_empty() {
            return;
        }
        let mut changed = lock(&self.registry.changed);
        changed.queue.push_back(Arc::downgrade(state));
        if std::mem::replace(&mut changed.is_worked_on, true) {
            return;
        }
        drop(changed);
        let registry = Arc::clone(&self.registry);
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || registry.work())),
            Err(_) => registry.work(),
        }
    }
}

impl Registry {
    fn work(&self) {
        loop {
            let mut changed = lock(&self.changed);
            let Some(next) = changed.queue.pop_front() else {
                changed.is_worked_on = false;
                return;
            };
            drop(changed);
            if let Some(state) = next.upgrade() {
                state.review();
            }
        }
    }
}

/// One chain that live tunnels rest on.
pub(super) struct Peer {
    chain: Vec<CertificateDer<'static>>,
    /// When the first of them stood.
    since: SystemTime,
    verdict: Mutex<Verdict>,
    lost: CancellationToken,
}

enum Verdict {
    Unknown,
    Stands {
        root: [u8; 32],
        /// Found by this state.
        by: Arc<Trusted>,
    },
    /// For good: who is trusted again connects again.
    Lost(TlsError),
}

pub(super) struct Entry {
    peer: Arc<Peer>,
    tunnels: usize,
}

pub(super) type Peers = Mutex<HashMap<[u8; 32], Entry>>;

impl State {
    pub(super) fn hold(self: &Arc<Self>, chain: &[CertificateDer<'_>]) -> Result<Held, TlsError> {
        let key = digest(chain);
        let peer = {
            let mut peers = lock(&self.peers);
            let fresh = || Entry { peer: Arc::new(Peer::new(chain)), tunnels: 0 };
            let entry = peers.entry(key).or_insert_with(fresh);
            entry.tunnels += 1;
            Arc::clone(&entry.peer)
        };
        let held = Held { state: Arc::clone(self), key, peer };
        held.peer.look_at(self)?;
        Ok(held)
    }

    fn review(&self) {
        let all: Vec<_> = lock(&self.peers).iter().map(|(key, e)| (*key, Arc::clone(&e.peer))).collect();
        for (key, peer) in all {
            // Nobody would look again for those behind it.
            let looked = catch_unwind(AssertUnwindSafe(|| peer.look_at(self)));
            let Err(error) = looked.unwrap_or_else(|_| Err(peer.lose(TlsError::NoCertificate))) else {
                continue;
            };
            let tunnels = self.forget(key, &peer);
            tracing::info!(tunnels, %error, "tunnels end: their peer is trusted no more");
        }
    }

    /// So that who is trusted again is not taken for who was lost. Returns how many tunnels there were.
    fn forget(&self, key: [u8; 32], peer: &Arc<Peer>) -> usize {
        let mut peers = lock(&self.peers);
        match peers.get(&key) {
            Some(entry) if Arc::ptr_eq(&entry.peer, peer) => peers.remove(&key).map_or(0, |e| e.tunnels),
            _ => 0,
        }
    }
}

impl Peer {
    fn new(chain: &[CertificateDer<'_>]) -> Self {
        Self {
            chain: chain.iter().map(|der| der.clone().into_owned()).collect(),
            since: SystemTime::now(),
            verdict: Mutex::new(Verdict::Unknown),
            lost: CancellationToken::new(),
        }
    }

    /// Whether it is trusted by the newest state.
    fn look_at(&self, state: &State) -> Result<(), TlsError> {
        let mut verdict = lock(&self.verdict);
        // Asked for under the lock, so that no older state has the last word.
        let now = state.now();
        match &*verdict {
            Verdict::Lost(error) => return Err(error.clone()),
            Verdict::Stands { by, .. } if Arc::ptr_eq(by, &now) => return Ok(()),
            Verdict::Stands { .. } | Verdict::Unknown => {}
        }
        match rests_on(&self.chain, &now, self.since) {
            Ok(root) => {
                *verdict = Verdict::Stands { root, by: now };
                Ok(())
            }
            Err(error) => {
                drop(verdict);
                Err(self.lose(error))
            }
        }
    }

    fn lose(&self, error: TlsError) -> TlsError {
        *lock(&self.verdict) = Verdict::Lost(error.clone());
        self.lost.cancel();
        error
    }
}

/// A live tunnel's hold on what its peer rests on; dropped when the tunnel ends.
pub struct Held {
    state: Arc<State>,
    key: [u8; 32],
    peer: Arc<Peer>,
}

impl Held {
    /// Ready once the peer is trusted no more: its root went, or its certificate or one above it was
    /// revoked. Not for expiry.
    pub async fn lost(&self) -> TlsError {
        self.peer.lost.cancelled().await;
        match &*lock(&self.peer.verdict) {
            Verdict::Lost(error) => error.clone(),
            // Only `lose` cancels, and it leaves the verdict first.
            Verdict::Unknown | Verdict::Stands { .. } => TlsError::NoCertificate,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut peers = lock(&self.state.peers);
        let Some(entry) = peers.get_mut(&self.key).filter(|e| Arc::ptr_eq(&e.peer, &self.peer)) else {
            return;
        };
        entry.tunnels -= 1;
        if entry.tunnels == 0 {
            peers.remove(&self.key);
        }
    }
}

/// Of each certificate, then of all: no two chains share one, however they are cut up.
fn digest(chain: &[CertificateDer<'_>]) -> [u8; 32] {
    sha256(&chain.iter().flat_map(|der| sha256(der)).collect::<Vec<u8>>())
}

/// What is behind these locks is whole after every step, a panic in between or not.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for InUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.by_root().values()).finish()
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("since", &self.peer.since).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "tests/live.rs"]
mod tests;
