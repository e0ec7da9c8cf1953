//! Why a certificate or a handshake was refused, and how to find that out from an I/O error.

use std::io;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, OtherError};
use rustls_pki_types::UnixTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::provider::offered;
use super::{Profile, profile, provider};
use crate::model::spiffe::SpiffeError;
use crate::model::{Cause, SpiffeId, TrustDomain};

/// Each variant is one broken rule. What the peer sent is quoted, escaped and shortened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TlsError {
    // The peer's certificate, or one that an issuer gave us.
    #[error("no certificate was presented: mutual TLS needs one; see what the peer's issuer says")]
    NoCertificate,
    #[error("the certificate does not parse as X.509 v3 ({0}): it was damaged, or is not a certificate")]
    Malformed(String),
    #[error(
        "an X.509-SVID has exactly one URI SAN, this leaf has {count}: {shown}: issue it with its SPIFFE id as the only URI"
    )]
    UriSans { count: usize, shown: String },
    #[error(
        "the URI SAN {uri:?} is not a workload's SPIFFE id ({source}): correct what the issuer was asked for"
    )]
    SpiffeId { uri: String, source: SpiffeError },
    #[error("{identity} presented a CA certificate as its own: a leaf must say CA:FALSE")]
    CaAsLeaf { identity: SpiffeId },
    #[error(
        "the leaf of {identity} has key usage {found}: an SVID needs digitalSignature and may not have keyCertSign or cRLSign"
    )]
    KeyUsage { identity: SpiffeId, found: String },
    #[error(
        "the leaf of {identity} has extended key usage {found}: an SVID that has any needs both serverAuth and clientAuth"
    )]
    ExtendedKeyUsage { identity: SpiffeId, found: String },
    #[error("the certificate of {identity}, or one above it, expired at {} (it is {} here): see why its issuer does not renew it, and compare the clocks", utc(*.not_after), utc(*.now))]
    Expired { identity: SpiffeId, not_after: UnixTime, now: UnixTime },
    #[error("the certificate of {identity}, or one above it, is valid only from {} (it is {} here): compare the clocks of the nodes and the issuer", utc(*.not_before), utc(*.now))]
    NotYetValid { identity: SpiffeId, not_before: UnixTime, now: UnixTime },
    #[error("{identity} does not chain to a root of trust domain {} ({why}): its issuer hangs under another root, or our bundle is old", .identity.trust_domain())]
    Chain { identity: SpiffeId, why: String },

    #[error("{what} is revoked by its issuer {issuer:?} (serial {serial}): if that was meant, nothing is to be done; a workload that should go on needs a new certificate", what = whose(.holder, .above.as_deref()))]
    Revoked { holder: String, above: Option<String>, serial: String, issuer: String },
    #[error("the revocation list of {issuer:?}, in the chain of {holder}, was to be replaced by {} (it is {} here), and what it does not name may be revoked by now: give the issuer's newest list", utc(*.next_update), utc(*.now))]
    RevocationListExpired { holder: String, issuer: String, next_update: UnixTime, now: UnixTime },
    #[error(
        "an issuer in the chain of {holder} signed a revocation list without cRLSign in its key usage: give a list by an issuer that may sign it"
    )]
    RevocationListSigner { holder: String },

    // A certificate in order, of somebody else than we accept.
    #[error(
        "no roots are held for the trust domain that {identity} claims: if it is to be trusted, configure its bundle"
    )]
    UnknownTrustDomain { identity: SpiffeId },
    #[error("{identity} is of a trust domain that is not accepted here (accepted: {accepted})")]
    ForeignTrustDomain { identity: SpiffeId, accepted: String },
    #[error(
        "the peer proved {identity}, but expected was {expected}: the address may belong to another pod by now, or the service lacks this subject alternative name"
    )]
    UnexpectedIdentity { identity: SpiffeId, expected: String },
    #[error(
        "no identity is expected of the peer, so nobody can prove to be it: the workload's identity is missing from discovery"
    )]
    NothingExpected,

    // Our own side.
    #[error("a root for trust domain {domain} is unusable ({why}): give X.509 v3 certificates with CA:TRUE")]
    Root { domain: TrustDomain, why: String },
    #[error("a revocation list is unusable ({why}): give complete X.509 v2 lists, in DER or PEM")]
    RevocationList { why: String },
    #[error(
        "the private key does not fit the certificate of {identity}, or cannot be loaded ({why}): ask the issuer again"
    )]
    Key { identity: SpiffeId, why: String },
    #[error(
        "TLS profile {asked} was asked for when {in_force} was in force already: this is a defect of the program, report it"
    )]
    Profile { asked: Profile, in_force: Profile },
    #[error("rustls refused the configuration ({0}): this is a defect of the agent, report it")]
    Configuration(String),
    #[error("the peer negotiated ALPN {found}, HBONE is \"h2\": it is no HBONE peer")]
    Alpn { found: String },
}

impl TlsError {
    /// Whether the certificate may be sound but belongs to somebody we do not accept.
    pub fn is_wrong_identity(&self) -> bool {
        matches!(
            self,
            Self::UnknownTrustDomain { .. }
                | Self::ForeignTrustDomain { .. }
                | Self::UnexpectedIdentity { .. }
                | Self::NothingExpected
        )
    }

    /// Whether the certificate may be sound but the roots at hand do not vouch for it.
    pub fn is_unvouched(&self) -> bool {
        matches!(
            self,
            Self::Chain { .. } | Self::UnknownTrustDomain { .. } | Self::RevocationListSigner { .. }
        )
    }

    /// The word for the access log.
    pub fn cause(&self) -> Cause {
        match self {
            Self::Revoked { .. } => Cause::TrustRevoked,
            e if e.is_wrong_identity() => Cause::WrongIdentity,
            _ => Cause::TlsFailed,
        }
    }
}

/// What to record for a handshake that ended with `error`: [`Cause::WrongIdentity`] when the peer is
/// somebody else than we accept, [`Cause::TrustRevoked`] when its certificate was taken back,
/// [`Cause::TlsFailed`] for everything else.
///
/// A peer that refuses *us* says so with an alert that does not tell why, so that is `TlsFailed`.
pub fn cause_of(error: &io::Error) -> Cause {
    ours(error).map_or(Cause::TlsFailed, TlsError::cause)
}

/// [`cause_of`] for an error that rustls gave directly.
pub fn cause_of_tls(error: &rustls::Error) -> Cause {
    ours_in_tls(error).map_or(Cause::TlsFailed, TlsError::cause)
}

/// The sentence for the log. rustls prints an error of ours that it carries in Rust's debug format.
pub fn reason_of(error: &io::Error) -> String {
    if let Some(ours) = ours(error) {
        return ours.to_string();
    }
    let in_tls = error.get_ref().and_then(|inner| inner.downcast_ref());
    in_tls.and_then(|e| nothing_in_common(e, profile(), &provider())).unwrap_or_else(|| error.to_string())
}

/// The profiles of the two ends do not meet, in words. The end that dials hears only an alert.
pub(super) fn nothing_in_common(
    error: &rustls::Error,
    profile: Profile,
    provider: &CryptoProvider,
) -> Option<String> {
    use rustls::{AlertDescription as Alert, PeerIncompatible as Peer};
    let what = match error {
        rustls::Error::PeerIncompatible(Peer::NoKxGroupsInCommon) => "the peer offers no key exchange of",
        rustls::Error::PeerIncompatible(Peer::NoCipherSuitesInCommon) => "the peer offers no cipher suite of",
        rustls::Error::PeerIncompatible(Peer::NoSignatureSchemesInCommon) => {
            "the peer takes no signature of ours, by"
        }
        rustls::Error::AlertReceived(Alert::HandshakeFailure) => "the peer takes nothing of",
        _ => return None,
    };
    let offered = offered(provider);
    Some(format!("{what} TLS profile {profile} ({offered}): set profiles that meet at both ends ({error})"))
}

fn ours(error: &io::Error) -> Option<&TlsError> {
    let inner = error.get_ref()?;
    inner.downcast_ref().or_else(|| ours_in_tls(inner.downcast_ref()?))
}

fn ours_in_tls(error: &rustls::Error) -> Option<&TlsError> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner)))
        | rustls::Error::Other(OtherError(inner)) => inner.downcast_ref(),
        _ => None,
    }
}

impl From<TlsError> for rustls::Error {
    // `Other` costs the peer a more telling alert than certificate_unknown, but it is the only variant
    // that carries our own error to whoever writes the access log.
    fn from(error: TlsError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// The leaf's own certificate, or one above it.
fn whose(leaf: &str, above: Option<&str>) -> String {
    match above {
        None => format!("the certificate of {leaf}"),
        Some(name) => format!("the authority {name:?}, in the chain of {leaf},"),
    }
}

fn utc(t: UnixTime) -> String {
    i64::try_from(t.as_secs())
        .ok()
        .and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok())
        .and_then(|t| t.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{:?}", UNIX_EPOCH + Duration::from_secs(t.as_secs().min(1 << 40))))
}
