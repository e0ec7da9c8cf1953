//! No certificate, however mangled, may crash the agent or prove another identity than it was issued for.

use std::sync::LazyLock;
use std::time::SystemTime;

use proptest::collection::vec;
use proptest::prelude::*;
use rcgen::{CustomExtension, IsCa};
use rustls_pki_types::CertificateDer;

use crate::model::SpiffeId;
use crate::tls::testing::{Authority, bundles, domain, id};
use crate::tls::{Accept, Certificate, Crls, TlsError, TrustBundles, Trusted, peer_identity, verify_chain};

const PEER: &str = "spiffe://mesh.test/ns/shop/sa/till";

struct World {
    root: Authority,
    trusted: Trusted,
    leaf: CertificateDer<'static>,
    middle: CertificateDer<'static>,
    other_leaf: CertificateDer<'static>,
    /// Revokes `leaf`.
    list: Vec<u8>,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let root = Authority::root();
    let trusted = bundles(&[("mesh.test", &root)]).into();
    let middle = root.intermediate(|_| {});
    let leaf = middle.leaf(PEER, |_| {}).chain.remove(0);
    let other_leaf = middle.leaf(PEER, |_| {}).chain.remove(0);
    let list = middle.list(&[&leaf], 60);
    World { middle: middle.certificate.clone(), root, trusted, leaf, other_leaf, list }
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_damaged_chain_proves_nothing_new(
        leaf in edits(), middle in edits(), which in 0..3u8,
    ) {
        let leaf = if which == 1 { WORLD.leaf.to_vec() } else { apply(&WORLD.leaf, &leaf) };
        let middle = if which == 0 { WORLD.middle.to_vec() } else { apply(&WORLD.middle, &middle) };
        for proven in swallow(&[leaf.into(), middle.into()]) {
            prop_assert_eq!(proven, id(PEER));
        }
    }

    /// Whoever changes a list can make it count for nothing, which whoever withholds it can too; he cannot
    /// make it say something else.
    #[test]
    fn a_damaged_list_says_nothing_new(edits in edits(), second in edits(), pair in any::<bool>()) {
        let mut revoked = Crls::default();
        for edits in [edits, second].iter().take(1 + usize::from(pair)) {
            let _ = revoked.add(&apply(&WORLD.list, edits));
        }
        let trusted = Trusted { revoked, ..WORLD.trusted.clone() };
        let anybody = Accept::TrustDomains([domain("mesh.test")].into());
        let ask = |leaf: &CertificateDer<'static>| {
            verify_chain(&[leaf.clone(), WORLD.middle.clone()], &trusted, &anybody, SystemTime::now())
        };
        let as_before = matches!(ask(&WORLD.leaf), Ok(_) | Err(TlsError::Revoked { .. }));
        prop_assert!(as_before);
        prop_assert!(ask(&WORLD.other_leaf).is_ok());
    }

    #[test]
    fn bytes_that_are_no_list_are_refused(bytes in vec(any::<u8>(), 0..400)) {
        prop_assert!(Crls::default().add(&bytes).is_err());
    }

    #[test]
    fn bytes_that_are_no_certificate_prove_nothing(bytes in vec(any::<u8>(), 0..400)) {
        prop_assert!(swallow(&[bytes.into()]).is_empty());
    }

    /// Properly signed, so that everything behind the signature is reached too.
    #[test]
    fn signed_nonsense_in_extensions_proves_at_most_the_one_uri(
        extensions in vec((prop::sample::select(&[14u64, 15, 17, 19, 30, 31, 35, 37, 99][..]),
            any::<bool>(), content()), 0..4),
        keep_names in any::<bool>(),
    ) {
        let leaf = WORLD.root.leaf(PEER, |p| {
            if !keep_names {
                p.subject_alt_names.clear();
            }
            p.is_ca = IsCa::NoCa;
            p.key_usages.clear();
            p.extended_key_usages.clear();
            p.use_authority_key_identifier_extension = false;
            for (number, critical, content) in extensions {
                let mut e = CustomExtension::from_oid_content(&[2, 5, 29, number], content);
                e.set_criticality(critical);
                p.custom_extensions.push(e);
            }
        });
        for proven in swallow(&leaf.chain) {
            prop_assert_eq!(proven, id(PEER));
        }
    }
}

/// Gives the chain to everything that reads certificates; returns what it proved to any of them.
fn swallow(chain: &[CertificateDer<'static>]) -> Vec<SpiffeId> {
    let now = SystemTime::now();
    let anybody = Accept::TrustDomains([domain("mesh.test")].into());
    let results = [
        verify_chain(chain, &WORLD.trusted, &anybody, now),
        verify_chain(chain, &WORLD.trusted, &Accept::Identities(vec![id(PEER)]), now),
    ];
    // Claims are no proof; these must only come back. So must every message.
    let claim = peer_identity(chain);
    let key = WORLD.root.leaf(PEER, |_| {}).key();
    let own = Certificate::new(chain.to_vec(), key);
    let root = TrustBundles::new().add(&domain("mesh.test"), chain.to_vec());
    let messages = [
        claim.err().map(|e| e.to_string()),
        own.err().map(|e| e.to_string()),
        root.err().map(|e| e.to_string()),
        results[0].as_ref().err().map(TlsError::to_string),
    ];
    for message in messages.into_iter().flatten() {
        assert!(message.len() < 2000, "a peer can fill the log: {} bytes", message.len());
        assert!(!message.contains('\n'), "a peer can forge log lines: {message}");
    }
    results.into_iter().flatten().collect()
}

#[derive(Clone, Debug)]
enum Edit {
    Set(prop::sample::Index, u8),
    Insert(prop::sample::Index, u8),
    Remove(prop::sample::Index),
    Cut(prop::sample::Index),
    Append(Vec<u8>),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let index = any::<prop::sample::Index>;
    vec(
        prop_oneof![
            8 => (index(), any::<u8>()).prop_map(|(i, b)| Edit::Set(i, b)),
            2 => (index(), any::<u8>()).prop_map(|(i, b)| Edit::Insert(i, b)),
            2 => index().prop_map(Edit::Remove),
            1 => index().prop_map(Edit::Cut),
            1 => vec(any::<u8>(), 1..20).prop_map(Edit::Append),
        ],
        1..4,
    )
}

fn apply(der: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut der = der.to_vec();
    for edit in edits {
        if der.is_empty() {
            break;
        }
        match edit {
            Edit::Set(i, b) => *i.get_mut(&mut der) = *b,
            Edit::Insert(i, b) => der.insert(i.index(der.len()), *b),
            Edit::Remove(i) => drop(der.remove(i.index(der.len()))),
            Edit::Cut(i) => der.truncate(i.index(der.len())),
            Edit::Append(tail) => der.extend(tail),
        }
    }
    der
}

/// Sometimes noise, sometimes the right shape with the wrong things in it.
fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..40),
        vec((0x80..0x8au8, vec(any::<u8>(), 0..12)), 0..4).prop_map(|names| sequence(&names)),
        vec((prop::sample::select(&[1u8, 2, 3, 5, 6, 0x30][..]), vec(any::<u8>(), 0..6)), 0..4)
            .prop_map(|items| sequence(&items)),
    ]
}

fn sequence(items: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let body: Vec<u8> =
        items.iter().flat_map(|(tag, value)| [&[*tag, value.len() as u8], &value[..]].concat()).collect();
    [&[0x30, body.len() as u8], &body[..]].concat()
}
