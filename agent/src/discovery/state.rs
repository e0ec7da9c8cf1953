//! The mesh as a source describes it, before it is indexed.

use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::{LocalPod, Service, TrustDomain, Workload};
use crate::policy::{Defect, MtlsDefaults, Policy, Resources};

/// Everything, each time: what is not in it is gone.
#[derive(Clone, Debug)]
pub struct State {
    pub trust_domain: TrustDomain,
    /// The network that this node's addresses belong to.
    pub network: Arc<str>,
    /// Where an address is the mesh's business even if nothing else is known of it.
    pub ranges: Vec<IpNet>,
    pub unknown: UnknownDestinations,
    pub mtls: MtlsDefaults,
    pub workloads: Vec<Workload>,
    pub services: Vec<Service>,
    pub policies: Vec<Policy>,
    /// What of these could not be taken as it was sent.
    pub policy_defects: Vec<Defect>,
    /// Both dialects' resources, where the source has them.
    pub resources: Option<Arc<Resources>>,
    /// The pods of this node that are to be meshed.
    pub local_pods: Vec<LocalPod>,
}

impl State {
    /// A mesh without anything in it.
    pub fn empty(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            network: "".into(),
            ranges: Vec::new(),
            unknown: UnknownDestinations::default(),
            mtls: MtlsDefaults::default(),
            workloads: Vec::new(),
            services: Vec::new(),
            policies: Vec::new(),
            policy_defects: Vec::new(),
            resources: None,
            local_pods: Vec::new(),
        }
    }
}

/// What becomes of a connection to an address inside the mesh's ranges that is neither a workload's
/// nor a service's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum UnknownDestinations {
    /// It goes on in plain TCP, as in Istio. Each such connection is decided anew, because a pod of
    /// the mesh may get the address at any time.
    #[default]
    Passthrough,
    /// It is refused.
    Refuse,
}
