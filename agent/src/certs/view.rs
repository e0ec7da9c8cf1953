//! What the admin API tells about certificates.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::trust::FileView;
use crate::model::{SpiffeId, TrustDomain};
use crate::telemetry::{
    BundleSample, CertificateSample, CertificateSamples, RevocationListSample, TrustFileSample,
};
use crate::tls::{self, Certificate, Crls, TrustBundles, hex};

/// One identity that somebody holds a lease on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CertView {
    pub identity: SpiffeId,
    pub trust_domain: TrustDomain,
    pub state: CertState,
    /// Lower-case hexadecimal.
    pub serial: Option<String>,
    /// RFC 3339, as all times here.
    pub not_before: Option<String>,
    pub not_after: Option<String>,
    /// Below zero once it has ended.
    pub expires_in_seconds: Option<f64>,
    /// When the next attempt is due: a renewal, or a retry after a failure.
    pub renewal_due: Option<String>,
    /// Certificates sent in a handshake, the leaf included.
    pub chain_length: usize,
    /// Leaf, intermediates, root.
    pub chain: Vec<LinkView>,
    /// The distinguished name of the authority that signed the leaf.
    pub authority: Option<String>,
    /// The leaf's authority key identifier, in lower-case hexadecimal.
    pub authority_key_id: Option<String>,
    /// SHA-256 of the root's certificate that it chains to, in lower-case hexadecimal.
    pub root_sha256: Option<String>,
    /// Which issuer is asked.
    pub issuer: String,
    /// The start of validity of the newest certificate against our clock when it was asked for: below zero
    /// as most issuers backdate; above it, the issuer's clock is ahead of ours by so much at least.
    pub issuer_ahead_seconds: Option<f64>,
    pub leases: usize,
    /// Why the latest attempt failed, if it did.
    pub last_error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CertState {
    /// The first certificate has not come yet.
    Fetching,
    /// Handshakes use it.
    Valid,
    /// Handshakes use it, but its renewal is failing.
    RenewalFailing,
    /// No certificate, and the latest attempt failed.
    Failed,
    /// There is one, but our clock has not reached its time.
    NotYetValid,
    /// There was one, its time has passed, and no other has come.
    Expired,
}

impl CertState {
    /// As in the metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fetching => "fetching",
            Self::Valid => "valid",
            Self::RenewalFailing => "renewal_failing",
            Self::Failed => "failed",
            Self::NotYetValid => "not_yet_valid",
            Self::Expired => "expired",
        }
    }
}

/// One certificate of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LinkView {
    /// `Leaf`, `Intermediate` or `Root`, as istioctl says it.
    pub kind: &'static str,
    pub subject: String,
    pub serial: String,
    pub not_before: String,
    pub not_after: String,
    pub valid: bool,
}

pub(super) fn link_views<'a>(
    certificate: &'a Certificate,
    root: Option<&[u8; 32]>,
    mut roots: impl Iterator<Item = &'a CertificateDer<'static>>,
    now: SystemTime,
) -> Vec<LinkView> {
    let root = root.and_then(|digest| roots.find(|der| tls::sha256(der) == *digest));
    let chain = certificate.chain().iter().enumerate();
    let chain = chain.map(|(at, der)| (if at == 0 { "Leaf" } else { "Intermediate" }, der));
    let links = chain.chain(root.map(|der| ("Root", der)));
    links
        .filter_map(|(kind, der)| {
            let summary = tls::summary(der).ok()?;
            Some(LinkView {
                kind,
                subject: summary.subject,
                serial: summary.serial,
                not_before: rfc3339(summary.not_before),
                not_after: rfc3339(summary.not_after),
                valid: (summary.not_before..=summary.not_after).contains(&now),
            })
        })
        .collect()
}

/// What peers are judged by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TrustView {
    pub bundles: Vec<BundleView>,
    pub revocation_lists: Vec<RevocationView>,
    /// Where some of them come from.
    pub files: Vec<FileView>,
}

/// The roots of one trust domain, of whatever origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BundleView {
    pub trust_domain: TrustDomain,
    /// SHA-256 over the roots' SHA-256 in order: the same for the same roots, on every node.
    pub version: String,
    pub roots: Vec<RootView>,
    /// When the last of them ends.
    #[serde(skip)]
    pub until: Option<SystemTime>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RootView {
    pub sha256: String,
    pub subject: String,
    pub not_after: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RevocationView {
    pub issuer: String,
    pub this_update: String,
    pub next_update: String,
    pub revoked: usize,
    #[serde(skip)]
    pub times: (SystemTime, SystemTime),
}

impl TrustView {
    pub(super) fn new(bundles: &TrustBundles, revoked: &Crls, files: Vec<FileView>) -> Self {
        let lists = revoked.iter().map(|list| RevocationView {
            issuer: list.issuer.clone(),
            this_update: rfc3339(list.this_update),
            next_update: rfc3339(list.next_update),
            revoked: list.revoked,
            times: (list.this_update, list.next_update),
        });
        let bundles = bundles.domains().map(|domain| BundleView::new(domain, bundles.roots(domain)));
        Self { bundles: bundles.collect(), revocation_lists: lists.collect(), files }
    }
}

impl BundleView {
    fn new<'a>(domain: &TrustDomain, roots: impl Iterator<Item = &'a CertificateDer<'static>>) -> Self {
        let mut roots: Vec<_> = roots.map(|der| (tls::sha256(der), der)).collect();
        roots.sort_by_key(|(digest, _)| *digest);
        let all: Vec<u8> = roots.iter().flat_map(|(digest, _)| *digest).collect();
        let view = |(digest, der): &([u8; 32], &CertificateDer<'_>)| {
            let summary = tls::summary(der).ok()?;
            let not_after = rfc3339(summary.not_after);
            Some(RootView { sha256: hex(digest), subject: summary.subject, not_after })
        };
        Self {
            trust_domain: domain.clone(),
            version: hex(&tls::sha256(&all)),
            roots: roots.iter().filter_map(view).collect(),
            until: roots.iter().filter_map(|(_, der)| tls::summary(der).ok()).map(|s| s.not_after).max(),
        }
    }
}

pub(crate) fn rfc3339(t: SystemTime) -> String {
    OffsetDateTime::from(t).format(&Rfc3339).unwrap_or_else(|_| format!("{t:?}"))
}

/// For the metrics.
pub(super) fn samples(certificates: &[CertView], trust: &TrustView, now: SystemTime) -> CertificateSamples {
    let certificates = certificates.iter().map(|view| CertificateSample {
        identity: view.identity.to_string(),
        state: view.state.as_str(),
        expires: view.expires_in_seconds,
        ahead: view.issuer_ahead_seconds,
    });
    let bundles = trust.bundles.iter().map(|bundle| BundleSample {
        trust_domain: bundle.trust_domain.to_string(),
        version: bundle.version.clone(),
        roots: bundle.roots.len(),
        expires: bundle.until.map_or(0.0, |until| seconds(until, now)),
    });
    let lists = trust.revocation_lists.iter().map(|list| RevocationListSample {
        issuer: list.issuer.clone(),
        age: seconds(now, list.times.0),
        next_update: seconds(list.times.1, now),
    });
    let files = trust.files.iter().map(|file| TrustFileSample {
        path: file.path.display().to_string(),
        refused: file.problem.is_some(),
    });
    CertificateSamples {
        certificates: certificates.collect(),
        bundles: bundles.collect(),
        revocation_lists: lists.collect(),
        files: files.collect(),
    }
}

/// From `b` to `a`.
pub(super) fn seconds(a: SystemTime, b: SystemTime) -> f64 {
    match a.duration_since(b) {
        Ok(after) => after.as_secs_f64(),
        Err(e) => -e.duration().as_secs_f64(),
    }
}
