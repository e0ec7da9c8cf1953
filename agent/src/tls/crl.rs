//! Which certificates their issuers have taken back: lists of revoked serial numbers (RFC 5280, 5).
//!
//! The choices, with reasons:
//!
//! - A list counts only if the key that signed the certificate in question also signed the list, in the very
//!   chain that is being verified. So no authority can revoke what another has issued, not even one of the
//!   same name; `webpki` takes the first list of that *name* and fails the chain when its signature does not
//!   fit, which would let a foreign list, or an old root's, refuse everybody below.
//! - No list from an issuer means that nothing is known to be revoked, and its certificates are accepted: most
//!   issuers have none, and lives are short.
//! - A list past its `nextUpdate` refuses its issuer's certificates until there is a newer one, as in ztunnel,
//!   Envoy and OpenSSL: whoever can keep lists from us must not thereby keep a revoked certificate alive.
//!   Only new handshakes are refused; [`CrlView::is_expired_at`] is for warning before that.
//! - A list whose `thisUpdate` is ahead of our clock counts at once: to revoke early is the safe side.
//! - Of several lists of one key and one scope the newest by `thisUpdate` counts.
//! - Delta lists, indirect lists and those by reason are refused when they are read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateRevocationListDer, SubjectPublicKeyInfoDer};
use webpki::{BorrowedCertRevocationList, CertRevocationList, RawPublicKeyEntity};
use x509_parser::asn1_rs::{Any, FromDer};
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Name;

use super::{TlsError, provider, sha256, svid};
use crate::model::spiffe::shorten;

/// Lists of revoked certificates, by whoever issued them. Cheap to clone.
#[derive(Clone, Default)]
pub struct Crls {
    /// By the issuer's name in DER, without the outer tag, as `webpki` gives it.
    by_issuer: Arc<BTreeMap<Vec<u8>, Vec<Arc<List>>>>,
}

/// One list, for metrics and for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrlView {
    /// The distinguished name of the issuer. What it claims: which key signed the list shows only in a chain.
    pub issuer: String,
    /// When it was made.
    pub this_update: SystemTime,
    /// When there should be a newer one. From then on its issuer's certificates are refused.
    pub next_update: SystemTime,
    /// How many certificates it revokes.
    pub revoked: usize,
}

impl CrlView {
    /// Whether it refuses every certificate of its issuer, unless there is a newer one.
    pub fn is_expired_at(&self, now: SystemTime) -> bool {
        now >= self.next_update
    }
}

/// The most bytes that are read as lists at once: some 400,000 revoked certificates.
pub const MAX_CRL_BYTES: usize = 16 * 1024 * 1024;

/// The most lists that are held: a mesh has one for each of its authorities.
const MOST_LISTS: usize = 1024;

impl Crls {
    /// Adds one list in DER, or every `X509 CRL` section of PEM text, at least one. A list that is there
    /// already is not doubled.
    ///
    /// Fails, adding none, if one is no complete list of RFC 5280, or if they are too many or too large.
    pub fn add(&mut self, bytes: &[u8]) -> Result<(), TlsError> {
        if bytes.len() > MAX_CRL_BYTES {
            let why =
                format!("{} bytes are more than the {MAX_CRL_BYTES} that are read at once", bytes.len());
            return Err(TlsError::RevocationList { why });
        }
        // A SEQUENCE of more than 127 bytes, as each list is; no text begins like that.
        let lists = if bytes.first() == Some(&0x30) && bytes.get(1).is_some_and(|b| *b >= 0x80) {
            vec![List::read(bytes)?]
        } else {
            read_pem(bytes)?
        };
        if self.len() + lists.len() > MOST_LISTS {
            return Err(TlsError::RevocationList {
                why: format!("there are more than {MOST_LISTS} of them"),
            });
        }
        let by_issuer = Arc::make_mut(&mut self.by_issuer);
        for list in lists {
            let held = by_issuer.entry(list.issuer.clone()).or_default();
            if !held.iter().any(|h| h.digest == list.digest) {
                held.push(Arc::new(list));
                held.sort_by_key(|list| std::cmp::Reverse((list.view.this_update, list.digest)));
            }
        }
        Ok(())
    }

    /// Adds what `other` holds.
    pub fn add_all(&mut self, other: &Self) {
        for (issuer, lists) in &*other.by_issuer {
            let held = Arc::make_mut(&mut self.by_issuer).entry(issuer.clone()).or_default();
            for list in lists {
                if !held.iter().any(|h| h.digest == list.digest) {
                    held.push(Arc::clone(list));
                }
            }
            held.sort_by_key(|list| std::cmp::Reverse((list.view.this_update, list.digest)));
        }
    }

    /// Each list, an outdated one beside the newer included.
    pub fn iter(&self) -> impl Iterator<Item = &CrlView> {
        self.by_issuer.values().flatten().map(|list| &list.view)
    }

    /// How many lists there are.
    pub fn len(&self) -> usize {
        self.by_issuer.values().map(Vec::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.by_issuer.is_empty()
    }

    /// What the lists say of a certificate of `issuer` (its name) whose key is `key`.
    pub(super) fn look_up(
        &self,
        issuer: &[u8],
        key: &SubjectPublicKeyInfoDer<'_>,
        serial: &[u8],
        now: SystemTime,
    ) -> Status<'_> {
        let Some(named) = self.by_issuer.get(issuer) else { return Status::Unlisted };
        let signer = sha256(key);
        let mut counting: Vec<&List> = Vec::new();
        for list in named {
            let newer = counting.iter().find(|newer| newer.scope == list.scope);
            // Two of the same second: both count.
            if newer.is_some_and(|newer| newer.view.this_update > list.view.this_update) {
                continue;
            }
            if list.is_signed_by(key, signer) {
                counting.push(list);
            }
        }
        if let Some(list) = counting.iter().find(|list| list.revokes(serial)) {
            return Status::Revoked(&list.view);
        }
        match counting.iter().find(|list| list.view.is_expired_at(now)) {
            Some(list) => Status::Expired(&list.view),
            None if counting.is_empty() => Status::Unlisted,
            None => Status::Good,
        }
    }
}

/// What is known of one certificate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Status<'a> {
    /// Its issuer gave no list.
    Unlisted,
    /// The issuer's list does not name it.
    Good,
    Revoked(&'a CrlView),
    /// The list does not name it, but is too old to say.
    Expired(&'a CrlView),
}

struct List {
    view: CrlView,
    issuer: Vec<u8>,
    /// The issuing distribution point: a list may be for a part of the issuer's certificates only. Whatever
    /// the part, a serial number that the issuer lists is revoked, since no two certificates share it.
    scope: Option<Vec<u8>>,
    /// In order.
    serials: Vec<Box<[u8]>>,
    /// Of the whole.
    digest: [u8; 32],
    signed: Signed,
    /// Keys that it was checked with. A signature over megabytes is not for every handshake.
    checked: Mutex<Vec<([u8; 32], bool)>>,
}

struct Signed {
    content: Vec<u8>,
    /// The contents of the AlgorithmIdentifier.
    algorithm: Vec<u8>,
    signature: Vec<u8>,
}

/// Of one list. Only authorities of one name, that a root has certified, get this far; so there are few.
const MOST_CHECKED: usize = 16;

fn read_pem(bytes: &[u8]) -> Result<Vec<List>, TlsError> {
    let unusable = |why: String| TlsError::RevocationList { why };
    let lists = CertificateRevocationListDer::pem_slice_iter(bytes)
        .map(|der| List::read(&der.map_err(|e| unusable(e.to_string()))?))
        .collect::<Result<Vec<_>, _>>()?;
    if lists.is_empty() {
        return Err(unusable("neither DER nor PEM with an X509 CRL section".into()));
    }
    Ok(lists)
}

impl List {
    fn read(der: &[u8]) -> Result<Self, TlsError> {
        // webpki is the judge of what is sound; it does not tell all that we want to know.
        let parsed = BorrowedCertRevocationList::from_der(der).map_err(|e| refused(&e))?;
        let mut serials = parsed
            .into_iter()
            .map(|entry| Ok(entry?.serial_number.into()))
            .collect::<Result<Vec<Box<[u8]>>, webpki::Error>>()
            .map_err(|e| refused(&e))?;
        serials.sort_unstable();
        serials.dedup();
        let parsed = CertRevocationList::from(parsed);
        let (signed, dates) = Signed::read(der).ok_or_else(|| refused(&webpki::Error::BadDer))?;
        Ok(Self {
            view: CrlView {
                issuer: dates.issuer,
                this_update: svid::system_time(dates.this_update),
                next_update: svid::system_time(dates.next_update),
                revoked: serials.len(),
            },
            issuer: parsed.issuer().to_vec(),
            scope: parsed.issuing_distribution_point().map(<[u8]>::to_vec),
            serials,
            digest: sha256(der),
            signed,
            checked: Mutex::default(),
        })
    }

    fn revokes(&self, serial: &[u8]) -> bool {
        self.serials.binary_search_by(|held| (**held).cmp(serial)).is_ok()
    }

    fn is_signed_by(&self, key: &SubjectPublicKeyInfoDer<'_>, digest: [u8; 32]) -> bool {
        // Pairs that are each written whole: a panic elsewhere leaves them usable.
        let checked = || self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, fits)) = checked().iter().find(|(of, _)| *of == digest) {
            return *fits;
        }
        let fits = self.signed.fits(key);
        let mut checked = checked();
        if checked.len() >= MOST_CHECKED {
            checked.remove(0);
        }
        checked.push((digest, fits));
        fits
    }
}

struct Dates {
    issuer: String,
    this_update: ASN1Time,
    next_update: ASN1Time,
}

impl Signed {
    /// Takes apart what `webpki` found to be in order.
    fn read(der: &[u8]) -> Option<(Self, Dates)> {
        let (_, whole) = Any::from_der(der).ok()?;
        let (rest, content) = Any::from_der(whole.data).ok()?;
        let signed_len = whole.data.len() - rest.len();
        let (rest, algorithm) = Any::from_der(rest).ok()?;
        let (_, signature) = Any::from_der(rest).ok()?;
        let (unused, signature) = signature.data.split_first()?;
        if *unused != 0 {
            return None;
        }
        let (rest, _version) = Any::from_der(content.data).ok()?;
        let (rest, _algorithm) = Any::from_der(rest).ok()?;
        let (rest, issuer) = X509Name::from_der(rest).ok()?;
        let (rest, this_update) = ASN1Time::from_der(rest).ok()?;
        let (_, next_update) = ASN1Time::from_der(rest).ok()?;
        let signed = Self {
            content: whole.data[..signed_len].to_vec(),
            algorithm: algorithm.data.to_vec(),
            signature: signature.to_vec(),
        };
        Some((signed, Dates { issuer: shorten(&issuer.to_string()), this_update, next_update }))
    }

    fn fits(&self, key: &SubjectPublicKeyInfoDer<'_>) -> bool {
        let Ok(key) = RawPublicKeyEntity::try_from(key) else { return false };
        let algorithms = provider().signature_verification_algorithms.all;
        algorithms
            .iter()
            .filter(|a| a.signature_alg_id().as_ref() == self.algorithm)
            .any(|a| key.verify_signature(*a, &self.content, &self.signature).is_ok())
    }
}

fn refused(error: &webpki::Error) -> TlsError {
    use webpki::Error as E;
    let why = match error {
        E::UnsupportedDeltaCrl => "it is a delta list: give the complete one".into(),
        E::UnsupportedIndirectCrl => "it is indirect, revoking what others have issued".into(),
        E::UnsupportedRevocationReasonsPartitioning => "it is for some reasons of revocation only".into(),
        E::UnsupportedCriticalExtension => "it has a critical extension that is not known here".into(),
        E::UnsupportedCrlVersion => "it is not of version 2".into(),
        E::UnsupportedCrlIssuingDistributionPoint => {
            "its issuing distribution point is not a full name".into()
        }
        other => shorten(&format!("{other:?}")),
    };
    TlsError::RevocationList { why }
}

impl std::fmt::Debug for Crls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl PartialEq for Crls {
    fn eq(&self, other: &Self) -> bool {
        let digests = |of: &Self| -> Vec<[u8; 32]> {
            of.by_issuer.values().flatten().map(|list| list.digest).collect()
        };
        Arc::ptr_eq(&self.by_issuer, &other.by_issuer) || digests(self) == digests(other)
    }
}
