//! What our ClientHello offers, read byte by byte, and what our server makes of others'.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, NamedGroup, ServerConnection};
use rustls_pki_types::ServerName;

use crate::tls::provider::suites;
use crate::tls::testing::{Authority, bundles, gullible_client, gullible_server, handshake, id};
use crate::tls::{client_config, server_config};

const A: &str = "spiffe://mesh.test/ns/shop/sa/cart";
const B: &str = "spiffe://mesh.test/ns/shop/sa/till";

// IANA's numbers.
const SERVER_NAME: u16 = 0;
const SUPPORTED_GROUPS: u16 = 10;
const ALPN: u16 = 16;
const SESSION_TICKET: u16 = 35;
const PRE_SHARED_KEY: u16 = 41;
const EARLY_DATA: u16 = 42;
const SUPPORTED_VERSIONS: u16 = 43;
const KEY_SHARE: u16 = 51;
const X25519MLKEM768: u16 = 0x11ec;
const X25519: u16 = 0x001d;
const P256: u16 = 0x0017;

#[test]
fn our_client_offers_what_a_ztunnel_accepts_and_nothing_older() {
    let hello = Hello::read(&recorded_hello());
    let mut aes = vec![0x1302, 0x1301];
    if suites(super::super::provider::aes_in_hardware()).len() == 3 {
        aes.insert(0, 0x1303);
    }
    assert_eq!(hello.suites, aes);
    assert_eq!(hello.extension(SUPPORTED_VERSIONS), [2, 0x03, 0x04], "TLS 1.3 only");
    assert_eq!(u16s(&hello.extension(SUPPORTED_GROUPS)[2..]), [X25519MLKEM768, X25519, P256]);
    assert_eq!(hello.extension(ALPN), [0, 3, 2, b'h', b'2']);
    for absent in [SERVER_NAME, SESSION_TICKET, PRE_SHARED_KEY, EARLY_DATA] {
        assert!(!hello.extensions.contains_key(&absent), "extension {absent}");
    }
    // Shares for both, so that a peer without ML-KEM answers in the same flight.
    assert_eq!(hello.key_shares(), [X25519MLKEM768, X25519]);
}

#[test]
fn chacha20_is_offered_only_where_aes_is_slow() {
    let ids = |aes| suites(aes).iter().map(|s| u16::from(s.suite())).collect::<Vec<_>>();
    assert_eq!(ids(true), [0x1302, 0x1301]);
    assert_eq!(ids(false), [0x1303, 0x1302, 0x1301]);
}

#[test]
fn groups_are_settled_in_one_flight_and_sessions_are_not_resumed() {
    let root = Authority::root();
    let trust = bundles(&[("mesh.test", &root)]);
    let server = || server_config(&root.certificate(B), &trust).unwrap();

    let ours = client_config(&root.certificate(A), &trust, &[id(B)]).unwrap();
    let ztunnel = with_groups(
        &root,
        vec![kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1, kx_group::X25519MLKEM768],
    );
    let old = with_groups(&root, vec![kx_group::SECP256R1]);
    let table =
        [(ours, NamedGroup::X25519MLKEM768), (ztunnel, NamedGroup::X25519), (old, NamedGroup::secp256r1)];
    for (client, group) in table {
        let done = handshake(client, server());
        done.client_end.unwrap();
        done.server_end.unwrap();
        assert_eq!(done.server.negotiated_key_exchange_group().unwrap().name(), group);
        assert_eq!(done.server.handshake_kind(), Some(HandshakeKind::Full), "no retry, no resumption");
        assert_eq!(done.client.tls13_tickets_received(), 0);
        assert_eq!(done.client.alpn_protocol(), Some(&b"h2"[..]));
    }
}

#[test]
fn whoever_would_like_to_resume_gets_no_ticket() {
    let root = Authority::root();
    let server = server_config(&root.certificate(B), bundles(&[("mesh.test", &root)])).unwrap();
    let eager = gullible_client(&root.leaf(A, |_| {}));
    for _ in 0..2 {
        let done = handshake(eager.clone(), server.clone());
        done.client_end.and(done.server_end).unwrap();
        assert_eq!(done.client.tls13_tickets_received(), 0);
        assert_eq!(done.server.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn a_ticket_that_our_client_is_given_is_not_used() {
    let root = Authority::root();
    let ours = client_config(&root.certificate(A), bundles(&[("mesh.test", &root)]), &[id(B)]).unwrap();
    let generous = gullible_server(&root.leaf(B, |_| {}));
    for _ in 0..2 {
        let done = handshake(ours.clone(), generous.clone());
        done.client_end.and(done.server_end).unwrap();
        assert!(done.client.tls13_tickets_received() > 0);
        assert_eq!(done.server.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn our_server_refuses_what_it_does_not_speak() {
    let root = Authority::root();
    let trust = bundles(&[("mesh.test", &root)]);
    let server = server_config(&root.certificate(B), &trust).unwrap();

    // TLS 1.2: our own hello with another number in supported_versions.
    let hello = recorded_hello();
    let versions = [0, 43, 0, 3, 2, 3, 4];
    let at = hello.windows(versions.len()).position(|w| w == versions).expect("supported_versions");
    let mut older = hello.clone();
    older[at + 6] = 3;
    assert!(answer(&server, &older).is_err_and(|e| matches!(e, rustls::Error::PeerIncompatible(_))));
    assert!(answer(&server, &hello).is_ok(), "the unchanged hello is the one that is understood");

    // No group in common, another protocol inside.
    let other_groups = with_groups(&root, vec![kx_group::SECP384R1]);
    let end = handshake(other_groups, server.clone()).server_end.unwrap_err();
    assert!(matches!(end, rustls::Error::PeerIncompatible(_)), "{end}");
    let mut http1 = (*gullible_client(&root.leaf(A, |_| {}))).clone();
    http1.alpn_protocols = vec![b"http/1.1".to_vec()];
    let end = handshake(Arc::new(http1), server).server_end.unwrap_err();
    assert_eq!(end, rustls::Error::NoApplicationProtocol);
}

fn with_groups(
    root: &Authority,
    kx_groups: Vec<&'static dyn rustls::crypto::SupportedKxGroup>,
) -> Arc<ClientConfig> {
    let shown = root.leaf(A, |_| {});
    let trust = gullible_client(&shown);
    let provider = Arc::new(CryptoProvider { kx_groups, ..default_provider() });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(crate::tls::testing::gullible())
        .with_client_cert_resolver(trust.client_auth_cert_resolver.clone());
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

fn answer(server: &Arc<rustls::ServerConfig>, hello: &[u8]) -> Result<(), rustls::Error> {
    let mut connection = ServerConnection::new(server.clone()).unwrap();
    let mut wire = hello;
    while !wire.is_empty() {
        connection.read_tls(&mut wire).unwrap();
        connection.process_new_packets()?;
    }
    Ok(())
}

fn recorded_hello() -> Vec<u8> {
    let root = Authority::root();
    let config = client_config(&root.certificate(A), bundles(&[("mesh.test", &root)]), &[id(B)]).unwrap();
    // A name that rustls would put into SNI.
    let name = ServerName::try_from("cart.shop.svc").unwrap();
    let mut wire = Vec::new();
    ClientConnection::new(config, name).unwrap().write_tls(&mut wire).unwrap();
    wire
}

/// A ClientHello in one record (RFC 8446, sections 4.1.2 and 5.1).
struct Hello {
    suites: Vec<u16>,
    extensions: BTreeMap<u16, Vec<u8>>,
}

impl Hello {
    fn read(wire: &[u8]) -> Self {
        let mut at = Cursor(wire);
        assert_eq!(at.take(1), [22], "a handshake record");
        at.take(2);
        let mut record = Cursor(at.block(2));
        assert!(at.0.is_empty(), "one record");
        assert_eq!(record.take(1), [1], "a ClientHello");
        let mut body = Cursor(record.block(3));
        assert_eq!(body.take(2), [3, 3]);
        body.take(32);
        body.block(1);
        let suites = u16s(body.block(2));
        assert_eq!(body.block(1), [0], "no compression");
        let mut rest = Cursor(body.block(2));
        let mut extensions = BTreeMap::new();
        while !rest.0.is_empty() {
            let kind = u16s(rest.take(2))[0];
            extensions.insert(kind, rest.block(2).to_vec());
        }
        Self { suites, extensions }
    }

    fn extension(&self, kind: u16) -> &[u8] {
        &self.extensions[&kind]
    }

    fn key_shares(&self) -> Vec<u16> {
        let mut shares = Cursor(&self.extension(KEY_SHARE)[2..]);
        let mut groups = Vec::new();
        while !shares.0.is_empty() {
            groups.extend(u16s(shares.take(2)));
            shares.block(2);
        }
        groups
    }
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(n);
        self.0 = tail;
        head
    }

    /// A length of `width` bytes and as many bytes as it says.
    fn block(&mut self, width: usize) -> &'a [u8] {
        let n = self.take(width).iter().fold(0, |n, b| n << 8 | usize::from(*b));
        self.take(n)
    }
}

fn u16s(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(|b| u16::from_be_bytes([b[0], b[1]])).collect()
}
