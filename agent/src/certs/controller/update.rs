//! What the controller says, judged before anybody acts on it: roots are all of the mesh's safety.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use underpass_proto::underpass::v1::TrustUpdate;

use crate::model::TrustDomain;
use crate::model::spiffe::shorten;
use crate::tls::TrustBundles;

/// Longer than any rotation keeps side by side.
pub(super) const MOST_ROOTS: usize = 64;
const MOST_VERSION: usize = 128;
/// Above what any counting reaches. A number at its very end could never be outgrown.
const MOST_REVISION: u64 = 1 << 53;
/// RFC 5280 4.2.1.2: a key identifier is a hash, or as the authority likes; ours are 20 bytes.
const MOST_AUTHORITY: usize = 64;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Update {
    pub(super) version: String,
    pub(super) revision: u64,
    pub(super) roots: TrustBundles,
    pub(super) authority: Vec<u8>,
    /// `None`: certificates of other authorities wait for their usual renewal.
    pub(super) renew_within: Option<Duration>,
}

/// Takes an update whole or not at all. Roots of other domains than `domain` are nobody's to bring; their
/// names come back for the log.
pub(super) fn read(
    update: TrustUpdate,
    domain: &TrustDomain,
    now: SystemTime,
) -> Result<(Update, Vec<String>), String> {
    let version = update.version;
    if !(1..=MOST_VERSION).contains(&version.len()) || !version.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("its version {:?} is none", shorten(&version)));
    }
    if update.revision > MOST_REVISION {
        return Err(format!("its revision {} is above {MOST_REVISION}", update.revision));
    }
    if update.authority.len() > MOST_AUTHORITY {
        return Err(format!("its authority's key identifier has {} bytes", update.authority.len()));
    }
    let (ours, others): (Vec<_>, Vec<_>) =
        update.bundles.into_iter().partition(|bundle| bundle.trust_domain == domain.as_str());
    let roots: Vec<CertificateDer<'static>> =
        ours.into_iter().flat_map(|bundle| bundle.roots).map(CertificateDer::from).collect();
    if roots.len() > MOST_ROOTS {
        return Err(format!("it has {} roots, at most {MOST_ROOTS} are taken", roots.len()));
    }
    let mut bundles = TrustBundles::new();
    bundles.add(domain, roots).map_err(|e| e.to_string())?;
    // Of none, or of roots that are over, nothing could be verified: the whole mesh would stop.
    if !bundles.roots(domain).any(|root| !is_over(root, now)) {
        return Err(format!("it has no root for {domain} that is still valid"));
    }
    let renew_within = Some(update.renew_within_seconds).filter(|s| *s > 0 && !update.authority.is_empty());
    let update = Update {
        version,
        revision: update.revision,
        roots: bundles,
        authority: update.authority,
        renew_within: renew_within.map(|s| Duration::from_secs(s.into())),
    };
    Ok((update, others.into_iter().map(|bundle| shorten(&bundle.trust_domain)).collect()))
}

pub(super) fn is_over(root: &CertificateDer<'_>, now: SystemTime) -> bool {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(root) else { return true };
    let not_after = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    UNIX_EPOCH + Duration::from_secs(not_after) < now
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use underpass_proto::underpass::v1::Bundle;

    use super::*;

    #[test]
    fn a_revision_that_could_hardly_be_outgrown_is_refused() {
        let root = crate::tls::testing::Authority::root().certificate.to_vec();
        for (revision, taken) in
            [(MOST_REVISION, true), (MOST_REVISION + 1, false), (u64::MAX - 1, false), (u64::MAX, false)]
        {
            let bundles = vec![Bundle { trust_domain: "mesh.test".into(), roots: vec![root.clone()] }];
            let update = TrustUpdate { version: "one".into(), bundles, revision, ..Default::default() };
            let read = read(update, &"mesh.test".parse().unwrap(), SystemTime::now());
            assert_eq!(read.as_ref().err().is_none(), taken, "{revision}");
            if let Err(why) = read {
                assert!(why.contains(&revision.to_string()), "{why}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// No update leaves the mesh without a root, however strange.
        #[test]
        fn what_is_no_root_is_never_taken(
            version in ".{0,200}",
            domain in prop_oneof![Just("mesh.test".to_owned()), ".{0,20}"],
            roots in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..4),
            authority in prop::collection::vec(any::<u8>(), 0..80),
            renew_within_seconds in any::<u32>(),
        ) {
            let bundles = vec![Bundle { trust_domain: domain, roots }];
            let update = TrustUpdate { version, bundles, authority, renew_within_seconds, revision: 1 };
            prop_assert!(read(update, &"mesh.test".parse().unwrap(), SystemTime::now()).is_err());
        }
    }
}
