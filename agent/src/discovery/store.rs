//! Holds the current snapshot and tells everyone of the next.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::snapshot::Snapshot;
use super::state::State;

/// Cheap to clone; all clones are one store.
#[derive(Clone, Debug)]
pub struct Store {
    sender: watch::Sender<Arc<Snapshot>>,
    /// Held while a snapshot is built, so that revisions appear in order.
    building: Arc<Mutex<()>>,
}

impl Store {
    /// Begins with revision 0, which is empty and means that nothing is known yet.
    pub fn new() -> Self {
        let sender = watch::Sender::new(Arc::new(Snapshot::unsynced()));
        Self { sender, building: Arc::default() }
    }

    /// The current snapshot and every later one. A slow receiver misses intermediate ones.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.sender.subscribe()
    }

    pub fn current(&self) -> Arc<Snapshot> {
        self.sender.borrow().clone()
    }

    /// Indexes `state` as the next revision. Takes time in proportion to the mesh's size: call it
    /// where blocking is allowed.
    pub fn publish(&self, state: State) -> Arc<Snapshot> {
        let _building = self.building.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = Arc::new(self.current().next(state));
        self.sender.send_replace(snapshot.clone());
        snapshot
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}
