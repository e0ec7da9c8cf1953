//! Keeps the store in step with the file.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::discovery::{Source, Store, yaml};
use crate::sys::watch::Watch;
use crate::telemetry::{SourceHealth, Telemetry};

use super::error::FileError;
use super::parse::{FileState, parse_after};
use super::status::{StatusHandle, in_file};

/// How changes are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileOptions {
    /// The file is read this often even if nothing was noticed.
    pub poll_interval: Duration,
    /// How long the folder has to be quiet after a change before the file is read, so that a file that
    /// is written in place is not read half-way. At most ten times as long.
    pub debounce: Duration,
}

impl Default for FileOptions {
    fn default() -> Self {
        Self { poll_interval: Duration::from_secs(30), debounce: Duration::from_millis(100) }
    }
}

/// Publishes what a mesh file says, whenever it says something else. A file that is refused, or
/// missing, changes nothing but the status: the last good state stays.
pub struct FileSource {
    path: PathBuf,
    options: FileOptions,
    status: StatusHandle,
    telemetry: Telemetry,
}

impl FileSource {
    /// Does not touch the file yet.
    pub fn new(path: impl Into<PathBuf>, options: FileOptions, telemetry: Telemetry) -> Self {
        let path = path.into();
        Self { status: StatusHandle::new(&path), path, options, telemetry }
    }

    /// To be taken before the source is run.
    pub fn status(&self) -> StatusHandle {
        self.status.clone()
    }

    async fn follow(self, store: Store) {
        let mut watch = Watch::new(&self.path);
        let mut watching = true;
        let mut seen = None;
        loop {
            // Before the file is read, or a change in between would go unnoticed.
            let ensured = watch.ensure();
            if let Err(error) = &ensured
                && watching
            {
                tracing::warn!(path = %self.path.display(), every = ?self.options.poll_interval,
                    "cannot watch the mesh file's folder, so changes are noticed by polling: {error}");
            }
            watching = ensured.is_ok();
            seen = Some(self.load(&store, seen).await);
            tokio::select! {
                () = watch.changed() => watch.settle(self.options.debounce).await,
                () = sleep(self.options.poll_interval) => {}
            }
        }
    }

    /// Takes the file in, unless it is what was `seen` last; gives what it is now.
    async fn load(&self, store: &Store, seen: Option<Seen>) -> Seen {
        let path = self.path.clone();
        let read = blocking(move || read(&path)).await;
        let now = Seen::of(&read);
        if seen.as_ref() == Some(&now) {
            return now;
        }
        let store = store.clone();
        let published = match read {
            Ok(bytes) => blocking(move || publish(&bytes, &store)).await,
            Err(error) => Err(error.into()),
        };
        match published {
            Ok(published) => self.accepted(published),
            Err(error) => self.refused(&error),
        }
        now
    }

    fn accepted(&self, Published { revision, summary, warnings }: Published) {
        tracing::info!(path = %self.path.display(), revision, "mesh file accepted: {summary}");
        for warning in &warnings {
            tracing::warn!("{}:{warning}", self.path.display());
        }
        self.status.accepted(revision, warnings);
        self.telemetry.source(NAME, SourceHealth::Accepted { revision });
    }

    fn refused(&self, error: &FileError) {
        let stays = match self.status.get().revision {
            0 => "there is no state yet".to_string(),
            revision => format!("revision {revision} stays"),
        };
        tracing::error!("mesh file refused, {stays}: {}", in_file(&self.path, error));
        self.status.refused(error);
        self.telemetry.source(NAME, SourceHealth::Refused);
    }
}

/// In the metrics.
const NAME: &str = "file";

impl Source for FileSource {
    fn run(self: Box<Self>, store: Store, stop: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            stop.run_until_cancelled(self.follow(store)).await;
        })
    }
}

/// What the file was when it was last looked at, to see whether it is something else now.
#[derive(PartialEq, Eq)]
enum Seen {
    Bytes(Vec<u8>),
    Unreadable(io::ErrorKind),
}

impl Seen {
    fn of(read: &io::Result<Vec<u8>>) -> Self {
        match read {
            Ok(bytes) => Self::Bytes(bytes.clone()),
            Err(error) => Self::Unreadable(error.kind()),
        }
    }
}

struct Published {
    revision: u64,
    summary: String,
    warnings: Vec<yaml::Problem>,
}

fn publish(bytes: &[u8], store: &Store) -> Result<Published, FileError> {
    let text = str::from_utf8(bytes).map_err(|error| FileError::Utf8(error.valid_up_to()))?;
    let before = store.current();
    let before = before.policies().resources().map(|resources| &**resources);
    let FileState { state, warnings } = parse_after(text, before)?;
    let summary = format!(
        "{} workloads, {} services, {} policies, {} local pods",
        state.workloads.len(),
        state.services.len(),
        state.policies.len(),
        state.local_pods.len()
    );
    let revision = store.publish(state).revision();
    Ok(Published { revision, summary, warnings })
}

/// At most a byte more than a document may have, and from nothing that could block.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    // A pipe would wait for its writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(yaml::MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Runs `work` where blocking is allowed. A panic goes on in the caller.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
        // Only a runtime that shuts down cancels blocking work, and it drops this future as well.
        Err(_) => futures::future::pending().await,
    }
}
