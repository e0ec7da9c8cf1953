//! The file as it changes: however it is replaced, and whatever is in it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::watch::Receiver;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::discovery::{Snapshot, Source, Store};
use crate::telemetry::{Telemetry, TelemetryConfig};

/// A mesh of `n` workloads.
fn mesh(n: usize) -> String {
    let workload =
        |n| format!("- {{name: w{n}, namespace: a, protocol: HBONE, workloadIps: [10.0.0.{n}]}}\n");
    format!(
        "mesh: {{}}\nworkloads:{}\n{}",
        if n == 0 { " []" } else { "" },
        (0..n).map(workload).collect::<String>()
    )
}

#[tokio::test]
async fn a_file_that_is_written_in_place() {
    let mut story = Folder::with(&mesh(1)).follow(WATCHED);
    story.sees(1).await;
    story.write(mesh(2));
    story.sees(2).await;
    story.write(mesh(3));
    story.sees(3).await;
}

#[tokio::test]
async fn a_file_that_is_replaced_by_rename() {
    let mut story = Folder::with(&mesh(1)).follow(WATCHED);
    story.sees(1).await;
    for n in [2, 3] {
        story.folder.replace(&mesh(n));
        story.sees(n).await;
    }
}

#[tokio::test]
async fn a_mounted_config_map() {
    let folder = Folder::make();
    folder.mount(1);
    symlink("..data/mesh.yaml", folder.file()).unwrap();
    let mut story = folder.follow(WATCHED);
    story.sees(1).await;
    for n in [2, 3] {
        story.folder.mount(n);
        story.sees(n).await;
    }
}

#[tokio::test]
async fn a_bad_edit_changes_nothing_but_the_status() {
    let mut story = Folder::with(&mesh(2)).follow(WATCHED);
    story.sees(2).await;
    assert_eq!(story.status.borrow().refusal, None);

    story.write("mesh: {}\nworkloads:\n- {name: a, nam: b}\n");
    let refusal = story.refuses("nam").await;
    assert_eq!(refusal.problems[0].path, "workloads[0].nam");
    assert_eq!((refusal.problems[0].line, refusal.problems[0].column), (3, 13));
    let place = format!("{}:3:13: workloads[0].nam: unknown field", story.folder.file().display());
    assert!(refusal.message.starts_with(&place), "{}", refusal.message);
    assert!(!story.snapshots.has_changed().unwrap());

    story.write(mesh(3));
    story.sees(3).await;
    let status = story.status.borrow().clone();
    assert_eq!((status.refusal, status.accepted, status.refused), (None, 2, 1));
    assert!(status.accepted_at.is_some());
    let metrics = story.telemetry.metrics_text().unwrap();
    for (name, value) in [("refused", "1"), ("revision", "2")] {
        let line = metrics.lines().find(|l| l.contains(name) && l.contains("\"file\""));
        assert!(line.is_some_and(|line| line.ends_with(&format!(" {value}"))), "{name}: {line:?}");
    }
}

#[tokio::test]
async fn a_file_that_goes_away_takes_nothing_with_it() {
    let mut story = Folder::with(&mesh(2)).follow(WATCHED);
    story.sees(2).await;
    fs::remove_file(story.folder.file()).unwrap();
    let missing = story.refuses("No such file").await;
    assert!(missing.message.starts_with(&story.folder.file().display().to_string()), "{}", missing.message);
    story.write(b"mesh: \xff");
    story.refuses("not UTF-8 after byte 6").await;
    story.write("");
    story.refuses("unexpected end of file").await;
    assert!(!story.snapshots.has_changed().unwrap());
    story.write(mesh(1));
    story.sees(1).await;
}

#[tokio::test]
async fn a_file_that_comes_late_in_a_folder_that_comes_late() {
    let folder = Folder::make();
    fs::remove_dir(&folder.path).unwrap();
    let mut story = folder.follow(POLLED);
    story.refuses("No such file").await;
    assert!(!story.snapshots.borrow().is_synced());
    fs::create_dir(&story.folder.path).unwrap();
    story.write(mesh(1));
    story.sees(1).await;
}

#[tokio::test]
async fn a_change_in_a_folder_that_nobody_watches() {
    let folder = Folder::make();
    let real = folder.path.join("elsewhere").join("real.yaml");
    fs::create_dir(folder.path.join("elsewhere")).unwrap();
    fs::write(&real, mesh(1)).unwrap();
    symlink("elsewhere/real.yaml", folder.file()).unwrap();
    let mut story = folder.follow(POLLED);
    story.sees(1).await;
    fs::write(&real, mesh(2)).unwrap();
    story.sees(2).await;
}

/// Opening a pipe for reading would wait for its writer.
#[tokio::test]
async fn what_is_no_regular_file_is_refused() {
    let folder = Folder::make();
    nix::unistd::mkfifo(&folder.file(), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let mut story = folder.follow(WATCHED);
    story.refuses("not a regular file").await;
    fs::remove_file(story.folder.file()).unwrap();
    story.refuses("No such file").await;
    fs::create_dir(story.folder.file()).unwrap();
    story.refuses("not a regular file").await;
}

#[tokio::test]
async fn an_unchanged_file_is_no_news() {
    let mut story = Folder::with(&mesh(1)).follow(POLLED);
    story.sees(1).await;
    story.folder.replace(&mesh(1));
    story.folder.replace(&mesh(2));
    story.sees(2).await;
    assert_eq!((story.status.borrow().accepted, story.snapshots.borrow().revision()), (2, 2));
}

#[tokio::test]
async fn it_ends_when_told_to() {
    let story = Folder::with(&mesh(1)).follow(WATCHED);
    story.stop.cancel();
    within(story.task).await.unwrap();
}

/// By watching only.
const WATCHED: FileOptions =
    FileOptions { poll_interval: Duration::from_secs(3600), debounce: Duration::from_millis(20) };
/// By polling too.
const POLLED: FileOptions =
    FileOptions { poll_interval: Duration::from_millis(20), debounce: Duration::from_millis(5) };

/// A folder of its own, for a mesh file.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn make() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("underpass-mesh-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self { path }
    }

    fn with(text: &str) -> Self {
        let folder = Self::make();
        fs::write(folder.file(), text).unwrap();
        folder
    }

    fn file(&self) -> PathBuf {
        self.path.join("mesh.yaml")
    }

    /// Puts a file in the folder's place by rename.
    fn replace(&self, with: &str) {
        let new = self.path.join("new");
        fs::write(&new, with).unwrap();
        fs::rename(&new, self.file()).unwrap();
    }

    /// As the kubelet does: `mesh.yaml` leads to `..data/mesh.yaml`, `..data` to a folder for each
    /// version, and a change replaces `..data` by rename.
    fn mount(&self, version: usize) {
        let folder = self.path.join(format!("..version-{version}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("mesh.yaml"), mesh(version)).unwrap();
        symlink(&folder, self.path.join("..data_tmp")).unwrap();
        fs::rename(self.path.join("..data_tmp"), self.path.join("..data")).unwrap();
        if version > 1 {
            fs::remove_dir_all(self.path.join(format!("..version-{}", version - 1))).unwrap();
        }
    }

    fn follow(self, options: FileOptions) -> Story {
        let telemetry = Telemetry::with_output(&TelemetryConfig::default(), std::io::sink()).unwrap();
        let source = FileSource::new(self.file(), options, telemetry.clone());
        let (store, stop) = (Store::new(), CancellationToken::new());
        Story {
            status: source.status().subscribe(),
            snapshots: store.subscribe(),
            task: tokio::spawn(Box::new(source).run(store, stop.clone())),
            folder: self,
            telemetry,
            stop,
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A folder with a mesh file, and what comes of following it.
struct Story {
    folder: Folder,
    status: Receiver<FileStatus>,
    snapshots: Receiver<Arc<Snapshot>>,
    telemetry: Telemetry,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Story {
    fn write(&self, text: impl AsRef<[u8]>) {
        fs::write(self.folder.file(), text).unwrap();
    }

    /// Waits for a snapshot of `n` workloads.
    async fn sees(&mut self, n: usize) {
        let seen = |snapshot: &Arc<Snapshot>| snapshot.is_synced() && snapshot.workloads().len() == n;
        within(self.snapshots.wait_for(seen)).await.unwrap();
        self.snapshots.mark_unchanged();
        let revision = self.snapshots.borrow().revision();
        within(self.status.wait_for(|status| status.revision == revision)).await.unwrap();
    }

    /// Waits until the file is refused for a reason with these words.
    async fn refuses(&mut self, words: &str) -> Refusal {
        let refused =
            |status: &FileStatus| status.refusal.as_ref().is_some_and(|r| r.message.contains(words));
        within(self.status.wait_for(refused)).await.unwrap().refusal.clone().unwrap()
    }
}

/// Far longer than anything here takes.
async fn within<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("nothing came of it")
}
