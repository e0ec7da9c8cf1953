//! One of our own certificates, with the key that only TLS may use.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::svid::{self, Svid};
use super::{TlsError, provider};
use crate::model::SpiffeId;

/// A leaf that is an X.509-SVID, the certificates above it, and the leaf's key.
///
/// The key lives inside the cryptography library, which wipes it when the last clone goes; there is no
/// way to read it back. Clones are cheap.
#[derive(Clone)]
pub struct Certificate {
    inner: Arc<Inner>,
}

struct Inner {
    svid: Svid,
    /// In which every certificate of the chain is valid.
    not_before: SystemTime,
    not_after: SystemTime,
    key: Arc<CertifiedKey>,
}

impl Certificate {
    /// Takes the chain, leaf first and roots left out, and the leaf's key, of which it wipes its copy.
    ///
    /// Fails if the leaf breaks a rule of X.509-SVIDs, if a certificate does not parse, or if the key is
    /// not the leaf's. Whether it chains to a root is not asked here: [`super::verify_chain`] does.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, TlsError> {
        // On every way out.
        let key = Zeroizing::new(key);
        let svid = Svid::read(chain.first().ok_or(TlsError::NoCertificate)?)?;
        let (mut not_before, mut not_after) = (svid.not_before, svid.not_after);
        for above in &chain[1..] {
            let above = svid::summary(above)?;
            not_before = not_before.max(above.not_before);
            not_after = not_after.min(above.not_after);
        }
        let key = CertifiedKey::from_der(chain, key.clone_key(), &provider())
            .map_err(|e| TlsError::Key { identity: svid.identity.clone(), why: e.to_string() })?;
        Ok(Self { inner: Arc::new(Inner { svid, not_before, not_after, key: Arc::new(key) }) })
    }

    pub fn identity(&self) -> &SpiffeId {
        &self.inner.svid.identity
    }

    /// When the last certificate of its chain begins: peers take none of it before.
    pub fn not_before(&self) -> SystemTime {
        self.inner.not_before
    }

    /// When the first certificate of its chain ends.
    pub fn not_after(&self) -> SystemTime {
        self.inner.not_after
    }

    /// Whether `now` is within the validity of the whole chain.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        (self.not_before()..=self.not_after()).contains(&now)
    }

    /// The serial number in lower-case hexadecimal.
    pub fn serial(&self) -> &str {
        &self.inner.svid.serial
    }

    /// The distinguished name of the authority that signed the leaf.
    pub fn issuer(&self) -> &str {
        &self.inner.svid.issuer
    }

    /// The identifier of the key that signed the leaf, if the leaf has one.
    pub fn authority_key_id(&self) -> Option<&[u8]> {
        self.inner.svid.authority_key_id.as_deref()
    }

    /// Leaf first, without the root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.inner.key.cert
    }

    pub(super) fn certified_key(&self) -> Arc<CertifiedKey> {
        self.inner.key.clone()
    }
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate")
            .field("identity", &self.identity().to_string())
            .field("serial", &self.serial())
            .field("not_after", &self.not_after())
            .finish_non_exhaustive()
    }
}
