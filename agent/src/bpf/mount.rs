//! The two file systems that the kernel half needs: a bpffs to pin to, a cgroup v2 tree to attach to.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::Flock;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs};

use super::BpfError;
use crate::sys::lock;

/// Where bpffs is mounted by convention.
const BPFFS: &str = "/sys/fs/bpf";

/// Sees to it that `pin_root` will lie on a bpffs, and says whether one was mounted for that.
///
/// Only the conventional place is mounted; elsewhere the operator chose something and must mean it.
pub(super) fn ensure_bpffs(pin_root: &Path) -> Result<bool, BpfError> {
    if is_on_bpffs(pin_root) {
        return Ok(false);
    }
    let setup = |call, path: &Path, source, hint| BpfError::Setup {
        call,
        object: path.display().to_string(),
        source,
        hint,
    };
    if !pin_root.starts_with(BPFFS) {
        return Err(setup(
            "pin below",
            pin_root,
            io::Error::other("not on a bpffs"),
            "mount one there (mount -t bpf bpf <folder>) or set pinRoot below /sys/fs/bpf",
        ));
    }
    // Of two agents that start at once, the second would hide what the first has pinned below its own mount.
    let _alone = alone();
    if is_on_bpffs(pin_root) {
        return Ok(false);
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700")).map_err(|e| {
        setup(
            "mount a bpffs at",
            Path::new(BPFFS),
            e.into(),
            "the agent needs CAP_SYS_ADMIN for it, or mount it beforehand: mount -t bpf bpf /sys/fs/bpf",
        )
    })?;
    Ok(true)
}

/// Keeps other agents from mounting while it is held. None after a while: whoever else holds a lock on
/// that folder must not keep an agent from starting.
fn alone() -> Option<Flock<File>> {
    let folder = File::open(Path::new(BPFFS).parent()?).ok()?;
    lock::within(Duration::from_secs(2), folder).ok()
}

/// Whether the folder, or where it would be made, lies on a bpffs.
pub(super) fn is_on_bpffs(path: &Path) -> bool {
    path.ancestors().find(|p| p.exists()).is_some_and(|p| is_type(p, BPF_FS_MAGIC))
}

/// A folder of the cgroup v2 tree.
#[derive(Debug)]
pub(super) struct Cgroup {
    folder: File,
    path: PathBuf,
    id: u64,
}

impl Cgroup {
    /// Opens the configured folder, or the root of the tree.
    pub(super) fn open(configured: Option<&Path>) -> Result<Self, BpfError> {
        let setup = |path: &Path, source, hint| BpfError::Setup {
            call: "open the cgroup",
            object: path.display().to_string(),
            source,
            hint,
        };
        let path = match configured {
            Some(path) => path.to_owned(),
            None => root().ok_or_else(|| {
                setup(
                    Path::new("v2 tree"),
                    io::ErrorKind::NotFound.into(),
                    "no cgroup v2 is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified",
                )
            })?,
        };
        let hint = "set cgroup to a folder of the cgroup v2 tree below which all pods run";
        let folder = File::open(&path).map_err(|e| setup(&path, e, hint))?;
        if !is_type(&path, CGROUP2_SUPER_MAGIC) {
            return Err(setup(&path, io::Error::other("it is not of cgroup v2"), hint));
        }
        let id = folder.metadata().map_err(|e| setup(&path, e, hint))?.ino();
        Ok(Self { folder, path, id })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// The kernel's id of it, which is the folder's inode number.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// The root of the cgroup v2 tree, wherever it is mounted.
fn root() -> Option<PathBuf> {
    root_in(&fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// `ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS [TAGS] - TYPE SOURCE OPTIONS`; see proc(5). A bind
/// mount of a part of the tree has another ROOT than `/`.
fn root_in(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        (root == "/" && filesystem.starts_with("cgroup2 ")).then(|| PathBuf::from(unescape(at)))
    })
}

/// Blanks and the like are written in octal there.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

fn is_type(path: &Path, magic: FsType) -> bool {
    statfs(path).is_ok_and(|s| s.filesystem_type() == magic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_the_cgroup_tree_is_found_wherever_it_is() {
        let hybrid = "\
25 30 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
33 30 0:28 /kubepods /mnt/part rw - cgroup2 cgroup2 rw
34 25 0:28 / /sys/fs/cgroup/uni\\040fied rw shared:9 - cgroup2 cgroup2 rw
";
        assert_eq!(root_in(hybrid).unwrap(), Path::new("/sys/fs/cgroup/uni fied"));
        let unified = "31 30 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
        assert_eq!(root_in(unified).unwrap(), Path::new("/sys/fs/cgroup"));
        assert_eq!(root_in("31 30 0:26 / /sys rw - sysfs sysfs rw\n"), None);
        assert_eq!(root_in("nonsense"), None);
    }

    #[test]
    fn only_the_conventional_place_is_mounted() {
        let error = ensure_bpffs(Path::new("/tmp/underpass-no-such-place")).unwrap_err().to_string();
        assert!(error.contains("mount -t bpf"), "{error}");
    }
}
