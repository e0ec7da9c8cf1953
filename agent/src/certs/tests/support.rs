//! A clock that moves with tokio's paused time, and an issuer that does as it is told.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::certs::{CertError, Clock, Config, EmbeddedConfig, EmbeddedIssuer, Issued, Issuer, Manager};
use crate::model::SpiffeId;

pub(super) const CART: &str = "spiffe://mesh.test/ns/shop/sa/cart";
pub(super) const TILL: &str = "spiffe://mesh.test/ns/shop/sa/till";
pub(super) const HOUR: Duration = Duration::from_secs(3600);

pub(super) fn id(s: &str) -> SpiffeId {
    s.parse().unwrap()
}

/// 2026-01-01 and however long tokio thinks the test has run.
pub(super) fn clock() -> Clock {
    let start = tokio::time::Instant::now();
    Clock::from_fn(move || epoch() + start.elapsed())
}

pub(super) fn epoch() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_767_225_600)
}

/// A directory that is gone with the value.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Self {
        let name = format!("underpass-certs-{}-{:016x}", std::process::id(), rand::random::<u64>());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn config(&self) -> EmbeddedConfig {
        let domain = "mesh.test".parse().unwrap();
        EmbeddedConfig::new(domain, self.0.join("root.pem"), self.0.join("root.key"))
    }

    pub(super) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

type Script = dyn FnMut(usize, Result<Issued, CertError>) -> Result<Issued, CertError> + Send;

/// The embedded issuer with a script between it and the manager, and a count of what went on.
pub(super) struct Scripted {
    pub(super) inner: EmbeddedIssuer,
    pub(super) calls: AtomicUsize,
    pub(super) busy: AtomicUsize,
    pub(super) most_busy: AtomicUsize,
    pub(super) latency: Mutex<Duration>,
    script: Mutex<Box<Script>>,
}

impl Scripted {
    pub(super) fn new(inner: EmbeddedIssuer) -> Arc<Self> {
        Self::with(inner, |_, answer| answer)
    }

    /// `script` gets the number of the call, from 1, and the sound answer.
    pub(super) fn with(
        inner: EmbeddedIssuer,
        script: impl FnMut(usize, Result<Issued, CertError>) -> Result<Issued, CertError> + Send + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            inner,
            calls: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            most_busy: AtomicUsize::new(0),
            latency: Mutex::new(Duration::from_millis(10)),
            script: Mutex::new(Box::new(script)),
        })
    }

    pub(super) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

impl Issuer for Scripted {
    fn issue<'a>(&'a self, identity: &'a SpiffeId) -> BoxFuture<'a, Result<Issued, CertError>> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let busy = Busy::new(self);
        let latency = *self.latency.lock().unwrap();
        async move {
            let _busy = busy;
            tokio::time::sleep(latency).await;
            let answer = self.inner.sign(identity);
            (self.script.lock().unwrap_or_else(|e| e.into_inner()))(call, answer)
        }
        .boxed()
    }

    fn name(&self) -> &str {
        "scripted"
    }
}

/// Counts a call for as long as it lasts, also when it is dropped half-way.
struct Busy<'a>(&'a Scripted);

impl<'a> Busy<'a> {
    fn new(issuer: &'a Scripted) -> Self {
        let now = issuer.busy.fetch_add(1, Ordering::SeqCst) + 1;
        issuer.most_busy.fetch_max(now, Ordering::SeqCst);
        Self(issuer)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(super) fn manager(issuer: &Arc<Scripted>, clock: &Clock) -> Manager {
    Manager::with_clock(issuer.clone(), &Config::default(), clock.clone(), || 0.5)
}
