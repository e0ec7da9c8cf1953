//! A node's first process: gives the node a file tree of its own, and reaps whoever has lost its parent.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::places::{folder, logs};

/// The argument that makes `underpass-cluster` this.
pub const VERB: &str = "node-init";

/// Is there once the file tree stands.
pub fn ready_file(node: &str) -> PathBuf {
    folder().join(node).join("booted")
}

/// Returns only to fail.
pub fn run(node: &str) -> Result<()> {
    // Also started by hand, where it would mount over the machine's own folders.
    ensure!(std::process::id() == 1, "{VERB} is the first process of a node: see `underpass-cluster up`");
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block().context("blocking SIGCHLD")?;
    own_folders(node)?;
    let ready = ready_file(node);
    fs::write(&ready, "").with_context(|| format!("writing {}", ready.display()))?;
    loop {
        reap()?;
        children.wait().context("waiting for SIGCHLD")?;
    }
}

/// unshare has made every mount private to this process already.
fn own_folders(node: &str) -> Result<()> {
    bind(&folder().join(node).join("lib"), "/var/lib")?;
    bind(&logs().join(node), "/var/log")?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).context("mounting /run")?;
    fs::create_dir_all("/run/netns").context("making /run/netns")?;
    // Or nothing that a pod mounts with `Bidirectional` would arrive on the node.
    let shared = MsFlags::MS_SHARED | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, shared, None::<&str>).context("sharing the node's mounts")
}

fn bind(from: &Path, to: &str) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("mounting {} at {to}", from.display()))
}

fn reap() -> Result<()> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for children"),
        }
    }
}
