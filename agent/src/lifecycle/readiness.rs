//! The agent is ready when nobody holds a guard any more. Whoever must have happened first takes one
//! by name, and says what it waits for; `/healthz/ready` tells both.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;
use tokio::sync::watch;

#[derive(Clone)]
pub struct Readiness {
    shared: Arc<Shared>,
}

/// What readiness waits for. Dropping it is the same as [`Guard::done`], except in a panic: work that
/// died is not done, and the agent never becomes ready.
#[must_use = "readiness no longer waits for a guard that is dropped"]
pub struct Guard {
    shared: Arc<Shared>,
    number: u64,
}

/// A guard as `/healthz/ready` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pending {
    pub name: String,
    /// What it waits for; empty when it has not said.
    pub reason: String,
    pub seconds: u64,
}

struct Shared {
    guards: Mutex<Guards>,
    ready: watch::Sender<bool>,
}

#[derive(Default)]
struct Guards {
    last: u64,
    /// By number, so that they are told in the order in which they were taken.
    held: BTreeMap<u64, Held>,
}

struct Held {
    name: String,
    reason: String,
    since: Instant,
}

impl Readiness {
    /// Ready, as long as nobody takes a guard.
    #[expect(clippy::new_without_default, reason = "an explicit start reads better where the agent is built")]
    pub fn new() -> Self {
        let (ready, _) = watch::channel(true);
        Self { shared: Arc::new(Shared { guards: Mutex::default(), ready }) }
    }

    /// From now on the agent is not ready until this guard is done or dropped.
    pub fn guard(&self, name: impl Into<String>) -> Guard {
        let mut guards = self.shared.lock();
        guards.last += 1;
        let number = guards.last;
        let held = Held { name: name.into(), reason: String::new(), since: Instant::now() };
        guards.held.insert(number, held);
        self.shared.publish(&guards);
        Guard { shared: Arc::clone(&self.shared), number }
    }

    pub fn is_ready(&self) -> bool {
        *self.shared.ready.borrow()
    }

    /// Waits until no guard is held.
    pub async fn ready(&self) {
        // The sender lives as long as `self`.
        let _ = self.shared.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// What readiness waits for; empty when ready.
    pub fn pending(&self) -> Vec<Pending> {
        let guards = self.shared.lock();
        let pending = |held: &Held| Pending {
            name: held.name.clone(),
            reason: held.reason.clone(),
            seconds: held.since.elapsed().as_secs(),
        };
        guards.held.values().map(pending).collect()
    }
}

impl Guard {
    /// Tells operators what it waits for now.
    pub fn waits_for(&self, reason: impl Into<String>) {
        if let Some(held) = self.shared.lock().held.get_mut(&self.number) {
            held.reason = reason.into();
        }
    }

    pub fn done(self) {}
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return self.waits_for("whoever was to do this has panicked");
        }
        let mut guards = self.shared.lock();
        guards.held.remove(&self.number);
        self.shared.publish(&guards);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Guards> {
        self.guards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Under the lock, so that what is published is never older than what is held.
    fn publish(&self, guards: &Guards) {
        self.ready.send_replace(guards.held.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(readiness: &Readiness) -> Vec<String> {
        readiness.pending().into_iter().map(|p| p.name).collect()
    }

    #[test]
    fn ready_when_every_guard_is_gone() {
        let readiness = Readiness::new();
        assert!(readiness.is_ready());
        let certificates = readiness.guard("certificates");
        let programs = readiness.guard("programs");
        assert!(!readiness.is_ready());
        assert_eq!(names(&readiness), ["certificates", "programs"]);
        certificates.done();
        assert!(!readiness.is_ready());
        assert_eq!(names(&readiness), ["programs"]);
        drop(programs);
        assert!(readiness.is_ready());
        assert_eq!(readiness.pending(), []);
    }

    #[test]
    fn two_guards_of_one_name_are_two() {
        let readiness = Readiness::new();
        let first = readiness.guard("pod");
        let second = readiness.guard("pod");
        first.done();
        assert!(!readiness.is_ready());
        second.done();
        assert!(readiness.is_ready());
    }

    #[test]
    fn a_guard_says_what_it_waits_for() {
        let readiness = Readiness::new();
        let guard = readiness.guard("certificates");
        assert_eq!(readiness.pending()[0].reason, "");
        guard.waits_for("spiffe://a/ns/b/sa/c: the issuer does not answer");
        assert_eq!(readiness.pending()[0].reason, "spiffe://a/ns/b/sa/c: the issuer does not answer");
    }

    #[tokio::test]
    async fn work_that_panics_is_never_done() {
        let readiness = Readiness::new();
        let guard = readiness.guard("programs");
        let work = tokio::spawn(async move {
            let _guard = guard;
            panic!("refused by the verifier");
        });
        assert!(work.await.unwrap_err().is_panic());
        assert!(!readiness.is_ready());
        assert_eq!(names(&readiness), ["programs"]);
        assert_eq!(readiness.pending()[0].reason, "whoever was to do this has panicked");
    }

    #[tokio::test]
    async fn waiting_ends_when_the_last_guard_goes_and_readiness_can_be_lost_again() {
        let readiness = Readiness::new();
        let guard = readiness.guard("source");
        let waiter = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.ready().await }
        });
        guard.done();
        waiter.await.unwrap();
        let _draining = readiness.guard("draining");
        assert!(!readiness.is_ready());
    }
}
