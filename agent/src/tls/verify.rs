//! Whether to believe the peer: one function for both ends, and its two faces towards rustls.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, TrustAnchor, UnixTime};
use webpki::{
    Cert, EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, KeyUsage, RequiredEkuNotFoundContext,
    VerifiedPath, spki_for_anchor,
};

use super::bundle::Root;
use super::crl::Status;
use super::svid::{self, Svid};
use super::{Crls, TlsError, Trust, Trusted, provider};
use crate::model::spiffe::shorten;
use crate::model::{SpiffeId, TrustDomain};

/// Who may be at the other end, once it has proven who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accept {
    /// One of these; an empty list accepts nobody. How a client knows its server.
    Identities(Vec<SpiffeId>),
    /// Anybody of these trust domains. How a server lets clients in, before policy looks at them.
    TrustDomains(BTreeSet<TrustDomain>),
    /// Anybody of a trust domain that roots are held for at the time of the handshake.
    Trusted,
}

/// Verifies that `chain` (leaf first, as the peer sent it) is an X.509-SVID that is valid at `now`,
/// chains to a root of the trust domain it claims with nothing on the way revoked, and names somebody who is
/// accepted. Returns who.
///
/// Roots that are themselves out of date do not count; webpki would let them (RFC 5280 leaves a trust
/// anchor's validity to the user).
pub fn verify_chain(
    chain: &[CertificateDer<'_>],
    trusted: &Trusted,
    accept: &Accept,
    now: SystemTime,
) -> Result<SpiffeId, TlsError> {
    let (leaf, above) = chain.split_first().ok_or(TlsError::NoCertificate)?;
    let algorithms = provider().signature_verification_algorithms;
    verify(leaf, above, trusted, accept, &algorithms, unix(now))
}

fn verify(
    leaf: &CertificateDer<'_>,
    above: &[CertificateDer<'_>],
    trusted: &Trusted,
    accept: &Accept,
    algorithms: &WebPkiSupportedAlgorithms,
    now: UnixTime,
) -> Result<SpiffeId, TlsError> {
    let identity = Svid::read(leaf)?.identity;
    let roots = trusted.bundles.of(identity.trust_domain());
    if roots.is_empty() {
        return Err(TlsError::UnknownTrustDomain { identity });
    }
    let at = UNIX_EPOCH + Duration::from_secs(now.as_secs());
    let valid: Vec<&Root> = roots.iter().filter(|r| r.is_valid_at(at)).collect();
    check_path(leaf, above, &valid, &trusted.revoked, algorithms, now, &identity)
        .map_err(|failed| failed.of(&identity, valid.len(), roots.len() - valid.len()))?;
    accept.check(identity)
}

/// The root (its certificate's SHA-256) that a live peer rests on by `trusted`, of several the one that is
/// valid longest. The chain is judged as of `since`, when it was verified first; see `live.rs` for why.
pub fn rests_on(
    chain: &[CertificateDer<'_>],
    trusted: &Trusted,
    since: SystemTime,
) -> Result<[u8; 32], TlsError> {
    let (leaf, above) = chain.split_first().ok_or(TlsError::NoCertificate)?;
    let identity = Svid::read(leaf)?.identity;
    let now = SystemTime::now();
    let held = trusted.bundles.of(identity.trust_domain());
    if held.is_empty() {
        return Err(TlsError::UnknownTrustDomain { identity });
    }
    let mut roots: Vec<&Root> = held.iter().filter(|r| r.is_valid_at(since) || r.is_valid_at(now)).collect();
    roots.sort_by_key(|root| Reverse(root.not_after));
    let algorithms = provider().signature_verification_algorithms;
    let path = |roots: &[&Root]| {
        check_path(leaf, above, roots, &trusted.revoked, &algorithms, unix(since), &identity)
    };
    if let Some(root) = roots.iter().find(|root| path(&[root]).is_ok()) {
        return Ok(root.digest);
    }
    // By all of them at once, for the reason.
    let outdated = held.len() - roots.len();
    match path(&roots) {
        Err(failed) => Err(failed.of(&identity, roots.len(), outdated)),
        Ok(()) => Err(TlsError::Chain { identity, why: "no single root vouches for it".into() }),
    }
}

/// Whether a server that is known by its name, and has been verified but for this, has a path to one of
/// `roots` with nothing on the way revoked. For those who need be no SVID: the authorities that agents ask.
pub fn check_server_revocation(
    leaf: &CertificateDer<'_>,
    above: &[CertificateDer<'_>],
    name: &ServerName<'_>,
    roots: &[CertificateDer<'static>],
    revoked: &Crls,
    now: UnixTime,
) -> Result<(), Error> {
    if revoked.is_empty() {
        return Ok(());
    }
    let malformed = |e: webpki::Error| Error::from(TlsError::Malformed(e.to_string()));
    let anchors = roots
        .iter()
        .map(|root| webpki::anchor_from_trusted_cert(root).map(|anchor| (anchor, root)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(malformed)?;
    let signs_lists = |of: &TrustAnchor<'_>| {
        let root = anchors.iter().find(|(anchor, _)| anchor == of);
        root.is_some_and(|(_, der)| svid::parse(der).and_then(|r| svid::may_sign_lists(&r)).unwrap_or(false))
    };
    let holder = || format!("the server {}", name.to_str());
    let revocation = Revocation { revoked, signs_lists: &signs_lists, now, holder: &holder };
    let refusal = RefCell::new(None);
    let path = |path: &VerifiedPath<'_>| revocation.check_or_keep(path, &refusal);
    let roots: Vec<TrustAnchor<'_>> = anchors.iter().map(|(anchor, _)| anchor.clone()).collect();
    let algorithms = provider().signature_verification_algorithms;
    let leaf = EndEntityCert::try_from(leaf).map_err(malformed)?;
    let found =
        leaf.verify_for_usage(algorithms.all, &roots, above, now, KeyUsage::server_auth(), None, Some(&path));
    let failed = found.map(drop).err();
    failed.map_or(Ok(()), |e| Err(refusal.take().map_or_else(|| malformed(e), Error::from)))
}

enum Failed {
    Ours(TlsError),
    Webpki(webpki::Error),
}

impl Failed {
    /// For a person: what `identity` showed did not lead to any of `valid` roots.
    fn of(self, identity: &SpiffeId, valid: usize, outdated: usize) -> TlsError {
        let identity = identity.clone();
        match self {
            Self::Ours(e) => e,
            Self::Webpki(webpki::Error::CertExpired { time, not_after }) => {
                TlsError::Expired { identity, not_after, now: time }
            }
            Self::Webpki(webpki::Error::CertNotValidYet { time, not_before }) => {
                TlsError::NotYetValid { identity, not_before, now: time }
            }
            Self::Webpki(other) => TlsError::Chain { identity, why: in_words(&other, valid, outdated) },
        }
    }
}

/// Finds a way from the leaf to one of `roots`. Of several ways one that is in order is enough.
fn check_path(
    leaf: &CertificateDer<'_>,
    above: &[CertificateDer<'_>],
    roots: &[&Root],
    revoked: &Crls,
    algorithms: &WebPkiSupportedAlgorithms,
    now: UnixTime,
    identity: &SpiffeId,
) -> Result<(), Failed> {
    let anchors: Vec<TrustAnchor<'_>> = roots.iter().map(|r| r.anchor.clone()).collect();
    let leaf = EndEntityCert::try_from(leaf).map_err(|e| Failed::Ours(TlsError::Malformed(e.to_string())))?;
    let refusal = RefCell::new(None);
    let signs_lists =
        |anchor: &TrustAnchor<'_>| roots.iter().any(|root| root.anchor == *anchor && root.signs_lists);
    let holder = || identity.to_string();
    let revocation = Revocation { revoked, signs_lists: &signs_lists, now, holder: &holder };
    let path = |path: &VerifiedPath<'_>| {
        issuers_may_sign(path)?;
        revocation.check_or_keep(path, &refusal)
    };
    let found = leaf.verify_for_usage(algorithms.all, &anchors, above, now, BothWays, None, Some(&path));
    match found.map(drop) {
        Ok(()) => Ok(()),
        Err(webpki::Error::CertRevoked) => {
            let ours = refusal.take();
            Err(ours.map_or(Failed::Webpki(webpki::Error::CertRevoked), Failed::Ours))
        }
        Err(other) => Err(Failed::Webpki(other)),
    }
}

fn in_words(error: &webpki::Error, valid: usize, outdated: usize) -> String {
    match error {
        webpki::Error::UnknownIssuer if outdated > 0 => {
            format!("none of {valid} roots signed it; {outdated} more do not count, being out of date")
        }
        webpki::Error::UnknownIssuer => format!("none of {valid} roots signed it"),
        webpki::Error::InvalidSignatureForPublicKey => {
            "a signature is not by the key of the issuer that it names".into()
        }
        webpki::Error::EndEntityUsedAsCa => "one of those above it may not sign certificates".into(),
        other => shorten(&other.to_string()),
    }
}

/// webpki takes CA:TRUE for leave to sign and does not look at key usage; X509-SVID asks for keyCertSign.
fn issuers_may_sign(path: &VerifiedPath<'_>) -> Result<(), webpki::Error> {
    for issuer in path.intermediate_certificates() {
        let der = issuer.der();
        let parsed = svid::parse(&der).map_err(|_| webpki::Error::BadDer)?;
        if !svid::may_sign(&parsed).map_err(|_| webpki::Error::BadDer)? {
            return Err(webpki::Error::EndEntityUsedAsCa);
        }
    }
    Ok(())
}

/// The question of revocation, put to every certificate of a path whose signatures are all in order.
struct Revocation<'a> {
    revoked: &'a Crls,
    /// Whether a root may sign lists.
    signs_lists: &'a dyn Fn(&TrustAnchor<'_>) -> bool,
    now: UnixTime,
    /// Whose path it is, for messages.
    holder: &'a dyn Fn() -> String,
}

impl Revocation<'_> {
    /// As [`Self::check`]. webpki carries only errors of its own: what ours was is left in `refusal`.
    fn check_or_keep(
        &self,
        path: &VerifiedPath<'_>,
        refusal: &RefCell<Option<TlsError>>,
    ) -> Result<(), webpki::Error> {
        self.check(path).map_err(|e| {
            *refusal.borrow_mut() = Some(e);
            webpki::Error::CertRevoked
        })
    }

    fn check(&self, path: &VerifiedPath<'_>) -> Result<(), TlsError> {
        if self.revoked.is_empty() {
            return Ok(());
        }
        let mut below: &Cert<'_> = path.end_entity();
        for issuer in path.intermediate_certificates() {
            self.check_one(below, path, &issuer.subject_public_key_info(), || {
                svid::may_sign_lists(&svid::parse(&issuer.der())?)
            })?;
            below = issuer;
        }
        self.check_one(below, path, &spki_for_anchor(path.anchor()), || Ok((self.signs_lists)(path.anchor())))
    }

    fn check_one(
        &self,
        certificate: &Cert<'_>,
        path: &VerifiedPath<'_>,
        issuers_key: &SubjectPublicKeyInfoDer<'_>,
        signs_lists: impl Fn() -> Result<bool, TlsError>,
    ) -> Result<(), TlsError> {
        let at = UNIX_EPOCH + Duration::from_secs(self.now.as_secs());
        let status = self.revoked.look_up(certificate.issuer(), issuers_key, certificate.serial(), at);
        match status {
            Status::Unlisted => Ok(()),
            Status::Revoked(list) => Err(TlsError::Revoked {
                holder: (self.holder)(),
                above: (certificate.der() != path.end_entity().der())
                    .then(|| svid::subject(&certificate.der())),
                serial: svid::hex(certificate.serial()),
                issuer: list.issuer.clone(),
            }),
            Status::Expired(list) => Err(TlsError::RevocationListExpired {
                holder: (self.holder)(),
                issuer: list.issuer.clone(),
                next_update: unix(list.next_update),
                now: self.now,
            }),
            // As OpenSSL and webpki: what such a list does not name cannot be taken for good.
            Status::Good if !signs_lists()? => {
                Err(TlsError::RevocationListSigner { holder: (self.holder)() })
            }
            Status::Good => Ok(()),
        }
    }
}

fn unix(t: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(t.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
}

/// `svid.rs` judges the leaf's extended key usage, for both directions at once. Those above it may
/// restrict theirs only to what still allows both.
struct BothWays;

impl ExtendedKeyUsageValidator for BothWays {
    fn validate(&self, ids: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let present = ids.map(|id| Ok(id?.to_decoded_oid())).collect::<Result<Vec<_>, webpki::Error>>()?;
        let has = |wanted: &[usize]| present.iter().any(|id| id == wanted);
        if present.is_empty() || has(ANY_USAGE) {
            return Ok(());
        }
        let required = match (has(KeyUsage::SERVER_AUTH_REPR), has(KeyUsage::CLIENT_AUTH_REPR)) {
            (true, true) => return Ok(()),
            (true, false) => KeyUsage::client_auth(),
            (false, _) => KeyUsage::server_auth(),
        };
        let missing = RequiredEkuNotFoundContext { required, present };
        Err(webpki::Error::RequiredEkuNotFoundContext(missing))
    }
}

const ANY_USAGE: &[usize] = &[2, 5, 29, 37, 0];

impl Accept {
    fn check(&self, identity: SpiffeId) -> Result<SpiffeId, TlsError> {
        match self {
            Self::Identities(expected) if expected.is_empty() => Err(TlsError::NothingExpected),
            Self::Identities(expected) if expected.contains(&identity) => Ok(identity),
            Self::Identities(expected) => {
                Err(TlsError::UnexpectedIdentity { identity, expected: list(expected) })
            }
            // Without roots for its domain it would not have got here.
            Self::Trusted => Ok(identity),
            Self::TrustDomains(accepted) if accepted.contains(identity.trust_domain()) => Ok(identity),
            Self::TrustDomains(accepted) => {
                Err(TlsError::ForeignTrustDomain { identity, accepted: list(accepted) })
            }
        }
    }
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|i| i.to_string()).collect();
    shorten(&items.join(", "))
}

/// Stands in both configurations; which trait rustls calls it by says which end we are.
#[derive(Debug)]
pub(super) struct Verifier {
    trust: Trust,
    accept: Accept,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub(super) fn new(trust: Trust, accept: Accept, provider: &CryptoProvider) -> Self {
        Self { trust, accept, algorithms: provider.signature_verification_algorithms }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        verify(leaf, above, &self.trust.now(), &self.accept, &self.algorithms, now)?;
        Ok(ServerCertVerified::assertion())
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

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    /// None: peers have one certificate each and send it whatever the hint.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        verify(leaf, above, &self.trust.now(), &self.accept, &self.algorithms, now)?;
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
