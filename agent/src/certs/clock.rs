//! Wall-clock time as a value that can be handed in.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// What time it is. Tests hand in one that moves with tokio's paused time.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// The machine's own.
    pub fn system() -> Self {
        Self::from_fn(SystemTime::now)
    }

    pub fn from_fn(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    pub fn now(&self) -> SystemTime {
        (self.0)()
    }

    /// Waits until `at`, or for as long as it was until then when this began: whichever comes first. So a
    /// wall clock that is set back does not prolong the wait, and one that is set forward, or a machine
    /// that was suspended, shortens it.
    pub async fn reach(&self, at: SystemTime) {
        self.reached(self.deadline(at)).await;
    }

    /// `at` by the wall clock, together with the same moment by the monotonic one.
    pub(super) fn deadline(&self, at: SystemTime) -> Deadline {
        let left = at.duration_since(self.now()).unwrap_or(Duration::ZERO).min(LONGEST);
        Deadline { at, latest: Instant::now() + left }
    }

    /// Waits in short steps: a timer that tokio runs on the monotonic clock sees nothing of the other.
    pub(super) async fn reached(&self, deadline: Deadline) {
        while let Ok(left) = deadline.at.duration_since(self.now()) {
            let left = left.min(deadline.latest.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.clamp(Duration::from_millis(1), LOOK)).await;
        }
    }
}

/// A moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    pub(super) at: SystemTime,
    latest: Instant,
}

/// How long a change of the wall clock may go unnoticed.
pub(super) const LOOK: Duration = Duration::from_secs(60);

const LONGEST: Duration = Duration::from_secs(3650 * 24 * 3600);

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.now()).finish()
    }
}
