//! Certificates, the roots that peers are judged by, and revocation lists.
//!
//! Their state is asked for at every scrape, so an identity that is gone has no series any more.

use std::sync::OnceLock;
use std::time::Duration;

use prometheus::core::{AtomicF64, GenericGaugeVec};
use prometheus::{GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGaugeVec, Registry};

use super::own::{counter, counters, gauge, gauges, opts, register};
use super::{Kind, MetricInfo};

pub(super) const BY_STATE: MetricInfo = gauge(
    "underpass_certificates",
    &["state"],
    "Identities of this node's pods, by the state of their certificate",
);
pub(super) const EXPIRES: MetricInfo = gauge(
    "underpass_certificate_expires_seconds",
    &["identity"],
    "Seconds until the certificate in use ends; below 0 once it has",
);
pub(super) const SOONEST: MetricInfo = gauge(
    "underpass_certificates_soonest_expiry_seconds",
    &[],
    "The least of underpass_certificate_expires_seconds; absent without a certificate",
);
pub(super) const FETCHES: MetricInfo = MetricInfo {
    name: "underpass_certificate_fetch_seconds",
    kind: Kind::Histogram,
    labels: &[],
    help: "How long attempts to get a certificate took, the wait for a turn included, whatever came of them",
};
pub(super) const FAILURES: MetricInfo = counter(
    "underpass_certificate_failures_total",
    &["cause"],
    "Attempts that gave no certificate, by cause",
);
pub(super) const RENEWALS: MetricInfo = counter(
    "underpass_certificate_renewals_total",
    &[],
    "Certificates that took the place of one that was still valid",
);
pub(super) const AHEAD: MetricInfo = gauge(
    "underpass_certificate_issuer_ahead_seconds",
    &["identity"],
    "Start of validity of the newest certificate less our time when it was asked for: above 0, the issuer's clock is ahead",
);
pub(super) const BUNDLES: MetricInfo = gauge(
    "underpass_trust_bundle_roots",
    &["trust_domain", "version"],
    "Roots that peers of a trust domain are judged by; the version is the same for the same roots",
);
pub(super) const ROOT_EXPIRES: MetricInfo = gauge(
    "underpass_trust_bundle_expires_seconds",
    &["trust_domain"],
    "Seconds until the last root of a trust domain ends",
);
pub(super) const CRL_AGE: MetricInfo = gauge(
    "underpass_revocation_list_age_seconds",
    &["issuer"],
    "Seconds since an issuer's newest revocation list was made",
);
pub(super) const CRL_NEXT: MetricInfo = gauge(
    "underpass_revocation_list_next_update_seconds",
    &["issuer"],
    "Seconds until an issuer's newest revocation list must be replaced; from 0 on its certificates are refused",
);
pub(super) const FILE_REFUSED: MetricInfo = gauge(
    "underpass_trust_file_refused",
    &["path"],
    "1 if a trust file is unreadable or broken and what was read from it earlier stays in force",
);

/// An attempt to get a certificate.
#[derive(Clone, Copy, Debug)]
pub struct CertificateAttempt {
    pub took: Duration,
    /// One of a few words, if it failed.
    pub failed: Option<&'static str>,
    /// Whether a valid one was there.
    pub is_renewal: bool,
}

/// The state of everything at one moment.
#[derive(Clone, Debug, Default)]
pub struct CertificateSamples {
    pub certificates: Vec<CertificateSample>,
    pub bundles: Vec<BundleSample>,
    pub revocation_lists: Vec<RevocationListSample>,
    pub files: Vec<TrustFileSample>,
}

#[derive(Clone, Debug)]
pub struct CertificateSample {
    pub identity: String,
    pub state: &'static str,
    pub expires: Option<f64>,
    pub ahead: Option<f64>,
}

#[derive(Clone, Debug)]
pub struct BundleSample {
    pub trust_domain: String,
    pub version: String,
    pub roots: usize,
    pub expires: f64,
}

#[derive(Clone, Debug)]
pub struct RevocationListSample {
    pub issuer: String,
    pub age: f64,
    pub next_update: f64,
}

#[derive(Clone, Debug)]
pub struct TrustFileSample {
    pub path: String,
    pub refused: bool,
}

type Samples = Box<dyn Fn() -> CertificateSamples + Send + Sync>;

pub(in crate::telemetry) struct Certificates {
    samples: OnceLock<Samples>,
    by_state: IntGaugeVec,
    expires: GaugeVec,
    /// Without labels, but it can be absent.
    soonest: GaugeVec,
    fetches: Histogram,
    failures: IntCounterVec,
    renewals: IntCounter,
    ahead: GaugeVec,
    bundles: IntGaugeVec,
    root_expires: GaugeVec,
    crl_age: GaugeVec,
    crl_next: GaugeVec,
    file_refused: IntGaugeVec,
}

impl Certificates {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let floats = |info: &MetricInfo| -> prometheus::Result<GenericGaugeVec<AtomicF64>> {
            register(registry, GaugeVec::new(opts(info), info.labels)?)
        };
        let buckets = vec![0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
        let fetches = Histogram::with_opts(HistogramOpts::from(opts(&FETCHES)).buckets(buckets))?;
        Ok(Self {
            samples: OnceLock::new(),
            by_state: register(registry, gauges(&BY_STATE)?)?,
            expires: floats(&EXPIRES)?,
            soonest: floats(&SOONEST)?,
            fetches: register(registry, fetches)?,
            failures: register(registry, counters(&FAILURES)?)?,
            renewals: register(registry, IntCounter::with_opts(opts(&RENEWALS))?)?,
            ahead: floats(&AHEAD)?,
            bundles: register(registry, gauges(&BUNDLES)?)?,
            root_expires: floats(&ROOT_EXPIRES)?,
            crl_age: floats(&CRL_AGE)?,
            crl_next: floats(&CRL_NEXT)?,
            file_refused: register(registry, gauges(&FILE_REFUSED)?)?,
        })
    }

    pub(in crate::telemetry) fn watch(&self, samples: Samples) {
        // The first stays.
        let _ = self.samples.set(samples);
    }

    pub(in crate::telemetry) fn attempt(&self, attempt: &CertificateAttempt) {
        self.fetches.observe(attempt.took.as_secs_f64());
        match attempt.failed {
            Some(cause) => self.failures.with_label_values(&[cause]).inc(),
            None if attempt.is_renewal => self.renewals.inc(),
            None => {}
        }
    }

    pub(super) fn at_scrape(&self) {
        let Some(samples) = self.samples.get().map(|samples| samples()) else { return };
        for family in
            [&self.expires, &self.soonest, &self.ahead, &self.root_expires, &self.crl_age, &self.crl_next]
        {
            family.reset();
        }
        for family in [&self.by_state, &self.bundles, &self.file_refused] {
            family.reset();
        }
        for certificate in &samples.certificates {
            self.by_state.with_label_values(&[certificate.state]).inc();
            let identity = [certificate.identity.as_str()];
            if let Some(expires) = certificate.expires {
                self.expires.with_label_values(&identity).set(expires);
            }
            if let Some(ahead) = certificate.ahead {
                self.ahead.with_label_values(&identity).set(ahead);
            }
        }
        if let Some(least) = samples.certificates.iter().filter_map(|c| c.expires).min_by(f64::total_cmp) {
            self.soonest.with_label_values::<&str>(&[]).set(least);
        }
        for bundle in &samples.bundles {
            let labels = [bundle.trust_domain.as_str(), bundle.version.as_str()];
            self.bundles.with_label_values(&labels).set(i64::try_from(bundle.roots).unwrap_or(i64::MAX));
            self.root_expires.with_label_values(&labels[..1]).set(bundle.expires);
        }
        for list in &samples.revocation_lists {
            // Of several of one issuer, the newest.
            let age = self.crl_age.with_label_values(&[&list.issuer]);
            if age.get() == 0.0 || list.age < age.get() {
                age.set(list.age);
                self.crl_next.with_label_values(&[&list.issuer]).set(list.next_update);
            }
        }
        for file in &samples.files {
            self.file_refused.with_label_values(&[&file.path]).set(i64::from(file.refused));
        }
    }
}
