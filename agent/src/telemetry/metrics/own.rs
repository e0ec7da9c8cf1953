//! The agent's own metrics, named `underpass_…`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::model::{Cause, Direction, LocalPod, Workload};

use super::traffic::Traffic;
use super::{Kind, MetricInfo};
use crate::telemetry::observed::Sight;
use crate::telemetry::queue::QueueStats;
use crate::telemetry::record::Live;

pub(super) const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> MetricInfo {
    MetricInfo { name, kind: Kind::Counter, help, labels }
}

pub(super) const fn gauge(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> MetricInfo {
    MetricInfo { name, kind: Kind::Gauge, help, labels }
}

pub(super) const BUILD: MetricInfo =
    gauge("underpass_build", &["version", "revision"], "Always 1; the labels say which build this is");
pub(super) const CONNECTIONS: MetricInfo =
    gauge("underpass_connections", &["direction"], "Connections that are open in the agent now");
pub(super) const REFUSED: MetricInfo = counter(
    "underpass_connections_refused_total",
    &["direction", "cause"],
    "Captured connections that ended before their bytes could flow, by cause",
);
pub(super) const PODS: MetricInfo =
    gauge("underpass_pods_enrolled", &[], "Pods of this node that are meshed now");
pub(super) const PASSTHROUGH_CONNECTIONS: MetricInfo = counter(
    "underpass_passthrough_connections_total",
    &["direction", "namespace", "pod"],
    "Closed connections of meshed pods that the kernel left alone: plain TCP, never seen by the agent",
);
pub(super) const PASSTHROUGH_SENT: MetricInfo = counter(
    "underpass_passthrough_sent_bytes_total",
    &["direction", "namespace", "pod"],
    "Bytes that meshed pods sent on connections left alone, counted when they close",
);
pub(super) const PASSTHROUGH_RECEIVED: MetricInfo = counter(
    "underpass_passthrough_received_bytes_total",
    &["direction", "namespace", "pod"],
    "Bytes that meshed pods received on connections left alone, counted when they close",
);
pub(super) const SOURCE_REVISION: MetricInfo = gauge(
    "underpass_source_revision",
    &["source"],
    "Revision of the workloads, services and policies in force, by where they come from",
);
pub(super) const SOURCE_LAST_GOOD: MetricInfo = gauge(
    "underpass_source_last_good_timestamp_seconds",
    &["source"],
    "When the state in force was accepted, seconds since 1970",
);
pub(super) const SOURCE_REFUSED: MetricInfo = counter(
    "underpass_source_refused_total",
    &["source"],
    "Edits that were refused while the last good state stayed in force",
);
pub(super) const LOG_LINES: MetricInfo =
    counter("underpass_access_log_lines_total", &[], "Access log lines that were queued");
pub(super) const LOG_LOST: MetricInfo = counter(
    "underpass_access_log_lost_lines_total",
    &[],
    "Access log lines that the output refused to take (a full disk, a closed pipe)",
);
pub(super) const LOG_SUPPRESSED: MetricInfo = counter(
    "underpass_access_log_suppressed_lines_total",
    &[],
    "Failed TLS handshakes without a line in the access log, because a pod had too many in one second",
);
pub(super) const LOG_QUEUED: MetricInfo =
    gauge("underpass_access_log_queued_bytes", &[], "Bytes of access log that wait for the output");
pub(super) const LABEL_SETS: MetricInfo =
    gauge("underpass_metrics_label_sets", &[], "Label sets of the istio_tcp_ families that are kept now");
pub(super) const LABEL_SETS_EVICTED: MetricInfo = counter(
    "underpass_metrics_label_sets_evicted_total",
    &[],
    "Label sets that were dropped because nothing had used them for a while",
);
pub(super) const FOLDED: MetricInfo = counter(
    "underpass_metrics_folded_connections_total",
    &[],
    "Connections counted under unknown labels because there was no room for another label set",
);

/// A connection that the kernel left alone, as its flow record tells when it closes.
#[derive(Clone, Copy, Debug)]
pub struct FlowLeftAlone<'a> {
    /// Outbound when the pod dialled.
    pub direction: Direction,
    pub pod: &'a LocalPod,
    /// The pod's own, where it is known.
    pub workload: Option<&'a Arc<Workload>>,
    /// The pod's end.
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// The workload at the other end's address.
    pub peer: Option<&'a Workload>,
    pub sent: u64,
    pub received: u64,
}

impl<'a> FlowLeftAlone<'a> {
    /// As somebody's connection to the pod.
    pub(in crate::telemetry) fn sight(&self) -> Sight<'a> {
        Sight {
            pod: self.pod,
            server: self.workload,
            identity: None,
            client: self.peer,
            client_ip: self.remote.ip(),
            target: self.local,
        }
    }
}

/// What came of reading a source of workloads and policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceHealth {
    /// This revision is in force from now on.
    Accepted { revision: u64 },
    /// The new state is bad; the last good one stays.
    Refused,
}

pub(in crate::telemetry) struct Own {
    pub(super) registry: Registry,
    connections: IntGaugeVec,
    refused: IntCounterVec,
    pods: IntGauge,
    passthrough_connections: IntCounterVec,
    passthrough_sent: IntCounterVec,
    passthrough_received: IntCounterVec,
    source_revision: IntGaugeVec,
    source_last_good: IntGaugeVec,
    source_refused: IntCounterVec,
    log_lines: IntCounter,
    log_lost: IntCounter,
    log_suppressed: IntCounter,
    log_queued: IntGauge,
    label_sets: IntGauge,
    label_sets_evicted: IntCounter,
    folded: IntCounter,
}

impl Own {
    pub(super) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let build = register(&registry, gauges(&BUILD)?)?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), REVISION]).set(1);
        Ok(Self {
            connections: register(&registry, gauges(&CONNECTIONS)?)?,
            refused: register(&registry, counters(&REFUSED)?)?,
            pods: register(&registry, IntGauge::with_opts(opts(&PODS))?)?,
            passthrough_connections: register(&registry, counters(&PASSTHROUGH_CONNECTIONS)?)?,
            passthrough_sent: register(&registry, counters(&PASSTHROUGH_SENT)?)?,
            passthrough_received: register(&registry, counters(&PASSTHROUGH_RECEIVED)?)?,
            source_revision: register(&registry, gauges(&SOURCE_REVISION)?)?,
            source_last_good: register(&registry, gauges(&SOURCE_LAST_GOOD)?)?,
            source_refused: register(&registry, counters(&SOURCE_REFUSED)?)?,
            log_lines: register(&registry, IntCounter::with_opts(opts(&LOG_LINES))?)?,
            log_lost: register(&registry, IntCounter::with_opts(opts(&LOG_LOST))?)?,
            log_suppressed: register(&registry, IntCounter::with_opts(opts(&LOG_SUPPRESSED))?)?,
            log_queued: register(&registry, IntGauge::with_opts(opts(&LOG_QUEUED))?)?,
            label_sets: register(&registry, IntGauge::with_opts(opts(&LABEL_SETS))?)?,
            label_sets_evicted: register(&registry, IntCounter::with_opts(opts(&LABEL_SETS_EVICTED))?)?,
            folded: register(&registry, IntCounter::with_opts(opts(&FOLDED))?)?,
            registry,
        })
    }

    pub(in crate::telemetry) fn refused(&self, direction: Direction, cause: Cause) {
        self.refused.with_label_values(&[direction.as_str(), cause.as_str()]).inc();
    }

    pub(in crate::telemetry) fn unlogged(&self, direction: Direction, cause: Cause) {
        self.refused(direction, cause);
        self.log_suppressed.inc();
    }

    pub(in crate::telemetry) fn pods_enrolled(&self, pods: usize) {
        self.pods.set(i64::try_from(pods).unwrap_or(i64::MAX));
    }

    pub(in crate::telemetry) fn flow_left_alone(&self, flow: &FlowLeftAlone<'_>) {
        let labels = [flow.direction.as_str(), &flow.pod.namespace, &flow.pod.name];
        self.passthrough_connections.with_label_values(&labels).inc();
        self.passthrough_sent.with_label_values(&labels).inc_by(flow.sent);
        self.passthrough_received.with_label_values(&labels).inc_by(flow.received);
    }

    pub(in crate::telemetry) fn forget_pod(&self, namespace: &str, pod: &str) {
        for family in [&self.passthrough_connections, &self.passthrough_sent, &self.passthrough_received] {
            for direction in DIRECTIONS {
                // A pod that left nothing alone has no series.
                let _ = family.remove_label_values(&[direction.as_str(), namespace, pod]);
            }
        }
    }

    pub(in crate::telemetry) fn source(&self, name: &str, health: SourceHealth) {
        match health {
            SourceHealth::Accepted { revision } => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                self.source_revision
                    .with_label_values(&[name])
                    .set(i64::try_from(revision).unwrap_or(i64::MAX));
                self.source_last_good.with_label_values(&[name]).set(i64::try_from(now).unwrap_or(i64::MAX));
            }
            SourceHealth::Refused => self.source_refused.with_label_values(&[name]).inc(),
        }
    }

    /// Copies in what others count.
    pub(super) fn at_scrape(&self, live: &[Arc<Live>], log: QueueStats, traffic: &Traffic) {
        for direction in DIRECTIONS {
            let open = live.iter().filter(|c| c.opened.direction == direction).count();
            self.connections
                .with_label_values(&[direction.as_str()])
                .set(i64::try_from(open).unwrap_or(i64::MAX));
        }
        catch_up(&self.log_lines, log.lines);
        catch_up(&self.log_lost, log.lost_lines);
        self.log_queued.set(i64::try_from(log.queued_bytes).unwrap_or(i64::MAX));
        self.label_sets.set(i64::try_from(traffic.len()).unwrap_or(i64::MAX));
        catch_up(&self.label_sets_evicted, traffic.evicted());
        catch_up(&self.folded, traffic.folded());
    }
}

const DIRECTIONS: [Direction; 2] = [Direction::Outbound, Direction::Inbound];

/// The build's commit, when whoever built it said so.
const REVISION: &str = match option_env!("UNDERPASS_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

fn catch_up(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

pub(super) fn opts(info: &MetricInfo) -> Opts {
    Opts::new(info.name, info.help)
}

pub(super) fn counters(info: &MetricInfo) -> prometheus::Result<IntCounterVec> {
    IntCounterVec::new(opts(info), info.labels)
}

pub(super) fn gauges(info: &MetricInfo) -> prometheus::Result<IntGaugeVec> {
    IntGaugeVec::new(opts(info), info.labels)
}

pub(super) fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
