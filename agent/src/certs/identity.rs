//! A certificate made ready for handshakes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::CertificateDer;

use super::view::rfc3339;
use super::{CertError, Issued};
use crate::model::SpiffeId;
use crate::tls::{self, Accept, Certificate, ClientTemplate, Summary, TlsError, Trust, Trusted};

/// One certificate with everything that is made from it once. A renewal makes a new one; connections
/// that were set up with the old keep it as long as they need.
#[derive(Debug)]
pub struct Identity {
    number: u64,
    certificate: Certificate,
    trust: Trust,
    server: Arc<ServerConfig>,
    client: ClientTemplate,
}

impl Identity {
    pub fn new(certificate: Certificate, trust: impl Into<Trust>) -> Result<Self, TlsError> {
        let trust = trust.into();
        static LAST: AtomicU64 = AtomicU64::new(0);
        Ok(Self {
            number: LAST.fetch_add(1, Ordering::Relaxed) + 1,
            server: tls::server_config_federated(&certificate, &trust)?,
            client: ClientTemplate::new(&certificate, &trust)?,
            certificate,
            trust,
        })
    }

    /// Checks an issuer's answer as a peer that holds `trusted` would: no handshake should be the first to
    /// notice that a certificate is somebody else's, expired, or of an unknown root. One that is not valid
    /// yet is judged as of when it will be.
    pub(super) fn from_issued(
        issued: Issued,
        asked: &SpiffeId,
        trusted: &Trusted,
        trust: &Trust,
        now: SystemTime,
    ) -> Result<Self, CertError> {
        if issued.chain.len() > MOST_LINKS || issued.chain.iter().any(|c| c.len() > MOST_BYTES) {
            let most = format!("more than {MOST_LINKS} certificates, or one of more than {MOST_BYTES} bytes");
            return Err(CertError::Answer(most));
        }
        let (chain, ended) = without_ended(issued.chain, now);
        let certificate = Certificate::new(chain, issued.key.clone_key())?;
        if certificate.identity() != asked {
            return Err(CertError::OtherIdentity {
                asked: asked.clone(),
                got: certificate.identity().clone(),
            });
        }
        if now > certificate.not_after() {
            return Err(CertError::ExpiredOnArrival {
                identity: asked.clone(),
                not_after: rfc3339(certificate.not_after()),
                now: rfc3339(now),
            });
        }
        vouched(&certificate, trusted, now).map_err(|unvouched| match ended {
            Some(authority) => CertError::AuthorityEnded {
                identity: asked.clone(),
                authority: authority.subject,
                not_after: rfc3339(authority.not_after),
                now: rfc3339(now),
            },
            None => unvouched.into(),
        })?;
        Ok(Self::new(certificate, trust)?)
    }

    /// No two of this process have the same.
    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// What peers are verified against.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// For accepting tunnels; made once.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// For dialling a tunnel to somebody who must prove one of `expected`. Cheap enough (well under a
    /// microsecond) to be made for every tunnel, so nothing is cached.
    pub fn client_config(&self, expected: &[SpiffeId]) -> Result<Arc<ClientConfig>, TlsError> {
        self.client.expecting(expected)
    }
}

/// The chain without authorities that have ended, and one of those. If the leaf needs it, nothing vouches for
/// the rest; it may as well be a second one for the same key, of a root that has been replaced.
fn without_ended(
    chain: Vec<CertificateDer<'static>>,
    now: SystemTime,
) -> (Vec<CertificateDer<'static>>, Option<Summary>) {
    let mut ended = None;
    let kept = chain.into_iter().enumerate().filter(|(at, der)| {
        let over = tls::summary(der).ok().filter(|s| *at > 0 && s.not_after < now);
        let is_kept = over.is_none();
        ended = ended.take().or(over);
        is_kept
    });
    (kept.map(|(_, der)| der).collect(), ended)
}

/// Whether `trusted` has the roots for one of our own certificates, at `now` or when it becomes valid.
///
/// A revocation list that is out of date does not count here: it must not keep us from a certificate that
/// peers with newer lists accept. One that names the certificate does.
pub(super) fn vouched(certificate: &Certificate, trusted: &Trusted, now: SystemTime) -> Result<(), TlsError> {
    let myself = Accept::Identities(vec![certificate.identity().clone()]);
    let at = now.max(certificate.not_before());
    match tls::verify_chain(certificate.chain(), trusted, &myself, at) {
        Err(TlsError::RevocationListExpired { .. }) => {
            let without = Trusted { bundles: trusted.bundles.clone(), revoked: Default::default() };
            tls::verify_chain(certificate.chain(), &without, &myself, at).map(drop)
        }
        other => other.map(drop),
    }
}

/// A peer takes in no more, and a handshake with it would fail.
const MOST_LINKS: usize = 16;
const MOST_BYTES: usize = 64 * 1024;
