//! Revocation lists: what they take back, in which handshakes, and which are no lists at all.

use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, KeyUsagePurpose, SerialNumber};
use rustls_pki_types::CertificateDer;

use crate::model::Cause;
use crate::tls::testing::{
    Authority, Shown, bundles, domain, gullible_client, gullible_server, handshake, id,
};
use crate::tls::{Accept, Crls, TlsError, Trust, Trusted, client_config, server_config, verify_chain};

const OURS: &str = "spiffe://mesh.test/ns/shop/sa/cart";
const PEER: &str = "spiffe://mesh.test/ns/shop/sa/till";
const OTHER: &str = "spiffe://mesh.test/ns/shop/sa/shelf";

fn crls(lists: &[&[u8]]) -> Crls {
    let mut crls = Crls::default();
    for list in lists {
        crls.add(list).unwrap();
    }
    crls
}

fn trusted(root: &Authority, lists: &[&[u8]]) -> Trusted {
    Trusted { bundles: bundles(&[("mesh.test", root)]), revoked: crls(lists) }
}

/// What a peer that shows `chain` is told, whichever end it is.
fn judge(chain: &[CertificateDer<'_>], trusted: &Trusted) -> Result<(), TlsError> {
    let anybody = Accept::TrustDomains([domain("mesh.test")].into());
    verify_chain(chain, trusted, &anybody, SystemTime::now()).map(drop)
}

#[test]
fn who_is_revoked_is_refused_in_both_directions_and_nobody_else() {
    let root = Authority::root();
    let middle = root.intermediate(|_| {});
    let (peer, other) = (middle.leaf(PEER, |_| {}).with(&middle), middle.leaf(OTHER, |_| {}).with(&middle));
    let trust = Trust::new(trusted(&root, &[&middle.list(&[peer.leaf()], 60)]));
    let ours = root.certificate(OURS);
    let ends = |shown: &Shown, who: &str| {
        let client = client_config(&ours, &trust, &[id(who)]).unwrap();
        let server = server_config(&ours, &trust).unwrap();
        [
            handshake(client, gullible_server(shown)).client_end,
            handshake(gullible_client(shown), server).server_end,
        ]
    };
    for end in ends(&other, OTHER) {
        end.unwrap();
    }
    for end in ends(&peer, PEER) {
        let error = end.unwrap_err();
        assert_eq!(crate::tls::cause_of_tls(&error), Cause::TrustRevoked);
        let said = crate::tls::reason_of(&std::io::Error::other(error));
        assert!(said.contains("is revoked by its issuer \"CN=test intermediate\""), "{said}");
        assert!(said.contains(PEER), "{said}");
    }
    // No new configuration is needed when the list goes.
    trust.set(trusted(&root, &[]));
    for end in ends(&peer, PEER) {
        end.unwrap();
    }
}

#[test]
fn the_whole_chain_is_looked_at() {
    let root = Authority::root();
    let (middle, low) = (root.intermediate(|_| {}), named("low"));
    let low_certificate = low.again(&middle, |p| p.distinguished_name = name("low"));
    let mut chain = low.leaf(PEER, |_| {}).chain;
    chain.extend([low_certificate.clone(), middle.certificate.clone()]);
    judge(&chain, &trusted(&root, &[])).unwrap();
    for list in [root.list(&[&middle.certificate], 60), middle.list(&[&low_certificate], 60)] {
        let error = judge(&chain, &trusted(&root, &[&list])).unwrap_err();
        assert!(matches!(error, TlsError::Revoked { above: Some(_), .. }), "{error}");
        assert!(error.to_string().contains("in the chain of"), "{error}");
    }
}

/// One authority may have several certificates. To revoke one does not revoke the authority's key.
#[test]
fn a_way_around_the_revoked_certificate_is_a_way() {
    let root = Authority::root();
    let middle = root.intermediate(|_| {});
    let second = middle.again(&root, |p| p.serial_number = Some(SerialNumber::from(4711u64)));
    let leaf = middle.leaf(PEER, |_| {}).chain.remove(0);
    let trusted = trusted(&root, &[&root.list(&[&middle.certificate], 60)]);
    let revoked_only = [leaf.clone(), middle.certificate.clone()];
    assert!(matches!(judge(&revoked_only, &trusted), Err(TlsError::Revoked { .. })));
    judge(&[leaf.clone(), second.clone()], &trusted).unwrap();
    judge(&[leaf, middle.certificate.clone(), second], &trusted).unwrap();
}

#[test]
fn of_two_lists_the_newest_counts_in_whatever_order_they_come() {
    let root = Authority::root();
    let peer = root.leaf(PEER, |_| {});
    let (old, new) = (root.list(&[peer.leaf()], 120), root.list(&[], 60));
    for lists in [[&old[..], &new], [&new, &old]] {
        judge(&peer.chain, &trusted(&root, &lists)).unwrap();
    }
    let newest = root.list(&[peer.leaf()], 30);
    for lists in [[&new[..], &newest], [&newest, &new]] {
        assert!(matches!(judge(&peer.chain, &trusted(&root, &lists)), Err(TlsError::Revoked { .. })));
    }
    // Of the same second: what any of them names is revoked.
    let twin = root.list_with(&[], 30, |p| p.crl_number = 2u64.into());
    assert!(judge(&peer.chain, &trusted(&root, &[&newest, &twin])).is_err());
    assert_eq!(crls(&[&newest, &newest]).len(), 1);
}

#[test]
fn a_list_that_is_out_of_date_refuses_its_issuers_certificates_until_there_is_a_newer() {
    let root = Authority::root();
    let (listed, free) = (root.intermediate(|_| {}), named("free"));
    let free_certificate = free.again(&root, |p| p.distinguished_name = name("free"));
    let peer = listed.leaf(PEER, |_| {}).with(&listed);
    let stale = listed.list(&[], 3601);
    let error = judge(&peer.chain, &trusted(&root, &[&stale])).unwrap_err();
    assert!(matches!(error, TlsError::RevocationListExpired { .. }), "{error}");
    assert_eq!(error.cause(), Cause::TlsFailed);
    judge(&peer.chain, &trusted(&root, &[&stale, &listed.list(&[], 60)])).unwrap();
    // It says nothing about others.
    let mut other = free.leaf(OTHER, |_| {}).chain;
    other.push(free_certificate);
    judge(&other, &trusted(&root, &[&stale])).unwrap();
    // What it does name stays revoked.
    let stale = listed.list(&[peer.leaf()], 3601);
    assert!(matches!(judge(&peer.chain, &trusted(&root, &[&stale])), Err(TlsError::Revoked { .. })));
    let view = crls(&[&stale]).iter().next().unwrap().clone();
    assert!(view.is_expired_at(SystemTime::now()) && !view.is_expired_at(view.this_update));
    assert_eq!((&*view.issuer, view.revoked), ("CN=test intermediate", 1));
    assert_eq!(view.next_update.duration_since(view.this_update).unwrap(), Duration::from_secs(3600));
}

/// Roots that follow each other often have one name, and anybody may call an authority what he likes.
#[test]
fn a_list_of_another_authority_of_the_same_name_neither_revokes_nor_shadows() {
    let (root, namesake) = (Authority::root(), Authority::root());
    let sibling = root.intermediate(|_| {});
    let middle = root.intermediate(|_| {});
    let peer = middle.leaf(PEER, |_| {}).with(&middle);
    let foreign = [
        namesake.list(&[&middle.certificate], 60),
        sibling.list(&[peer.leaf()], 60),
        sibling.list(&[], 3601),
    ];
    for list in &foreign {
        judge(&peer.chain, &trusted(&root, &[list])).unwrap();
    }
    let real = middle.list(&[peer.leaf()], 120);
    let shadow = sibling.list(&[], 60);
    for lists in [[&real[..], &shadow], [&shadow, &real]] {
        assert!(matches!(judge(&peer.chain, &trusted(&root, &lists)), Err(TlsError::Revoked { .. })));
    }
    // In two trust domains, both trusted here.
    let both = Trusted {
        bundles: bundles(&[("mesh.test", &root), ("ally.test", &namesake)]),
        revoked: crls(&[&namesake.list(&[&middle.certificate, peer.leaf()], 60)]),
    };
    judge(&peer.chain, &both).unwrap();
}

#[test]
fn a_list_by_an_issuer_that_may_not_sign_lists_is_not_believed_to_name_all() {
    let no_lists = |p: &mut CertificateParams| p.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root = Authority::root_with(no_lists);
    let middle = root.intermediate(no_lists);
    let peer = middle.leaf(PEER, |_| {}).with(&middle);
    judge(&peer.chain, &trusted(&root, &[])).unwrap();
    // rcgen holds to the rule, so these lists are made by somebody with the same keys who may.
    for list in [root.lax_list(), middle.lax_list()] {
        let error = judge(&peer.chain, &trusted(&root, &[&list])).unwrap_err();
        assert!(error.to_string().contains("cRLSign"), "{error}");
    }
}

#[test]
fn lists_are_read_in_der_and_pem_one_or_many() {
    let (root, other) = (Authority::root(), named("other"));
    let (a, b) = (root.list(&[], 60), other.list(&[root.leaf(PEER, |_| {}).leaf()], 60));
    assert_eq!(crls(&[&a]).len(), 1);
    let both = format!("some text\n{}{}{}", pem("X509 CRL", &a), root.pem, pem("X509 CRL", &b));
    let read = crls(&[both.as_bytes()]);
    assert_eq!(read.len(), 2);
    assert_eq!(read, crls(&[&a, &b]));
    assert_ne!(read, crls(&[&a]));
    assert_eq!(read.iter().map(|view| view.revoked).sum::<usize>(), 1);
}

#[test]
fn what_is_no_complete_list_is_refused_and_leaves_the_others_alone() {
    let root = Authority::root();
    let sound = root.list(&[root.leaf(PEER, |_| {}).leaf()], 60);
    let mut behind = sound.clone();
    behind.push(0);
    let broken = format!("{}-----BEGIN X509 CRL-----\nMIIB\n", pem("X509 CRL", &sound));
    let many = pem("X509 CRL", &sound).repeat(1025);
    let table: [(&str, Vec<u8>, &str); 12] = [
        ("nothing", vec![], "neither DER nor PEM"),
        ("text", b"no list at all".to_vec(), "neither DER nor PEM"),
        ("a certificate", root.pem.clone().into(), "neither DER nor PEM"),
        ("a certificate in DER", root.certificate.to_vec(), ""),
        ("bytes behind it", behind, ""),
        ("one sound, one cut off", broken.into(), ""),
        ("cut off", sound[..sound.len() - 1].to_vec(), ""),
        ("too large", vec![b' '; crate::tls::MAX_CRL_BYTES + 1], "more than the"),
        ("too many", many.into(), "more than 1024"),
        ("delta", with_extension(&root, &[0x55, 0x1d, 27], true, &[2, 1, 1]), "delta"),
        ("indirect", with_extension(&root, &[0x55, 0x1d, 28], true, &INDIRECT), "indirect"),
        (
            "critical and unknown",
            with_extension(&root, &[0x55, 0x1d, 99], true, &[5, 0]),
            "critical extension",
        ),
    ];
    let mut held = crls(&[&sound]);
    for (what, bytes, said) in table {
        let error = held.add(&bytes).expect_err(what);
        assert!(matches!(error, TlsError::RevocationList { .. }), "{what}: {error}");
        assert!(error.to_string().contains(said), "{what}: {error}");
        assert_eq!(held, crls(&[&sound]), "{what}");
    }
    // The builder of these is sound itself.
    held.add(&with_extension(&root, &[0x55, 0x1d, 99], false, &[5, 0])).unwrap();
}

/// SEQUENCE { distributionPoint [0] { fullName [0] { URI "a" } }, indirectCRL [4] TRUE }
const INDIRECT: [u8; 12] = [0x30, 10, 0xa0, 5, 0xa0, 3, 0x86, 1, b'a', 0x84, 1, 0xff];

/// A list whose one extension is this, signed by `authority`, whose name it bears.
fn with_extension(authority: &Authority, oid: &[u8], critical: bool, content: &[u8]) -> Vec<u8> {
    let algorithm = tlv(0x30, &[&[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]]);
    let critical: &[u8] = if critical { &[1, 1, 0xff] } else { &[] };
    let extension = tlv(0x30, &[&tlv(6, &[oid]), critical, &tlv(4, &[content])]);
    let name = crate::tls::svid::parse(&authority.certificate).unwrap().subject().as_raw().to_vec();
    let signed = tlv(
        0x30,
        &[
            &[2, 1, 1],
            &algorithm,
            &name,
            &tlv(0x17, &[b"250101000000Z"]),
            &tlv(0x17, &[b"490101000000Z"]),
            &tlv(0xa0, &[&tlv(0x30, &[&extension])]),
        ],
    );
    let signature = authority.sign_bytes(&signed);
    tlv(0x30, &[&signed, &algorithm, &tlv(3, &[&[0], &signature])])
}

fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let mut out = vec![tag];
    match u8::try_from(content.len()) {
        Ok(len) if len < 0x80 => out.push(len),
        Ok(len) => out.extend([0x81, len]),
        Err(_) => out.extend([0x82, (content.len() >> 8) as u8, content.len() as u8]),
    }
    out.extend(content);
    out
}

fn pem(label: &str, der: &[u8]) -> String {
    use std::fmt::Write;
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = format!("-----BEGIN {label}-----\n");
    for chunk in der.chunks(48) {
        for three in chunk.chunks(3) {
            let bits =
                three.iter().fold(0u32, |bits, b| bits << 8 | u32::from(*b)) << (8 * (3 - three.len()));
            for i in 0..4 {
                let letter = char::from(LETTERS[(bits >> (18 - 6 * i)) as usize & 63]);
                out.push(if i <= three.len() { letter } else { '=' });
            }
        }
        out.push('\n');
    }
    let _ = writeln!(out, "-----END {label}-----");
    out
}

fn name(name: &str) -> rcgen::DistinguishedName {
    let mut distinguished = rcgen::DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// Self-signed, to be certified by somebody else.
fn named(name_: &str) -> Authority {
    Authority::root_with(|p| p.distinguished_name = name(name_))
}

impl Authority {
    /// A list by its key and in its name, whatever its certificate allows.
    fn lax_list(&self) -> Vec<u8> {
        with_extension(self, &[0x55, 0x1d, 99], false, &[5, 0])
    }
}
