//! What the controller counts.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Clones share it.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    decisions: IntCounterVec,
    streams_refused: IntCounter,
    turned_away: IntCounter,
    agents: IntGauge,
    ends: IntGauge,
}

/// What can come of a request for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Issued,
    UnknownCaller,
    NotItsOwn,
    Unavailable,
    BadRequest,
    TooMany,
    Authority,
}

impl Outcome {
    const ALL: [Self; 7] = [
        Self::Issued,
        Self::UnknownCaller,
        Self::NotItsOwn,
        Self::Unavailable,
        Self::BadRequest,
        Self::TooMany,
        Self::Authority,
    ];

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Issued => "issued",
            Self::UnknownCaller => "unknown_caller",
            Self::NotItsOwn => "not_its_own",
            Self::Unavailable => "unavailable",
            Self::BadRequest => "bad_request",
            Self::TooMany => "too_many",
            Self::Authority => "authority",
        }
    }
}

impl Metrics {
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let decisions = IntCounterVec::new(
            Opts::new("underpass_ca_requests_total", "Requests for a certificate, by what came of them."),
            &["result"],
        )?;
        // From the start, or the first of a kind would be no increase.
        for outcome in Outcome::ALL {
            decisions.with_label_values(&[outcome.label()]);
        }
        let streams_refused = IntCounter::new(
            "underpass_ca_streams_refused_total",
            "Agents that wanted to follow and were refused, because they are not known or have too many streams.",
        )?;
        let turned_away = IntCounter::new(
            "underpass_ca_connections_turned_away_total",
            "Connections closed because there were too many, of all or of one address, before they had proven to be a node's.",
        )?;
        let agents = IntGauge::new("underpass_ca_agents", "Agents that follow this controller now.")?;
        let ends = IntGauge::new(
            "underpass_ca_authority_end_seconds",
            "When the authority's chain ends, in seconds since 1970.",
        )?;
        registry.register(Box::new(decisions.clone()))?;
        registry.register(Box::new(streams_refused.clone()))?;
        registry.register(Box::new(turned_away.clone()))?;
        registry.register(Box::new(agents.clone()))?;
        registry.register(Box::new(ends.clone()))?;
        Ok(Self { registry, decisions, streams_refused, turned_away, agents, ends })
    }

    /// Prometheus' text.
    pub fn text(&self, agents: usize, ends: u64) -> Result<String, prometheus::Error> {
        self.agents.set(i64::try_from(agents).unwrap_or(i64::MAX));
        self.ends.set(i64::try_from(ends).unwrap_or(i64::MAX));
        prometheus::TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    pub(super) fn decided(&self, outcome: Outcome) {
        self.decisions.with_label_values(&[outcome.label()]).inc();
    }

    pub(super) fn stream_refused(&self) {
        self.streams_refused.inc();
    }

    pub(super) fn turned_away(&self) {
        self.turned_away.inc();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    const BEGIN: &str = "<!-- begin: every metric of the controller -->\n";
    const END: &str = "<!-- end: every metric of the controller -->\n";

    /// The page's table, of what is rendered.
    fn table() -> String {
        let mut out = String::from("| metric | kind | labels | counts |\n|---|---|---|---|\n");
        for family in Metrics::new().unwrap().registry.gather() {
            let samples = family.get_metric();
            let pairs: Vec<_> = samples.iter().flat_map(|sample| sample.get_label()).collect();
            let labels = match pairs.first() {
                None => "none".to_owned(),
                Some(first) => {
                    let values: Vec<_> = pairs.iter().map(|pair| format!("`{}`", pair.value())).collect();
                    format!("`{}`: {}", first.name(), values.join(", "))
                }
            };
            let kind = format!("{:?}", family.get_field_type()).to_lowercase();
            let help = family.help().trim_end_matches('.');
            out += &format!("| `{}` | {kind} | {labels} | {help} |\n", family.name());
        }
        out
    }

    #[test]
    fn the_page_lists_every_metric_of_the_controller() {
        let page = std::fs::read_to_string(PAGE).unwrap();
        let (before, rest) = page.split_once(BEGIN).unwrap();
        let (listed, after) = rest.split_once(END).unwrap();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(PAGE, format!("{before}{BEGIN}{}{END}{after}", table())).unwrap();
            return;
        }
        assert_eq!(listed, table(), "docs/metrics.md has drifted; see the comment in it");
    }
}
