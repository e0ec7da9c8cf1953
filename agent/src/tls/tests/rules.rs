//! Every rule broken once, shown to both verifiers in a real handshake.

use std::io;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType,
};

use crate::model::Cause;
use crate::tls::testing::{
    Authority, Shown, bundles, domain, gullible_client, gullible_server, handshake, id, uri,
};
use crate::tls::{
    TlsError, cause_of, client_config, peer_identity, peer_of, reason_of, server_config,
    server_config_accepting,
};

const OURS: &str = "spiffe://mesh.test/ns/shop/sa/cart";
const PEER: &str = "spiffe://mesh.test/ns/shop/sa/till";

/// Our side, and authorities for peers to come from.
struct World {
    root: Authority,
    second_root: Authority,
    foreign_root: Authority,
    expired_root: Authority,
}

impl World {
    fn new() -> Self {
        let past = |p: &mut CertificateParams| p.not_after = ago(10).into();
        Self {
            root: Authority::root(),
            second_root: Authority::root_with(|p| p.distinguished_name.push(DnType::CommonName, "second")),
            foreign_root: Authority::root(),
            expired_root: Authority::root_with(past),
        }
    }

    /// How our client and our server end a handshake with somebody who shows `shown`.
    fn judge(&self, shown: &Shown) -> [Result<(), TlsError>; 2] {
        let ours = self.root.certificate(OURS);
        let bundles = bundles(&[
            ("mesh.test", &self.root),
            ("mesh.test", &self.second_root),
            ("mesh.test", &self.expired_root),
            ("ally.test", &self.foreign_root),
        ]);
        let dialled = handshake(client_config(&ours, &bundles, &[id(PEER)]).unwrap(), gullible_server(shown));
        let accepted = handshake(gullible_client(shown), server_config(&ours, &bundles).unwrap());
        [
            outcome(dialled.client_end, || peer_of(&dialled.client)),
            outcome(accepted.server_end, || peer_of(&accepted.server)),
        ]
    }
}

/// A handshake that ends well must also yield the peer's identity.
fn outcome(
    end: Result<(), rustls::Error>,
    peer: impl Fn() -> Result<crate::model::SpiffeId, TlsError>,
) -> Result<(), TlsError> {
    match end {
        Ok(()) => {
            assert_eq!(peer().unwrap(), id(PEER));
            Ok(())
        }
        Err(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) => {
            Err(other.0.downcast_ref::<TlsError>().expect("an error of ours").clone())
        }
        Err(other) => panic!("refused for another reason: {other}"),
    }
}

#[test]
fn sound_peers_are_accepted_by_both_ends() {
    let world = World::new();
    let middle = world.root.intermediate(|_| {});
    let lower = middle.intermediate(|p| {
        p.distinguished_name.push(DnType::CommonName, "lower");
        p.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    });
    type Change = fn(&mut CertificateParams);
    let leaves: [(&str, Change); 7] = [
        ("as our own issuer makes them", |_| {}),
        ("with a DNS name beside the URI", |p| {
            p.subject_alt_names.push(SanType::DnsName("cart.shop.svc".try_into().unwrap()));
        }),
        ("with a subject, so that the SAN is not critical", |p| {
            p.distinguished_name.push(DnType::OrganizationName, "SPIRE");
        }),
        ("with no subject and a SAN that is not critical all the same", |p| {
            p.subject_alt_names.clear();
            p.custom_extensions.push(san(&[(6, PEER.as_bytes())]));
        }),
        ("as Istio makes them", |p| p.key_usages.push(KeyUsagePurpose::KeyEncipherment)),
        ("without key usages", |p| p.key_usages.clear()),
        ("without extended key usages and basic constraints", |p| {
            p.extended_key_usages.clear();
            p.is_ca = IsCa::NoCa;
        }),
    ];
    let mut peers: Vec<(&str, Shown)> =
        leaves.into_iter().map(|(name, change)| (name, world.root.leaf(PEER, change))).collect();
    peers.push(("of the other root of the domain", world.second_root.leaf(PEER, |_| {})));
    peers.push(("through an intermediate", middle.leaf(PEER, |_| {}).with(&middle)));
    peers.push(("through two intermediates", lower.leaf(PEER, |_| {}).with(&lower).with(&middle)));
    peers.push(("out of order", lower.leaf(PEER, |_| {}).with(&middle).with(&lower)));
    peers.push(("with the root sent along", world.root.leaf(PEER, |_| {}).with(&world.root)));
    for (name, shown) in peers {
        for (end, result) in ["client", "server"].into_iter().zip(world.judge(&shown)) {
            assert!(result.is_ok(), "{name}: our {end} says: {}", result.unwrap_err());
        }
    }
}

#[test]
fn each_broken_rule_of_a_leaf_is_named_by_both_ends() {
    let world = World::new();
    type Row = (&'static str, fn(&mut CertificateParams), fn(&TlsError) -> bool, &'static str);
    let rows: [Row; 22] = [
        (
            "two URI SANs, the expected one first",
            |p| p.subject_alt_names.push(uri("spiffe://mesh.test/ns/shop/sa/admin")),
            |e| matches!(e, TlsError::UriSans { count: 2, .. }),
            "sa/admin",
        ),
        (
            "two URI SANs, the expected one last",
            |p| p.subject_alt_names.insert(0, uri("https://mesh.test/")),
            |e| matches!(e, TlsError::UriSans { count: 2, .. }),
            "https://mesh.test/",
        ),
        (
            "the same URI twice",
            |p| p.subject_alt_names.push(uri(PEER)),
            |e| matches!(e, TlsError::UriSans { count: 2, .. }),
            "sa/till",
        ),
        (
            "two SAN extensions",
            |p| p.custom_extensions.push(san(&[(6, b"spiffe://mesh.test/ns/shop/sa/admin")])),
            |e| matches!(e, TlsError::Malformed(_)),
            "subject alternative name",
        ),
        ("no SAN", |p| p.subject_alt_names.clear(), |e| matches!(e, TlsError::UriSans { count: 0, .. }), "0"),
        (
            "a DNS name that looks like an id",
            |p| p.subject_alt_names = vec![SanType::DnsName(PEER.try_into().unwrap())],
            |e| matches!(e, TlsError::UriSans { count: 0, .. }),
            "0",
        ),
        (
            "the id as common name only",
            |p| {
                p.subject_alt_names.clear();
                p.distinguished_name.push(DnType::CommonName, PEER);
            },
            |e| matches!(e, TlsError::UriSans { count: 0, .. }),
            "0",
        ),
        (
            "a URI that is not a SPIFFE id",
            |p| p.subject_alt_names = vec![uri("https://mesh.test/ns/shop/sa/till")],
            |e| matches!(e, TlsError::SpiffeId { .. }),
            "https://mesh.test",
        ),
        (
            "an empty path segment",
            |p| p.subject_alt_names = vec![uri("spiffe://mesh.test/ns/shop/sa/till/")],
            |e| matches!(e, TlsError::SpiffeId { .. }),
            "sa/till/",
        ),
        (
            "the trust domain's own id",
            |p| p.subject_alt_names = vec![uri("spiffe://mesh.test")],
            |e| matches!(e, TlsError::SpiffeId { .. }),
            "spiffe://mesh.test",
        ),
        (
            "a way up in the path",
            |p| p.subject_alt_names = vec![uri("spiffe://mesh.test/x/../ns/shop/sa/till")],
            |e| matches!(e, TlsError::SpiffeId { .. }),
            "x/../ns",
        ),
        (
            "a trust domain in upper case",
            |p| p.subject_alt_names = vec![uri("spiffe://MESH.test/ns/shop/sa/till")],
            |e| matches!(e, TlsError::SpiffeId { .. }),
            "MESH.test",
        ),
        (
            "a percent-encoded letter",
            |p| p.subject_alt_names = vec![uri("spiffe://mesh.test/ns/shop/sa/t%69ll")],
            |e| matches!(e, TlsError::SpiffeId { .. }),
            "t%69ll",
        ),
        (
            "a NUL after the id",
            |p| {
                p.subject_alt_names.clear();
                p.custom_extensions.push(san(&[(6, b"spiffe://mesh.test/ns/shop/sa/till\0")]));
            },
            |e| matches!(e, TlsError::SpiffeId { .. }),
            "till\\0",
        ),
        (
            "a second URI that is not text",
            |p| {
                p.subject_alt_names.clear();
                p.custom_extensions.push(san(&[(6, PEER.as_bytes()), (6, b"\xff\xfe")]));
            },
            |e| matches!(e, TlsError::Malformed(_)),
            "not valid text",
        ),
        (
            "CA:TRUE",
            |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            |e| matches!(e, TlsError::CaAsLeaf { .. }),
            "CA:FALSE",
        ),
        (
            "keyCertSign",
            |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign),
            |e| matches!(e, TlsError::KeyUsage { .. }),
            "Key Cert Sign",
        ),
        (
            "cRLSign",
            |p| p.key_usages.push(KeyUsagePurpose::CrlSign),
            |e| matches!(e, TlsError::KeyUsage { .. }),
            "CRL Sign",
        ),
        (
            "no digitalSignature",
            |p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment],
            |e| matches!(e, TlsError::KeyUsage { .. }),
            "Key Encipherment",
        ),
        (
            "for servers only",
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
            |e| matches!(e, TlsError::ExtendedKeyUsage { .. }),
            "serverAuth",
        ),
        (
            "for clients only",
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
            |e| matches!(e, TlsError::ExtendedKeyUsage { .. }),
            "clientAuth",
        ),
        (
            "for signing code",
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning],
            |e| matches!(e, TlsError::ExtendedKeyUsage { .. }),
            "codeSigning",
        ),
    ];
    for (name, change, rule, quoted) in rows {
        refused_by_both(&world, name, &world.root.leaf(PEER, change), rule, quoted, Cause::TlsFailed);
    }
}

#[test]
fn times_paths_and_foreign_names_are_refused_by_both_ends() {
    let world = World::new();
    let World { root, foreign_root, expired_root, .. } = &world;
    let middle = root.intermediate(|_| {});
    let lapsed = root.intermediate(|p| p.not_after = ago(10).into());
    let no_signing = root.intermediate(|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    let no_ca = root.intermediate(|p| p.is_ca = IsCa::ExplicitNoCa);
    let end_of_line = root.intermediate(|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let beyond = end_of_line.intermediate(|p| p.distinguished_name.push(DnType::CommonName, "beyond"));
    let servers_only =
        root.intermediate(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let ally = "spiffe://ally.test/ns/shop/sa/till";
    let unheard_of = "spiffe://nowhere.test/ns/shop/sa/till";
    let stolen = Shown {
        chain: root.leaf(PEER, |_| {}).chain,
        key: root.leaf("spiffe://mesh.test/ns/shop/sa/thief", |_| {}).key,
    };
    type Row = (&'static str, Shown, fn(&TlsError) -> bool, &'static str, Cause);
    let rows: Vec<Row> = vec![
        (
            "expired",
            root.leaf(PEER, |p| p.not_after = ago(10).into()),
            |e| matches!(e, TlsError::Expired { .. }),
            PEER,
            Cause::TlsFailed,
        ),
        (
            "not yet valid",
            root.leaf(PEER, |p| p.not_before = (SystemTime::now() + Duration::from_secs(600)).into()),
            |e| matches!(e, TlsError::NotYetValid { .. }),
            PEER,
            Cause::TlsFailed,
        ),
        (
            "an expired intermediate",
            lapsed.leaf(PEER, |_| {}).with(&lapsed),
            |e| matches!(e, TlsError::Expired { .. }),
            PEER,
            Cause::TlsFailed,
        ),
        (
            "an expired root",
            expired_root.leaf(PEER, |_| {}),
            |e| matches!(e, TlsError::Chain { .. }),
            "not by the key",
            Cause::TlsFailed,
        ),
        (
            "signed by a root of another domain that we hold, with our domain's id",
            foreign_root.leaf(PEER, |_| {}),
            |e| matches!(e, TlsError::Chain { .. }),
            "mesh.test",
            Cause::TlsFailed,
        ),
        (
            "signed by our root, with an id of a domain that has another root",
            root.leaf(ally, |_| {}),
            |e| matches!(e, TlsError::Chain { .. }),
            "ally.test",
            Cause::TlsFailed,
        ),
        (
            "a root that nobody knows",
            Authority::root_with(|p| p.distinguished_name.push(DnType::CommonName, "nobody"))
                .leaf(PEER, |_| {}),
            |e| matches!(e, TlsError::Chain { .. }),
            "none of 2 roots signed it; 1 more do not count",
            Cause::TlsFailed,
        ),
        (
            "an intermediate that was not sent",
            middle.leaf(PEER, |_| {}),
            |e| matches!(e, TlsError::Chain { .. }),
            "none of 2 roots",
            Cause::TlsFailed,
        ),
        (
            "an intermediate without keyCertSign",
            no_signing.leaf(PEER, |_| {}).with(&no_signing),
            |e| matches!(e, TlsError::Chain { .. }),
            "may not sign",
            Cause::TlsFailed,
        ),
        (
            "an intermediate that is no CA",
            no_ca.leaf(PEER, |_| {}).with(&no_ca),
            |e| matches!(e, TlsError::Chain { .. }),
            "may not sign",
            Cause::TlsFailed,
        ),
        (
            "an intermediate below one of path length 0",
            beyond.leaf(PEER, |_| {}).with(&beyond).with(&end_of_line),
            |e| matches!(e, TlsError::Chain { .. }),
            "PathLen",
            Cause::TlsFailed,
        ),
        (
            "an intermediate for servers only",
            servers_only.leaf(PEER, |_| {}).with(&servers_only),
            |e| matches!(e, TlsError::Chain { .. }),
            "RequiredEku",
            Cause::TlsFailed,
        ),
        (
            "a domain that no roots are held for",
            root.leaf(unheard_of, |_| {}),
            |e| matches!(e, TlsError::UnknownTrustDomain { .. }),
            "nowhere.test",
            Cause::WrongIdentity,
        ),
    ];
    for (name, shown, rule, quoted, cause) in rows {
        refused_by_both(&world, name, &shown, rule, quoted, cause);
    }

    // A sound certificate in the hands of somebody without its key ends before our own rules can tell.
    let ours = root.certificate(OURS);
    let trust = bundles(&[("mesh.test", root)]);
    let client = client_config(&ours, &trust, &[id(PEER)]).unwrap();
    let end = handshake(client, gullible_server(&stolen)).client_end.unwrap_err();
    assert_eq!(end, rustls::Error::InvalidCertificate(rustls::CertificateError::BadSignature));
    let server = server_config(&ours, &trust).unwrap();
    let end = handshake(gullible_client(&stolen), server).server_end.unwrap_err();
    assert_eq!(end, rustls::Error::InvalidCertificate(rustls::CertificateError::BadSignature));
}

#[test]
fn a_sound_certificate_of_somebody_else_is_a_wrong_identity() {
    let world = World::new();
    let else_here = world.root.leaf("spiffe://mesh.test/ns/shop/sa/else", |_| {});
    let ally = world.foreign_root.leaf("spiffe://ally.test/ns/shop/sa/till", |_| {});
    let ours = world.root.certificate(OURS);
    let trust = bundles(&[("mesh.test", &world.root), ("ally.test", &world.foreign_root)]);
    let dial = |expected: &[&str], shown: &Shown| {
        let expected: Vec<_> = expected.iter().map(|e| id(e)).collect();
        handshake(client_config(&ours, &trust, &expected).unwrap(), gullible_server(shown)).client_end
    };

    // The client takes one of those it expects and nobody else, of whatever domain.
    let error = dial(&[PEER], &else_here).unwrap_err();
    assert_wrong_identity(&error, &["sa/else", PEER]);
    assert!(dial(&[PEER, "spiffe://mesh.test/ns/shop/sa/else"], &else_here).is_ok());
    assert!(dial(&["spiffe://ally.test/ns/shop/sa/till"], &ally).is_ok());
    assert_wrong_identity(&dial(&[PEER], &ally).unwrap_err(), &["ally.test", "mesh.test"]);
    assert!(matches!(client_config(&ours, &trust, &[]), Err(TlsError::NothingExpected)));

    // The server lets in its own domain, and another only when told to, although it holds its roots.
    let server = server_config(&ours, &trust).unwrap();
    assert!(handshake(gullible_client(&else_here), server.clone()).server_end.is_ok());
    let error = handshake(gullible_client(&ally), server).server_end.unwrap_err();
    assert_wrong_identity(&error, &["ally.test", "accepted: mesh.test"]);
    let both = [domain("mesh.test"), domain("ally.test")].into();
    let server = server_config_accepting(&ours, &trust, both).unwrap();
    assert!(handshake(gullible_client(&ally), server).server_end.is_ok());
}

/// A machine of a federated domain, or of ours, whom its authority named as it liked.
#[test]
fn whoever_is_no_service_account_is_somebody_and_no_account_that_it_looks_like() {
    let world = World::new();
    let ours = world.root.certificate(OURS);
    let trust = bundles(&[("mesh.test", &world.root), ("ally.test", &world.foreign_root)]);
    let trusted = || [domain("mesh.test"), domain("ally.test")].into();
    let dial = |expected: &str, shown: &Shown| {
        let client = client_config(&ours, &trust, &[id(expected)]).unwrap();
        let seen = handshake(client, gullible_server(shown));
        seen.client_end.map(|()| peer_of(&seen.client).unwrap())
    };
    for (named, root) in [
        ("spiffe://ally.test/billing/api", &world.foreign_root),
        ("spiffe://ally.test/a", &world.foreign_root),
        ("spiffe://mesh.test/billing/api", &world.root),
        ("spiffe://mesh.test/ns/shop/sa/till/x", &world.root),
        ("spiffe://mesh.test/x/ns/shop/sa/till", &world.root),
        ("spiffe://mesh.test/NS/shop/SA/till", &world.root),
    ] {
        let shown = root.leaf(named, |_| {});
        let server = server_config_accepting(&ours, &trust, trusted()).unwrap();
        let seen = handshake(gullible_client(&shown), server);
        seen.server_end.unwrap();
        let peer = peer_of(&seen.server).unwrap();
        assert_eq!((&peer, peer.account()), (&id(named), None));
        assert_eq!(dial(named, &shown), Ok(id(named)));
        assert_wrong_identity(&dial(PEER, &shown).unwrap_err(), &[named, PEER]);
    }
    // Each domain by its own roots, whatever the path.
    let stolen = world.root.leaf("spiffe://ally.test/billing/api", |_| {});
    let server = server_config_accepting(&ours, &trust, trusted()).unwrap();
    let end = handshake(gullible_client(&stolen), server).server_end.unwrap_err();
    assert!(matches!(end, rustls::Error::InvalidCertificate(_)), "{end}");
}

#[test]
fn other_errors_of_a_handshake_are_tls_failures() {
    let table = [
        io::Error::from(io::ErrorKind::UnexpectedEof),
        io::Error::from(io::ErrorKind::ConnectionReset),
        io::Error::other("anything"),
        io::Error::new(io::ErrorKind::InvalidData, rustls::Error::NoApplicationProtocol),
        io::Error::from(TlsError::Alpn { found: "none".into() }),
    ];
    for error in table {
        assert_eq!(cause_of(&error), Cause::TlsFailed, "{error}");
    }
    assert_eq!(cause_of(&io::Error::from(TlsError::NothingExpected)), Cause::WrongIdentity);
}

fn refused_by_both(
    world: &World,
    name: &str,
    shown: &Shown,
    rule: fn(&TlsError) -> bool,
    quoted: &str,
    cause: Cause,
) {
    for (end, result) in ["client", "server"].into_iter().zip(world.judge(shown)) {
        let error = result.expect_err(&format!("{name}: accepted by our {end}"));
        assert!(rule(&error), "{name}: our {end} names another rule: {error:?}");
        assert!(error.to_string().contains(quoted), "{name}: our {end} does not say {quoted:?}: {error}");
        let io = io::Error::new(io::ErrorKind::InvalidData, rustls::Error::from(error));
        assert_eq!(cause_of(&io), cause, "{name}: our {end}");
    }
}

fn assert_wrong_identity(error: &rustls::Error, quoted: &[&str]) {
    let io = io::Error::new(io::ErrorKind::InvalidData, error.clone());
    assert_eq!(cause_of(&io), Cause::WrongIdentity, "{error}");
    for quote in quoted {
        assert!(reason_of(&io).contains(quote), "{quote:?} is not in: {}", reason_of(&io));
    }
}

#[test]
fn a_leaf_is_one_certificate_whole_and_readable() {
    let root = Authority::root();
    let leaf = |change: fn(&mut CertificateParams)| root.leaf(PEER, change).chain.remove(0);
    let sound = leaf(|_| {});
    assert_eq!(peer_identity(std::slice::from_ref(&sound)).unwrap(), id(PEER));
    let longer = [sound.as_ref(), &[0x05, 0x00]].concat();
    // Version: [0] EXPLICIT INTEGER, where 2 means 3.
    let mut older = sound.to_vec();
    let at = older.windows(5).position(|w| w == [0xa0, 3, 2, 1, 2]).expect("a version");
    older[at + 4] = 1;
    // What cannot be read does not say that it is no authority.
    let unreadable = leaf(|p| {
        p.is_ca = IsCa::NoCa;
        p.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 19], vec![0x30, 3, 1, 1]));
    });
    for (what, der) in [("followed", longer.into()), ("old", older.into()), ("unreadable", unreadable)] {
        let result = peer_identity(&[der]);
        assert!(matches!(result, Err(TlsError::Malformed(_))), "{what}: {result:?}");
    }
}

/// A SAN extension that is not critical, of (context tag, content).
pub(super) fn san(names: &[(u8, &[u8])]) -> CustomExtension {
    let body: Vec<u8> =
        names.iter().flat_map(|(tag, name)| [&[0x80 | tag, short(name)], *name].concat()).collect();
    let content = [&[0x30, short(&body)], &body[..]].concat();
    CustomExtension::from_oid_content(&[2, 5, 29, 17], content)
}

fn short(bytes: &[u8]) -> u8 {
    assert!(bytes.len() < 128, "needs a long form of length");
    bytes.len() as u8
}

fn ago(seconds: u64) -> SystemTime {
    SystemTime::now() - Duration::from_secs(seconds)
}
