//! What the controller counts.

use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

use super::refusals::Cause;

/// Clones share it.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    decisions: IntCounterVec,
    streams: IntCounterVec,
    refused: IntCounterVec,
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

/// What can come of an agent that wants to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Following {
    Accepted,
    UnknownCaller,
    Unavailable,
    TooMany,
}

impl Following {
    const ALL: [Self; 4] = [Self::Accepted, Self::UnknownCaller, Self::Unavailable, Self::TooMany];

    fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::UnknownCaller => "unknown_caller",
            Self::Unavailable => "unavailable",
            Self::TooMany => "too_many",
        }
    }
}

impl Metrics {
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let decisions = counters(
            "underpass_ca_requests_total",
            "Requests for a certificate, by what came of them.",
            "result",
            &Outcome::ALL.map(Outcome::label),
        )?;
        let streams = counters(
            "underpass_ca_streams_total",
            "Agents that wanted to follow, by what came of it.",
            "result",
            &Following::ALL.map(Following::label),
        )?;
        let refused = counters(
            "underpass_ca_refused_total",
            "Connections and requests of callers that got nothing before it was known who they are, by why.",
            "cause",
            &Cause::ALL.map(Cause::label),
        )?;
        let agents = IntGauge::new("underpass_ca_agents", "Agents that follow this controller now.")?;
        let ends = IntGauge::new(
            "underpass_ca_authority_end_seconds",
            "When the authority's chain ends, in seconds since 1970.",
        )?;
        registry.register(Box::new(decisions.clone()))?;
        registry.register(Box::new(streams.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        registry.register(Box::new(agents.clone()))?;
        registry.register(Box::new(ends.clone()))?;
        Ok(Self { registry, decisions, streams, refused, agents, ends })
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

    pub(super) fn follows(&self, following: Following) {
        self.streams.with_label_values(&[following.label()]).inc();
    }

    pub(super) fn refused(&self, cause: Cause) {
        self.refused.with_label_values(&[cause.label()]).inc();
    }
}

/// From the start with every value, or the first of a kind would be no increase.
fn counters(
    name: &str,
    help: &str,
    label: &str,
    values: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
    for value in values {
        counters.with_label_values(&[value]);
    }
    Ok(counters)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::telemetry::page;

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
        page::lists("metrics.md", "every metric of the controller", &table());
    }
}
