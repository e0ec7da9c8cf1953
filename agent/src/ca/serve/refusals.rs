//! Callers that got nothing before they were known: all are counted, and a few of each cause are in the log.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Metrics;

/// Clones share it.
#[derive(Clone)]
pub(super) struct Refusals {
    metrics: Metrics,
    logs: Arc<[Mutex<Log>; Cause::ALL.len()]>,
}

/// Why somebody got nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// There are too many connections.
    TurnedAway,
    Tls,
    TlsTimeout,
    /// It has not shown in time which node it is.
    Unproven,
    NoPapers,
    Unknown,
    /// Who it is could not be found out.
    Unavailable,
    /// Too many requests before it was known.
    TooMany,
}

impl Cause {
    pub(super) const ALL: [Self; 8] = [
        Self::TurnedAway,
        Self::Tls,
        Self::TlsTimeout,
        Self::Unproven,
        Self::NoPapers,
        Self::Unknown,
        Self::Unavailable,
        Self::TooMany,
    ];

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::TurnedAway => "turned_away",
            Self::Tls => "tls",
            Self::TlsTimeout => "tls_timeout",
            Self::Unproven => "unproven",
            Self::NoPapers => "no_papers",
            Self::Unknown => "unknown",
            Self::Unavailable => "unavailable",
            Self::TooMany => "too_many",
        }
    }
}

/// What was logged of one cause lately.
#[derive(Default)]
struct Log {
    since: Option<Instant>,
    lines: usize,
    left_out: u64,
}

const LINES: usize = 5;
const EVERY: Duration = Duration::from_secs(10);

impl Refusals {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self { metrics, logs: Arc::default() }
    }

    pub(super) fn note(&self, cause: Cause, from: SocketAddr, why: &dyn Display) {
        self.metrics.refused(cause);
        if self.may_log(cause) {
            tracing::warn!(cause = cause.label(), %from, "a caller was refused: {why}");
        }
    }

    fn may_log(&self, cause: Cause) -> bool {
        let (now, mut log) = (Instant::now(), self.log(cause));
        let since = match log.since.filter(|since| now < *since + EVERY) {
            Some(since) => since,
            None => {
                log.tell(cause);
                *log = Log { since: Some(now), ..Log::default() };
                now
            }
        };
        if log.lines < LINES {
            log.lines += 1;
            return true;
        }
        log.left_out += 1;
        if log.left_out == 1 {
            let this = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep_until(since + EVERY).await;
                this.log(cause).tell(cause);
            });
        }
        false
    }

    fn log(&self, cause: Cause) -> std::sync::MutexGuard<'_, Log> {
        self.logs[cause as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    fn tell(&mut self, cause: Cause) {
        let left_out = std::mem::take(&mut self.left_out);
        if left_out > 0 {
            tracing::warn!(cause = cause.label(), left_out, "more callers were refused than are logged");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::ca::tests::support::Lines;

    fn said_left_out(lines: &[String]) -> Vec<&str> {
        lines.iter().filter_map(|line| line.split_once("left_out=")).map(|(_, n)| n).collect()
    }

    #[test]
    fn the_causes_are_in_their_places() {
        for (at, cause) in Cause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, at);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_refusals_is_a_few_lines_and_says_how_many_it_was() {
        let (lines, _log) = Lines::listen();
        let metrics = Metrics::new().unwrap();
        let refusals = Refusals::new(metrics.clone());
        let from = "192.0.2.1:7".parse().unwrap();
        for _ in 0..1000 {
            refusals.note(Cause::Tls, from, &"garbage");
        }
        let said = lines.take();
        assert_eq!(said.len(), LINES, "{said:?}");
        for part in ["WARN", "cause=\"tls\"", "192.0.2.1:7", "garbage"] {
            assert!(said.iter().all(|line| line.contains(part)), "{said:?}");
        }
        refusals.note(Cause::NoPapers, from, &"none");
        assert_eq!(lines.take().len(), 1, "one cause's flood hides no other");
        // Nobody has to come for the rest to be told.
        tokio::time::sleep(EVERY * 2).await;
        assert_eq!(said_left_out(&lines.take()), ["995"]);
        for _ in 0..10 {
            refusals.note(Cause::Tls, from, &"garbage");
        }
        tokio::time::advance(EVERY).await;
        refusals.note(Cause::Tls, from, &"garbage");
        tokio::time::sleep(EVERY).await;
        let said = lines.take();
        assert_eq!((said.len(), said_left_out(&said)), (LINES + 2, vec!["5"]), "{said:?}");
        let text = metrics.text(0, 0).unwrap();
        assert!(text.contains("underpass_ca_refused_total{cause=\"tls\"} 1011"), "{text}");
        assert!(text.contains("underpass_ca_refused_total{cause=\"no_papers\"} 1\n"), "{text}");
    }
}
