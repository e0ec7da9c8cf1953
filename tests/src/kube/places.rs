//! Names and addresses of everything in a cluster. There is one on a machine at most.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::netns::Netns;
use crate::sweep;

/// The first part of every name that is made: namespaces, cgroups, the folder.
pub const PREFIX: &str = "upkube";

/// The namespace of the control plane, and its address on the nodes' network.
pub const CONTROL: &str = "cp";
pub const CONTROL_IP: Ipv4Addr = Ipv4Addr::new(10, 210, 0, 1);
pub const API_PORT: u16 = 6443;

/// Services' virtual addresses. The first is the API server's.
pub const SERVICES: &str = "10.96.0.0/16";
pub const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
pub const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
pub const DOMAIN: &str = "cluster.local";

/// Every pod's address.
pub const PODS: &str = "10.244.0.0/16";

/// Where the cluster's files are: the folder that [`sweep`] knows by the prefix.
pub fn folder() -> PathBuf {
    sweep::folder(PREFIX)
}

/// One log for each process, and a folder for each node's `/var/log`.
pub fn logs() -> PathBuf {
    folder().join("log")
}

/// Where logs are that were to be kept.
pub fn kept_logs() -> PathBuf {
    folder().with_extension("log")
}

/// A namespace of the cluster.
pub fn netns(name: &str) -> Netns {
    Netns::named(&format!("{PREFIX}-{name}"))
}

/// `node1` and so on.
pub fn node(index: u8) -> String {
    format!("node{index}")
}

pub fn node_ip(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 210, 0, 10 + index)
}

/// The addresses of one node's pods.
pub fn pods_of(index: u8) -> String {
    format!("10.244.{index}.0/24")
}

/// Where the programs are: `UNDERPASS_CLUSTER_BIN`, else where `cargo xtask cluster build` puts them.
///
/// # Errors
/// They are not there; says how to build them.
pub fn programs() -> Result<PathBuf> {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/cluster/bin");
    let folder = std::env::var_os("UNDERPASS_CLUSTER_BIN").map_or_else(built, PathBuf::from);
    if !folder.join("kube-apiserver").is_file() {
        bail!("no kube-apiserver in {}: run `cargo xtask cluster build`", folder.display());
    }
    Ok(folder)
}
