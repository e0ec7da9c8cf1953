//! A node's own directory in every cgroup hierarchy: `<prefix>-<node>`, its daemons in one below, its pods
//! in another that kubelet makes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::places::PREFIX;
use crate::wait;

const DAEMONS: &str = "daemons";

pub fn make(node: &str) -> Result<()> {
    for (root, _) in hierarchies() {
        let dir = root.join(format!("{PREFIX}-{node}")).join(DAEMONS);
        fs::create_dir_all(&dir).with_context(|| format!("making the cgroup {}", dir.display()))?;
    }
    Ok(())
}

/// In cgroup v2, which is where programs look for whose a socket is.
pub fn put_daemon(node: &str, pid: u32) -> Result<()> {
    for (root, unified) in hierarchies() {
        let procs = root.join(format!("{PREFIX}-{node}")).join(DAEMONS).join("cgroup.procs");
        if unified {
            fs::write(&procs, pid.to_string())
                .with_context(|| format!("writing {pid} to {}", procs.display()))?;
        }
    }
    Ok(())
}

/// Removes every directory that is named `<prefix>-…`, in every hierarchy. Processes in them are gone already.
pub(crate) fn remove(prefix: &str) {
    let left = || {
        let all = standing(prefix);
        all.iter().for_each(|dir| remove_tree(dir));
        all.is_empty()
    };
    // The kernel lets go of a killed process's cgroup a moment after the process is gone.
    if let Err(e) = wait::until_true(Duration::from_secs(10), "the cgroups are gone", left) {
        eprintln!("cleaning up: {e:#}");
    }
}

/// The directories of that prefix.
pub fn standing(prefix: &str) -> Vec<PathBuf> {
    let entries = hierarchies().into_iter().filter_map(|(root, _)| fs::read_dir(root).ok());
    let named = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(prefix));
        name.is_some_and(|rest| rest.starts_with('-'))
    };
    entries.flat_map(|entries| entries.flatten().map(|entry| entry.path())).filter(named).collect()
}

/// The files in a cgroup's directory go with it.
fn remove_tree(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

/// Where each is mounted, and whether it is cgroup v2.
fn hierarchies() -> Vec<(PathBuf, bool)> {
    mounted(&fs::read_to_string("/proc/self/mounts").unwrap_or_default())
}

fn mounted(mounts: &str) -> Vec<(PathBuf, bool)> {
    let mut found: Vec<(PathBuf, bool)> = vec![];
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(at), Some(kind)) = (fields.next(), fields.next()) else { continue };
        let known = found.iter().any(|(path, _)| path == Path::new(at));
        if (kind == "cgroup" || kind == "cgroup2") && !known {
            found.push((at.into(), kind == "cgroup2"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_read_from_the_list_of_mounts() {
        let unified = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\nproc /proc proc rw 0 0\n";
        assert_eq!(mounted(unified), [("/sys/fs/cgroup".into(), true)]);
        let both = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                    cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(
            mounted(both),
            [("/sys/fs/cgroup/cpu".into(), false), ("/sys/fs/cgroup/unified".into(), true)]
        );
        assert!(mounted("").is_empty());
    }
}
