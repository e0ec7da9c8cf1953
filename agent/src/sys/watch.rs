//! Notices that a file may have changed, however it is replaced.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// Watches the folder, not the file: editors, `rename` and the symlinks of a mounted ConfigMap all put
/// another file in its place, and a watch on the old one would see nothing of the new.
pub(crate) struct Watch {
    folder: PathBuf,
    changed: Arc<Notify>,
    watched: Option<Watched>,
}

struct Watched {
    /// Held, for it ends with its drop.
    _watcher: RecommendedWatcher,
    /// Device and inode of the folder, which may itself be replaced.
    folder: (u64, u64),
}

impl Watch {
    pub(crate) fn new(file: &Path) -> Self {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        Self::of_folder(folder.unwrap_or(Path::new(".")))
    }

    /// As [`Self::new`], for all the files of a folder.
    pub(crate) fn of_folder(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf(), changed: Arc::default(), watched: None }
    }

    /// Waits until something happened in the folder since the last call.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Waits until nothing has happened for `quiet`, at most ten times as long.
    pub(crate) async fn settle(&self, quiet: Duration) {
        let latest = Instant::now() + 10 * quiet;
        loop {
            let until = (Instant::now() + quiet).min(latest);
            if timeout_at(until, self.changed()).await.is_err() {
                return;
            }
        }
    }

    /// Sets the watch up if there is none, or if the folder is another one by now.
    ///
    /// # Errors
    /// Without a watch, changes are noticed by polling only.
    pub(crate) fn ensure(&mut self) -> Result<(), notify::Error> {
        let metadata = fs::metadata(&self.folder)?;
        let folder = (metadata.dev(), metadata.ino());
        if self.watched.as_ref().is_some_and(|watched| watched.folder == folder) {
            return Ok(());
        }
        self.watched = None;
        let changed = self.changed.clone();
        let mut watcher = notify::recommended_watcher(move |event: Result<Event, notify::Error>| {
            // After an error, such as an overflow of the queue, anything may have happened.
            if event.map_or(true, |event| may_change(&event.kind)) {
                changed.notify_one();
            }
        })?;
        watcher.watch(&self.folder, RecursiveMode::NonRecursive)?;
        self.watched = Some(Watched { _watcher: watcher, folder });
        Ok(())
    }
}

/// Our own reading is an event too, and must not lead to the next.
fn may_change(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(access) => *access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}
