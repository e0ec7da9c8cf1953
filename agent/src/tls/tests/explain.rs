//! The explanation and the verifier must never disagree.

use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;

use crate::tls::testing::{Authority, bundles, uri};
use crate::tls::{Accept, Trusted, explain, verify_chain};

const CART: &str = "spiffe://mesh.test/ns/shop/sa/cart";

fn all_kept(chain: &[CertificateDer<'_>], trusted: &Trusted, now: SystemTime) -> bool {
    explain(chain, Some(trusted), now).iter().all(|rule| rule.kept == Some(true))
}

fn change(kind: u8, leaf: &mut CertificateParams) {
    let now = SystemTime::now();
    match kind {
        1 => leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
        2 => leaf.key_usages = vec![KeyUsagePurpose::KeyCertSign],
        3 => leaf.key_usages = vec![],
        4 => leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
        5 => leaf.extended_key_usages = vec![],
        6 => leaf.subject_alt_names.push(uri("spiffe://mesh.test/ns/shop/sa/till")),
        7 => leaf.subject_alt_names = vec![uri("https://mesh.test/")],
        8 => leaf.not_after = (now - Duration::from_secs(30)).into(),
        9 => leaf.not_before = (now + Duration::from_secs(600)).into(),
        10 => leaf.subject_alt_names = vec![uri("spiffe://other.test/ns/shop/sa/cart")],
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn every_rule_is_kept_exactly_if_the_verifier_accepts(
        (kinds, foreign, between, revoked) in
            (prop::collection::vec(0u8..30, 0..3), prop::bool::weighted(0.2), any::<bool>(), prop::bool::weighted(0.2)),
        (shift, flip) in (prop_oneof![8 => Just(0i64), 1 => -5000i64..5000], prop::option::weighted(0.2, any::<(u16, u8)>())),
    ) {
        let (root, other) = (Authority::root(), Authority::root());
        let above = root.intermediate(|_| {});
        let signer = if between { &above } else { &root };
        let mut shown = signer.leaf(CART, |leaf| kinds.iter().for_each(|kind| change(*kind, leaf)));
        let list = signer.list(&[shown.leaf()], 10);
        if let Some((at, bits)) = flip {
            let mut der = shown.chain[0].to_vec();
            let at = usize::from(at) % der.len();
            der[at] ^= bits;
            shown.chain[0] = der.into();
        }
        if between {
            shown = shown.with(&above);
        }
        let mut trusted = Trusted::from(bundles(&[("mesh.test", if foreign { &other } else { &root })]));
        if revoked {
            trusted.revoked.add(&list).unwrap();
        }
        let by = Duration::from_secs(shift.unsigned_abs());
        let now = if shift < 0 { SystemTime::now() - by } else { SystemTime::now() + by };
        let accepted = verify_chain(&shown.chain, &trusted, &Accept::Trusted, now);
        prop_assert_eq!(all_kept(&shown.chain, &trusted, now), accepted.is_ok(), "{:?}", accepted);
    }
}

#[test]
fn each_broken_rule_is_the_one_that_is_named() {
    let root = Authority::root();
    let trusted = Trusted::from(bundles(&[("mesh.test", &root)]));
    for (kind, word) in
        [(1, "authority"), (2, "key usage"), (4, "extended"), (6, "URI"), (8, "valid at"), (10, "chains")]
    {
        let shown = root.leaf(CART, |leaf| change(kind, leaf));
        let rules = explain(&shown.chain, Some(&trusted), SystemTime::now());
        let broken: Vec<_> = rules.iter().filter(|rule| rule.kept == Some(false)).collect();
        assert!(broken.iter().any(|rule| rule.rule.contains(word)), "{word}: {broken:?}");
    }
    assert!(explain(&[], None, SystemTime::now()).iter().any(|rule| rule.kept == Some(false)));
}
