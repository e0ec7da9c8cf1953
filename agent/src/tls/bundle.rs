//! Which roots vouch for which trust domain.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor};

use super::{TlsError, sha256, svid};
use crate::model::TrustDomain;

/// Roots by trust domain: a certificate is only ever judged by the roots of the domain that it claims,
/// so a federated domain's authority cannot make certificates for ours.
///
/// Immutable once shared and cheap to clone; a changed bundle is a new value, for which new
/// configurations are made.
#[derive(Clone, Default)]
pub struct TrustBundles {
    domains: Arc<BTreeMap<TrustDomain, Vec<Root>>>,
}

#[derive(Clone)]
pub(super) struct Root {
    pub(super) der: CertificateDer<'static>,
    pub(super) anchor: TrustAnchor<'static>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    /// Whether its key usage lets it sign revocation lists.
    pub(super) signs_lists: bool,
    /// Its certificate's SHA-256, which it is reported by.
    pub(super) digest: [u8; 32],
}

impl TrustBundles {
    /// No roots: nobody is trusted.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds roots to those held for `domain`; one that is there already is not doubled.
    ///
    /// Fails, adding none, if one is not an X.509 v3 CA certificate that may sign certificates.
    pub fn add(
        &mut self,
        domain: &TrustDomain,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<(), TlsError> {
        let roots = roots.into_iter().map(|der| Root::read(domain, der)).collect::<Result<Vec<_>, _>>()?;
        if roots.is_empty() {
            return Ok(());
        }
        let held = Arc::make_mut(&mut self.domains).entry(domain.clone()).or_default();
        for root in roots {
            if !held.iter().any(|h| h.der == root.der) {
                held.push(root);
            }
        }
        Ok(())
    }

    /// As [`Self::add`], from PEM text: every CERTIFICATE section, at least one.
    pub fn add_pem(&mut self, domain: &TrustDomain, pem: &[u8]) -> Result<(), TlsError> {
        let unusable = |why: String| TlsError::Root { domain: domain.clone(), why };
        let roots = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| unusable(e.to_string()))?;
        if roots.is_empty() {
            return Err(unusable("no CERTIFICATE section".into()));
        }
        self.add(domain, roots)
    }

    /// Adds what `other` holds, each root to its own domain only.
    pub fn add_all(&mut self, other: &Self) {
        for (domain, roots) in &*other.domains {
            let held = Arc::make_mut(&mut self.domains).entry(domain.clone()).or_default();
            for root in roots {
                if !held.iter().any(|h| h.der == root.der) {
                    held.push(root.clone());
                }
            }
        }
    }

    /// Those of some domains.
    #[must_use]
    pub fn only(&self, wanted: impl Fn(&TrustDomain) -> bool) -> Self {
        let kept = self.domains.iter().filter(|(domain, _)| wanted(domain));
        Self { domains: Arc::new(kept.map(|(domain, roots)| (domain.clone(), roots.clone())).collect()) }
    }

    /// The trust domains that roots are held for.
    pub fn domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.domains.keys()
    }

    /// The roots held for `domain`, as DER.
    pub fn roots(&self, domain: &TrustDomain) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.of(domain).iter().map(|root| &root.der)
    }

    /// The SHA-256 of each, which they are reported by.
    pub fn digests(&self, domain: &TrustDomain) -> impl Iterator<Item = [u8; 32]> {
        self.of(domain).iter().map(|root| root.digest)
    }

    pub(super) fn of(&self, domain: &TrustDomain) -> &[Root] {
        self.domains.get(domain).map_or(&[], Vec::as_slice)
    }
}

impl Root {
    fn read(domain: &TrustDomain, der: CertificateDer<'static>) -> Result<Self, TlsError> {
        let unusable = |why: String| TlsError::Root { domain: domain.clone(), why };
        let parsed = svid::parse(&der).map_err(|e| unusable(e.to_string()))?;
        if !svid::may_sign(&parsed)? {
            return Err(unusable(format!("{} may not sign certificates", parsed.subject())));
        }
        let not_before = svid::system_time(parsed.validity().not_before);
        let not_after = svid::system_time(parsed.validity().not_after);
        let signs_lists = svid::may_sign_lists(&parsed)?;
        drop(parsed);
        let anchor = webpki::anchor_from_trusted_cert(&der).map_err(|e| unusable(e.to_string()))?.to_owned();
        Ok(Self { digest: sha256(&der), der, anchor, not_before, not_after, signs_lists })
    }

    pub(super) fn is_valid_at(&self, now: SystemTime) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }
}

impl std::fmt::Debug for TrustBundles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.domains.iter().map(|(d, roots)| (d.as_str(), roots.len()))).finish()
    }
}

impl PartialEq for TrustBundles {
    fn eq(&self, other: &Self) -> bool {
        let ders = |b: &Self| -> Vec<(TrustDomain, Vec<CertificateDer<'static>>)> {
            b.domains
                .iter()
                .map(|(d, roots)| (d.clone(), roots.iter().map(|r| r.der.clone()).collect()))
                .collect()
        };
        Arc::ptr_eq(&self.domains, &other.domains) || ders(self) == ders(other)
    }
}
