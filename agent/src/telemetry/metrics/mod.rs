//! Every number that the agent gives to Prometheus.
//!
//! Istio's TCP families live in [`traffic`], which renders and prunes them itself; the agent's own few
//! are in [`own`], kept by the `prometheus` crate. [`CATALOGUE`] lists both: `docs/metrics.md` is
//! checked against it.

pub(super) mod certificates;
pub(super) mod labels;
pub(super) mod own;
pub(super) mod policy;
pub(super) mod traffic;

use std::sync::{Arc, Mutex};

use prometheus::TextEncoder;

use super::queue::QueueStats;
use super::record::Live;
use super::{MetricsConfig, TelemetryError, lock, observed};
use certificates::Certificates;
use own::Own;
use policy::PolicyMetrics;
use traffic::Traffic;

pub(super) struct Metrics {
    pub(super) traffic: Traffic,
    pub(super) own: Own,
    pub(super) certificates: Certificates,
    pub(super) policy: PolicyMetrics,
    /// One scrape at a time: what others count is copied in by difference.
    scrape: Mutex<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// What a metric is called, and what it counts.
#[derive(Clone, Copy, Debug)]
pub struct MetricInfo {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    pub labels: &'static [&'static str],
}

/// Every metric, in the order in which the documentation lists them.
pub const CATALOGUE: &[MetricInfo] = &[
    traffic::OPENED,
    traffic::CLOSED,
    traffic::RECEIVED,
    traffic::SENT,
    traffic::FAILED,
    own::BUILD,
    own::CONNECTIONS,
    own::REFUSED,
    policy::REQUESTS_DENIED,
    policy::DENIED,
    policy::DRY_RUN,
    policy::AUDITED,
    policy::DRY_RUN_REQUESTS,
    policy::AUDITED_REQUESTS,
    observed::UNAUTHORIZED_CONNECTIONS,
    observed::UNAUTHORIZED_REQUESTS,
    observed::ROWS,
    observed::LEFT_OUT,
    policy::PLAINTEXT_ADMITTED,
    policy::PLAINTEXT_EXCEPTED,
    policy::EXCEPTION_LAPSES,
    policy::PLAINTEXT_DROPPED,
    policy::DEFECTS,
    own::PODS,
    own::PASSTHROUGH_CONNECTIONS,
    own::PASSTHROUGH_SENT,
    own::PASSTHROUGH_RECEIVED,
    certificates::BY_STATE,
    certificates::EXPIRES,
    certificates::SOONEST,
    certificates::FETCHES,
    certificates::FAILURES,
    certificates::RENEWALS,
    certificates::AHEAD,
    certificates::BUNDLES,
    certificates::ROOT_EXPIRES,
    certificates::CRL_AGE,
    certificates::CRL_NEXT,
    certificates::FILE_REFUSED,
    own::SOURCE_REVISION,
    own::SOURCE_LAST_GOOD,
    own::SOURCE_REFUSED,
    own::LOG_LINES,
    own::LOG_LOST,
    own::LOG_SUPPRESSED,
    own::LOG_QUEUED,
    own::LABEL_SETS,
    own::LABEL_SETS_EVICTED,
    own::FOLDED,
];

impl Metrics {
    pub(super) fn new(config: &MetricsConfig) -> Result<Self, TelemetryError> {
        let own = Own::new()?;
        let certificates = Certificates::new(&own.registry)?;
        let policy = PolicyMetrics::new(&own.registry)?;
        Ok(Self { traffic: Traffic::new(config), own, certificates, policy, scrape: Mutex::default() })
    }

    pub(super) fn render(&self, live: &[Arc<Live>], log: QueueStats) -> Result<String, TelemetryError> {
        let _alone = lock(&self.scrape);
        self.traffic.evict();
        self.own.at_scrape(live, log, &self.traffic);
        self.certificates.at_scrape();
        self.policy.at_scrape();
        let mut text = self.traffic.render();
        TextEncoder::new().encode_utf8(&self.own.registry.gather(), &mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests;
