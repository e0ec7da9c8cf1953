//! Workloads and services of the whole mesh, with the fields of Istio's `workload.proto`, whichever
//! source they come from.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::SpiffeId;

/// One pod (or machine, or external endpoint) of the mesh's world, meshed or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Globally unique: `cluster//Pod/namespace/name` for pods.
    pub uid: Arc<str>,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub identity: SpiffeId,
    pub addresses: Vec<IpAddr>,
    /// Which network the addresses belong to; empty is our own.
    pub network: Arc<str>,
    pub protocol: TunnelProtocol,
    pub network_mode: NetworkMode,
    pub node: Arc<str>,
    pub cluster: Arc<str>,
    pub canonical_name: Arc<str>,
    pub canonical_revision: Arc<str>,
    pub workload_type: WorkloadType,
    /// The name of the Deployment, Job … that made it.
    pub workload_name: Arc<str>,
    pub locality: Locality,
    pub health: Health,
    /// Relative weight among a service's endpoints; 1 when not given, 0 takes nothing.
    pub capacity: u32,
    /// `namespace/hostname` of each service it is an endpoint of → service port to target port.
    pub services: BTreeMap<Arc<str>, Vec<PortMapping>>,
    /// `namespace/name` of policies attached by selector. One that is not (yet) known denies.
    pub policies: Vec<Arc<str>>,
    /// What this workload itself asks of connections to it; the rest comes from namespace and mesh.
    pub mtls: WorkloadMtls,
    /// What policies select it by and read from it.
    pub facts: PodFacts,
}

impl Workload {
    /// A healthy, meshed pod without addresses, with every other field at its default.
    pub fn new(uid: &str, namespace: &str, name: &str, identity: SpiffeId) -> Self {
        let none: Arc<str> = Arc::from("");
        Self {
            uid: uid.into(),
            name: name.into(),
            namespace: namespace.into(),
            identity,
            addresses: Vec::new(),
            network: none.clone(),
            protocol: TunnelProtocol::Hbone,
            network_mode: NetworkMode::Standard,
            node: none.clone(),
            cluster: "Kubernetes".into(),
            canonical_name: none.clone(),
            canonical_revision: none.clone(),
            workload_type: WorkloadType::Pod,
            workload_name: none,
            locality: Locality::default(),
            health: Health::Healthy,
            capacity: 1,
            services: BTreeMap::new(),
            policies: Vec::new(),
            mtls: WorkloadMtls::default(),
            facts: PodFacts::default(),
        }
    }
}

impl PodFacts {
    /// A pod that says nothing.
    pub const NONE: Self = Self {
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        ports: Vec::new(),
        probes: Vec::new(),
        waypoint: None,
    };
}

/// What a pod says of itself that policies select by or depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodFacts {
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Only those that mean something to policy.
    pub annotations: BTreeMap<Arc<str>, Arc<str>>,
    /// TCP ports that its containers declare.
    pub ports: Vec<ContainerPort>,
    /// HTTP paths at which the kubelet probes it.
    pub probes: Vec<HttpProbe>,
    /// `namespace/name` of the waypoint that serves it: policies that name a waypoint are that one's.
    pub waypoint: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ContainerPort {
    /// Empty where it has none.
    pub name: Arc<str>,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HttpProbe {
    pub port: u16,
    pub path: Arc<str>,
}

/// Whether plaintext from outside may reach a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MtlsMode {
    /// Mutual TLS only.
    Strict,
    /// Mutual TLS and plaintext, both subject to policy.
    Permissive,
}

/// The most specific level of the mutual TLS setting: a port's before the workload's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct WorkloadMtls {
    /// Not set: the namespace's, then the mesh's mode holds.
    pub mode: Option<MtlsMode>,
    /// By the application's own (target) port.
    pub ports: BTreeMap<u16, MtlsMode>,
}

/// How to reach a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum TunnelProtocol {
    /// Plain TCP: it is not of the mesh.
    #[serde(rename = "NONE")]
    None,
    #[serde(rename = "HBONE")]
    Hbone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum NetworkMode {
    Standard,
    /// Shares its node's addresses, so it can never be found by address.
    HostNetwork,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum WorkloadType {
    Deployment,
    Cronjob,
    Pod,
    Job,
}

impl WorkloadType {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::Cronjob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Health {
    Healthy,
    Unhealthy,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Locality {
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub subzone: Arc<str>,
}

/// `target_port` 0 means that the endpoint's own mapping decides (a named port).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct PortMapping {
    pub service_port: u16,
    pub target_port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub hostname: Arc<str>,
    /// Virtual addresses; a headless service has none. Usually /32 or /128.
    pub vips: Vec<IpNet>,
    pub ports: Vec<PortMapping>,
    /// Identities that endpoints may prove besides their own workload's.
    pub subject_alt_names: Vec<SpiffeId>,
    /// Send to unhealthy endpoints too (`publishNotReadyAddresses`).
    pub allow_unhealthy: bool,
    pub load_balancing: LoadBalancing,
    /// Wins where several services of other namespaces than the client's claim one name or address.
    pub canonical: bool,
    pub visibility: Visibility,
}

/// Which endpoints are chosen among, before their weights count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LoadBalancing {
    pub mode: BalancingMode,
    /// Compared with the client's in this order, as far as they agree.
    pub routing_preference: Vec<LocalityScope>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum BalancingMode {
    /// All of them.
    #[default]
    Unspecified,
    /// Those that agree with the client in every scope.
    Strict,
    /// Those that agree the farthest.
    Failover,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum LocalityScope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

/// Whose connections a service is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Visibility {
    #[default]
    Public,
    /// Clients of its own namespace only.
    Namespace,
}

impl LocalityScope {
    fn agrees(self, a: &Workload, b: &Workload) -> bool {
        match self {
            Self::Region => a.locality.region == b.locality.region,
            Self::Zone => a.locality.zone == b.locality.zone,
            Self::Subzone => a.locality.subzone == b.locality.subzone,
            Self::Node => a.node == b.node,
            Self::Cluster => a.cluster == b.cluster,
            Self::Network => a.network == b.network,
        }
    }
}

impl LoadBalancing {
    /// In how many scopes, counted from the first, an endpoint agrees with the client.
    pub fn rank(&self, client: &Workload, endpoint: &Workload) -> usize {
        self.routing_preference.iter().take_while(|scope| scope.agrees(client, endpoint)).count()
    }
}

impl Service {
    /// `namespace/hostname`, the key that workloads refer to it by.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.hostname)
    }

    pub fn is_visible_to(&self, namespace: &str) -> bool {
        self.visibility == Visibility::Public || &*self.namespace == namespace
    }
}
