//! A pod on this node, as whoever told us of it describes it.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::SpiffeId;

#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(transparent)]
pub struct PodUid(pub Arc<str>);

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A pod that runs on this node and is to be meshed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LocalPod {
    pub uid: PodUid,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// What the pod's certificate says: trust domain, namespace and service account.
    pub identity: SpiffeId,
    /// The pod's network namespace, as a path to open (`/run/netns/…`, `/proc/…/ns/net`).
    pub netns: PathBuf,
    /// Every address of the pod, the primary one of a family first.
    pub addresses: Vec<IpAddr>,
}

impl LocalPod {
    pub fn owns(&self, ip: IpAddr) -> bool {
        self.addresses.contains(&ip)
    }
}
