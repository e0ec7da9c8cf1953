//! What the admin API says, where the model's own values do not say it all.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use crate::bpf::CaptureMode;
use crate::lifecycle::Pending;
use crate::model::{LocalPod, PodUid, Service, SpiffeId, Workload};
use crate::policy::{Defect, EffectiveMtls};

/// The agent at a glance.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub version: &'static str,
    /// Which agent of this kernel it is.
    pub instance: String,
    pub node: String,
    pub pid: u32,
    /// RFC 3339, UTC.
    pub started: String,
    pub ready: bool,
    /// Why it is not ready.
    pub pending: Vec<Pending>,
    /// Why it is stopping, if it is.
    pub stopping: Option<String>,
    pub mesh: MeshStatus,
    pub source: SourceView,
    pub pods: PodCounts,
    pub connections: usize,
    /// Rows in the kernel's maps that belong to no pod, pods that have no row, or why nobody could look.
    pub findings: Vec<String>,
    /// What of the mesh's policies cannot be taken as it stands, and what holds instead; by resource and field.
    pub policy_defects: Vec<Defect>,
}

#[derive(Clone, Debug, Serialize)]
pub struct MeshStatus {
    /// 0 until a source has spoken.
    pub revision: u64,
    pub trust_domain: Option<String>,
    pub workloads: usize,
    pub services: usize,
    pub policies: usize,
}

/// How the source of workloads and policy is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SourceView {
    pub name: String,
    /// When the state in force was accepted; RFC 3339, UTC.
    pub accepted: Option<String>,
    /// Why the latest edit was refused, if it was. The state in force is older than it.
    pub refused: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PodCounts {
    pub enrolled: usize,
    pub refused: usize,
    pub leaving: usize,
}

#[derive(Clone, Debug, Serialize)]
pub struct PodView {
    pub uid: PodUid,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub state: PodStateView,
    /// Why it is refused.
    pub reason: Option<String>,
    pub identity: SpiffeId,
    pub addresses: Vec<IpAddr>,
    pub netns: String,
    pub capture: Option<CaptureMode>,
    /// Whether its applications see the client's own address.
    pub keeps_source: Option<bool>,
    pub netns_cookie: Option<u64>,
    /// Whether the kernel's maps have its row; absent when nobody could look.
    pub in_kernel: Option<bool>,
    pub mtls: Option<EffectiveMtls>,
    /// Policies that decide about connections to it.
    pub policies: Vec<Arc<str>>,
    pub connections: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PodStateView {
    Enrolled,
    Refused,
    Leaving,
}

#[derive(Clone, Debug, Serialize)]
pub struct ServiceView {
    #[serde(flatten)]
    pub service: Arc<Service>,
    /// Workloads that are endpoints of it, and how many of them are healthy.
    pub endpoints: usize,
    pub healthy: usize,
}

/// Sorted by uid.
pub type Workloads = Vec<Arc<Workload>>;

impl PodView {
    pub(super) fn of(pod: &LocalPod, state: PodStateView) -> Self {
        Self {
            uid: pod.uid.clone(),
            namespace: Arc::clone(&pod.namespace),
            name: Arc::clone(&pod.name),
            state,
            reason: None,
            identity: pod.identity.clone(),
            addresses: pod.addresses.clone(),
            netns: pod.netns.display().to_string(),
            capture: None,
            keeps_source: None,
            netns_cookie: None,
            in_kernel: None,
            mtls: None,
            policies: Vec::new(),
            connections: 0,
        }
    }
}
