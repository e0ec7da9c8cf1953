//! What is signed, for how long, and by which files.

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, SystemTime};

use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::support::{CART, DAY, Lines, Scratch, config, domain, id, keys, open, request, world};
use crate::ca::hierarchy::{self, INTERMEDIATE_LIFETIME, ROOT_LIFETIME};
use crate::ca::rotation::REVISION;
use crate::ca::signing::{CERTIFICATE, CHAIN, KEY, ROOTS};
use crate::ca::{Authority, AuthorityConfig, AuthorityError, CheckedRequest, IssueError, check_request};
use crate::certs::Clock;
use crate::tls::{Accept, Trusted, verify_chain};

fn asked() -> CheckedRequest {
    check_request(&request(&KeyPair::generate().unwrap(), |_| {}), &id(CART)).unwrap()
}

fn chain(pem: &[String]) -> Vec<CertificateDer<'static>> {
    pem[..pem.len() - 1].iter().map(|p| CertificateDer::from_pem_slice(p.as_bytes()).unwrap()).collect()
}

#[test]
fn a_leaf_says_what_the_authority_wants_whatever_was_asked() {
    let scratch = world();
    let authority = open(&scratch);
    for (kind, key) in keys() {
        let pem = request(&key, |p| {
            p.distinguished_name.push(rcgen::DnType::CommonName, "somebody else");
            p.key_usages = vec![rcgen::KeyUsagePurpose::DataEncipherment];
        });
        let checked = check_request(&pem, &id(CART)).unwrap();
        let issued = authority.issue(&checked, &id(CART), None).unwrap();
        assert_eq!(issued.pem.len(), 3, "leaf, intermediate, roots");
        let chain = chain(&issued.pem);
        let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
        assert_eq!(leaf.subject().iter().count(), 0, "no subject");
        assert_eq!(leaf.public_key().raw, key.subject_public_key_info(), "{kind}");
        let san = leaf.subject_alternative_name().unwrap().unwrap();
        assert!(san.critical);
        assert_eq!(format!("{:?}", san.value.general_names), format!("[URI({CART:?})]"));
        let usage = leaf.key_usage().unwrap().unwrap();
        assert_eq!(
            (usage.critical, usage.value.flags),
            (true, if kind == "RSA" { 0b101 } else { 1 }),
            "{kind}"
        );
        let extended = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.server_auth && extended.client_auth && !extended.any && extended.other.is_empty());
        let constraints = leaf.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && !constraints.value.ca);
        let mut names: Vec<String> = leaf.extensions().iter().map(|e| e.oid.to_id_string()).collect();
        names.sort();
        assert_eq!(names, ["2.5.29.14", "2.5.29.15", "2.5.29.17", "2.5.29.19", "2.5.29.35", "2.5.29.37"]);
        assert_eq!(issued.serial, leaf.raw_serial().iter().map(|b| format!("{b:02x}")).collect::<String>());

        let signing = authority.state().borrow().clone();
        let accept = Accept::Identities(vec![id(CART)]);
        let trusted = Trusted::from(signing.bundles.clone());
        verify_chain(&chain, &trusted, &accept, SystemTime::now()).unwrap();
        assert_eq!(issued.pem[2], signing.roots_pem);
        assert_eq!(signing.root, signing.roots[0].sha256);
        let aki = leaf.iter_extensions().find_map(|e| match e.parsed_extension() {
            x509_parser::extensions::ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.clone(),
            _ => None,
        });
        assert_eq!(aki.unwrap().0.iter().map(|b| format!("{b:02x}")).collect::<String>(), signing.authority);
    }
}

#[test]
fn serials_are_never_used_twice() {
    let scratch = world();
    let (authority, asked) = (open(&scratch), asked());
    let mut seen = HashSet::new();
    for _ in 0..300 {
        let issued = authority.issue(&asked, &id(CART), None).unwrap();
        assert_eq!(issued.serial.len(), 40);
        assert!(u8::from_str_radix(&issued.serial[..2], 16).unwrap() < 0x80, "positive");
        assert!(seen.insert(issued.serial));
    }
}

#[test]
fn a_lifetime_is_bounded_by_configuration_and_by_whoever_vouches() {
    let scratch = world();
    let start = SystemTime::now();
    let at = |after: Duration| {
        let config = AuthorityConfig { lifetime: DAY, max_lifetime: DAY * 90, ..config(&scratch) };
        Authority::open(&config, Clock::from_fn(move || start + after)).unwrap()
    };
    let life = |authority: &Authority, asked: Option<Duration>, now: SystemTime| {
        let issued = authority.issue(&self::asked(), &id(CART), asked).unwrap();
        let (_, leaf) = {
            let der = chain(&issued.pem).remove(0);
            let (_, parsed) = X509Certificate::from_der(&der).unwrap();
            (0, (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp()))
        };
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
        assert!((now - 121..=now - 119).contains(&leaf.0), "backdated by two minutes");
        Duration::from_secs((leaf.1 - now) as u64)
    };
    let near = |a: Duration, b: Duration| a.abs_diff(b) < Duration::from_secs(2);
    let fresh = at(Duration::ZERO);
    assert!(near(life(&fresh, None, start), DAY));
    assert!(near(life(&fresh, Some(Duration::ZERO), start), DAY));
    assert!(near(life(&fresh, Some(DAY * 3), start), DAY * 3));
    assert!(near(life(&fresh, Some(DAY * 1000), start), DAY * 90));
    assert!(near(life(&fresh, Some(Duration::MAX), start), DAY * 90));
    let usual = Authority::open(&config(&scratch), Clock::from_fn(move || start)).unwrap();
    assert!(near(life(&usual, Some(DAY * 90), start), DAY), "a stolen node's would live on");
    // The intermediate has half a day left.
    let late = at(INTERMEDIATE_LIFETIME - DAY / 2);
    assert!(near(life(&late, None, start + INTERMEDIATE_LIFETIME - DAY / 2), DAY / 2));

    let over = at(INTERMEDIATE_LIFETIME + DAY).issue(&asked(), &id(CART), None).unwrap_err();
    assert!(matches!(over, IssueError::Expired(s) if s.abs_diff(86_400) < 5), "{over}");
    assert!(over.to_string().contains("underpass ca intermediate"), "{over}");
    let early = Clock::from_fn(move || start - DAY);
    let early = Authority::open(&config(&scratch), early).unwrap();
    let early = early.issue(&asked(), &id(CART), None).unwrap_err();
    assert!(matches!(early, IssueError::NotYetValid(_)) && early.to_string().contains("clock"), "{early}");
}

#[test]
fn a_root_that_ends_before_its_intermediate_counts() {
    let scratch = Scratch::new();
    let start = SystemTime::now();
    hierarchy::make_root(&scratch.join("root"), None, DAY * 10, start).unwrap();
    let (root, ca) = (scratch.join("root"), scratch.join("ca"));
    hierarchy::make_intermediate(&root, &ca, &domain(), DAY * 365, start).unwrap();
    let authority = open(&scratch);
    let issued = authority.issue(&asked(), &id(CART), Some(DAY * 30)).unwrap();
    assert!(issued.not_after <= start + DAY * 10);
}

#[test]
fn it_signs_what_was_checked_and_for_its_trust_domain_only() {
    let scratch = world();
    let authority = open(&scratch);
    let other = id("spiffe://mesh.test/ns/shop/sa/till");
    let error = authority.issue(&asked(), &other, None).unwrap_err();
    assert!(matches!(error, IssueError::OtherIdentity { .. }), "{error}");
    let ally = id("spiffe://ally.test/ns/shop/sa/cart");
    let pem = request(&KeyPair::generate().unwrap(), |p| p.subject_alt_names.clear());
    let error = authority.issue(&check_request(&pem, &ally).unwrap(), &ally, None).unwrap_err();
    assert!(matches!(error, IssueError::TrustDomain { .. }), "{error}");
    for path in ["/billing/api", "/ns/shop/sa/cart/x", "/x/ns/shop/sa/cart", "/cart"] {
        let machine = id(&format!("spiffe://mesh.test{path}"));
        let error = authority.issue(&check_request(&pem, &machine).unwrap(), &machine, None).unwrap_err();
        assert!(matches!(error, IssueError::NoAccount(_)), "{path}: {error}");
    }
}

#[test]
fn files_that_do_not_belong_together_are_refused_with_the_reason() {
    type Change = Box<dyn Fn(&Scratch)>;
    let cases: Vec<(&str, Change, &str)> = vec![
        (
            "another key",
            Box::new(|s| {
                let other = fs::read(world().join("ca").join(KEY)).unwrap();
                fs::write(s.join("ca").join(KEY), other).unwrap();
            }),
            "it is not the key of ca-cert.pem",
        ),
        (
            "no roots",
            Box::new(|s| fs::write(s.join("ca").join(ROOTS), "").unwrap()),
            "no CERTIFICATE section",
        ),
        (
            "two issuing certificates",
            Box::new(|s| {
                let path = s.join("ca").join(CERTIFICATE);
                let pem = fs::read_to_string(&path).unwrap();
                let root = fs::read_to_string(s.join("ca").join(ROOTS)).unwrap();
                fs::write(path, pem + &root).unwrap();
            }),
            "2 certificates are in it",
        ),
        (
            "a node's certificate",
            Box::new(|s| {
                hierarchy::make_node("n", &s.join("node"), SystemTime::now()).unwrap();
                for (from, to) in [("node.pem", CERTIFICATE), ("node.pem", ROOTS), ("node.key", KEY)] {
                    fs::copy(s.join("node").join(from), s.join("ca").join(to)).unwrap();
                }
            }),
            "may not sign certificates",
        ),
        ("no key", Box::new(|s| fs::remove_file(s.join("ca").join(KEY)).unwrap()), "read "),
        (
            "garbage",
            Box::new(|s| fs::write(s.join("ca").join(KEY), "garbage").unwrap()),
            "ca-key.pem is unusable",
        ),
        (
            "a root's key under another's certificate",
            Box::new(|s| fs::write(s.join("ca").join(CHAIN), "-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap()),
            "cert-chain.pem is unusable",
        ),
    ];
    for (what, change, said) in cases {
        let scratch = world();
        change(&scratch);
        let error = Authority::open(&config(&scratch), Clock::system()).expect_err(what).to_string();
        assert!(error.contains(said), "{what}: {error}");
    }
    let foreign = world();
    for names in [&[ROOTS][..], &[CERTIFICATE, KEY], &[CERTIFICATE, KEY, CHAIN]] {
        let scratch = world();
        for name in names {
            fs::copy(foreign.join("ca").join(name), scratch.join("ca").join(name)).unwrap();
        }
        let error = Authority::open(&config(&scratch), Clock::system()).unwrap_err();
        assert!(matches!(error, AuthorityError::Unusable { .. }), "{names:?}: {error}");
    }
}

#[test]
fn a_lifetime_must_make_sense() {
    let scratch = world();
    for (lifetime, max_lifetime) in [(Duration::ZERO, DAY), (DAY * 2, DAY), (DAY, DAY * 4000)] {
        let config = AuthorityConfig { lifetime, max_lifetime, ..config(&scratch) };
        let error = Authority::open(&config, Clock::system()).unwrap_err();
        assert!(matches!(error, AuthorityError::Times(_)), "{error}");
    }
}

#[test]
fn keys_are_never_shown() {
    let scratch = world();
    let authority = open(&scratch);
    let issued = authority.issue(&asked(), &id(CART), None).unwrap();
    let shown = format!("{authority:?}{:?}{issued:?}", authority.state().borrow());
    let key = fs::read_to_string(scratch.join("ca").join(KEY)).unwrap();
    let line = key.lines().nth(1).unwrap();
    assert!(!shown.contains("PRIVATE") && !shown.contains(line) && !shown.contains("issuer"), "{shown}");
}

#[test]
fn a_server_certificate_names_hosts() {
    let scratch = world();
    let authority = open(&scratch);
    let papers = authority.server(&["controller.test".into(), "10.0.0.1".into()], Some(DAY)).unwrap();
    let (_, leaf) = X509Certificate::from_der(&papers.chain[0]).unwrap();
    let names = format!("{:?}", leaf.subject_alternative_name().unwrap().unwrap().value.general_names);
    assert_eq!(names, "[DNSName(\"controller.test\"), IPAddress([10, 0, 0, 1])]");
    assert_eq!(papers.chain.len(), 2);
}

#[test]
fn a_reload_takes_what_fits_together_and_nothing_else() {
    let (scratch, other) = (world(), world());
    let authority = open(&scratch);
    let before = authority.state().borrow().authority.clone();
    assert!(!authority.reload().unwrap(), "nothing changed");
    // One file after the other: until the last is there, the old state stays.
    let names = [KEY, CHAIN, CERTIFICATE, ROOTS];
    for (at, name) in names.iter().enumerate() {
        fs::copy(other.join("ca").join(name), scratch.join("ca").join(name)).unwrap();
        let last = at + 1 == names.len();
        assert_eq!(authority.reload().is_ok(), last, "{name}");
        assert_eq!(authority.state().borrow().authority == before, !last, "{name}");
        authority.issue(&asked(), &id(CART), None).unwrap();
    }
    // Roots alone may change: a second one is published at once.
    let both = fs::read_to_string(scratch.join("ca").join(ROOTS)).unwrap()
        + &fs::read_to_string(world().join("ca").join(ROOTS)).unwrap();
    fs::write(scratch.join("ca").join(ROOTS), both).unwrap();
    assert!(authority.reload().unwrap());
    assert_eq!(authority.state().borrow().roots.len(), 2);
}

/// As the kubelet replaces a mounted Secret: the files are links into a folder that another link names.
#[tokio::test]
async fn a_mounted_secret_is_followed() {
    use std::os::unix::fs::symlink;
    let (first, second, mount) = (world(), world(), Scratch::new());
    let ca = mount.join("ca");
    fs::create_dir(&ca).unwrap();
    symlink(first.join("ca"), ca.join("..data")).unwrap();
    for name in [CERTIFICATE, KEY, CHAIN, ROOTS] {
        symlink(format!("..data/{name}"), ca.join(name)).unwrap();
    }
    let config = AuthorityConfig { poll_interval: Duration::from_secs(3600), ..config(&mount) };
    let authority = Authority::open(&config, Clock::system()).unwrap();
    let mut state = authority.state();
    let stop = CancellationToken::new();
    let following = tokio::spawn(authority.clone().follow_files(stop.clone()));
    // There and back: the first swap may be seen by the reading that it begins with, the next may not.
    for target in [&second, &first, &second] {
        let wanted = open(target).state().borrow().authority.clone();
        symlink(target.join("ca"), ca.join("..data_tmp")).unwrap();
        fs::rename(ca.join("..data_tmp"), ca.join("..data")).unwrap();
        let seen = state.wait_for(|signing| signing.authority == wanted);
        tokio::time::timeout(Duration::from_secs(30), seen).await.unwrap().unwrap();
    }
    stop.cancel();
    following.await.unwrap();
}

/// Istio's own way of having no intermediate: the root itself signs.
#[test]
fn a_root_may_sign_by_itself() {
    let scratch = Scratch::new();
    let ca = scratch.join("ca");
    hierarchy::make_root(&ca, None, ROOT_LIFETIME, SystemTime::now()).unwrap();
    fs::copy(ca.join(ROOTS), ca.join(CERTIFICATE)).unwrap();
    fs::rename(ca.join(hierarchy::ROOT_KEY), ca.join(KEY)).unwrap();
    let authority = open(&scratch);
    let issued = authority.issue(&asked(), &id(CART), None).unwrap();
    assert_eq!(issued.pem.len(), 2, "leaf, roots");
    fs::copy(ca.join(ROOTS), ca.join(CHAIN)).unwrap();
    assert!(authority.reload().unwrap());
    assert_eq!(authority.issue(&asked(), &id(CART), None).unwrap().pem.len(), 2);
}

/// As where a secret is made anew from the files of `underpass ca intermediate`.
#[test]
fn a_revision_that_goes_down_is_told() {
    let scratch = world();
    let file = scratch.join("ca").join(REVISION);
    fs::write(&file, "7").unwrap();
    let authority = open(&scratch);
    let (lines, _log) = Lines::listen();
    fs::write(&file, "8").unwrap();
    assert!(authority.reload().unwrap());
    assert!(lines.take().iter().all(|line| !line.contains("went down")));
    fs::remove_file(&file).unwrap();
    assert!(authority.reload().unwrap());
    let said = lines.take();
    let told = said.iter().find(|line| line.contains("the authority's revision went down"));
    assert!(told.is_some_and(|line| line.contains("before=8 now=0")), "{said:?}");
}

#[test]
fn what_is_wrong_with_the_files_is_said_until_they_are_right() {
    let scratch = world();
    let (authority, key) = (open(&scratch), scratch.join("ca").join(KEY));
    let look = || authority.told(authority.reload().map_err(|e| e.to_string()), &mut None);
    look();
    assert_eq!(authority.trouble(), None);
    let good = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    look();
    assert!(authority.trouble().is_some_and(|why| why.contains(KEY)), "{:?}", authority.trouble());
    fs::write(&key, good).unwrap();
    look();
    assert_eq!(authority.trouble(), None);
}
