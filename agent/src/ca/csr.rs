//! Signing requests of others: what may be in one, and that its sender holds the key.
//!
//! Only the public key goes on into a certificate; the authority writes the rest itself. A request that
//! asks for more is refused all the same and not trimmed: its sender would get something else than it
//! asked for, and an attempt should be seen.
//!
//! What is let pass is what honest clients send. ztunnel and our own agent: no subject, one critical URI
//! SAN. Istio's sidecar agents: a subject of `O=`, empty or not, and the SAN. openssl with Debian's
//! configuration, cert-manager's drivers: a subject, CA:FALSE, key usages of a leaf. So the subject is
//! ignored, because nobody who verifies an X.509-SVID reads one, and ours are empty.

use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::asn1_rs::{FromDer, Header, Oid};
use x509_parser::certification_request::{X509CertificationRequest, X509CertificationRequestInfo};
use x509_parser::cri_attributes::{ParsedCriAttribute, X509CriAttribute};
use x509_parser::extensions::{GeneralName, ParsedExtension, X509Extension};
use x509_parser::oid_registry::{
    OID_PKCS1_SHA256WITHRSA, OID_PKCS1_SHA384WITHRSA, OID_PKCS1_SHA512WITHRSA, OID_SIG_ECDSA_WITH_SHA256,
    OID_SIG_ECDSA_WITH_SHA384, OID_SIG_ED25519,
};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::X509Version;

use crate::model::SpiffeId;
use crate::model::spiffe::shorten;

/// A request that may be granted: a public key, proven to be its sender's, for one identity.
#[derive(Clone, Debug)]
pub struct CheckedRequest {
    pub(super) identity: SpiffeId,
    pub(super) key: SubjectPublicKeyInfo,
    pub(super) rsa: bool,
}

impl CheckedRequest {
    /// Whom it was granted to.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// The key, as the DER of a SubjectPublicKeyInfo.
    pub fn public_key(&self) -> Vec<u8> {
        rcgen::PublicKeyData::subject_public_key_info(&self.key)
    }
}

/// What is wrong with a request. What it quotes is shortened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("the request has {0} bytes; none needs more than {MOST_BYTES}")]
    TooLarge(usize),
    #[error("the request is not exactly one PEM section CERTIFICATE REQUEST: {0}")]
    Pem(String),
    #[error("the request does not parse: {0}")]
    Malformed(String),
    #[error("the request's key is {0}: use ECDSA on P-256 or P-384, Ed25519, or RSA of 2048 to 4096 bits")]
    Key(String),
    #[error(
        "the request is signed with {0}: use ECDSA with SHA-256 or SHA-384, Ed25519, or RSA (PKCS#1) with SHA-256, SHA-384 or SHA-512"
    )]
    SignatureAlgorithm(String),
    #[error("the request's signature is not by its key: its sender has not shown to hold the key")]
    Possession,
    #[error("the request has the attribute {0}, which is not granted here")]
    Attribute(String),
    #[error("the request asks for {0}, which is not granted here")]
    Extension(String),
    #[error("the request is for {found}, granted is {granted} and nothing else")]
    Names { granted: SpiffeId, found: String },
}

/// Several times a request of an RSA key of 4096 bits.
const MOST_BYTES: usize = 16 << 10;

/// Judges a request in PEM that was granted for `identity`.
pub fn check_request(pem: &str, identity: &SpiffeId) -> Result<CheckedRequest, RequestError> {
    let der = one_section(pem)?;
    let (rest, request) = X509CertificationRequest::from_der(&der).map_err(malformed)?;
    if !rest.is_empty() {
        return Err(RequestError::Malformed(format!("{} bytes follow it", rest.len())));
    }
    let info = &request.certification_request_info;
    if info.version != X509Version::V1 {
        return Err(RequestError::Malformed(format!("version {}", info.version.0)));
    }
    let (key, rsa) = key_of(info)?;
    let algorithm = &request.signature_algorithm.algorithm;
    if !SIGNATURES.contains(algorithm) {
        return Err(RequestError::SignatureAlgorithm(shorten(&algorithm.to_id_string())));
    }
    // Before anything is said about the contents, which until here may be anybody's.
    request.verify_signature().map_err(|_| RequestError::Possession)?;
    check_attributes(info, identity)?;
    Ok(CheckedRequest { identity: identity.clone(), key, rsa })
}

const SIGNATURES: [Oid<'static>; 6] = [
    OID_SIG_ECDSA_WITH_SHA256,
    OID_SIG_ECDSA_WITH_SHA384,
    OID_SIG_ED25519,
    OID_PKCS1_SHA256WITHRSA,
    OID_PKCS1_SHA384WITHRSA,
    OID_PKCS1_SHA512WITHRSA,
];

const BEGIN: &str = "-----BEGIN CERTIFICATE REQUEST-----";
const END: &str = "-----END CERTIFICATE REQUEST-----";

fn one_section(pem: &str) -> Result<CertificateSigningRequestDer<'static>, RequestError> {
    if pem.len() > MOST_BYTES {
        return Err(RequestError::TooLarge(pem.len()));
    }
    let inside = pem.trim().strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(END));
    match inside {
        None => return Err(RequestError::Pem("something else begins or ends it".into())),
        Some(inside) if inside.contains("--") => {
            return Err(RequestError::Pem("there is another section in it".into()));
        }
        Some(_) => {}
    }
    CertificateSigningRequestDer::from_pem_slice(pem.trim().as_bytes())
        .map_err(|e| RequestError::Pem(shorten(&e.to_string())))
}

/// The key, and whether it is of RSA.
fn key_of(info: &X509CertificationRequestInfo<'_>) -> Result<(SubjectPublicKeyInfo, bool), RequestError> {
    let spki = &info.subject_pki;
    let named = || {
        RequestError::Key(format!("of the algorithm {}", shorten(&spki.algorithm.algorithm.to_id_string())))
    };
    let key = SubjectPublicKeyInfo::from_der(spki.raw).map_err(|_| named())?;
    let algorithm = rcgen::PublicKeyData::algorithm(&key);
    let bytes = spki.subject_public_key.data.as_ref();
    let rsa = *algorithm == rcgen::PKCS_RSA_SHA256;
    if rsa {
        let Ok(PublicKey::RSA(parsed)) = spki.parsed() else { return Err(named()) };
        let bits = modulus_bits(parsed.modulus);
        if !(2048..=4096).contains(&bits) {
            return Err(RequestError::Key(format!("RSA of {bits} bits")));
        }
    } else {
        // Points are sent whole: not every verifier reads the compressed form.
        let sound = if *algorithm == rcgen::PKCS_ECDSA_P256_SHA256 {
            bytes.len() == 65 && bytes[0] == 4
        } else if *algorithm == rcgen::PKCS_ECDSA_P384_SHA384 {
            bytes.len() == 97 && bytes[0] == 4
        } else {
            *algorithm == rcgen::PKCS_ED25519 && bytes.len() == 32
        };
        if !sound {
            return Err(named());
        }
    }
    // What goes into the certificate must be the very key that signed the request.
    if rcgen::PublicKeyData::subject_public_key_info(&key) != spki.raw {
        return Err(RequestError::Malformed("its key is not written in DER".into()));
    }
    Ok((key, rsa))
}

fn modulus_bits(modulus: &[u8]) -> usize {
    let zeros = modulus.iter().take_while(|b| **b == 0).count();
    let first = modulus.get(zeros).map_or(8, |b| b.leading_zeros() as usize);
    (modulus.len() - zeros) * 8 - if zeros == modulus.len() { 0 } else { first }
}

/// One extension request at most, and nothing beside it.
fn check_attributes(
    info: &X509CertificationRequestInfo<'_>,
    identity: &SpiffeId,
) -> Result<(), RequestError> {
    let mut seen = false;
    for attribute in info.iter_attributes() {
        let ParsedCriAttribute::ExtensionRequest(request) = attribute.parsed_attribute() else {
            return Err(RequestError::Attribute(shorten(&attribute.oid.to_id_string())));
        };
        if seen || !is_one_value(attribute) {
            return Err(RequestError::Attribute("extensionRequest more than once".into()));
        }
        seen = true;
        check_extensions(&request.extensions, identity)?;
    }
    Ok(())
}

/// Whether its set holds one sequence and nothing else: the parser reads the first and leaves the rest.
fn is_one_value(attribute: &X509CriAttribute<'_>) -> bool {
    content(attribute.value).and_then(content).is_some()
}

/// What is in a DER value, if nothing follows it.
fn content(der: &[u8]) -> Option<&[u8]> {
    let (content, header) = Header::from_der(der).ok()?;
    (header.length().definite().ok()? == content.len()).then_some(content)
}

fn check_extensions(extensions: &[X509Extension<'_>], identity: &SpiffeId) -> Result<(), RequestError> {
    let asks = |what: String| Err(RequestError::Extension(shorten(&what)));
    for (at, extension) in extensions.iter().enumerate() {
        let oid = extension.oid.to_id_string();
        if extensions[..at].iter().any(|earlier| earlier.oid == extension.oid) {
            return asks(format!("the extension {oid} twice"));
        }
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(san) => check_names(&san.general_names, identity)?,
            ParsedExtension::KeyUsage(usage) if usage.key_cert_sign() || usage.crl_sign() => {
                return asks(format!("the key usage [{usage}] of an authority"));
            }
            ParsedExtension::KeyUsage(_) => {}
            ParsedExtension::ExtendedKeyUsage(usage) => {
                let more = usage.any
                    || usage.code_signing
                    || usage.email_protection
                    || usage.time_stamping
                    || usage.ocsp_signing
                    || !usage.other.is_empty();
                if more {
                    return asks("an extended key usage besides serverAuth and clientAuth".into());
                }
            }
            ParsedExtension::BasicConstraints(constraints) => {
                if constraints.ca || constraints.path_len_constraint.is_some() {
                    return asks("to be an authority (basic constraints)".into());
                }
            }
            ParsedExtension::ParseError { .. } => {
                return Err(RequestError::Malformed(format!("the extension {oid}")));
            }
            _ => return asks(format!("the extension {oid}")),
        }
    }
    Ok(())
}

fn check_names(names: &[GeneralName<'_>], identity: &SpiffeId) -> Result<(), RequestError> {
    match names {
        [GeneralName::URI(uri)] if *uri == identity.to_string() => Ok(()),
        _ => {
            let found = shorten(&format!("{names:?}"));
            Err(RequestError::Names { granted: identity.clone(), found })
        }
    }
}

fn malformed(error: impl std::fmt::Display) -> RequestError {
    RequestError::Malformed(shorten(&error.to_string()))
}
