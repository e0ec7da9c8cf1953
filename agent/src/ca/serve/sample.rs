//! What comes again and again is a few lines in the log, and how many it was.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Counts lines of each kind. Clones share it.
#[derive(Clone)]
pub(super) struct Sample<K> {
    logs: Arc<Mutex<HashMap<K, Log>>>,
    /// Logs how many more there were.
    tell: fn(&K, u64),
}

/// What was logged of one kind lately.
struct Log {
    since: Instant,
    lines: usize,
    left_out: u64,
}

pub(super) const LINES: usize = 5;
pub(super) const EVERY: Duration = Duration::from_secs(10);

impl<K: Clone + Eq + Hash + Send + 'static> Sample<K> {
    pub(super) fn new(tell: fn(&K, u64)) -> Self {
        Self { logs: Arc::default(), tell }
    }

    /// Whether there is room for another line. What is not logged is told of in the end.
    pub(super) fn may_log(&self, kind: &K) -> bool {
        let (now, mut logs) = (Instant::now(), self.logs());
        let is_over = |log: &Log| now >= log.since + EVERY;
        if logs.get(kind).is_none_or(is_over) {
            // Others too, or it would grow with everybody who ever came.
            logs.retain(|kind, log| {
                let over = is_over(log);
                if over {
                    log.tell(kind, self.tell);
                }
                !over
            });
        }
        let log = logs.entry(kind.clone()).or_insert(Log { since: now, lines: 0, left_out: 0 });
        if log.lines < LINES {
            log.lines += 1;
            return true;
        }
        log.left_out += 1;
        if log.left_out == 1 {
            let (this, kind, since) = (self.clone(), kind.clone(), log.since);
            tokio::spawn(async move {
                tokio::time::sleep_until(since + EVERY).await;
                if let Some(log) = this.logs().get_mut(&kind) {
                    log.tell(&kind, this.tell);
                }
            });
        }
        false
    }

    fn logs(&self) -> MutexGuard<'_, HashMap<K, Log>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    fn tell<K>(&mut self, kind: &K, tell: fn(&K, u64)) {
        let left_out = std::mem::take(&mut self.left_out);
        if left_out > 0 {
            tell(kind, left_out);
        }
    }
}
