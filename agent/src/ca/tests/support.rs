//! Folders that are gone with the value, and requests of every kind.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, RsaKeySize, SanType};

use crate::ca::hierarchy::{self, INTERMEDIATE_LIFETIME, ROOT_LIFETIME};
use crate::ca::{Authority, AuthorityConfig};
use crate::certs::Clock;
use crate::model::{SpiffeId, TrustDomain};

pub(in crate::ca) const CART: &str = "spiffe://mesh.test/ns/shop/sa/cart";
pub(in crate::ca) const DAY: Duration = Duration::from_secs(24 * 3600);

pub(in crate::ca) fn id(s: &str) -> SpiffeId {
    s.parse().unwrap()
}

pub(in crate::ca) fn domain() -> TrustDomain {
    "mesh.test".parse().unwrap()
}

pub(in crate::ca) fn uri(s: &str) -> SanType {
    SanType::URI(s.try_into().unwrap())
}

pub(in crate::ca) struct Scratch(PathBuf);

impl Scratch {
    pub(in crate::ca) fn new() -> Self {
        let name = format!("underpass-ca-{}-{:016x}", std::process::id(), rand::random::<u64>());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(in crate::ca) fn path(&self) -> &Path {
        &self.0
    }

    pub(in crate::ca) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// An offline root in `root`, and an authority's folder under it in `ca`.
pub(in crate::ca) fn world() -> Scratch {
    let scratch = Scratch::new();
    let now = SystemTime::now();
    hierarchy::make_root(&scratch.join("root"), Some(&domain()), ROOT_LIFETIME, now).unwrap();
    hierarchy::make_intermediate(
        &scratch.join("root"),
        &scratch.join("ca"),
        &domain(),
        INTERMEDIATE_LIFETIME,
        now,
    )
    .unwrap();
    scratch
}

pub(in crate::ca) fn config(scratch: &Scratch) -> AuthorityConfig {
    AuthorityConfig::new(scratch.join("ca"), domain())
}

pub(in crate::ca) fn open(scratch: &Scratch) -> Authority {
    Authority::open(&config(scratch), Clock::system()).unwrap()
}

/// One key of each kind that is granted.
pub(in crate::ca) fn keys() -> Vec<(&'static str, KeyPair)> {
    vec![
        ("P-256", KeyPair::generate().unwrap()),
        ("P-384", KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap()),
        ("Ed25519", KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap()),
        ("RSA", KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap()),
    ]
}

/// What ztunnel sends, changed.
pub(in crate::ca) fn params(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(CART)];
    change(&mut params);
    params
}

pub(in crate::ca) fn request(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> String {
    params(change).serialize_request(key).unwrap().pem().unwrap()
}

/// What this thread logs.
#[derive(Clone, Default)]
pub(in crate::ca) struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    /// Until what comes with it is dropped.
    pub(in crate::ca) fn listen() -> (Self, impl Sized) {
        let lines = Self::default();
        let writer = lines.clone();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        // While there is only one subscriber, tracing asks whichever thread comes to a line first whether the
        // line is wanted at all, and another test's thread has none.
        let second = tracing::Dispatch::new(tracing_subscriber::registry());
        (lines, (tracing::subscriber::set_default(log), second))
    }

    pub(in crate::ca) fn take(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap());
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
