//! The requests of one connection that are being served, so that they can be judged again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use super::client::Phase;
use super::judge::{Judge, Ruling};
use super::shape::Asked;

#[derive(Default)]
pub(super) struct Requests {
    open: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next: u64,
    requests: HashMap<u64, (Arc<Asked>, CancellationToken)>,
}

impl Requests {
    /// One that `phase` was told of.
    pub(super) fn enter(self: &Arc<Self>, asked: Arc<Asked>, phase: Phase) -> Arc<Serving> {
        let mut open = self.lock();
        open.next += 1;
        let number = open.next;
        let revoked = CancellationToken::new();
        open.requests.insert(number, (asked, revoked.clone()));
        Arc::new(Serving { requests: Arc::clone(self), number, revoked, phase })
    }

    /// Takes back what is forbidden by now.
    pub(super) fn review(&self, judge: &dyn Judge) {
        for (asked, revoked) in self.lock().requests.values() {
            if let Ruling::Deny { .. } = judge.judge(&asked.request()) {
                revoked.cancel();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request, for as long as either of its bodies is under way.
pub(super) struct Serving {
    requests: Arc<Requests>,
    number: u64,
    /// Cancelled when policy no longer allows it.
    pub(super) revoked: CancellationToken,
    phase: Phase,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.requests.lock().requests.remove(&self.number);
        self.phase.request_ended();
    }
}
