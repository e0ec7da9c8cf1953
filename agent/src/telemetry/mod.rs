//! What the agent tells the outside: one access log line and Istio's TCP metrics for every
//! connection, the list of live connections, and the process's own log.
//!
//! A connection opens a [`Record`] when it is captured, fills in facts as they become known, and
//! finishes it with a [`Cause`]. This module knows records, not who makes them.

mod access;
mod config;
mod escape;
mod metrics;
mod observed;
#[cfg(test)]
pub(crate) mod page;
pub mod process;
mod queue;
mod record;
mod view;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use access::Format;
pub use access::clock::rfc3339;
pub use config::{AccessLogConfig, LogConfig, MetricsConfig, TelemetryConfig};
pub use metrics::certificates::{
    BundleSample, CertificateAttempt, CertificateSample, CertificateSamples, RevocationListSample,
    TrustFileSample,
};
pub use metrics::own::{FlowLeftAlone, SourceHealth};
pub use metrics::policy::PolicySample;
pub use metrics::{CATALOGUE, Kind, MetricInfo};
pub use observed::{
    ClientView, ConnectionCounts, DenialView, LeftOut, ObservedAgent, ObservedServer, ObservedView,
    OutcomeView, RequestCounts, Seen, Transport, is_churning_label,
};
pub use record::{Counts, Denial, Opened, Party, Record, RequestTeller, Teller};
pub use view::{ConnectionState, ConnectionView, PartyView};

use crate::model::{Cause, ConnectionId, Direction};
use metrics::Metrics;
use observed::{Event, Observed, Outcome};
use queue::LogQueue;
use record::Live;

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error(
        "cannot open the access log {path}: {source}; create its folder, or set accessLog.path to - for standard output"
    )]
    OpenAccessLog { path: String, source: io::Error },
    #[error(
        "cannot start the access log's writer thread: {0}; raise the limit on threads (ulimit -u, pids.max)"
    )]
    Writer(io::Error),
    #[error("cannot register a metric: {0}; this is a defect of this build")]
    Register(#[from] prometheus::Error),
    #[error(
        "the access log did not reach its destination within {limit:?}: {left} bytes are still queued; is whoever reads the agent's standard output stuck?"
    )]
    Unflushed { limit: Duration, left: usize },
    #[error("{filter:?} is not a log filter: {why}; write for example info,underpass::proxy=debug")]
    Filter { filter: String, why: String },
    #[error("a process log is already installed in this process: {0}")]
    AlreadyLogging(String),
}

/// The handle that every connection goes through; cloning it is cheap.
#[derive(Clone)]
pub struct Telemetry {
    inner: Arc<Inner>,
}

struct Inner {
    /// Absent when the access log is off.
    log: Option<LogQueue>,
    format: Format,
    metrics: Metrics,
    observed: Observed,
    live: [Mutex<HashMap<ConnectionId, Arc<Live>>>; SHARDS],
}

/// Connections are spread over this many maps, so that two runtime threads seldom meet at a lock.
const SHARDS: usize = 16;

impl Telemetry {
    /// Opens the access log and starts its writer thread.
    pub fn new(config: &TelemetryConfig) -> Result<Self, TelemetryError> {
        Self::with_output(config, config.access_log.open()?)
    }

    /// As [`Self::new`], with the access log going to `output` whatever the configuration says.
    pub fn with_output(
        config: &TelemetryConfig,
        output: impl io::Write + Send + 'static,
    ) -> Result<Self, TelemetryError> {
        let log = match config.access_log.enabled {
            true => Some(LogQueue::start(output, config.access_log.buffer as usize)?),
            false => None,
        };
        let inner = Inner {
            log,
            format: config.access_log.format,
            metrics: Metrics::new(&config.metrics)?,
            observed: Observed::new(),
            live: std::array::from_fn(|_| Mutex::default()),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Opens a connection's record. It is listed as live until it is finished or dropped.
    pub fn open(&self, opened: Opened) -> Record {
        Record::open(self.clone(), opened)
    }

    /// Waits while the access log is congested: await this before accepting a connection. It makes a
    /// stuck reader of the log hold back new connections, and neither lose a record nor stall live ones.
    pub async fn room(&self) {
        if let Some(log) = &self.inner.log {
            log.room().await;
        }
    }

    /// Every connection that has a record open, oldest first.
    pub fn connections(&self) -> Vec<ConnectionView> {
        let mut views: Vec<_> = self.live().iter().map(|live| live.view()).collect();
        views.sort_by_key(|view| view.id);
        views
    }

    /// Who was seen to connect to this node's pods since the agent started, live connections included.
    pub fn observed(&self) -> ObservedAgent {
        // Those first that are open: what ends meanwhile is seen twice rather than not at all.
        let live = self.live();
        self.inner.observed.view(|add| live.iter().for_each(|live| live.tell_open(add)))
    }

    /// How many records are open.
    pub fn connection_count(&self) -> usize {
        self.inner.live.iter().map(|shard| lock(shard).len()).sum()
    }

    /// A connection that was turned away before it had a record (a listener that refuses, a dead peer).
    pub fn refused(&self, direction: Direction, cause: Cause) {
        self.inner.metrics.own.refused(direction, cause);
    }

    /// A request that was not delivered, by one word for why, and the resource, where it was one.
    pub fn request_denied(&self, cause: &'static str, policy: Option<&Arc<str>>) {
        self.inner.metrics.policy.denied_request(cause, policy);
    }

    /// What would have become of a request if the policies that only run dry were in force.
    pub fn request_dry_run(&self, would_allow: bool) {
        self.inner.metrics.policy.dry_run_request(would_allow);
    }

    /// A request that an AUDIT policy matches.
    pub fn request_audited(&self, policy: &Arc<str>) {
        self.inner.metrics.policy.audited_request(policy);
    }

    /// As [`Self::refused`], where a line in the access log would have been due but there were too many.
    pub fn unlogged(&self, direction: Direction, cause: Cause) {
        self.inner.metrics.own.unlogged(direction, cause);
    }

    /// A connection that the kernel left alone has closed, as its flow record tells.
    pub fn flow_left_alone(&self, flow: &FlowLeftAlone<'_>) {
        self.inner.metrics.own.flow_left_alone(flow);
        if flow.direction == Direction::Inbound {
            self.inner.metrics.policy.plaintext_admitted("kernel");
            let ended = Event::Ended { outcome: Outcome::Allowed, requests_allowed: 0, would_deny: None };
            self.inner.observed.add(&flow.sight(), ended);
        }
    }

    /// A pod has left this node: its own series are dropped.
    pub fn forget_pod(&self, namespace: &str, name: &str) {
        self.inner.metrics.own.forget_pod(namespace, name);
    }

    /// The state of a source of workloads and policy (`"file"`), after each attempt to read it.
    pub fn source(&self, name: &str, health: SourceHealth) {
        self.inner.metrics.own.source(name, health);
    }

    /// An attempt to get a certificate has ended.
    pub fn certificate(&self, attempt: &CertificateAttempt) {
        self.inner.metrics.certificates.attempt(attempt);
    }

    /// Where the state of certificates is asked for at every scrape. The first one given counts.
    pub fn watch_certificates(&self, samples: impl Fn() -> CertificateSamples + Send + Sync + 'static) {
        self.inner.metrics.certificates.watch(Box::new(samples));
    }

    /// A plaintext connection that policy let the agent deliver, and the exception that it rests on.
    pub fn plaintext_admitted(&self, exception: Option<&Arc<str>>) {
        self.inner.metrics.policy.plaintext_admitted("agent");
        if let Some(exception) = exception {
            self.inner.metrics.policy.plaintext_excepted(exception);
        }
    }

    /// Where the state of policy is asked for at every scrape. The first one given counts.
    pub fn watch_policy(&self, sample: impl Fn() -> PolicySample + Send + Sync + 'static) {
        self.inner.metrics.policy.watch(Box::new(sample));
    }

    /// How many pods are enrolled now.
    pub fn pods_enrolled(&self, pods: usize) {
        self.inner.metrics.own.pods_enrolled(pods);
    }

    /// Every metric in Prometheus's text format, live connections' bytes included up to now.
    pub fn metrics_text(&self) -> Result<String, TelemetryError> {
        let live = self.live();
        for connection in &live {
            connection.report(&self.inner.metrics.traffic);
        }
        let queued = self.inner.log.as_ref().map(LogQueue::stats).unwrap_or_default();
        let mut text = self.inner.metrics.render(&live, queued)?;
        text += &self.inner.observed.metrics();
        Ok(text)
    }

    /// Drops label sets that no connection has used for a while; call it every minute or so.
    pub fn prune(&self) {
        self.inner.metrics.traffic.evict();
        self.inner.observed.prune();
    }

    /// Waits until every record finished so far is written.
    pub fn flush(&self) {
        if let Some(log) = &self.inner.log {
            log.flush();
        }
    }

    /// As [`Self::flush`], giving up after `limit`.
    pub fn flush_within(&self, limit: Duration) -> Result<(), TelemetryError> {
        match &self.inner.log {
            Some(log) => log.flush_within(limit),
            None => Ok(()),
        }
    }

    fn live(&self) -> Vec<Arc<Live>> {
        self.inner.live.iter().flat_map(|shard| lock(shard).values().cloned().collect::<Vec<_>>()).collect()
    }
}

impl Inner {
    fn shard(&self, id: ConnectionId) -> MutexGuard<'_, HashMap<ConnectionId, Arc<Live>>> {
        lock(&self.live[id.0 as usize % SHARDS])
    }
}

/// A lock whose holder panicked is still good: every critical section here leaves whole values behind.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod testing;
