//! TLS of the controller's port. A caller may show a certificate of its own making: TLS sees that it holds
//! the key, and attestation whether the key is a node's.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::version::TLS13;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::ServerCertificate;
use crate::ca::attest::PublicKeyPin;
use crate::tls::provider;

pub(super) fn config(certificate: ServerCertificate) -> Arc<ServerConfig> {
    let verifier = AnyKey { algorithms: provider().signature_verification_algorithms };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        // Our provider has suites of TLS 1.3, and nothing else could be wrong here.
        .unwrap_or_else(|e| unreachable!("TLS 1.3 is not in the provider: {e}"))
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(certificate));
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would outlive a node that was taken out of the list.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Arc::new(config)
}

/// The pin of a certificate's key, as the library reads it that has verified the signature by it: another
/// parser might find another key.
pub(super) fn key_of(certificate: &CertificateDer<'_>) -> Option<PublicKeyPin> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    Some(PublicKeyPin::of(&parsed.subject_public_key_info()))
}

/// Believes that the caller has the key of what it shows, and nothing else that is in it.
#[derive(Debug)]
struct AnyKey {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AnyKey {
    /// A caller with a token needs none.
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _above: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
