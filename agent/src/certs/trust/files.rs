//! Files with roots and revocation lists, followed while the agent runs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures::future::select_all;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::sleep;

use super::read::{Content, Purpose, TrustFileError};
use crate::certs::view::rfc3339;
use crate::model::TrustDomain;
use crate::sys::watch::Watch;
use crate::tls::{Crls, TrustBundles};

/// Which files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustConfig {
    /// PEM files with roots. A trust domain may have several, and the agent's own may have some besides
    /// what its issuer says.
    pub bundles: Vec<(TrustDomain, PathBuf)>,
    /// PEM or DER.
    pub revocation_lists: Vec<PathBuf>,
    /// How often they are looked at, for file systems that do not tell of changes.
    pub poll: Duration,
}

impl Default for TrustConfig {
    fn default() -> Self {
        Self { bundles: Vec::new(), revocation_lists: Vec::new(), poll: Duration::from_secs(10) }
    }
}

/// The files and what was last taken from them. Clones share it.
#[derive(Clone)]
pub struct TrustFiles {
    state: watch::Sender<Arc<FileState>>,
    files: Arc<Mutex<Vec<File>>>,
    poll: Duration,
}

/// What all of them say together.
#[derive(Default)]
pub(in crate::certs) struct FileState {
    pub(in crate::certs) bundles: TrustBundles,
    pub(in crate::certs) revoked: Crls,
}

/// One file, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileView {
    pub path: PathBuf,
    /// Whose roots they are; absent for a revocation list.
    pub trust_domain: Option<TrustDomain>,
    /// Roots, or lists.
    pub items: usize,
    /// When what is in force was taken from it (RFC 3339).
    pub accepted: String,
    /// When the first of its lists should have been replaced.
    pub next_update: Option<String>,
    /// Why what it holds now is not in force.
    pub problem: Option<String>,
}

#[derive(Clone)]
struct File {
    purpose: Purpose,
    path: PathBuf,
    good: Content,
    /// What `good` was read from.
    bytes: Arc<[u8]>,
    accepted: SystemTime,
    problem: Option<String>,
}

impl TrustFiles {
    /// Reads them all. Blocks on files, for a moment.
    ///
    /// # Errors
    /// If one is not sound: at start there is no earlier state to go on with.
    pub fn open(config: &TrustConfig) -> Result<Self, TrustFileError> {
        let bundles = config.bundles.iter().map(|(d, path)| (Purpose::Bundle(d.clone()), path));
        let lists = config.revocation_lists.iter().map(|path| (Purpose::RevocationList, path));
        let files = bundles
            .chain(lists)
            .map(|(purpose, path)| File::open(purpose, path))
            .collect::<Result<Vec<_>, _>>()?;
        let state = together(&files);
        let state = watch::Sender::new(Arc::new(state));
        Ok(Self { state, files: Arc::new(Mutex::new(files)), poll: config.poll })
    }

    /// Takes changes in for ever. What is unreadable, empty or broken in part changes nothing, and is
    /// complained of once.
    pub async fn follow(self) {
        let paths: Vec<PathBuf> = self.files().iter().map(|file| file.path.clone()).collect();
        if paths.is_empty() {
            return std::future::pending().await;
        }
        let mut watches: Vec<Watch> = paths.iter().map(|path| Watch::new(path)).collect();
        loop {
            for (watch, path) in watches.iter_mut().zip(&paths) {
                if let Err(error) = watch.ensure() {
                    tracing::debug!(path = %path.display(), %error, "cannot watch; polling only");
                }
            }
            self.reload().await;
            let changed = select_all(watches.iter().map(|watch| Box::pin(watch.changed())));
            tokio::select! {
                _ = changed => {}
                () = sleep(self.poll) => {}
            }
        }
    }

    /// Looks at every file once.
    pub(in crate::certs) async fn reload(&self) {
        let before = self.files();
        let first = blocking(move || before.iter().map(File::look).collect::<Vec<_>>()).await;
        if first.iter().all(Option::is_none) {
            return;
        }
        // Who writes a file in several steps must not have half of it taken for the whole, which would
        // end the tunnels that rest on the other half.
        sleep(SETTLE).await;
        let before = self.files();
        let again = blocking(move || {
            let looked = before.iter().zip(first).map(|(file, first)| {
                let again = file.look()?;
                (first.as_ref() == Some(&again)).then(|| file.take(again))
            });
            looked.collect::<Vec<_>>()
        })
        .await;
        let mut changed = false;
        {
            let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
            for (file, new) in files.iter_mut().zip(again) {
                let Some(new) = new else { continue };
                changed |= file.good != new.good;
                file.announce(&new);
                *file = new;
            }
            if changed {
                self.state.send_replace(Arc::new(together(&files)));
            }
        }
    }

    pub(in crate::certs) fn now(&self) -> Arc<FileState> {
        self.state.borrow().clone()
    }

    pub(in crate::certs) fn subscribe(&self) -> watch::Receiver<Arc<FileState>> {
        self.state.subscribe()
    }

    /// Each file, as configured.
    pub fn list(&self) -> Vec<FileView> {
        self.files().iter().map(File::view).collect()
    }

    fn files(&self) -> Vec<File> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for TrustFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.files().iter().map(|file| &file.path)).finish()
    }
}

impl Default for TrustFiles {
    /// No files.
    fn default() -> Self {
        Self { state: watch::Sender::default(), files: Arc::default(), poll: TrustConfig::default().poll }
    }
}

impl File {
    fn open(purpose: Purpose, path: &Path) -> Result<Self, TrustFileError> {
        let bytes = purpose.read(path)?;
        let good = purpose.parse(path, &bytes)?;
        let (bytes, accepted) = (bytes.into(), SystemTime::now());
        Ok(Self { purpose, path: path.into(), good, bytes, accepted, problem: None })
    }

    /// What is there, if it is something else than before.
    fn look(&self) -> Option<Result<Vec<u8>, String>> {
        match self.purpose.read(&self.path) {
            Ok(bytes) if *bytes == *self.bytes && self.problem.is_none() => None,
            Ok(bytes) => Some(Ok(bytes)),
            Err(error) => {
                let error = error.to_string();
                (self.problem.as_ref() != Some(&error)).then_some(Err(error))
            }
        }
    }

    /// The file with what was found.
    fn take(&self, found: Result<Vec<u8>, String>) -> Self {
        let parsed = found.and_then(|b| {
            self.purpose.parse(&self.path, &b).map(|good| (good, b)).map_err(|e| e.to_string())
        });
        match parsed {
            Ok((good, bytes)) => {
                Self { good, bytes: bytes.into(), accepted: SystemTime::now(), problem: None, ..self.clone() }
            }
            Err(problem) => Self { problem: Some(problem), ..self.clone() },
        }
    }

    fn announce(&self, new: &Self) {
        match &new.problem {
            Some(error) if self.problem.as_ref() != Some(error) => {
                tracing::error!(path = %self.path.display(), %error,
                    "trust file refused, what was read from it earlier stays in force");
            }
            Some(_) => {}
            None => tracing::info!(path = %self.path.display(), items = new.view().items, "trust file read"),
        }
    }

    fn view(&self) -> FileView {
        let (trust_domain, items, next_update) = match (&self.purpose, &self.good) {
            (Purpose::Bundle(domain), Content::Bundle(b)) => {
                (Some(domain.clone()), b.roots(domain).count(), None)
            }
            (_, Content::RevocationList(lists)) => {
                (None, lists.len(), lists.iter().map(|l| l.next_update).min())
            }
            (Purpose::RevocationList, Content::Bundle(_)) => (None, 0, None),
        };
        FileView {
            path: self.path.clone(),
            trust_domain,
            items,
            accepted: rfc3339(self.accepted),
            next_update: next_update.map(rfc3339),
            problem: self.problem.clone(),
        }
    }
}

fn together(files: &[File]) -> FileState {
    let mut state = FileState::default();
    for file in files {
        match &file.good {
            Content::Bundle(bundles) => state.bundles.add_all(bundles),
            Content::RevocationList(lists) => state.revoked.add_all(lists),
        }
    }
    state
}

/// Runs `work` where blocking is allowed. A panic goes on in the caller.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
        // Only a runtime that shuts down cancels blocking work, and it drops this future as well.
        Err(_) => std::future::pending().await,
    }
}

const SETTLE: Duration = Duration::from_millis(200);
