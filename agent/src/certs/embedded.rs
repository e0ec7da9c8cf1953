//! An authority inside the agent, for one machine, demos and tests: agents that are given the same root
//! files trust each other.
//!
//! Whoever can read the root's key can be anybody in the mesh. Across machines, use a real authority.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use futures::future::BoxFuture;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::keeping::SecretKey;
use super::root_files::{self, RootError};
use super::{CertError, Clock, Issued, Issuer, leaf};
use crate::model::{SpiffeId, TrustDomain};
use crate::tls::TrustBundles;

/// Where the root is and what is issued under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddedConfig {
    /// The only trust domain that is issued for.
    pub trust_domain: TrustDomain,
    /// PEM file of the root's certificate.
    pub root_certificate: PathBuf,
    /// PEM file of the root's key (PKCS#8 or SEC1); mode 0600 when we make it.
    pub root_key: PathBuf,
    /// Whether to make the root when neither file is there. Agents that start at once on the same files
    /// end up with one root.
    pub create: bool,
    /// How long a leaf is valid, at most ten years, and never beyond the root.
    pub lifetime: Duration,
    /// How far a leaf's validity begins in the past, for peers whose clocks are behind ours;
    /// at most a day, and a quarter of what the leaf has before it.
    pub backdate: Duration,
}

impl EmbeddedConfig {
    /// Files as given, made when absent; leaves for 24 hours, backdated by two minutes.
    pub fn new(
        trust_domain: TrustDomain,
        root_certificate: impl Into<PathBuf>,
        root_key: impl Into<PathBuf>,
    ) -> Self {
        Self {
            trust_domain,
            root_certificate: root_certificate.into(),
            root_key: root_key.into(),
            create: true,
            lifetime: Duration::from_secs(24 * 3600),
            backdate: Duration::from_secs(120),
        }
    }
}

/// Signs leaves with a root key that it holds in memory.
pub struct EmbeddedIssuer {
    trust_domain: TrustDomain,
    lifetime: Duration,
    backdate: Duration,
    clock: Clock,
    root: rcgen::Issuer<'static, SecretKey>,
    root_not_after: SystemTime,
    bundles: TrustBundles,
}

impl EmbeddedIssuer {
    /// Reads the root, or makes it. Blocks on files, for a moment.
    pub fn open(config: &EmbeddedConfig) -> Result<Self, RootError> {
        Self::with_clock(config, Clock::system())
    }

    /// As [`Self::open`], with the time handed in.
    pub fn with_clock(config: &EmbeddedConfig, clock: Clock) -> Result<Self, RootError> {
        check_times(config)?;
        let root = root_files::open(config, clock.now())?;
        let mut bundles = TrustBundles::new();
        bundles
            .add(&config.trust_domain, [root.certificate.clone()])
            .map_err(|e| RootError::unusable(&config.root_certificate, e))?;
        let issuer = rcgen::Issuer::from_ca_cert_der(&root.certificate, root.key)
            .map_err(|e| RootError::unusable(&config.root_certificate, e))?;
        Ok(Self {
            root_not_after: root.not_after,
            trust_domain: config.trust_domain.clone(),
            lifetime: config.lifetime,
            backdate: config.backdate,
            clock,
            root: issuer,
            bundles,
        })
    }

    /// The root, for whoever is to trust what is issued here.
    pub fn bundles(&self) -> &TrustBundles {
        &self.bundles
    }

    /// A fresh key and a leaf for it. [`Issuer::issue`] without the wait.
    pub fn sign(&self, identity: &SpiffeId) -> Result<Issued, CertError> {
        if identity.trust_domain() != &self.trust_domain {
            return Err(CertError::Refused {
                issuer: self.name().into(),
                identity: identity.clone(),
                why: format!("its trust domain is {}", self.trust_domain),
            });
        }
        let failed = |e: rcgen::Error| CertError::Issuer(e.to_string());
        let key = SecretKey::generate().map_err(failed)?;
        let now = self.clock.now();
        // A leaf that outlives its root would be renewed too late.
        let end = (now + self.lifetime).min(self.root_not_after);
        let ahead = end.duration_since(now).unwrap_or_default();
        // More of the past than of the future, and it would be due for renewal when it comes.
        let start = now - self.backdate.min(ahead / 4);
        let leaf = leaf::params(identity, start, end).map_err(failed)?;
        let leaf = leaf.signed_by(&key, &self.root).map_err(failed)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.pkcs8().to_vec()));
        Ok(Issued {
            chain: vec![CertificateDer::from(leaf)],
            key: Zeroizing::new(key),
            roots: self.bundles.clone(),
        })
    }
}

impl Issuer for EmbeddedIssuer {
    fn issue<'a>(&'a self, identity: &'a SpiffeId) -> BoxFuture<'a, Result<Issued, CertError>> {
        // A P-256 key and signature take well under a millisecond: not worth a thread.
        async move { self.sign(identity) }.boxed()
    }

    fn name(&self) -> &str {
        "embedded"
    }
}

fn check_times(config: &EmbeddedConfig) -> Result<(), RootError> {
    let (lifetime, backdate) = (config.lifetime, config.backdate);
    if (Duration::from_secs(1)..=MOST_LIFETIME).contains(&lifetime) && backdate <= MOST_BACKDATE {
        Ok(())
    } else {
        Err(RootError::Times { lifetime, backdate })
    }
}

pub(super) const MOST_LIFETIME: Duration = Duration::from_secs(3650 * 24 * 3600);
pub(super) const MOST_BACKDATE: Duration = Duration::from_secs(24 * 3600);

impl std::fmt::Debug for EmbeddedIssuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedIssuer")
            .field("trust_domain", &self.trust_domain.as_str())
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}
