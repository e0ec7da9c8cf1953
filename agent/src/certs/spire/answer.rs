//! One of the certificates in an answer: the asked identity's.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use underpass_proto::spire::api::agent::delegatedidentity::v1::SubscribeToX509sviDsResponse;
use zeroize::Zeroizing;

use crate::certs::CertError;
use crate::model::{SpiffeId, TrustDomain};

/// The largest answer that is read at all.
pub(super) const MOST_BYTES: usize = 1 << 20;
/// The longest chain: what is above it would go out with every handshake.
const MOST_CHAIN: usize = 16;

pub(super) struct Svid {
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// PKCS#8, DER.
    pub(super) key: Zeroizing<Vec<u8>>,
    /// Whose peers the entry lets it believe, beside its own trust domain's.
    pub(super) federates: BTreeSet<TrustDomain>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Svid {
    /// Whether it is young enough that SPIRE should not have replaced it yet, with a margin: it does so at
    /// about half of its life.
    pub(super) fn is_fresh(&self, now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        now < self.not_before + life.mul_f64(0.75)
    }

    pub(super) fn is_the_same(&self, other: &Self) -> bool {
        self.chain == other.chain && self.federates == other.federates
    }
}

/// Keys of the others in the answer are wiped, as the asked one's is once the answer is gone.
pub(super) fn read(answer: SubscribeToX509sviDsResponse, identity: &SpiffeId) -> Result<Svid, CertError> {
    let federates = federates(&answer.federates_with);
    let mut found: Option<Svid> = None;
    for with_key in answer.x509_svids {
        let key = Zeroizing::new(with_key.x509_svid_key);
        let Some(svid) = with_key.x509_svid else { continue };
        let theirs = svid.id.unwrap_or_default();
        if theirs.trust_domain != identity.trust_domain().as_str() || theirs.path != identity.path() {
            continue;
        }
        let svid = check(svid.cert_chain, key, federates.clone())?;
        // Entries that differ in their hint only: either would do.
        if found.as_ref().is_none_or(|held| held.not_after < svid.not_after) {
            found = Some(svid);
        }
    }
    let (namespace, account) = identity.account().unwrap_or_default();
    found.ok_or_else(|| CertError::Refused {
        issuer: "spire".into(),
        identity: identity.clone(),
        why: format!(
            "the SPIRE agent has no certificate for it: make an entry with the selectors k8s:ns:{namespace} and \
             k8s:sa:{account} and no others, under a parent that this node's SPIRE agent is"
        ),
    })
}

/// One that is no trust domain has no roots either.
fn federates(names: &[String]) -> BTreeSet<TrustDomain> {
    names.iter().filter_map(|name| name.strip_prefix("spiffe://").unwrap_or(name).parse().ok()).collect()
}

fn check(
    chain: Vec<Vec<u8>>,
    key: Zeroizing<Vec<u8>>,
    federates: BTreeSet<TrustDomain>,
) -> Result<Svid, CertError> {
    if !(1..=MOST_CHAIN).contains(&chain.len()) {
        let why = format!("its chain has {} certificates, 1 to {MOST_CHAIN} are taken", chain.len());
        return Err(CertError::Answer(why));
    }
    if key.is_empty() {
        return Err(CertError::Answer("it has no key".into()));
    }
    let (not_before, not_after) = validity(&chain[0]).map_err(CertError::Answer)?;
    let chain = chain.into_iter().map(CertificateDer::from).collect();
    Ok(Svid { chain, key, federates, not_before, not_after })
}

fn validity(leaf: &[u8]) -> Result<(SystemTime, SystemTime), String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|e| format!("its leaf: {e}"))?;
    let time = |t: x509_parser::time::ASN1Time| {
        UNIX_EPOCH + Duration::from_secs(u64::try_from(t.timestamp()).unwrap_or(0))
    };
    Ok((time(parsed.validity().not_before), time(parsed.validity().not_after)))
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid").field("chain", &self.chain.len()).finish_non_exhaustive()
    }
}
