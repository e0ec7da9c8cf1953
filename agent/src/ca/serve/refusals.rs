//! Callers that got nothing before they were known: all are counted, and a few of each cause are in the log.

use std::fmt::Display;
use std::net::SocketAddr;

use super::Metrics;
use super::sample::Sample;

/// Clones share it.
#[derive(Clone)]
pub(super) struct Refusals {
    metrics: Metrics,
    lines: Sample<Cause>,
}

/// Why somebody got nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

impl Refusals {
    pub(super) fn new(metrics: Metrics) -> Self {
        let lines = Sample::new(|cause: &Cause, left_out| {
            tracing::warn!(cause = cause.label(), left_out, "more callers were refused than are logged");
        });
        Self { metrics, lines }
    }

    pub(super) fn note(&self, cause: Cause, from: SocketAddr, why: &dyn Display) {
        self.metrics.refused(cause);
        if self.lines.may_log(&cause) {
            tracing::warn!(cause = cause.label(), %from, "a caller was refused: {why}");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::super::sample::{EVERY, LINES};
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
