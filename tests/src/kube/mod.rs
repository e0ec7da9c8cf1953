//! A real Kubernetes on this machine: etcd, API server, controllers, cluster DNS, and nodes with containerd,
//! kubelet and kube-proxy, each in namespaces of its own. The programs are built by
//! `cargo xtask cluster build`; there is one cluster at most on a machine.
//!
//! Everything that is made is found again by one prefix, so that [`sweep`] removes it: processes by the ids
//! in `<folder>/*.pid`, namespaces and cgroups by their names, and the folder.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

mod cgroups;
pub mod check;
mod control;
mod daemon;
pub mod image;
pub mod images;
pub mod init;
mod kubeconfig;
pub mod kubectl;
mod leftovers;
mod network;
pub mod node;
mod pki;
pub mod places;
pub mod status;

pub(crate) use cgroups::remove as remove_cgroups;
pub use kubectl::Kubectl;
pub use node::Node;

use crate::{sweep, wait};

/// Starts a cluster and waits until every node is Ready. Removes it all again when that fails, having said
/// what the component to blame has logged.
///
/// # Errors
/// One stands already; or what failed, with the end of its log.
pub fn up(nodes: u8) -> Result<()> {
    claim()?;
    sweep::made(places::PREFIX);
    let made = make(nodes);
    if made.is_err() {
        sweep::remove(places::PREFIX);
    }
    made
}

/// Removes the cluster, if any. With its logs kept, says where they are.
///
/// # Errors
/// Something is left, all of which is named.
pub fn down(keep_logs: bool) -> Result<Option<PathBuf>> {
    let kept = places::kept_logs();
    let keep = keep_logs && places::logs().exists();
    if keep || !keep_logs {
        // Those of an earlier cluster.
        let _ = fs::remove_dir_all(&kept);
    }
    if keep {
        // Who still writes goes on writing there.
        fs::rename(places::logs(), &kept)
            .with_context(|| format!("moving the logs to {}", kept.display()))?;
    }
    sweep::remove(places::PREFIX);
    let left = leftovers::all();
    ensure!(left.is_empty(), "this is left:\n  {}", left.join("\n  "));
    Ok(keep.then_some(kept))
}

/// Makes the folder, which is what says that a cluster stands.
fn claim() -> Result<()> {
    let folder = places::folder();
    match fs::create_dir(&folder) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!(
                "a cluster stands already, or what is left of one, in {}: see `cargo xtask cluster status`, or \
                 remove it by `cargo xtask cluster down`",
                folder.display()
            )
        }
        Err(e) => return Err(e).with_context(|| format!("making {}", folder.display())),
    }
    fs::create_dir(places::logs()).context("making the folder of logs")
}

fn make(nodes: u8) -> Result<()> {
    let folder = places::folder();
    say(&format!("a control plane and {nodes} nodes, in {}", folder.display()));
    let kubectl = Kubectl::new()?;
    let pki = pki::Pki::make(&folder, nodes)?;
    kubeconfig::write(&folder, &pki, "admin")?;
    let images = images::write(&folder)?;
    network::make(nodes)?;
    control::start(&folder, &pki, &kubectl)?;
    say("the API server is ready");
    for index in 1..=nodes {
        Node::start(index, &pki, &images)?;
    }
    for index in 1..=nodes {
        wait_ready(&kubectl, &places::node(index))?;
    }
    Ok(())
}

/// A busy machine starts a kubelet slowly.
const PATIENCE: Duration = Duration::from_secs(180);

fn wait_ready(kubectl: &Kubectl, name: &str) -> Result<()> {
    let kubelet = format!("{name}-kubelet");
    let mut said = String::new();
    let ready = wait::until(PATIENCE, &format!("{name} is Ready"), || {
        let dead = daemon::recorded().into_iter().find(|process| !process.alive);
        if let Some(process) = dead {
            return Some(Err(process.name));
        }
        match kubectl.json(&["get", "node", name]) {
            Ok(node) => {
                let (ready, message) = status::readiness(&node);
                said = message;
                ready.then_some(Ok(()))
            }
            Err(error) => {
                said = format!("{error:#}");
                None
            }
        }
    });
    match ready {
        Ok(Ok(())) => say(&format!("{name} is Ready")),
        Ok(Err(ended)) => bail!("{ended} ended\n{}", daemon::tail(&ended)),
        Err(late) => bail!("{late:#}: {said}\n{}", daemon::tail(&kubelet)),
    }
    Ok(())
}

fn say(what: &str) {
    println!("cluster: {what}");
}
