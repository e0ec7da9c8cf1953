//! What a tunnel's connection and its streams know in common.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::Cause;

/// One HTTP/2 connection, at either end.
pub(super) struct Session {
    since: Instant,
    streams: AtomicUsize,
    opened: AtomicU64,
    /// Milliseconds after `since` at which the last stream ended.
    last_end: AtomicU64,
    /// Why we ended the connection, when it was us.
    cause: OnceLock<Cause>,
}

impl Session {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            since: Instant::now(),
            streams: AtomicUsize::new(0),
            opened: AtomicU64::new(0),
            last_end: AtomicU64::new(0),
            cause: OnceLock::new(),
        })
    }

    /// Counts one more stream, until the lease is dropped.
    pub(super) fn lease(self: &Arc<Self>) -> Lease {
        self.streams.fetch_add(1, Ordering::AcqRel);
        self.opened.fetch_add(1, Ordering::Relaxed);
        Lease(Arc::clone(self))
    }

    pub(super) fn streams(&self) -> usize {
        self.streams.load(Ordering::Acquire)
    }

    /// How many streams there have been, those that live included.
    pub(super) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// How long there has been no stream; zero while there is one.
    pub(super) fn idle(&self) -> Duration {
        if self.streams() > 0 {
            return Duration::ZERO;
        }
        self.age().saturating_sub(Duration::from_millis(self.last_end.load(Ordering::Relaxed)))
    }

    /// The streams that end with the connection will say `cause`. The first one counts.
    pub(super) fn ends_for(&self, cause: Cause) {
        let _ = self.cause.set(cause);
    }

    pub(super) fn cause(&self) -> Option<Cause> {
        self.cause.get().copied()
    }
}

/// A stream's place in its connection.
pub(super) struct Lease(Arc<Session>);

impl Lease {
    /// Why we ended the connection, if we did.
    pub(super) fn cause(&self) -> Option<Cause> {
        self.0.cause()
    }

    pub(super) fn cause_of_loss(&self) -> Cause {
        self.0.cause().unwrap_or(Cause::TunnelFailed)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let now = u64::try_from(self.0.age().as_millis()).unwrap_or(u64::MAX);
        self.0.last_end.store(now, Ordering::Relaxed);
        self.0.streams.fetch_sub(1, Ordering::AcqRel);
    }
}
