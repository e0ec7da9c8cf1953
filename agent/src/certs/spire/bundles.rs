//! The roots of every trust domain that the SPIRE agent knows of.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use underpass_proto::spire::api::agent::delegatedidentity::v1::delegated_identity_client::DelegatedIdentityClient;
use underpass_proto::spire::api::agent::delegatedidentity::v1::{
    SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse,
};

use super::{Shared, failure};
use crate::certs::{CertError, renewal};
use crate::model::TrustDomain;
use crate::model::spiffe::shorten;
use crate::tls::TrustBundles;

/// Many domains, with several roots each.
const MOST_BYTES: usize = 4 << 20;

/// For ever; the issuer aborts it.
pub(super) async fn follow(shared: Arc<Shared>) {
    let mut failures = 0_u32;
    loop {
        let (error, heard) = once(&shared).await;
        failures = if heard { 1 } else { failures.saturating_add(1) };
        let wait = renewal::backoff(failures, rand::random());
        tracing::warn!(failures, retry_in = format!("{wait:.1?}"), %error,
            "no news of roots from SPIRE; those of before stay in force");
        shared.known.send_modify(|known| known.error = Some(error));
        tokio::time::sleep(wait).await;
    }
}

/// Until the stream ends; says why it did, and whether it brought anything.
async fn once(shared: &Shared) -> (CertError, bool) {
    let failed = |status| failure::of(&status, &shared.config, "roots");
    let mut client =
        DelegatedIdentityClient::new(shared.channel.clone()).max_decoding_message_size(MOST_BYTES);
    let opened = client.subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {});
    let mut answers = match tokio::time::timeout(shared.config.deadline, opened).await {
        Ok(Ok(answers)) => answers.into_inner(),
        Ok(Err(status)) => return (failed(status), false),
        Err(_elapsed) => return (failure::late(&shared.config, "roots"), false),
    };
    let mut heard = false;
    loop {
        match answers.message().await {
            Ok(Some(answer)) => heard |= take(shared, answer),
            Ok(None) => return (failure::ended(&shared.config, "roots"), heard),
            Err(status) => return (failed(status), heard),
        }
    }
}

fn take(shared: &Shared, answer: SubscribeToX509BundlesResponse) -> bool {
    let held = shared.known.borrow().value.clone().unwrap_or_default();
    let (bundles, complaints) = read(answer, &held, &shared.config.trust_domain);
    for why in complaints {
        tracing::warn!(why, "roots from SPIRE are refused; those of before stay in force");
    }
    let Some(bundles) = bundles else { return false };
    shared.roots.send_if_modified(|roots| {
        let differs = roots.as_ref() != Some(&bundles);
        *roots = Some(bundles.clone());
        differs
    });
    shared.known.send_modify(|known| {
        known.value = Some(bundles);
        known.error = None;
    });
    true
}

/// Takes each domain's roots whole or not at all; what is held already stands where they cannot be used. None
/// at all if there are none for `own`.
fn read(
    answer: SubscribeToX509BundlesResponse,
    held: &TrustBundles,
    own: &TrustDomain,
) -> (Option<TrustBundles>, Vec<String>) {
    let (mut bundles, mut complaints) = (TrustBundles::new(), Vec::new());
    for (name, der) in &answer.ca_certificates {
        let Ok(domain) = name.strip_prefix("spiffe://").unwrap_or(name).parse::<TrustDomain>() else {
            complaints.push(format!("{:?} is no trust domain", shorten(name)));
            continue;
        };
        let added = split(der).and_then(|roots| bundles.add(&domain, roots).map_err(|e| e.to_string()));
        if let Err(why) = added {
            complaints.push(format!("of {domain}: {why}"));
            keep(&mut bundles, held, &domain);
        }
    }
    if bundles.roots(own).next().is_none() {
        complaints.push(format!("there are none for {own}"));
        keep(&mut bundles, held, own);
    }
    let sound = bundles.roots(own).next().is_some();
    (sound.then_some(bundles), complaints)
}

fn keep(bundles: &mut TrustBundles, held: &TrustBundles, domain: &TrustDomain) {
    // They were taken once, so they can be again.
    bundles.add(domain, held.roots(domain).cloned()).ok();
}

/// Certificates in DER, one after the other. A domain may have none: then nobody of it is trusted.
fn split(mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut roots = Vec::new();
    while !der.is_empty() {
        let (rest, _) = x509_parser::parse_x509_certificate(der).map_err(|e| e.to_string())?;
        roots.push(CertificateDer::from(der[..der.len() - rest.len()].to_vec()));
        der = rest;
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tls::testing::Authority;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Whatever is read is what was sent, whole.
        #[test]
        fn what_is_split_is_all_there(
            roots in 0..4_usize, noise in prop::collection::vec(any::<u8>(), 0..40), at in any::<prop::sample::Index>(),
        ) {
            let sound: Vec<Vec<u8>> = (0..roots).map(|_| root()).collect();
            let mut der = sound.concat();
            prop_assert_eq!(&split(&der).unwrap().iter().map(|c| c.to_vec()).collect::<Vec<_>>(), &sound);
            let at = at.index(der.len() + 1);
            der.splice(at..at, noise);
            if let Ok(split) = split(&der) {
                prop_assert_eq!(split.iter().flat_map(|c| c.to_vec()).collect::<Vec<_>>(), der);
            }
        }
    }

    fn root() -> Vec<u8> {
        static ROOT: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        ROOT.get_or_init(|| Authority::root().certificate.to_vec()).clone()
    }
}
