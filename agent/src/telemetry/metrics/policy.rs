//! What policy has refused, what it would have, and what it let through in plaintext.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, OnceLock};

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Registry};

use super::MetricInfo;
use super::own::{counter, counters, gauge, gauges, opts, register};
use crate::telemetry::lock;

pub(super) const DENIED: MetricInfo = counter(
    "underpass_policy_denied_connections_total",
    &["reason", "policy"],
    "Connections that policy refused or ended, by why and by the resource, where it was one; from the 257th on `other`",
);
pub(super) const REQUESTS_DENIED: MetricInfo = counter(
    "underpass_requests_denied_total",
    &["cause", "policy"],
    "HTTP requests that were not delivered on ports whose policies judge requests, by cause and by the resource, where it was one; from the 257th on `other`",
);
pub(super) const DRY_RUN: MetricInfo = counter(
    "underpass_policy_dry_run_connections_total",
    &["result"],
    "Connections to workloads with dry-run policies or of a phase other than Enforce, by what the answer would be: would_allow or would_deny",
);
pub(super) const AUDITED: MetricInfo = counter(
    "underpass_policy_audited_connections_total",
    &["policy"],
    "Connections that AUDIT policies matched, by resource; from the 257th on `other`",
);
pub(super) const DRY_RUN_REQUESTS: MetricInfo = counter(
    "underpass_policy_dry_run_requests_total",
    &["result"],
    "Requests, where policies that are not enforced look at requests, by what the answer would be: would_allow or would_deny",
);
pub(super) const AUDITED_REQUESTS: MetricInfo = counter(
    "underpass_policy_audited_requests_total",
    &["policy"],
    "Requests that AUDIT policies matched, where one looks at requests, by resource; from the 257th on `other`",
);
pub(super) const PLAINTEXT_ADMITTED: MetricInfo = counter(
    "underpass_plaintext_admitted_total",
    &["by"],
    "Plaintext connections from outside that reached an application: by the agent as they began, by the kernel, which asked nobody, as they closed",
);
pub(super) const PLAINTEXT_EXCEPTED: MetricInfo = counter(
    "underpass_plaintext_excepted_total",
    &["exception"],
    "Of these, connections that only an exception let through where mutual TLS is asked for, by exception; from the 257th on `other`",
);
pub(super) const EXCEPTION_LAPSES: MetricInfo = gauge(
    "underpass_exception_lapses_seconds",
    &[],
    "Seconds until the next exception from mutual TLS lapses; absent where none is in force",
);
pub(super) const PLAINTEXT_DROPPED: MetricInfo = counter(
    "underpass_plaintext_dropped_total",
    &[],
    "Attempts to connect in plaintext that the kernel dropped where STRICT holds, repeated ones included",
);
pub(super) const DEFECTS: MetricInfo = gauge(
    "underpass_policy_defects",
    &["kind"],
    "Parts of policy resources that cannot be taken as they stand: invalid, unsupported or dangling",
);

/// What is asked for at every scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicySample {
    /// By the kernel, since its programs were first loaded.
    pub plaintext_dropped: u64,
    pub invalid: usize,
    pub unsupported: usize,
    pub dangling: usize,
    /// Seconds until the next exception lapses; none where none is in force.
    pub next_lapse: Option<i64>,
}

type Sample = Box<dyn Fn() -> PolicySample + Send + Sync>;

pub(in crate::telemetry) struct PolicyMetrics {
    denied: IntCounterVec,
    requests_denied: IntCounterVec,
    dry_run: IntCounterVec,
    audited: IntCounterVec,
    dry_run_requests: IntCounterVec,
    audited_requests: IntCounterVec,
    plaintext_admitted: IntCounterVec,
    plaintext_excepted: IntCounterVec,
    plaintext_dropped: IntCounter,
    /// Without labels, but it can be absent.
    exception_lapses: IntGaugeVec,
    defects: IntGaugeVec,
    /// The resources that have a label of their own.
    named: Mutex<HashSet<Arc<str>>>,
    sample: OnceLock<Sample>,
}

impl PolicyMetrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            denied: register(registry, counters(&DENIED)?)?,
            requests_denied: register(registry, counters(&REQUESTS_DENIED)?)?,
            dry_run: register(registry, counters(&DRY_RUN)?)?,
            audited: register(registry, counters(&AUDITED)?)?,
            dry_run_requests: register(registry, counters(&DRY_RUN_REQUESTS)?)?,
            audited_requests: register(registry, counters(&AUDITED_REQUESTS)?)?,
            plaintext_admitted: register(registry, counters(&PLAINTEXT_ADMITTED)?)?,
            plaintext_excepted: register(registry, counters(&PLAINTEXT_EXCEPTED)?)?,
            exception_lapses: register(registry, gauges(&EXCEPTION_LAPSES)?)?,
            plaintext_dropped: register(registry, IntCounter::with_opts(opts(&PLAINTEXT_DROPPED))?)?,
            defects: register(registry, gauges(&DEFECTS)?)?,
            named: Mutex::default(),
            sample: OnceLock::new(),
        })
    }

    pub(in crate::telemetry) fn watch(&self, sample: Sample) {
        // The first stays.
        let _ = self.sample.set(sample);
    }

    pub(in crate::telemetry) fn denied(&self, reason: &str, policy: Option<&Arc<str>>) {
        let label = policy.map_or("", |policy| self.label(policy));
        self.denied.with_label_values(&[reason, label]).inc();
    }

    pub(in crate::telemetry) fn denied_request(&self, cause: &str, policy: Option<&Arc<str>>) {
        let label = policy.map_or("", |policy| self.label(policy));
        self.requests_denied.with_label_values(&[cause, label]).inc();
    }

    pub(in crate::telemetry) fn dry_run(&self, would_allow: bool) {
        self.dry_run.with_label_values(&[result(would_allow)]).inc();
    }

    pub(in crate::telemetry) fn dry_run_request(&self, would_allow: bool) {
        self.dry_run_requests.with_label_values(&[result(would_allow)]).inc();
    }

    pub(in crate::telemetry) fn audited_request(&self, policy: &Arc<str>) {
        self.audited_requests.with_label_values(&[self.label(policy)]).inc();
    }

    pub(in crate::telemetry) fn audited(&self, policy: &Arc<str>) {
        self.audited.with_label_values(&[self.label(policy)]).inc();
    }

    pub(in crate::telemetry) fn plaintext_admitted(&self, by: &str) {
        self.plaintext_admitted.with_label_values(&[by]).inc();
    }

    pub(in crate::telemetry) fn plaintext_excepted(&self, exception: &Arc<str>) {
        self.plaintext_excepted.with_label_values(&[self.label(exception)]).inc();
    }

    pub(super) fn at_scrape(&self) {
        let Some(sample) = self.sample.get().map(|sample| sample()) else { return };
        self.plaintext_dropped.inc_by(sample.plaintext_dropped.saturating_sub(self.plaintext_dropped.get()));
        self.exception_lapses.reset();
        if let Some(seconds) = sample.next_lapse {
            self.exception_lapses.with_label_values::<&str>(&[]).set(seconds);
        }
        for (kind, count) in
            [("invalid", sample.invalid), ("unsupported", sample.unsupported), ("dangling", sample.dangling)]
        {
            self.defects.with_label_values(&[kind]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Its own, as long as there are few: names come and go with resources, and series stay.
    fn label<'a>(&self, policy: &'a Arc<str>) -> &'a str {
        let mut named = lock(&self.named);
        if named.contains(policy) || named.len() < MOST_NAMED {
            named.insert(Arc::clone(policy));
            return policy;
        }
        "other"
    }
}

fn result(would_allow: bool) -> &'static str {
    if would_allow { "would_allow" } else { "would_deny" }
}

const MOST_NAMED: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_without_end_make_no_series_without_end() {
        let registry = Registry::new();
        let metrics = PolicyMetrics::new(&registry).unwrap();
        for n in 0..1000 {
            metrics.denied("deny_matched", Some(&format!("shop/p{n}").into()));
            metrics.audited(&format!("shop/p{n}").into());
        }
        metrics.denied("strict_mtls", None);
        let series = |name: &str| -> Vec<(String, f64)> {
            let families = registry.gather();
            let family = families.iter().find(|f| f.name() == name).unwrap();
            let label = |m: &prometheus::proto::Metric| m.get_label()[0].value().to_owned();
            family.get_metric().iter().map(|m| (label(m), m.get_counter().get_value())).collect()
        };
        let denied = series(DENIED.name);
        assert_eq!(denied.len(), MOST_NAMED + 2);
        assert!(denied.contains(&("other".into(), 744.0)), "{denied:?}");
        assert_eq!(series(AUDITED.name).len(), MOST_NAMED + 1);
    }
}
