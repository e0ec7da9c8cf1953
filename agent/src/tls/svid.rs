//! The rules of an X.509-SVID leaf, read from its DER.
//!
//! SPIFFE X509-SVID, sections 2 to 4. Two readings are deliberate. *Exactly* one URI SAN: Istio's own
//! peers look for one that fits among several, which lets whoever can add a URI to a certificate be two
//! workloads at once; Istio and SPIRE both issue exactly one. A SAN that is not critical although the
//! subject is empty is tolerated: we read it either way, and the issuer's slip widens nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::extensions::{GeneralName, KeyUsage, ParsedExtension};
use x509_parser::oid_registry::OID_X509_EXT_BASIC_CONSTRAINTS;
use x509_parser::prelude::{ASN1Time, FromDer};
use x509_parser::x509::X509Version;

use super::TlsError;
use crate::model::SpiffeId;
use crate::model::spiffe::shorten;

/// The identity that the first certificate of `chain` claims, if that certificate is an X.509-SVID.
///
/// It is proven only if a handshake verified the chain; [`super::peer_of`] is for that case.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, TlsError> {
    let leaf = chain.first().ok_or(TlsError::NoCertificate)?;
    Ok(Svid::read(leaf)?.identity)
}

/// What any certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub subject: String,
    pub issuer: String,
    /// Lower-case hexadecimal.
    pub serial: String,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// What the certificate says of itself; proves nothing.
pub fn summary(der: &CertificateDer<'_>) -> Result<Summary, TlsError> {
    let parsed = parse(der)?;
    Ok(Summary {
        subject: shorten(&parsed.subject().to_string()),
        issuer: shorten(&parsed.issuer().to_string()),
        serial: hex(parsed.raw_serial()),
        not_before: system_time(parsed.validity().not_before),
        not_after: system_time(parsed.validity().not_after),
    })
}

/// What a leaf says, all rules of form kept.
pub(super) struct Svid {
    pub(super) identity: SpiffeId,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    /// Lower-case hexadecimal.
    pub(super) serial: String,
    /// The issuer's distinguished name.
    pub(super) issuer: String,
    /// Of the key that signed it, as the leaf says.
    pub(super) authority_key_id: Option<Vec<u8>>,
}

impl Svid {
    pub(super) fn read(leaf: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let leaf = parse(leaf)?;
        let identity = identity_of(&leaf)?;
        if is_ca(&leaf)? {
            return Err(TlsError::CaAsLeaf { identity });
        }
        check_key_usage(&leaf, &identity)?;
        check_extended_key_usage(&leaf, &identity)?;
        Ok(Self {
            identity,
            not_before: system_time(leaf.validity().not_before),
            not_after: system_time(leaf.validity().not_after),
            serial: hex(leaf.raw_serial()),
            issuer: shorten(&leaf.issuer().to_string()),
            authority_key_id: authority_key_id(&leaf),
        })
    }
}

fn authority_key_id(leaf: &X509Certificate<'_>) -> Option<Vec<u8>> {
    leaf.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(of) => of.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    })
}

/// One X.509 v3 certificate with nothing behind it.
pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, TlsError> {
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|e| TlsError::Malformed(e.to_string()))?;
    if !rest.is_empty() {
        return Err(TlsError::Malformed(format!("{} bytes follow it", rest.len())));
    }
    if certificate.version() != X509Version::V3 {
        return Err(TlsError::Malformed(format!("version {}", certificate.version().0)));
    }
    Ok(certificate)
}

/// Whether basic constraints say CA:TRUE. Absent means no.
pub(super) fn is_ca(certificate: &X509Certificate<'_>) -> Result<bool, TlsError> {
    let name = "basic constraints";
    // x509-parser's own accessor takes one that does not parse for one that is not there.
    match certificate.get_extension_unique(&OID_X509_EXT_BASIC_CONSTRAINTS).map_err(unreadable(name))? {
        None => Ok(false),
        Some(extension) => match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(constraints) => Ok(constraints.ca),
            _ => Err(unreadable(name)(X509Error::InvalidExtensions)),
        },
    }
}

/// Whether it may sign certificates: CA:TRUE, and keyCertSign unless it has no key usage at all.
pub(super) fn may_sign(certificate: &X509Certificate<'_>) -> Result<bool, TlsError> {
    let usage = certificate.key_usage().map_err(unreadable("key usage"))?;
    Ok(is_ca(certificate)? && usage.is_none_or(|e| e.value.key_cert_sign()))
}

/// Whether it may sign revocation lists: cRLSign unless it has no key usage at all.
pub(super) fn may_sign_lists(certificate: &X509Certificate<'_>) -> Result<bool, TlsError> {
    let usage = certificate.key_usage().map_err(unreadable("key usage"))?;
    Ok(usage.is_none_or(|e| e.value.crl_sign()))
}

pub(super) fn identity_of(leaf: &X509Certificate<'_>) -> Result<SpiffeId, TlsError> {
    let names = leaf
        .subject_alternative_name()
        .map_err(unreadable("subject alternative name"))?
        .map_or(&[][..], |e| &e.value.general_names);
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    // A URI that is not even text must not hide behind one that is.
    if names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
        return Err(TlsError::Malformed("a subject alternative name is not valid text".into()));
    }
    match uris[..] {
        [uri] => uri.parse().map_err(|source| TlsError::SpiffeId { uri: shorten(uri), source }),
        _ => Err(TlsError::UriSans { count: uris.len(), shown: shorten(&format!("{uris:?}")) }),
    }
}

pub(super) fn check_key_usage(leaf: &X509Certificate<'_>, identity: &SpiffeId) -> Result<(), TlsError> {
    let Some(extension) = leaf.key_usage().map_err(unreadable("key usage"))? else { return Ok(()) };
    let usage: &KeyUsage = extension.value;
    if usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign() {
        return Ok(());
    }
    Err(TlsError::KeyUsage { identity: identity.clone(), found: format!("[{usage}]") })
}

pub(super) fn check_extended_key_usage(
    leaf: &X509Certificate<'_>,
    identity: &SpiffeId,
) -> Result<(), TlsError> {
    let extension = leaf.extended_key_usage().map_err(unreadable("extended key usage"))?;
    let Some(usage) = extension.map(|e| e.value) else { return Ok(()) };
    if usage.server_auth && usage.client_auth {
        return Ok(());
    }
    let known = [
        (usage.server_auth, "serverAuth"),
        (usage.client_auth, "clientAuth"),
        (usage.any, "any"),
        (usage.code_signing, "codeSigning"),
        (usage.email_protection, "emailProtection"),
        (usage.time_stamping, "timeStamping"),
        (usage.ocsp_signing, "OCSPSigning"),
    ];
    let mut found: Vec<String> =
        known.into_iter().filter(|(set, _)| *set).map(|(_, name)| name.to_owned()).collect();
    found.extend(usage.other.iter().map(ToString::to_string));
    Err(TlsError::ExtendedKeyUsage { identity: identity.clone(), found: shorten(&format!("{found:?}")) })
}

/// What [`hex`] wrote; other text gives other bytes, never an error.
pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).filter_map(|i| u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()).collect()
}

/// Lower case.
/// In lower case.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The distinguished name, for a message.
pub(super) fn subject(der: &CertificateDer<'_>) -> String {
    parse(der).map_or_else(|e| e.to_string(), |certificate| shorten(&certificate.subject().to_string()))
}

/// x509-parser's accessors fail when an extension comes twice or does not parse.
fn unreadable(name: &'static str) -> impl Fn(X509Error) -> TlsError {
    move |e| TlsError::Malformed(format!("{name}: {e}"))
}

/// Times before 1970 become 1970: as a start that is as good, and as an end it is past all the same.
pub(super) fn system_time(t: ASN1Time) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(t.timestamp()).unwrap_or(0))
}
