//! What the controller counts.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Clones share it.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    decisions: IntCounterVec,
    turned_away: IntCounter,
    agents: IntGauge,
    ends: IntGauge,
}

impl Metrics {
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let decisions = IntCounterVec::new(
            Opts::new("underpass_ca_requests_total", "Requests for a certificate, by what came of them."),
            &["result"],
        )?;
        let turned_away = IntCounter::new(
            "underpass_ca_connections_turned_away_total",
            "Connections closed at once because there were too many, of all or of one address.",
        )?;
        let agents = IntGauge::new("underpass_ca_agents", "Agents that follow this controller now.")?;
        let ends = IntGauge::new(
            "underpass_ca_authority_end_seconds",
            "When the authority's chain ends, in seconds since 1970.",
        )?;
        registry.register(Box::new(decisions.clone()))?;
        registry.register(Box::new(turned_away.clone()))?;
        registry.register(Box::new(agents.clone()))?;
        registry.register(Box::new(ends.clone()))?;
        Ok(Self { registry, decisions, turned_away, agents, ends })
    }

    /// Prometheus' text.
    pub fn text(&self, agents: usize, ends: u64) -> Result<String, prometheus::Error> {
        self.agents.set(i64::try_from(agents).unwrap_or(i64::MAX));
        self.ends.set(i64::try_from(ends).unwrap_or(i64::MAX));
        prometheus::TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    pub(super) fn decided(&self, result: &str) {
        self.decisions.with_label_values(&[result]).inc();
    }

    pub(super) fn turned_away(&self) {
        self.turned_away.inc();
    }
}
