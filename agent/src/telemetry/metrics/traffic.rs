//! Istio's TCP metrics: `istio_tcp_connections_opened_total` and its sisters.
//!
//! All counters of one label set stand together in a [`Series`]; a connection finds its series once,
//! by one hash lookup that copies no label. The `prometheus` crate's vectors would copy two dozen
//! strings for each of five families at every scrape, and cannot tell which label sets are idle, so
//! this table renders the text itself, and drops series that nobody has used for a while.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hashbrown::HashTable;

use crate::model::Cause;

pub(in crate::telemetry) use super::labels::{Key, Side};
use super::labels::{LABELS, OwnedKey, Rendered};
use super::{Kind, MetricInfo};
use crate::telemetry::{MetricsConfig, lock};

const fn family(name: &'static str, help: &'static str) -> MetricInfo {
    MetricInfo { name, kind: Kind::Counter, help, labels: LABELS }
}

pub(super) const OPENED: MetricInfo =
    family("istio_tcp_connections_opened_total", "The total number of TCP connections opened");
pub(super) const CLOSED: MetricInfo =
    family("istio_tcp_connections_closed_total", "The total number of TCP connections closed");
pub(super) const RECEIVED: MetricInfo =
    family("istio_tcp_received_bytes_total", "Bytes that went from client to server");
pub(super) const SENT: MetricInfo =
    family("istio_tcp_sent_bytes_total", "Bytes that went from server to client");
pub(super) const FAILED: MetricInfo = family(
    "istio_tcp_connections_failed_total",
    "The total number of TCP connections that were refused or did not end well",
);

pub(in crate::telemetry) struct Traffic {
    table: Mutex<HashTable<Arc<Series>>>,
    hasher: RandomState,
    evict_after: Duration,
    max_series: usize,
    /// What `Series::used` counts from.
    started: Instant,
    evicted: AtomicU64,
    folded: AtomicU64,
}

/// The counters of one label set.
pub(in crate::telemetry) struct Series {
    key: OwnedKey,
    labels: Rendered,
    opened: AtomicU64,
    closed: AtomicU64,
    /// Client to server.
    pub(in crate::telemetry) received: AtomicU64,
    /// Server to client.
    pub(in crate::telemetry) sent: AtomicU64,
    failed: [AtomicU64; FLAGS.len()],
    /// Milliseconds after `Traffic::started`.
    used: AtomicU64,
}

/// Values of `response_flags`, [`NO_FLAG`] first.
const FLAGS: [&str; 6] =
    [NO_FLAG, "DENY", "CONNECT", "TLS_FAILURE", "H2_HANDSHAKE_FAILURE", "IDENTITY_ERROR"];
const NO_FLAG: &str = "-";

impl Traffic {
    pub(super) fn new(config: &MetricsConfig) -> Self {
        Self {
            table: Mutex::default(),
            hasher: RandomState::new(),
            evict_after: config.evict_after,
            // Folded series need a place too.
            max_series: config.max_label_sets.max(FOLDED_SERIES),
            started: Instant::now(),
            evicted: AtomicU64::new(0),
            folded: AtomicU64::new(0),
        }
    }

    /// Counts a connection as opened, and gives it its counters.
    pub(in crate::telemetry) fn opened(&self, key: &Key<'_>) -> Arc<Series> {
        let series = self.series(key);
        series.opened.fetch_add(1, Relaxed);
        self.touch(&series);
        series
    }

    pub(in crate::telemetry) fn closed(&self, series: &Series, cause: Cause) {
        series.closed.fetch_add(1, Relaxed);
        if !cause.is_success() {
            let flags = cause.response_flags();
            let at = FLAGS.iter().position(|flag| *flag == flags).unwrap_or(0);
            series.failed[at].fetch_add(1, Relaxed);
        }
        self.touch(series);
    }

    /// Marks the series as used now.
    pub(in crate::telemetry) fn touch(&self, series: &Series) {
        series.used.store(self.now(), Relaxed);
    }

    /// Drops every series that no open connection holds and none has used lately.
    pub(in crate::telemetry) fn evict(&self) {
        let now = self.now();
        let after = u64::try_from(self.evict_after.as_millis()).unwrap_or(u64::MAX);
        let mut table = lock(&self.table);
        let before = table.len();
        // New holders are made under the table's lock only, so a count of one stays one here.
        table.retain(|series| {
            Arc::strong_count(series) > 1 || now.saturating_sub(series.used.load(Relaxed)) < after
        });
        self.evicted.fetch_add((before - table.len()) as u64, Relaxed);
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.table).len()
    }

    pub(super) fn evicted(&self) -> u64 {
        self.evicted.load(Relaxed)
    }

    pub(super) fn folded(&self) -> u64 {
        self.folded.load(Relaxed)
    }

    pub(super) fn render(&self) -> String {
        // Rendering happens outside the lock, which connections want.
        let all: Vec<Arc<Series>> = lock(&self.table).iter().cloned().collect();
        let mut out = String::with_capacity(1024 + all.len() * 5 * 1024);
        let one = |info: &MetricInfo, value: fn(&Series) -> &AtomicU64, out: &mut String| {
            head(info, out);
            for series in &all {
                series.sample(info.name, NO_FLAG, value(series).load(Relaxed), out);
            }
        };
        one(&OPENED, |s| &s.opened, &mut out);
        one(&CLOSED, |s| &s.closed, &mut out);
        one(&RECEIVED, |s| &s.received, &mut out);
        one(&SENT, |s| &s.sent, &mut out);
        head(&FAILED, &mut out);
        for series in &all {
            for (flag, count) in FLAGS.into_iter().zip(&series.failed) {
                let count = count.load(Relaxed);
                if count > 0 {
                    series.sample(FAILED.name, flag, count, &mut out);
                }
            }
        }
        out
    }

    fn series(&self, key: &Key<'_>) -> Arc<Series> {
        let mut table = lock(&self.table);
        if let Some(found) = self.find(&table, key) {
            return found;
        }
        if table.len() + FOLDED_SERIES < self.max_series || *key == key.folded() {
            return self.insert(&mut table, key);
        }
        self.folded.fetch_add(1, Relaxed);
        let key = key.folded();
        self.find(&table, &key).unwrap_or_else(|| self.insert(&mut table, &key))
    }

    fn find(&self, table: &HashTable<Arc<Series>>, key: &Key<'_>) -> Option<Arc<Series>> {
        table.find(self.hasher.hash_one(key), |series| series.key.as_key() == *key).cloned()
    }

    fn insert(&self, table: &mut HashTable<Arc<Series>>, key: &Key<'_>) -> Arc<Series> {
        let series = Arc::new(Series::new(key));
        let hash_of = |series: &Arc<Series>| self.hasher.hash_one(series.key.as_key());
        table.insert_unique(self.hasher.hash_one(key), Arc::clone(&series), hash_of);
        series
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Two reporters, with and without mutual TLS.
const FOLDED_SERIES: usize = 4;

impl Series {
    fn new(key: &Key<'_>) -> Self {
        Self {
            key: key.owned(),
            labels: key.render(),
            opened: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            failed: Default::default(),
            used: AtomicU64::new(0),
        }
    }

    fn sample(&self, name: &str, flags: &str, value: u64, out: &mut String) {
        out.push_str(name);
        out.push_str(&self.labels.before_flags);
        out.push_str(flags);
        out.push_str(&self.labels.after_flags);
        out.push(' ');
        out.push_str(&value.to_string());
        out.push('\n');
    }
}

fn head(info: &MetricInfo, out: &mut String) {
    for part in ["# HELP ", info.name, " ", info.help, "\n# TYPE ", info.name, " counter\n"] {
        out.push_str(part);
    }
}
