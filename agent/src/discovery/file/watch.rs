//! Notices that a file may have changed, however it is replaced.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

/// Watches the folder, not the file: editors, `rename` and the symlinks of a mounted ConfigMap all put
/// another file in its place, and a watch on the old one would see nothing of the new.
pub(super) struct Watch {
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
    pub(super) fn new(file: &Path) -> Self {
        let folder = match file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
            _ => PathBuf::from("."),
        };
        Self { folder, changed: Arc::default(), watched: None }
    }

    /// Waits until something happened in the folder since the last call.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Sets the watch up if there is none, or if the folder is another one by now.
    ///
    /// # Errors
    /// Without a watch, changes are noticed by polling only.
    pub(super) fn ensure(&mut self) -> Result<(), notify::Error> {
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
