//! What the operator's commands leave in folders.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::SystemTime;

use x509_parser::prelude::{FromDer, X509Certificate};

use super::support::{DAY, Scratch, domain, open, world};
use crate::ca::attest::PublicKeyPin;
use crate::ca::hierarchy::{
    HierarchyError, INTERMEDIATE_LIFETIME, ROOT_KEY, ROOT_LIFETIME, make_intermediate, make_node, make_root,
};
use crate::ca::rotation::{Folder, Site};
use crate::ca::signing::{self, CERTIFICATE, CHAIN, KEY, ROOTS};
use crate::ca::{Authority, AuthorityConfig};
use crate::certs::Clock;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn certificate(path: &Path) -> rustls_pki_types::CertificateDer<'static> {
    signing::certificates(&fs::read(path).unwrap()).unwrap().remove(0)
}

#[test]
fn a_root_is_made_once() {
    let scratch = Scratch::new();
    let now = SystemTime::now();
    let root = make_root(scratch.path(), Some(&domain()), ROOT_LIFETIME, now).unwrap();
    assert_eq!(mode(&scratch.join(ROOT_KEY)), 0o600);
    let der = certificate(&scratch.join(ROOTS));
    let (_, parsed) = X509Certificate::from_der(&der).unwrap();
    let constraints = parsed.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(1));
    assert_eq!(root.sha256, signing::hex(&crate::tls::sha256(&der)));
    let key = fs::read(scratch.join(ROOT_KEY)).unwrap();
    for gone in [None, Some(ROOTS)] {
        if let Some(gone) = gone {
            fs::remove_file(scratch.join(gone)).unwrap();
        }
        let error = make_root(scratch.path(), None, ROOT_LIFETIME, now).unwrap_err();
        assert!(matches!(error, HierarchyError::Exists(_)), "{error}");
        assert!(error.to_string().contains(ROOT_KEY), "{error}");
        assert_eq!(fs::read(scratch.join(ROOT_KEY)).unwrap(), key);
    }
}

#[test]
fn an_intermediate_signs_leaves_only_and_keeps_what_was_there() {
    let scratch = world();
    let (root, ca) = (scratch.join("root"), scratch.join("ca"));
    let der = certificate(&ca.join(CERTIFICATE));
    let (_, parsed) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(parsed.basic_constraints().unwrap().unwrap().value.path_len_constraint, Some(0));
    let usage = parsed.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
    assert!(!usage.value.digital_signature());
    assert_eq!(mode(&ca.join(KEY)), 0o600);

    let before: Vec<Vec<u8>> =
        [CERTIFICATE, KEY, CHAIN].iter().map(|n| fs::read(ca.join(n)).unwrap()).collect();
    let authority = open(&scratch);
    let made = make_intermediate(&root, &ca, &domain(), INTERMEDIATE_LIFETIME, SystemTime::now()).unwrap();
    assert_eq!(made.kept.len(), 3);
    for (name, content) in [CERTIFICATE, KEY, CHAIN].iter().zip(before) {
        assert_eq!(fs::read(ca.join(format!("{name}.old"))).unwrap(), content, "{name}");
    }
    assert_eq!(mode(&ca.join("ca-key.pem.old")), 0o600);
    assert!(authority.reload().unwrap());
    assert_eq!(authority.state().borrow().roots.len(), 1);
}

#[test]
fn an_intermediate_that_agents_would_refuse_is_not_made() {
    let (scratch, other) = (world(), world());
    let now = SystemTime::now();
    let ca = scratch.join("ca");
    let before = fs::read(ca.join(KEY)).unwrap();
    let make =
        |root: &Path, at: SystemTime| make_intermediate(root, &ca, &domain(), INTERMEDIATE_LIFETIME, at);
    let error = make(&other.join("root"), now).unwrap_err();
    assert!(matches!(error, HierarchyError::NotTrusted { .. }), "{error}");
    assert!(error.to_string().contains("underpass ca rotate"), "{error}");
    let error = make(&scratch.join("root"), now + ROOT_LIFETIME + DAY).unwrap_err();
    assert!(error.to_string().contains("and not now"), "{error}");
    let error = make(&scratch.join("nowhere"), now).unwrap_err();
    assert!(error.to_string().contains("nowhere/root-cert.pem"), "{error}");
    fs::copy(other.join("root").join(ROOT_KEY), scratch.join("root").join(ROOT_KEY)).unwrap();
    let error = make(&scratch.join("root"), now).unwrap_err();
    assert!(error.to_string().contains("it is not the key of a root"), "{error}");
    assert_eq!(fs::read(ca.join(KEY)).unwrap(), before);
}

#[test]
fn a_nodes_papers_carry_its_key_and_no_end() {
    let scratch = Scratch::new();
    let papers = make_node("node-1", scratch.path(), SystemTime::now()).unwrap();
    assert_eq!(mode(&papers.key), 0o600);
    let der = certificate(&papers.certificate);
    let (_, parsed) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(papers.pin, PublicKeyPin::of(parsed.public_key().raw).to_string());
    assert!(papers.pin.starts_with("sha256:") && papers.pin.len() == 7 + 64);
    assert_eq!(parsed.subject().to_string(), "CN=node-1");
    assert_eq!(parsed.validity().not_after.timestamp(), 253_402_300_799);
    let error = make_node("node-1", scratch.path(), SystemTime::now()).unwrap_err();
    assert!(matches!(error, HierarchyError::Exists(_)), "{error}");
    for name in ["", "a b", "a/b", "a\n", &"x".repeat(254)] {
        let error = make_node(name, &scratch.join("other"), SystemTime::now()).unwrap_err();
        assert!(matches!(error, HierarchyError::NodeName(_)), "{error}");
    }
}

/// Otherwise this would be the way around everything that `underpass ca rotate` waits for.
#[test]
fn while_a_root_is_replaced_only_the_one_that_is_signed_under_gives_an_intermediate() {
    let scratch = world();
    let (ca, now) = (scratch.join("ca"), SystemTime::now());
    let (old, new, ready) = (scratch.join("root"), scratch.join("root-2"), scratch.join("ready"));
    make_root(&new, Some(&domain()), ROOT_LIFETIME, now).unwrap();
    make_intermediate(&new, &ready, &domain(), INTERMEDIATE_LIFETIME, now).unwrap();
    let taken = |root: &Path| make_intermediate(root, &ca, &domain(), INTERMEDIATE_LIFETIME, now);
    let refused = |root: &Path| matches!(taken(root), Err(HierarchyError::Rotating { .. }));

    let folder = Folder::open(&ca).unwrap();
    let named = folder.name(&fs::read_to_string(new.join(ROOTS)).unwrap()).unwrap();
    let both = folder.trust_both(&named).unwrap();
    drop(folder);
    assert!(refused(&new), "nobody has acknowledged it yet");
    taken(&old).unwrap();

    let folder = Folder::open(&ca).unwrap();
    folder.issue_anew(&both, &Folder::look(&ready).keys().unwrap()).unwrap();
    drop(folder);
    assert!(refused(&old), "it is about to go");
    taken(&new).unwrap();
}

#[test]
fn another_intermediate_is_of_whom_the_one_before_was() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let scratch = world();
    let (root, ca) = (scratch.join("root"), scratch.join("ca"));
    for name in [CERTIFICATE, CHAIN, KEY, ROOTS] {
        chown(ca.join(name), Some(4242), Some(4343)).unwrap();
    }
    fs::set_permissions(ca.join(KEY), fs::Permissions::from_mode(0o640)).unwrap();
    let before = fs::read(ca.join(KEY)).unwrap();
    make_intermediate(&root, &ca, &domain(), INTERMEDIATE_LIFETIME, SystemTime::now()).unwrap();
    assert_ne!(fs::read(ca.join(KEY)).unwrap(), before);
    for name in [CERTIFICATE, CHAIN, KEY, "ca-key.pem.old", "cert-chain.pem.old"] {
        let found = fs::metadata(ca.join(name)).unwrap();
        assert_eq!((found.uid(), found.gid()), (4242, 4343), "{name}");
        assert_eq!(found.mode() & 0o040, 0o040, "{name}");
    }
}

#[test]
fn an_authority_of_another_trust_domain_is_neither_replaced_nor_used() {
    let scratch = Scratch::new();
    let now = SystemTime::now();
    make_root(scratch.path(), Some(&domain()), ROOT_LIFETIME, now).unwrap();
    let make = |domain| make_intermediate(scratch.path(), scratch.path(), domain, INTERMEDIATE_LIFETIME, now);
    let other = "other.example".parse().unwrap();
    make(&other).unwrap();
    let refused = make(&domain()).unwrap_err();
    assert!(matches!(refused, HierarchyError::OtherDomain { .. }), "{refused}");
    let used = AuthorityConfig::new(scratch.path(), domain());
    let refused = Authority::open(&used, Clock::system()).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(refused.contains("other.example"), "{refused:?}");
}
