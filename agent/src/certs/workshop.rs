//! What every entry's task works with.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::slots::Slots;
use super::trust::{TrustFiles, compose};
use super::{CertError, Clock, Issuer};
use crate::model::SpiffeId;
use crate::telemetry::{CertificateAttempt, Telemetry};
use crate::tls::{Certificate, InUse, TrustBundles, Trusted};

pub(super) struct Workshop {
    pub(super) issuer: Arc<dyn Issuer>,
    pub(super) clock: Clock,
    /// How long one call to the issuer may take.
    pub(super) deadline: Duration,
    pub(super) slots: Arc<Slots>,
    /// Uniform in 0.0..1.0.
    pub(super) die: Box<dyn Fn() -> f64 + Send + Sync>,
    /// The roots that the issuer keeps, if it does.
    pub(super) roots: Option<watch::Receiver<Option<TrustBundles>>>,
    pub(super) files: TrustFiles,
    pub(super) in_use: InUse,
    pub(super) signing: Mutex<Option<Signing>>,
    pub(super) telemetry: Option<Telemetry>,
}

/// The issuer's newest word on who signs.
#[derive(Clone)]
pub(super) struct Signing {
    pub(super) authority: Vec<u8>,
    pub(super) within: Duration,
}

impl Signing {
    /// Whether somebody else has signed it. One that does not say who did may be anybody's.
    pub(super) fn is_other(&self, certificate: &Certificate) -> bool {
        certificate.authority_key_id().is_some_and(|id| id != self.authority)
    }
}

impl Workshop {
    /// What peers are judged by, for an identity whose newest certificate came with `roots`.
    pub(super) fn compose(&self, roots: &TrustBundles) -> Trusted {
        let kept = self.roots.as_ref().and_then(|kept| kept.borrow().clone());
        compose(kept.as_ref().unwrap_or(roots), &self.files.now())
    }

    /// As [`Self::compose`], of the trust domains that the issuer lets `identity` believe; files are for all.
    pub(super) fn compose_for(&self, identity: &SpiffeId, roots: &TrustBundles) -> Trusted {
        let Some(others) = self.issuer.federates(identity) else { return self.compose(roots) };
        let kept = self.roots.as_ref().and_then(|kept| kept.borrow().clone());
        let all = kept.as_ref().unwrap_or(roots);
        let believed = all.only(|domain| domain == identity.trust_domain() || others.contains(domain));
        compose(&believed, &self.files.now())
    }

    pub(super) fn issuer_keeps_roots(&self) -> bool {
        self.roots.as_ref().is_some_and(|kept| kept.borrow().is_some())
    }

    pub(super) fn signing(&self) -> Option<Signing> {
        self.signing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_signing(&self, signing: Signing) {
        *self.signing.lock().unwrap_or_else(PoisonError::into_inner) = Some(signing);
    }

    pub(super) fn count(&self, took: Duration, error: Option<&CertError>, is_renewal: bool) {
        if let Some(telemetry) = &self.telemetry {
            telemetry.certificate(&CertificateAttempt {
                took,
                failed: error.map(CertError::cause),
                is_renewal,
            });
        }
    }
}
