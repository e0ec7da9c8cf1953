//! What comes back: the leaf, the intermediates, and in the last element all roots.

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use underpass_proto::istio::v1::auth::IstioCertificateResponse;
use zeroize::Zeroizing;

use crate::certs::Issued;
use crate::certs::keeping::SecretKey;
use crate::model::TrustDomain;
use crate::tls::TrustBundles;

/// The largest answer that is read at all: hundreds of roots.
pub(in crate::certs) const MOST_BYTES: usize = 1 << 20;
/// The longest chain: what is above it would go out with every handshake.
const MOST_CHAIN: usize = 16;

pub(super) fn read(
    answer: IstioCertificateResponse,
    domain: &TrustDomain,
    key: &SecretKey,
) -> Result<Issued, String> {
    let [chain @ .., roots] = &answer.cert_chain[..] else {
        return Err("it has no certificates".into());
    };
    if chain.is_empty() {
        return Err("it has one element, and the roots should follow the leaf".into());
    }
    let mut sent = Vec::new();
    for (at, element) in chain.iter().enumerate() {
        sent.extend(certificates(element, at)?);
    }
    if sent.len() > MOST_CHAIN {
        return Err(format!("its chain has {} certificates, at most {MOST_CHAIN} are taken", sent.len()));
    }
    let mut bundles = TrustBundles::new();
    bundles.add(domain, certificates(roots, chain.len())?).map_err(|e| e.to_string())?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.pkcs8().to_vec()));
    Ok(Issued { chain: sent, key: Zeroizing::new(key), roots: bundles })
}

/// Every certificate of one element; at least one.
fn certificates(element: &str, at: usize) -> Result<Vec<CertificateDer<'static>>, String> {
    let unusable = |why: String| format!("element {at} of its chain: {why}");
    let found = CertificateDer::pem_slice_iter(element.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| unusable(e.to_string()))?;
    if found.is_empty() { Err(unusable("no CERTIFICATE section".into())) } else { Ok(found) }
}
