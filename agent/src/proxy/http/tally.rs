//! What the requests of one connection came to, for its line in the access log and for the metrics.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::judge::{Became, Observer, Seen};
use crate::telemetry::Telemetry;

pub struct Tally {
    telemetry: Telemetry,
    counted: Mutex<Counted>,
}

#[derive(Default)]
struct Counted {
    requests: u64,
    denied: u64,
    /// Of the last one that was not served: who refused it, and what it was.
    policy: Option<Arc<str>>,
    last: String,
}

impl Tally {
    pub fn new(telemetry: Telemetry) -> Self {
        Self { telemetry, counted: Mutex::default() }
    }

    /// The resource and rule that refused the last request that one refused.
    pub fn policy(&self) -> Option<Arc<str>> {
        self.counted().policy.clone()
    }

    /// For the log: nothing where every request was served.
    pub fn told(&self) -> Option<String> {
        let counted = self.counted();
        let Counted { requests, denied, last, .. } = &*counted;
        (*denied > 0).then(|| format!("{denied} of {requests} requests denied, the last: {last}"))
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Tally {
    fn request(&self, seen: &Seen<'_>) {
        let mut counted = self.counted();
        counted.requests += 1;
        let (cause, why) = match seen.became {
            Became::Allowed { .. } => return,
            Became::Denied { by, cause, why } => {
                if let Some(by) = by {
                    counted.policy = Some(by.to_string().into());
                }
                (cause, why)
            }
            Became::Revoked => ("policy_revoked", "policy changed and forbids it"),
            Became::Refused { why } => ("bad_request", why),
        };
        counted.denied += 1;
        let status = seen.status.map_or_else(|| "no answer".to_owned(), |status| status.as_u16().to_string());
        counted.last = format!("{} {}{}: {status}, {why}", seen.method, seen.host, shortened(seen.path));
        drop(counted);
        self.telemetry.request_denied(cause);
    }
}

/// A path may be as long as a head.
fn shortened(path: &str) -> &str {
    path.char_indices().nth(MOST_LOGGED).map_or(path, |(end, _)| &path[..end])
}

const MOST_LOGGED: usize = 256;
