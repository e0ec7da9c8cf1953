//! The two files of the root, and everything that can be wrong with them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Barrier;

use super::support::{CART, Scratch, id};
use crate::certs::{EmbeddedConfig, EmbeddedIssuer, FileError, RootError};
use crate::tls::{Accept, verify_chain};

#[test]
fn agents_that_start_at_once_make_one_root() {
    for _ in 0..20 {
        let scratch = Scratch::new();
        let config = scratch.config();
        let gate = Barrier::new(8);
        let issuers: Vec<EmbeddedIssuer> = std::thread::scope(|scope| {
            let start = || {
                gate.wait();
                EmbeddedIssuer::open(&config).unwrap()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        // Not only the same certificate: each signs with the key that belongs to it.
        for issuer in &issuers {
            let issued = issuer.sign(&id(CART)).unwrap();
            let accept = Accept::Identities(vec![id(CART)]);
            let trusted = issuers[0].bundles().clone().into();
            verify_chain(&issued.chain, &trusted, &accept, std::time::SystemTime::now()).unwrap();
        }
        assert_eq!(scratch.names(), ["root.key", "root.pem"], "nothing else is left");
        assert_eq!(mode(&config.root_key), 0o600);
    }
}

#[test]
fn a_root_that_is_there_is_never_replaced() {
    let scratch = Scratch::new();
    let config = scratch.config();
    let first = EmbeddedIssuer::open(&config).unwrap();
    let (certificate, key) =
        (fs::read(&config.root_certificate).unwrap(), fs::read(&config.root_key).unwrap());
    for create in [true, false] {
        let again = EmbeddedIssuer::open(&EmbeddedConfig { create, ..config.clone() }).unwrap();
        assert_eq!(again.bundles(), first.bundles());
    }
    assert_eq!(fs::read(&config.root_certificate).unwrap(), certificate);
    assert_eq!(fs::read(&config.root_key).unwrap(), key);
}

#[test]
fn roots_that_cannot_be_used_are_refused_with_the_reason() {
    type Row = (&'static str, fn(&EmbeddedConfig), fn(&RootError) -> bool, &'static str);
    let table: [Row; 9] = [
        (
            "no certificate",
            |c| remove(&c.root_certificate),
            |e| matches!(e, RootError::Half { .. }),
            "root.pem is not",
        ),
        ("no key", |c| remove(&c.root_key), |e| matches!(e, RootError::Half { .. }), "root.key is not"),
        (
            "the key of another root",
            |c| replace(&c.root_key, &other_key(c)),
            |e| matches!(e, RootError::Unusable { .. }),
            "not the key of",
        ),
        (
            "a certificate that may not sign",
            |c| {
                let issued = EmbeddedIssuer::open(c).unwrap().sign(&id(CART)).unwrap();
                replace(&c.root_certificate, pem("CERTIFICATE", &issued.chain[0]).as_bytes());
                replace(&c.root_key, pem("PRIVATE KEY", issued.key.secret_der()).as_bytes());
            },
            |e| matches!(e, RootError::Unusable { .. }),
            "may not sign",
        ),
        (
            "no PEM",
            |c| replace(&c.root_certificate, b"hello"),
            |e| matches!(e, RootError::Unusable { .. }),
            "root.pem",
        ),
        (
            "no key PEM",
            |c| replace(&c.root_key, b""),
            |e| matches!(e, RootError::Unusable { .. }),
            "root.key",
        ),
        (
            "PEM around garbage",
            |c| replace(&c.root_certificate, pem("CERTIFICATE", b"abc").as_bytes()),
            |e| matches!(e, RootError::Unusable { .. }),
            "root.pem",
        ),
        (
            "key PEM around garbage",
            |c| replace(&c.root_key, pem("PRIVATE KEY", b"abc").as_bytes()),
            |e| matches!(e, RootError::Unusable { .. }),
            "root.key",
        ),
        (
            "a directory in place of the key",
            |c| {
                remove(&c.root_key);
                fs::create_dir(&c.root_key).unwrap();
            },
            |e| matches!(e, RootError::File(FileError { call: "read", .. })),
            "root.key",
        ),
    ];
    for (name, spoil, rule, quoted) in table {
        let scratch = Scratch::new();
        let config = scratch.config();
        EmbeddedIssuer::open(&config).unwrap();
        spoil(&config);
        let before = scratch.names();
        let error = EmbeddedIssuer::open(&config).expect_err(name);
        assert!(rule(&error), "{name}: {error:?}");
        assert!(error.to_string().contains(quoted), "{name}: {error}");
        assert_eq!(scratch.names(), before, "{name}: nothing is made or removed");
    }

    let scratch = Scratch::new();
    let absent = EmbeddedConfig { create: false, ..scratch.config() };
    assert!(matches!(EmbeddedIssuer::open(&absent), Err(RootError::Absent(_))));
    assert!(scratch.names().is_empty());
}

/// The key of another root, made beside the first.
fn other_key(beside: &EmbeddedConfig) -> Vec<u8> {
    let other = EmbeddedConfig {
        root_certificate: beside.root_certificate.with_file_name("other.pem"),
        root_key: beside.root_key.with_file_name("other.key"),
        ..beside.clone()
    };
    EmbeddedIssuer::open(&other).unwrap();
    fs::read(&other.root_key).unwrap()
}

fn remove(path: &Path) {
    fs::remove_file(path).unwrap();
}

fn replace(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn pem(label: &str, der: &[u8]) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut body = String::new();
    for chunk in der.chunks(3) {
        let bits = chunk.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * i)) as usize & 63] as char;
            body.push(if i > chunk.len() { '=' } else { letter });
        }
        if body.len() % 65 == 64 {
            body.push('\n');
        }
    }
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", body.trim_end())
}
