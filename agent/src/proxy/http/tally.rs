//! What the requests of one connection came to, for its line in the access log and for the metrics.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::judge::{About, Advice, Became, Observer, Ruling, Seen};
use crate::pods::denied;
use crate::policy::By;
use crate::telemetry::{Denial, Record, RequestTeller, Telemetry};

pub struct Tally {
    telemetry: Telemetry,
    /// None where nothing is judged, only heard.
    record: Option<RequestTeller>,
    counted: Mutex<Counted>,
}

#[derive(Default)]
struct Counted {
    requests: u64,
    denied: u64,
    /// Of the last one that policy refused.
    denial: Option<Denial>,
    /// The last one that was not served.
    last: String,
    /// Of the whole stream, which is not HTTP.
    refused: Option<Denial>,
    dry: Dry,
    /// Those that matched, each once.
    audited: Vec<(Arc<str>, Option<u32>)>,
    /// About the whole stream, which is not HTTP.
    stream: Advice,
}

/// What would have become of them.
#[derive(Default)]
struct Dry {
    requests: u64,
    denied: u64,
    /// The last of those.
    last: String,
}

impl Tally {
    pub fn new(telemetry: Telemetry, record: Option<RequestTeller>) -> Self {
        Self { telemetry, record, counted: Mutex::default() }
    }

    /// Adds what the log's own fields say.
    pub fn tell(&self, record: &Record) {
        let counted = self.counted();
        if let Some(denial) = &counted.denial {
            record.set_denied_request(denial);
        }
        if let Some(denial) = &counted.refused {
            record.set_denial(denial);
        }
        record.set_advice_on_requests(counted.dry.told(), counted.dry.denied > 0, &counted.audited);
        if let Some(would) = &counted.stream.would {
            record.set_dry_run(would.to_string(), would.is_allow());
        }
        record.set_audit(&counted.stream.audited.iter().map(By::named).collect::<Vec<_>>());
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
        let (denial, why) = match seen.became {
            Became::Allowed { .. } => {
                self.record.iter().for_each(RequestTeller::allowed);
                return;
            }
            Became::Denied { by, cause, why } => (denied(by, cause), why),
            Became::Revoked => (denied(None, "policy_revoked"), "policy changed and forbids it"),
            Became::Refused { why } => (denied(None, BAD_REQUEST), why),
        };
        counted.denied += 1;
        let status = seen.status.map_or_else(|| "no answer".to_owned(), |status| status.as_u16().to_string());
        counted.last = format!("{} {}{}: {status}, {why}", seen.method, seen.host, shortened(seen.path));
        self.telemetry.request_denied(denial.reason, denial.policy.as_ref());
        // Policy was not asked about what is no request.
        if denial.reason != BAD_REQUEST {
            self.record.iter().for_each(|record| record.denied(&denial));
        }
        counted.denial = Some(denial);
    }

    fn refused(&self, ruling: &Ruling) {
        if let Ruling::Deny { by, cause, .. } = ruling {
            self.counted().refused = Some(denied(by.as_ref(), cause));
        }
    }

    fn advised(&self, about: About<'_>, advice: &Advice) {
        let mut counted = self.counted();
        if let About::Stream = about {
            counted.stream = advice.clone();
            return;
        }
        for named in advice.audited.iter().map(By::named) {
            self.telemetry.request_audited(&named.0);
            if counted.audited.len() < MOST_AUDITED && !counted.audited.contains(&named) {
                counted.audited.push(named);
            }
        }
        let Some(would) = &advice.would else { return };
        let denied = match about {
            About::Unreadable { why } => Some(format!("refused: {why}")),
            About::Request { .. } if would.is_allow() => None,
            About::Request { method, host, path } => {
                Some(format!("{} {}{}: {would}", shortened(method), shortened(host), shortened(path)))
            }
            About::Stream => None,
        };
        self.telemetry.request_dry_run(denied.is_none());
        counted.dry.requests += 1;
        counted.dry.denied += u64::from(denied.is_some());
        counted.dry.last = denied.unwrap_or(std::mem::take(&mut counted.dry.last));
    }
}

impl Dry {
    /// Nothing where there was none.
    fn told(&self) -> Option<String> {
        let Self { requests, denied, last } = self;
        match (requests, denied) {
            (0, _) => None,
            (_, 0) => Some(format!("none of {requests} requests would be denied")),
            _ => Some(format!("{denied} of {requests} requests would be denied, the last: {last}")),
        }
    }
}

/// Each may be as long as a head.
fn shortened(text: &str) -> &str {
    text.char_indices().nth(MOST_LOGGED).map_or(text, |(end, _)| &text[..end])
}

const BAD_REQUEST: &str = "bad_request";
const MOST_LOGGED: usize = 256;
const MOST_AUDITED: usize = 16;
