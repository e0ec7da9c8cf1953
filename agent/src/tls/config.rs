//! rustls configurations for both ends of an HBONE tunnel.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, CommonState, ServerConfig};

use super::svid::Svid;
use super::verify::{Accept, Verifier};
use super::{Certificate, TlsError, Trust, peer_identity, provider};
use crate::model::{SpiffeId, TrustDomain};

/// The only protocol inside a tunnel, in both directions.
const ALPN: &[u8] = b"h2";

/// For dialling somebody who must prove one of `expected`; none at all is an error, as it can only fail.
///
/// Whoever dials often with one certificate keeps a [`ClientTemplate`] instead.
pub fn client_config(
    certificate: &Certificate,
    trust: impl Into<Trust>,
    expected: &[SpiffeId],
) -> Result<Arc<ClientConfig>, TlsError> {
    ClientTemplate::new(certificate, trust)?.expecting(expected)
}

/// For accepting clients of our own trust domain, as Istio's peers do. Policy judges them afterwards.
pub fn server_config(
    certificate: &Certificate,
    trust: impl Into<Trust>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let own = certificate.identity().trust_domain().clone();
    server_config_accepting(certificate, trust, BTreeSet::from([own]))
}

/// As [`server_config`], for clients of any of the trust domains in `accepted` (federation).
pub fn server_config_accepting(
    certificate: &Certificate,
    trust: impl Into<Trust>,
    accepted: BTreeSet<TrustDomain>,
) -> Result<Arc<ServerConfig>, TlsError> {
    server_config_by(provider(), certificate, trust.into(), Accept::TrustDomains(accepted))
}

/// As [`server_config`], for clients of every trust domain that `trust` holds roots for when they come: to
/// give a domain's roots is to let its workloads in, as far as policy does.
pub fn server_config_federated(
    certificate: &Certificate,
    trust: impl Into<Trust>,
) -> Result<Arc<ServerConfig>, TlsError> {
    server_config_by(provider(), certificate, trust.into(), Accept::Trusted)
}

pub(super) fn server_config_by(
    provider: Arc<CryptoProvider>,
    certificate: &Certificate,
    trust: Trust,
    accept: Accept,
) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = Verifier::new(trust, accept, &provider);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| TlsError::Configuration(e.to_string()))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certificate.certified_key())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would outlive the certificate that it was proven with.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// Everything of a client's configuration but whom it expects: what is dear to make is made once per
/// certificate, and each tunnel pays for a shallow copy.
#[derive(Clone, Debug)]
pub struct ClientTemplate {
    config: ClientConfig,
    trust: Trust,
}

impl ClientTemplate {
    pub fn new(certificate: &Certificate, trust: impl Into<Trust>) -> Result<Self, TlsError> {
        Self::by(provider(), certificate, trust.into())
    }

    pub(super) fn by(
        provider: Arc<CryptoProvider>,
        certificate: &Certificate,
        trust: Trust,
    ) -> Result<Self, TlsError> {
        let nobody = Verifier::new(trust.clone(), Accept::Identities(Vec::new()), &provider);
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| TlsError::Configuration(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(nobody))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certificate.certified_key())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        Ok(Self { config, trust })
    }

    /// For dialling somebody who must prove one of `expected`.
    pub fn expecting(&self, expected: &[SpiffeId]) -> Result<Arc<ClientConfig>, TlsError> {
        if expected.is_empty() {
            return Err(TlsError::NothingExpected);
        }
        let expected = Accept::Identities(expected.to_vec());
        let verifier = Verifier::new(self.trust.clone(), expected, self.config.crypto_provider());
        let mut config = self.config.clone();
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        Ok(Arc::new(config))
    }
}

/// After a handshake with one of our configurations: until when the peer's certificate is valid.
pub fn peer_valid_until(connection: &CommonState) -> Result<SystemTime, TlsError> {
    let leaf = connection.peer_certificates().and_then(<[_]>::first).ok_or(TlsError::NoCertificate)?;
    Ok(Svid::read(leaf)?.not_after)
}

/// After a handshake with one of our configurations: who the peer proved to be.
///
/// Also fails if ALPN did not settle on h2: rustls lets a peer that sends no ALPN pass.
pub fn peer_of(connection: &CommonState) -> Result<SpiffeId, TlsError> {
    match connection.alpn_protocol() {
        Some(ALPN) => {}
        other => {
            let found = other.map_or("none".into(), |p| format!("{:?}", String::from_utf8_lossy(p)));
            return Err(TlsError::Alpn { found });
        }
    }
    peer_identity(connection.peer_certificates().ok_or(TlsError::NoCertificate)?)
}
