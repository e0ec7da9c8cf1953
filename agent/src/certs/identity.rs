//! A certificate made ready for handshakes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustls::{ClientConfig, ServerConfig};

use super::{CertError, Issued};
use crate::model::SpiffeId;
use crate::tls::{self, Accept, Certificate, ClientTemplate, TlsError, Trust};

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
            server: tls::server_config(&certificate, &trust)?,
            client: ClientTemplate::new(&certificate, &trust)?,
            certificate,
            trust,
        })
    }

    /// Checks an issuer's answer as a peer would, at `now`: no handshake should be the first to notice
    /// that a certificate is somebody else's, expired, or of an unknown root.
    pub(super) fn from_issued(issued: Issued, asked: &SpiffeId, now: SystemTime) -> Result<Self, CertError> {
        let certificate = Certificate::new(issued.chain, issued.key.clone_key())?;
        if certificate.identity() != asked {
            return Err(CertError::OtherIdentity {
                asked: asked.clone(),
                got: certificate.identity().clone(),
            });
        }
        let myself = Accept::Identities(vec![asked.clone()]);
        tls::verify_chain(certificate.chain(), &issued.roots.clone().into(), &myself, now)?;
        Ok(Self::new(certificate, issued.roots)?)
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
