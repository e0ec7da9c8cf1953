//! The seam behind which certificates are made.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::{mpsc, watch};
use zeroize::Zeroizing;

use super::keeping::private_key;
use crate::model::{SpiffeId, TrustDomain};
use crate::tls::{TlsError, TrustBundles};

/// Somebody who gives out certificates for identities: the embedded issuer, istiod and its like, SPIRE.
///
/// The key is part of the answer because some issuers make it (SPIRE's APIs do). One that wants a
/// signing request makes a fresh key for each call.
pub trait Issuer: Send + Sync + 'static {
    /// A new certificate for `identity`. The caller bounds the time, retries, and checks what comes back.
    fn issue<'a>(&'a self, identity: &'a SpiffeId) -> BoxFuture<'a, Result<Issued, CertError>>;

    /// A short name for logs and the admin API.
    fn name(&self) -> &str;

    /// Whether it makes newer certificates by itself and says so by nudges. They are then asked for late
    /// only, in case it did not.
    fn pushes(&self) -> bool {
        false
    }

    /// Roots that the issuer keeps up to date by itself, `None` in it until the first came. They then
    /// stand in place of those that come with certificates.
    fn roots(&self) -> Option<watch::Receiver<Option<TrustBundles>>> {
        None
    }

    /// Which trust domains beside its own `identity` is to believe, by the newest word of an issuer that says so
    /// for each identity; `None` where every identity believes whatever roots there are.
    fn federates(&self, identity: &SpiffeId) -> Option<BTreeSet<TrustDomain>> {
        let _ = identity;
        None
    }

    /// Certificates that should be fetched anew before their time. Asked for once.
    fn nudges(&self) -> Option<mpsc::UnboundedReceiver<Nudge>> {
        None
    }
}

/// An issuer's word that certificates should be fetched before their renewal is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nudge {
    /// There is a newer one for this identity: it is fetched at once.
    Identity(SpiffeId),
    /// Those that another authority has signed (by the leaf's authority key identifier) are renewed, spread
    /// evenly over this time.
    SignedByOthers {
        /// The key identifier of the authority that signs now.
        authority: Vec<u8>,
        /// From now.
        within: Duration,
    },
}

/// One answer of an issuer.
pub struct Issued {
    /// Leaf first, then what is between it and a root; roots left out.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key, wiped when dropped.
    pub key: Zeroizing<PrivateKeyDer<'static>>,
    /// The roots that the issuer says to trust, by trust domain.
    pub roots: TrustBundles,
}

impl Issued {
    /// From PEM text: a chain (leaf first) and a key in PKCS#8, SEC1 or PKCS#1.
    pub fn from_pem(chain: &[u8], key: &[u8], roots: TrustBundles) -> Result<Self, CertError> {
        use rustls_pki_types::pem::PemObject;
        let unusable = |e: rustls_pki_types::pem::Error| CertError::Answer(e.to_string());
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>().map_err(unusable)?;
        let key = private_key(key).map_err(CertError::Answer)?;
        Ok(Self { chain, key, roots })
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("chain", &self.chain.len())
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}

/// Why there is no new certificate. Cheap to clone, as every waiter gets it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CertError {
    /// The issuer was asked for what it does not give out.
    #[error("{issuer} does not issue for {identity}: {why}")]
    Refused { issuer: Arc<str>, identity: SpiffeId, why: String },
    /// The issuer could not be asked, or failed.
    #[error("issuing failed: {0}")]
    Issuer(String),
    #[error("the issuer did not answer within {} s: see whether it is up and reachable", .0.as_secs_f32())]
    Deadline(Duration),
    /// The issuer answered with something that is not a certificate and a key.
    #[error("the issuer's answer is unusable ({0}): see the issuer's own log")]
    Answer(String),
    #[error("the issuer's certificate is for {got}, asked was {asked}: it must not be used")]
    OtherIdentity { asked: SpiffeId, got: SpiffeId },
    #[error(
        "the certificate that the issuer made for {identity} ended at {not_after}, and it is {now} here: this node's clock is ahead of the issuer's, or the issuer gives out old ones; compare the clocks"
    )]
    ExpiredOnArrival { identity: SpiffeId, not_after: String, now: String },
    #[error(
        "the issuer gives the certificate of {identity} under the authority {authority}, which ended at {not_after}, and it is {now} here: give the issuer a newer one (our controller: underpass ca intermediate), or compare the clocks"
    )]
    AuthorityEnded { identity: SpiffeId, authority: String, not_after: String, now: String },
    #[error(
        "the certificate of {identity} is good from {not_before}, and it is {now} here: the issuer's clock is ahead of this node's by {ahead} s at least; it is used from then on, or as soon as the clocks agree"
    )]
    NotYet { identity: SpiffeId, not_before: String, now: String, ahead: u64 },
    #[error(
        "the roots that {issuer} says to trust do not vouch for the certificate that it gave ({source}); it is asked again until they do: compare its chain with the roots it publishes"
    )]
    NotVouched { issuer: Arc<str>, source: Box<TlsError> },
    /// The certificate breaks a rule, or does not chain to the roots that came with it.
    #[error("the issuer's certificate is unusable: {0}")]
    Certificate(#[from] TlsError),
}

impl CertError {
    /// One of a few words, for a metric.
    pub fn cause(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "refused",
            Self::Issuer(_) => "issuer",
            Self::Deadline(_) => "deadline",
            Self::Answer(_) => "unusable_answer",
            Self::OtherIdentity { .. } => "other_identity",
            Self::ExpiredOnArrival { .. } | Self::AuthorityEnded { .. } => "expired",
            Self::NotYet { .. } => "not_yet_valid",
            Self::NotVouched { .. } => "not_vouched",
            Self::Certificate(_) => "unusable_certificate",
        }
    }
}
