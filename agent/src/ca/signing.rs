//! The authority's files, as one state that fits together.
//!
//! The folder is that of Istio's `cacerts` secret: `ca-cert.pem` and `ca-key.pem` sign, `cert-chain.pem`
//! leads from there towards a root (and may be absent right under it), `root-cert.pem` holds every root
//! that agents are to trust. Files are replaced one after the other, so what is read may be half old and
//! half new: it counts only if a leaf that is signed with it is one that our agents would believe. `revision`,
//! which a rotation raises when it has replaced the others, is read before them: what is told under a number is
//! never older than the number.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rcgen::PublicKeyData;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use super::kubernetes::Keys;
use super::rotation::{REVISION, read_revision};
use crate::certs::FileError;
use crate::certs::keeping::{SecretKey, read_file};
use crate::certs::leaf;
use crate::model::spiffe::shorten;
use crate::model::{SpiffeId, TrustDomain};
use crate::tls::{self, Accept, TrustBundles, Trusted, sha256};
pub(super) use crate::tls::{hex, unhex};

/// The issuing certificate.
pub const CERTIFICATE: &str = "ca-cert.pem";
/// Its key.
pub const KEY: &str = "ca-key.pem";
/// The issuing certificate and what is above it.
pub const CHAIN: &str = "cert-chain.pem";
/// All roots that are to be trusted.
pub const ROOTS: &str = "root-cert.pem";

/// Why the authority's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error(
        "{0}: an authority's folder has {CERTIFICATE}, {KEY}, {CHAIN} and {ROOTS}; `underpass ca intermediate` makes them"
    )]
    File(#[from] FileError),
    #[error("{} is unusable: {why}", .path.display())]
    Unusable { path: PathBuf, why: String },
    #[error("a certificate's lifetime is at least a second and the default at most the longest, not {0}")]
    Times(String),
}

/// One root that is to be trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootView {
    /// Of its DER, in lower-case hexadecimal.
    pub sha256: String,
    pub subject: String,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// What the authority signs with, and what is to be trusted: one consistent state of the files.
pub struct Signing {
    /// The roots, for the authority's trust domain.
    pub bundles: TrustBundles,
    /// The same, one by one.
    pub roots: Vec<RootView>,
    /// The same as PEM text.
    pub roots_pem: String,
    /// How often a rotation has changed all this.
    pub revision: u64,
    /// The issuing certificate's key identifier in lower-case hexadecimal; leaves have it as that of
    /// their authority.
    pub authority: String,
    /// The issuing certificate and what is between it and a root; empty when a root itself signs.
    pub chain: Vec<CertificateDer<'static>>,
    /// The root that it rests on, as [`RootView::sha256`].
    pub root: String,
    /// From when on every certificate from the issuing one to the root is valid.
    pub not_before: SystemTime,
    /// When the first of them ends.
    pub not_after: SystemTime,
    pub(super) issuer: rcgen::Issuer<'static, SecretKey>,
    /// Of the files' bytes.
    pub(super) digest: [u8; 32],
}

impl std::fmt::Debug for Signing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signing")
            .field("authority", &self.authority)
            .field("root", &self.root)
            .field("roots", &self.roots)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// The files' bytes, read one after the other.
pub(super) struct Files {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    chain: Vec<u8>,
    roots: Vec<u8>,
    revision: Vec<u8>,
    pub(super) digest: [u8; 32],
}

impl Files {
    pub(super) fn read(folder: &Path) -> Result<Self, FileError> {
        let read = |name: &str| read_file(&folder.join(name));
        let optional = |name: &str, absent: &[u8]| match read(name) {
            Err(e) if e.source.kind() == std::io::ErrorKind::NotFound => Ok(absent.to_vec()),
            other => other.map(|bytes| bytes.to_vec()),
        };
        // First: see above.
        let revision = optional(REVISION, b"0")?;
        let certificate = read(CERTIFICATE)?.to_vec();
        let key = read(KEY)?;
        let chain = optional(CHAIN, b"")?;
        let roots = read(ROOTS)?.to_vec();
        Ok(Self::new(certificate, key, chain, roots, revision))
    }

    /// The same from a secret's keys; else the name of what is not there.
    pub(super) fn of(keys: &Keys) -> Result<Self, &'static str> {
        let read = |name: &'static str| keys.get(name).ok_or(name);
        let optional =
            |name, absent: &[u8]| read(name).map_or_else(|_| absent.to_vec(), |bytes| bytes.to_vec());
        let (chain, revision) = (optional(CHAIN, b""), optional(REVISION, b"0"));
        Ok(Self::new(read(CERTIFICATE)?.to_vec(), read(KEY)?.clone(), chain, read(ROOTS)?.to_vec(), revision))
    }

    fn new(
        certificate: Vec<u8>,
        key: Zeroizing<Vec<u8>>,
        chain: Vec<u8>,
        roots: Vec<u8>,
        revision: Vec<u8>,
    ) -> Self {
        let digests = [&certificate, &*key, &chain, &roots, &revision].map(|bytes| sha256(bytes));
        Self { digest: sha256(digests.as_flattened()), certificate, key, chain, roots, revision }
    }
}

impl Signing {
    /// Checks that the files belong together. `folder` is what errors name.
    pub(super) fn of(
        folder: &Path,
        files: &Files,
        domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let unusable = |name: &str, why: String| AuthorityError::Unusable {
            path: folder.join(name),
            why: shorten(&why),
        };
        let roots = certificates(&files.roots).map_err(|why| unusable(ROOTS, why))?;
        let mut bundles = TrustBundles::new();
        bundles.add(domain, roots.iter().cloned()).map_err(|e| unusable(ROOTS, e.to_string()))?;

        let own = certificates(&files.certificate).map_err(|why| unusable(CERTIFICATE, why))?;
        let [own] = &own[..] else {
            return Err(unusable(CERTIFICATE, format!("{} certificates are in it, not one", own.len())));
        };
        let parsed = parse(own).map_err(|why| unusable(CERTIFICATE, why))?;
        // Another's certificate would sign for our domain all the same, as nothing in it limits that.
        if let Ok(Some(stated)) = stated_domain(&parsed)
            && stated != *domain
        {
            let why =
                format!("it is for the trust domain {stated}, and certificates are issued for {domain}");
            return Err(unusable(CERTIFICATE, why));
        }
        let key = SecretKey::from_pem(&files.key).map_err(|why| unusable(KEY, why))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(unusable(
                KEY,
                format!(
                    "it is not the key of {CERTIFICATE}: bring back the one that is (`ca intermediate` keeps those that \
                     it replaces as *.old), or make both anew"
                ),
            ));
        }

        let mut chain = vec![own.clone()];
        if !files.chain.is_empty() {
            chain.extend(certificates(&files.chain).map_err(|why| unusable(CHAIN, why))?);
        }
        let (chain, top) = path(chain, &roots).map_err(|why| unusable(CHAIN, why))?;
        let mut not_before =
            system_time(parse(&top).map_err(|why| unusable(ROOTS, why))?.validity().not_before);
        let mut not_after =
            system_time(parse(&top).map_err(|why| unusable(ROOTS, why))?.validity().not_after);
        for der in &chain {
            let validity = parse(der).map_err(|why| unusable(CHAIN, why))?.validity().clone();
            not_before = not_before.max(system_time(validity.not_before));
            not_after = not_after.min(system_time(validity.not_after));
        }

        let authority = hex(&key_id(&parsed));
        let issuer =
            rcgen::Issuer::from_ca_cert_der(own, key).map_err(|e| unusable(CERTIFICATE, e.to_string()))?;
        let signing = Self {
            revision: read_revision(&files.revision).map_err(|why| unusable(REVISION, why))?,
            roots: roots.iter().map(view).collect::<Result<_, _>>().map_err(|why| unusable(ROOTS, why))?,
            roots_pem: roots.iter().map(pem).collect(),
            root: hex(&sha256(&top)),
            digest: files.digest,
            authority,
            bundles,
            chain,
            not_before,
            not_after,
            issuer,
        };
        signing.probe(domain, now).map_err(|why| unusable(CERTIFICATE, why))?;
        Ok(signing)
    }

    /// Signs a leaf for nobody and judges it as a peer would. Also finds names that would be written
    /// otherwise into leaves than they stand in the issuing certificate.
    fn probe(&self, domain: &TrustDomain, now: SystemTime) -> Result<(), String> {
        if self.not_before >= self.not_after {
            return Err("its chain is at no time valid as a whole".into());
        }
        // Whether it is valid now is asked at each signature.
        let at = now.clamp(self.not_before, self.not_after);
        let nobody = SpiffeId::new(domain.clone(), "underpass", "probe").map_err(|e| e.to_string())?;
        let leaf = leaf::params(&nobody, self.not_before, self.not_after).map_err(|e| e.to_string())?;
        let key = SecretKey::generate().map_err(|e| e.to_string())?;
        let leaf = leaf.signed_by(&key, &self.issuer).map_err(|e| e.to_string())?;
        let chain: Vec<_> = std::iter::once(leaf.into()).chain(self.chain.iter().cloned()).collect();
        let accept = Accept::Identities(vec![nobody]);
        let trusted = Trusted::from(self.bundles.clone());
        tls::verify_chain(&chain, &trusted, &accept, at)
            .map(drop)
            .map_err(|e| format!("peers would not believe what it signs: {e}"))
    }
}

/// Orders what is in the chain's file: each by the next, up to just below a root. Gives the root too.
fn path(
    chain: Vec<CertificateDer<'static>>,
    roots: &[CertificateDer<'static>],
) -> Result<(Vec<CertificateDer<'static>>, CertificateDer<'static>), String> {
    let mut path: Vec<CertificateDer<'static>> = Vec::new();
    for der in &chain {
        if roots.contains(der) {
            // A root may stand at the end, or sign by itself.
            if path.last().is_none_or(|last| signed_by(last, der)) {
                return Ok((path, der.clone()));
            }
            continue;
        }
        if path.contains(der) {
            continue;
        }
        if let Some(last) = path.last()
            && !signed_by(last, der)
        {
            return Err(format!("{} did not sign {}", name(der), name(last)));
        }
        path.push(der.clone());
    }
    let last = path.last().ok_or("it is empty")?;
    // Of several certificates for one root's key, the one that lasts longest.
    let root = roots.iter().filter(|root| signed_by(last, root)).max_by_key(|root| end_of(root));
    let root = root.ok_or_else(|| format!("no root of {ROOTS} signed {}", name(last)))?.clone();
    Ok((path, root))
}

/// Every certificate of a PEM text, at least one.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found =
        CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
    if found.is_empty() {
        return Err("no CERTIFICATE section".into());
    }
    let mut unique: Vec<CertificateDer<'static>> = Vec::new();
    found.into_iter().for_each(|der| {
        if !unique.contains(&der) {
            unique.push(der)
        }
    });
    Ok(unique)
}

/// The trust domain that an issuing certificate was made for. Those of others may not say.
pub(super) fn stated_domain(certificate: &X509Certificate<'_>) -> Result<Option<TrustDomain>, String> {
    let names = certificate.subject_alternative_name().map_err(|e| e.to_string())?;
    let mut domains =
        names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix("spiffe://"),
            _ => None,
        });
    let domain =
        domains.next().map(|text| text.parse().map_err(|e| format!("spiffe://{text}: {e}"))).transpose()?;
    if domains.next().is_some() { Err("it names several SPIFFE IDs".into()) } else { Ok(domain) }
}

pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    let (rest, parsed) = X509Certificate::from_der(der).map_err(|e| e.to_string())?;
    if rest.is_empty() { Ok(parsed) } else { Err("bytes follow a certificate".into()) }
}

pub(super) fn signed_by(below: &CertificateDer<'_>, above: &CertificateDer<'_>) -> bool {
    let (Ok(below), Ok(above)) = (parse(below), parse(above)) else { return false };
    below.issuer().as_raw() == above.subject().as_raw()
        && below.verify_signature(Some(above.public_key())).is_ok()
}

pub(super) fn view(der: &CertificateDer<'static>) -> Result<RootView, String> {
    let parsed = parse(der)?;
    Ok(RootView {
        sha256: hex(&sha256(der)),
        subject: shorten(&parsed.subject().to_string()),
        not_before: system_time(parsed.validity().not_before),
        not_after: system_time(parsed.validity().not_after),
    })
}

/// Whether it is a root, valid now, that may have an issuing certificate below it.
pub(crate) fn check_root(der: &CertificateDer<'static>, now: SystemTime) -> Result<(), String> {
    let parsed = parse(der)?;
    let named = name(der);
    if !signed_by(der, der) {
        return Err(format!("{named} is not a root: it did not sign itself"));
    }
    let constraints = parsed.basic_constraints().map_err(|e| e.to_string())?.map(|e| e.value);
    let signs = parsed.key_usage().map_err(|e| e.to_string())?.is_none_or(|e| e.value.key_cert_sign());
    if !signs || !constraints.is_some_and(|c| c.ca && c.path_len_constraint != Some(0)) {
        return Err(format!("{named} may not have intermediates below it (basic constraints, key usage)"));
    }
    let (from, to) = (system_time(parsed.validity().not_before), system_time(parsed.validity().not_after));
    if !(from..to).contains(&now) {
        let when = parsed.validity();
        return Err(format!("{named} is valid from {} to {}, and not now", when.not_before, when.not_after));
    }
    Ok(())
}

/// The subject key identifier; when there is none, what rcgen writes into leaves.
pub(super) fn key_id(parsed: &X509Certificate<'_>) -> Vec<u8> {
    let stated = parsed.iter_extensions().find_map(|e| match e.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    });
    stated.unwrap_or_else(|| sha256(parsed.public_key().raw)[..20].to_vec())
}

pub(super) fn name(der: &CertificateDer<'_>) -> String {
    parse(der).map_or_else(|why| why, |parsed| format!("{:?}", shorten(&parsed.subject().to_string())))
}

fn end_of(der: &CertificateDer<'_>) -> Option<SystemTime> {
    parse(der).ok().map(|parsed| system_time(parsed.validity().not_after))
}

/// As OpenSSL writes it.
pub(super) fn pem(der: &CertificateDer<'_>) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in der.chunks(48) {
        for three in line.chunks(3) {
            let bits =
                three.iter().fold(0u32, |bits, b| bits << 8 | u32::from(*b)) << (8 * (3 - three.len()));
            let letter = |at: usize| char::from(LETTERS[(bits >> (18 - 6 * at)) as usize & 63]);
            (0..4).for_each(|at| out.push(if at <= three.len() { letter(at) } else { '=' }));
        }
        out.push('\n');
    }
    out + "-----END CERTIFICATE-----\n"
}

pub(super) fn system_time(t: x509_parser::time::ASN1Time) -> SystemTime {
    let since = u64::try_from(t.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(since)
}
