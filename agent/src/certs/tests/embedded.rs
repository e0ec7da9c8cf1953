//! What the embedded issuer signs, in our own eyes and in openssl's.

use std::collections::HashSet;
use std::process::Command;
use std::time::{Duration, SystemTime};

use x509_parser::prelude::{FromDer, X509Certificate};

use super::support::{CART, HOUR, Scratch, TILL, id};
use crate::certs::{CertError, Clock, EmbeddedConfig, EmbeddedIssuer, Identity, RootError, renewal_due};
use crate::tls::testing::handshake;
use crate::tls::{Certificate, peer_of};

#[test]
fn a_leaf_says_who_it_is_and_nothing_else() {
    let scratch = Scratch::new();
    let issuer = EmbeddedIssuer::open(&scratch.config()).unwrap();
    let issued = issuer.sign(&id(CART)).unwrap();
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    assert_eq!(leaf.subject().iter().count(), 0, "no subject");
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(san.critical);
    assert_eq!(format!("{:?}", san.value.general_names), format!("[URI({CART:?})]"));
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical);
    assert_eq!(usage.value.flags, 1, "digitalSignature only");
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any && extended.other.is_empty());
    let constraints = leaf.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && !constraints.value.ca);
    let life = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
    assert_eq!(life, 24 * 3600 + 120);
    let shown = format!("{issued:?}{issuer:?}");
    assert_eq!(shown.matches("key").count(), 0, "keys are not printed: {shown}");
}

#[test]
fn keys_and_serials_are_never_used_twice() {
    let scratch = Scratch::new();
    let issuer = EmbeddedIssuer::open(&scratch.config()).unwrap();
    let (mut serials, mut keys) = (HashSet::new(), HashSet::new());
    for _ in 0..200 {
        let issued = issuer.sign(&id(CART)).unwrap();
        let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
        assert_eq!(leaf.raw_serial().len(), 20);
        assert!(leaf.raw_serial()[0] < 0x80, "positive");
        assert!(serials.insert(leaf.raw_serial().to_vec()));
        assert!(keys.insert(leaf.public_key().raw.to_vec()));
    }
}

#[test]
fn agents_with_one_root_talk_and_agents_with_two_do_not() {
    let (scratch, elsewhere) = (Scratch::new(), Scratch::new());
    let identity = |scratch: &Scratch, who| {
        let issued = EmbeddedIssuer::open(&scratch.config()).unwrap().sign(&id(who)).unwrap();
        let certificate = Certificate::new(issued.chain, issued.key.clone_key()).unwrap();
        Identity::new(certificate, issued.roots).unwrap()
    };
    let (cart, till) = (identity(&scratch, CART), identity(&scratch, TILL));
    let done = handshake(cart.client_config(&[id(TILL)]).unwrap(), till.server_config());
    done.client_end.and(done.server_end).unwrap();
    assert_eq!(peer_of(&done.server).unwrap(), id(CART));

    let stranger = identity(&elsewhere, TILL);
    let done = handshake(cart.client_config(&[id(TILL)]).unwrap(), stranger.server_config());
    assert!(done.client_end.is_err());
    let done = handshake(stranger.client_config(&[id(TILL)]).unwrap(), till.server_config());
    assert!(done.client_end.is_err() || done.server_end.is_err());
}

#[test]
fn it_issues_for_its_trust_domain_within_its_roots_time_only() {
    let scratch = Scratch::new();
    let issuer = EmbeddedIssuer::open(&scratch.config()).unwrap();
    let error = issuer.sign(&id("spiffe://ally.test/ns/shop/sa/cart")).unwrap_err();
    assert!(matches!(error, CertError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("mesh.test"), "{error}");

    // Nine years and 364 days on, a leaf for two days ends with the root.
    let late = SystemTime::now() + HOUR * 24 * 3649;
    let config = EmbeddedConfig { lifetime: HOUR * 48, ..scratch.config() };
    let issuer = EmbeddedIssuer::with_clock(&config, Clock::from_fn(move || late)).unwrap();
    let issued = issuer.sign(&id(CART)).unwrap();
    let certificate = Certificate::new(issued.chain, issued.key.clone_key()).unwrap();
    assert!(certificate.not_after() <= late + HOUR * 24);

    for (lifetime, backdate) in
        [(Duration::ZERO, HOUR), (HOUR * 24 * 3651, HOUR), (Duration::MAX, HOUR), (HOUR, HOUR * 25)]
    {
        let config = EmbeddedConfig { lifetime, backdate, ..scratch.config() };
        let error = EmbeddedIssuer::open(&config).unwrap_err();
        assert!(matches!(error, RootError::Times { .. }), "{error}");
    }
}

#[test]
fn a_leaf_is_never_due_for_renewal_when_it_comes() {
    let scratch = Scratch::new();
    let now = SystemTime::now();
    let root_ends = now + HOUR * 24 * 3650;
    // (configured life, configured backdate, made when, backdated by)
    let table = [
        (HOUR * 24, Duration::from_secs(120), now, Duration::from_secs(120)),
        (Duration::from_secs(60), Duration::from_secs(120), now, Duration::from_secs(15)),
        (HOUR, HOUR * 24, now, HOUR / 4),
        // The root ends before the leaf would.
        (HOUR * 24, HOUR * 24, root_ends - HOUR, HOUR / 4),
    ];
    EmbeddedIssuer::with_clock(&scratch.config(), Clock::from_fn(move || now)).unwrap();
    for (lifetime, backdate, made, expected) in table {
        let config = EmbeddedConfig { lifetime, backdate, ..scratch.config() };
        let issuer = EmbeddedIssuer::with_clock(&config, Clock::from_fn(move || made)).unwrap();
        let issued = issuer.sign(&id(CART)).unwrap();
        let leaf = Certificate::new(issued.chain, issued.key.clone_key()).unwrap();
        let before = made.duration_since(leaf.not_before()).unwrap();
        // Certificates have whole seconds.
        assert!(before.abs_diff(expected) <= Duration::from_secs(1), "{before:?} {expected:?}");
        let due = renewal_due(leaf.not_before(), leaf.not_after(), 0.0);
        let ahead = leaf.not_after().duration_since(made).unwrap();
        assert!(due >= made + ahead / 5, "{lifetime:?} {backdate:?}");
    }
}

#[test]
fn openssl_accepts_it_under_x509_strict() {
    let Ok(version) = Command::new("openssl").arg("version").output() else {
        println!("skipped: no openssl command here");
        return;
    };
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let scratch = Scratch::new();
    let issuer = EmbeddedIssuer::open(&scratch.config()).unwrap();
    let issued = issuer.sign(&id(CART)).unwrap();
    let leaf = scratch.path().join("leaf.der");
    std::fs::write(&leaf, &issued.chain[0]).unwrap();
    for purpose in ["sslserver", "sslclient"] {
        let output = Command::new("openssl")
            .args(["verify", "-x509_strict", "-policy_check", "-purpose", purpose, "-CAfile"])
            .args([&scratch.config().root_certificate, &leaf])
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{version}{purpose}: {}", String::from_utf8_lossy(&said));
    }
    let root = &scratch.config().root_certificate;
    let output = Command::new("openssl")
        .args(["verify", "-x509_strict", "-check_ss_sig", "-CAfile"])
        .args([root, root])
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{version}root: {}", String::from_utf8_lossy(&said));
}
