//! The profiles against each other, and against peers that cannot meet them.

use std::sync::Arc;

use rcgen::KeyPair;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{CipherSuite, NamedGroup};

use crate::tls::config::server_config_by;
use crate::tls::error::nothing_in_common;
use crate::tls::testing::{
    Authority, Handshake, bundles, domain, gullible_client_by, gullible_server_by, handshake, id,
};
use crate::tls::{Accept, ClientTemplate, Profile, TlsError, profile, provider, set_profile};

const A: &str = "spiffe://mesh.test/ns/shop/sa/cart";
const B: &str = "spiffe://mesh.test/ns/shop/sa/till";
const ALL: [Profile; 3] = [Profile::Default, Profile::Fips, Profile::PqOnly];

fn of(profile: Profile) -> Arc<CryptoProvider> {
    Arc::new(profile.provider())
}

fn client(root: &Authority, profile: Profile) -> Arc<rustls::ClientConfig> {
    let trust = bundles(&[("mesh.test", root)]).into();
    ClientTemplate::by(of(profile), &root.certificate(A), trust).unwrap().expecting(&[id(B)]).unwrap()
}

fn server(root: &Authority, profile: Profile) -> Arc<rustls::ServerConfig> {
    let trust = bundles(&[("mesh.test", root)]).into();
    let mesh = Accept::TrustDomains([domain("mesh.test")].into());
    server_config_by(of(profile), &root.certificate(B), trust, mesh).unwrap()
}

#[test]
fn every_two_profiles_meet() {
    let root = Authority::root();
    for dials in ALL {
        for listens in ALL {
            let done = handshake(client(&root, dials), server(&root, listens));
            assert_eq!((done.client_end, done.server_end), (Ok(()), Ok(())), "{dials} to {listens}");
            let group = done.client.negotiated_key_exchange_group().unwrap().name();
            assert_eq!(group, NamedGroup::X25519MLKEM768, "{dials} to {listens}");
        }
    }
}

/// Peers, by the group and the suite that they are limited to; which profiles take them.
#[test]
fn a_peer_that_cannot_meet_the_profile_is_refused_with_a_word_about_it() {
    let root = Authority::root();
    let aes = cipher_suite::TLS13_AES_128_GCM_SHA256;
    let chacha = cipher_suite::TLS13_CHACHA20_POLY1305_SHA256;
    let (hybrid, x25519, p256, p384) =
        (kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1);
    let table: [(&'static dyn SupportedKxGroup, _, &[Profile]); 6] = [
        (hybrid, aes, &ALL),
        (x25519, aes, &[Profile::Default]),
        (p256, aes, &[Profile::Default, Profile::Fips]),
        (p384, aes, &[Profile::Fips]),
        (p256, chacha, &[]),
        (x25519, chacha, &[]),
    ];
    for (group, suite, takers) in table {
        let peer = Arc::new(CryptoProvider {
            kx_groups: vec![group],
            cipher_suites: vec![suite],
            ..default_provider()
        });
        for profile in ALL {
            let what = format!("{:?} and {:?} against {profile}", group.name(), suite.suite());
            let dialled = handshake(
                client(&root, profile),
                gullible_server_by(Arc::clone(&peer), &root.leaf(B, |_| {})),
            );
            let accepted = handshake(
                gullible_client_by(Arc::clone(&peer), &root.leaf(A, |_| {})),
                server(&root, profile),
            );
            let slow_aes = !crate::tls::provider::aes_in_hardware()
                && suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256;
            if takers.contains(&profile) {
                assert_eq!(ends(&dialled), (true, true), "{what}");
                assert_eq!(ends(&accepted), (true, true), "{what}");
            } else if !slow_aes {
                for error in [dialled.client_end.unwrap_err(), accepted.server_end.unwrap_err()] {
                    let said = nothing_in_common(&error, profile, &profile.provider());
                    let said = said.unwrap_or_else(|| panic!("{what}: {error}"));
                    assert!(said.contains(&format!("TLS profile {profile} (key exchange")), "{said}");
                }
            }
        }
    }
}

fn ends(done: &Handshake) -> (bool, bool) {
    (done.client_end.is_ok(), done.server_end.is_ok())
}

#[test]
fn fips_takes_no_certificate_of_another_kind_than_ecdsa_and_rsa() {
    for (algorithm, taken) in [
        (&rcgen::PKCS_ECDSA_P384_SHA384, true),
        (&rcgen::PKCS_RSA_SHA256, true),
        (&rcgen::PKCS_ED25519, false),
    ] {
        let root = Authority::root();
        let shown = root.leaf_by(A, &KeyPair::generate_for(algorithm).unwrap());
        let gullible = || gullible_client_by(Arc::new(default_provider()), &shown);
        assert!(handshake(gullible(), server(&root, Profile::Default)).server_end.is_ok(), "{algorithm:?}");
        let done = handshake(gullible(), server(&root, Profile::Fips));
        assert_eq!(done.server_end.is_ok(), taken, "{algorithm:?}");
        // An authority of that kind is none, either.
        let root = Authority::root_by(KeyPair::generate_for(algorithm).unwrap());
        let shown = root.leaf(A, |_| {});
        let done =
            handshake(gullible_client_by(Arc::new(default_provider()), &shown), server(&root, Profile::Fips));
        assert_eq!(done.server_end.is_ok(), taken, "{algorithm:?}");
    }
}

#[test]
fn a_profile_is_set_once_and_before_use() {
    let _ = provider();
    assert_eq!(profile(), Profile::Default);
    set_profile(Profile::Default).unwrap();
    let refused = set_profile(Profile::PqOnly).unwrap_err();
    assert!(matches!(refused, TlsError::Profile { .. }), "{refused}");
    assert_eq!(profile(), Profile::Default);
    for profile in ALL {
        assert_eq!(serde_json::to_value(profile).unwrap(), profile.as_str());
    }
}
