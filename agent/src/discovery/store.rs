//! Holds the current snapshot and tells everyone of the next.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;
use tokio::sync::watch;

use super::snapshot::Snapshot;
use super::state::State;

/// Cheap to clone; all clones are one store.
#[derive(Clone, Debug)]
pub struct Store {
    sender: watch::Sender<Arc<Snapshot>>,
    /// Held while a snapshot is built, so that revisions appear in order.
    building: Arc<Mutex<()>>,
    clock: Clock,
}

/// Tells the time, and never an earlier one than before: what has lapsed stays so when somebody sets the system's
/// clock back.
#[derive(Clone)]
struct Clock {
    system: Arc<dyn Fn() -> OffsetDateTime + Send + Sync>,
    latest: Arc<Mutex<OffsetDateTime>>,
}

impl Store {
    /// Begins with revision 0, which is empty and means that nothing is known yet.
    pub fn new() -> Self {
        Self::with_clock(OffsetDateTime::now_utc)
    }

    /// As [`Store::new`], at the time that `clock` tells.
    pub fn with_clock(clock: impl Fn() -> OffsetDateTime + Send + Sync + 'static) -> Self {
        let sender = watch::Sender::new(Arc::new(Snapshot::unsynced()));
        let latest = Arc::new(Mutex::new(clock()));
        Self { sender, building: Arc::default(), clock: Clock { system: Arc::new(clock), latest } }
    }

    /// The current snapshot and every later one. A slow receiver misses intermediate ones.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.sender.subscribe()
    }

    pub fn current(&self) -> Arc<Snapshot> {
        self.sender.borrow().clone()
    }

    /// Never earlier than it was before, whatever becomes of the system's clock.
    pub fn now(&self) -> OffsetDateTime {
        self.clock.now()
    }

    /// Indexes `state` as the next revision. Takes time in proportion to the mesh's size: call it
    /// where blocking is allowed.
    pub fn publish(&self, state: State) -> Arc<Snapshot> {
        let _building = self.building();
        self.send(self.current().next(state, self.now()))
    }

    /// Whether an exception has lapsed that the current snapshot still has in force.
    pub fn has_lapsed(&self) -> bool {
        let (snapshot, now) = (self.current(), self.now());
        let before = snapshot.now();
        snapshot
            .exceptions()
            .any(|one| before.is_some_and(|before| one.is_in_force(before)) && !one.is_in_force(now))
    }

    /// The same mesh as the next revision, without what has lapsed. Takes as long as [`Store::publish`].
    pub fn lapse(&self) -> Arc<Snapshot> {
        let _building = self.building();
        match self.has_lapsed() {
            true => self.send(self.current().later(self.now())),
            false => self.current(),
        }
    }

    fn send(&self, snapshot: Snapshot) -> Arc<Snapshot> {
        let snapshot = Arc::new(snapshot);
        self.sender.send_replace(snapshot.clone());
        snapshot
    }

    fn building(&self) -> MutexGuard<'_, ()> {
        self.building.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock {
    fn now(&self) -> OffsetDateTime {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = (*latest).max((self.system)());
        *latest
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.latest).finish()
    }
}
