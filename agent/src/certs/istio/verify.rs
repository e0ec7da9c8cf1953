//! How an authority's server certificate is judged: as the web's are, and by our revocation lists.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::tls::{Crls, check_server_revocation};

/// Takes a server whose certificate is for the name that was dialled, or for an alternative one, if nothing
/// on the way to its root is revoked.
///
/// `WebPkiServerVerifier` could look at lists itself, but takes the first of an issuer's *name*; see
/// `tls/crl.rs` for what that would refuse.
#[derive(Debug)]
pub(super) struct AuthorityVerifier {
    /// Without lists.
    pub(super) verifier: Arc<WebPkiServerVerifier>,
    pub(super) alternatives: Vec<ServerName<'static>>,
    /// Those that `verifier` has.
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) revoked: Crls,
}

impl ServerCertVerifier for AuthorityVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        dialled: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verify = |name: &ServerName<'_>| self.verifier.verify_server_cert(leaf, above, name, ocsp, now);
        let mut verified = verify(dialled);
        for other in &self.alternatives {
            if !matches!(&verified, Err(e) if is_of_another_name(e)) {
                break;
            }
            verified = verify(other);
        }
        let verified = verified?;
        check_server_revocation(leaf, above, dialled, &self.roots, &self.revoked, now)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

fn is_of_another_name(error: &Error) -> bool {
    use CertificateError::{NotValidForName, NotValidForNameContext};
    matches!(error, Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }))
}
