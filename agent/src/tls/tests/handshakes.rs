//! Our client with our server, and with peers that leave something out.

use std::sync::Arc;

use rustls::ClientConfig;

use crate::tls::testing::{Authority, bundles, gullible, gullible_server, handshake, id};
use crate::tls::{
    Certificate, ClientTemplate, TlsError, TrustBundles, client_config, peer_identity, peer_of, provider,
    server_config,
};

const A: &str = "spiffe://mesh.test/ns/shop/sa/cart";
const B: &str = "spiffe://mesh.test/ns/shop/sa/till";

#[test]
fn both_ends_learn_who_the_other_is() {
    let root = Authority::root();
    let trust = bundles(&[("mesh.test", &root)]);
    let (a, b) = (root.certificate(A), root.certificate(B));
    let done = handshake(client_config(&a, &trust, &[id(B)]).unwrap(), server_config(&b, &trust).unwrap());
    done.client_end.unwrap();
    done.server_end.unwrap();
    assert_eq!(peer_of(&done.client).unwrap(), id(B));
    assert_eq!(peer_of(&done.server).unwrap(), id(A));
    assert_eq!(peer_identity(done.server.peer_certificates().unwrap()).unwrap(), id(A));
}

#[test]
fn a_client_without_a_certificate_is_turned_away() {
    let root = Authority::root();
    let trust = bundles(&[("mesh.test", &root)]);
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(gullible())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let done = handshake(Arc::new(config), server_config(&root.certificate(B), &trust).unwrap());
    assert_eq!(done.server_end.unwrap_err(), rustls::Error::NoCertificatesPresented);
    assert!(matches!(done.client_end.unwrap_err(), rustls::Error::AlertReceived(_)));
}

#[test]
fn a_peer_that_settles_on_no_protocol_is_not_an_hbone_peer() {
    let root = Authority::root();
    let trust = bundles(&[("mesh.test", &root)]);
    let mut silent = (*gullible_server(&root.leaf(B, |_| {}))).clone();
    silent.alpn_protocols.clear();
    let client = client_config(&root.certificate(A), &trust, &[id(B)]).unwrap();
    let done = handshake(client, Arc::new(silent));
    done.client_end.unwrap();
    assert!(matches!(peer_of(&done.client), Err(TlsError::Alpn { found }) if found == "none"));
}

#[test]
fn a_template_expects_whom_each_tunnel_names() {
    let root = Authority::root();
    let trust = bundles(&[("mesh.test", &root)]);
    let template = ClientTemplate::new(&root.certificate(A), &trust).unwrap();
    let server = server_config(&root.certificate(B), &trust).unwrap();
    let right = template.expecting(&[id(B)]).unwrap();
    let wrong = template.expecting(&[id(A)]).unwrap();
    assert!(handshake(right, server.clone()).client_end.is_ok());
    assert!(handshake(wrong, server).client_end.is_err());
    assert!(matches!(template.expecting(&[]), Err(TlsError::NothingExpected)));
}

#[test]
fn our_own_certificate_must_be_sound_too() {
    let root = Authority::root();
    let sound = root.leaf(A, |_| {});
    let other = root.leaf(B, |_| {});
    assert!(matches!(Certificate::new(vec![], sound.key()), Err(TlsError::NoCertificate)));
    assert!(matches!(Certificate::new(sound.chain.clone(), other.key()), Err(TlsError::Key { .. })));
    let garbage = vec![sound.chain[0].clone(), vec![0x30, 0].into()];
    assert!(matches!(Certificate::new(garbage, sound.key()), Err(TlsError::Malformed(_))));
    let certificate = Certificate::new(sound.chain.clone(), sound.key()).unwrap();
    assert_eq!(certificate.identity(), &id(A));
    assert!(certificate.is_valid_at(std::time::SystemTime::now()));
    let secret: String = sound.key.secret_der().iter().map(|b| format!("{b:02x}")).collect();
    assert!(!format!("{certificate:?}").contains(&secret[80..112]), "the key is never printed");
}

#[test]
fn only_authorities_become_roots() {
    let root = Authority::root();
    let domain = || "mesh.test".parse().unwrap();
    let leaf = root.leaf(A, |_| {}).chain.remove(0);
    let mut trust = TrustBundles::new();
    for (name, der) in
        [("a leaf", leaf), ("garbage", vec![0x30, 0x03, 2, 1, 1].into()), ("nothing", vec![].into())]
    {
        // The sound one beside it is not taken either.
        let result = trust.add(&domain(), [root.certificate.clone(), der]);
        assert!(matches!(result, Err(TlsError::Root { .. })), "{name}");
        assert_eq!(trust.domains().count(), 0, "{name}");
    }
    assert!(trust.add_pem(&domain(), b"no certificate here").is_err());
    trust.add(&domain(), [root.certificate.clone(), root.certificate.clone()]).unwrap();
    assert_eq!(trust.roots(&domain()).count(), 1, "the same root twice is one");
    assert_eq!(trust, bundles(&[("mesh.test", &root)]));
    assert_ne!(trust, bundles(&[("mesh.test", &Authority::root())]));
}
