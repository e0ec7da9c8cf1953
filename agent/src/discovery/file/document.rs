//! The file as it is written. `deploy/examples/mesh.yaml` shows one, explained by these comments.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scalar::{Cidr, Ip, Pattern, ServiceAccountName};
use crate::discovery::UnknownDestinations;
use crate::model::workload::{BalancingMode, Health, LocalityScope, NetworkMode, Visibility, WorkloadType};
use crate::model::{MtlsMode, SpiffeId, TrustDomain};
use crate::policy::{Action, PolicySettings, Scope};

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Document {
    /// What holds for all of it. Has to be there, so that a file that was cut off or emptied by
    /// accident is refused and takes nothing out of the mesh.
    pub mesh: Mesh,
    /// The pods, machines and external endpoints that are known, on every node, meshed or not.
    #[serde(default)]
    pub workloads: Vec<Workload>,
    /// What applications dial instead of a workload's address.
    #[serde(default)]
    pub services: Vec<Service>,
    /// Who may talk to whom. Without any, everybody may.
    #[serde(default)]
    pub policies: Vec<Policy>,
    /// Istio's and Linkerd's policies as they are in Kubernetes, and the Namespaces that they need: objects
    /// with apiVersion, kind, metadata and spec. They apply beside `policies`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<serde_json::Value>,
    /// The pods of this node that the agent takes into the mesh. Each needs a workload that has its
    /// addresses, name and service account.
    #[serde(default)]
    pub local_pods: Vec<LocalPod>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Mesh {
    /// The first part of every identity.
    #[serde(default = "default_trust_domain")]
    #[schemars(with = "String")]
    pub trust_domain: TrustDomain,
    /// The network that this node's addresses belong to. Workloads of other networks are not reached.
    #[serde(default)]
    pub network: String,
    /// Address ranges of pods and services. A connection to an address inside them always passes the
    /// agent, unless the address is known not to be the mesh's; one to an address outside of them does
    /// only if the address is known to be.
    #[serde(default)]
    pub ranges: Vec<Cidr>,
    /// What becomes of a connection to an address inside the ranges of which nothing is known:
    /// PASSTHROUGH in plain TCP, as in Istio, or REFUSE.
    #[serde(default)]
    pub unknown_destinations: UnknownDestinations,
    /// Whether plaintext from outside may reach a pod: STRICT forbids it, PERMISSIVE leaves it to the
    /// policies.
    #[serde(default = "permissive")]
    pub mtls: MtlsMode,
    /// The same for single namespaces.
    #[serde(default)]
    pub namespace_mtls: BTreeMap<String, MtlsMode>,
    /// What decides beside the policies themselves.
    #[serde(default)]
    pub policy: PolicySettings,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Workload {
    /// Unique in the mesh. When left out: clusterId//Pod/namespace/name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    pub name: String,
    pub namespace: String,
    /// With trust domain and namespace its identity: what it has to prove.
    #[serde(default = "default_name")]
    pub service_account: String,
    /// When left out, the mesh's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub trust_domain: Option<TrustDomain>,
    /// Its addresses, IPv4 and IPv6, without prefix length.
    #[serde(default)]
    pub workload_ips: Vec<Ip>,
    /// How it is reached: HBONE in a tunnel, TCP in plaintext. Has to be said.
    pub protocol: Protocol,
    /// When left out, the mesh's own network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// HOST_NETWORK for a pod that shares its node's addresses: it is never found by address.
    #[serde(default = "standard")]
    pub network_mode: NetworkMode,
    /// The node that it runs on.
    #[serde(default)]
    pub node: String,
    /// The cluster that it runs in.
    #[serde(default = "default_cluster")]
    pub cluster_id: String,
    /// For the labels of metrics; when left out, the workload's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canonical_name: Option<String>,
    /// For the labels of metrics.
    #[serde(default = "default_revision")]
    pub canonical_revision: String,
    /// DEPLOYMENT, CRONJOB, POD or JOB: what made the pod.
    #[serde(default = "pod")]
    pub workload_type: WorkloadType,
    /// The name of the Deployment, Job … that made the pod; when left out, the workload's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_name: Option<String>,
    /// HEALTHY or UNHEALTHY: services leave unhealthy endpoints out.
    #[serde(default = "healthy")]
    pub status: Health,
    /// Where it is.
    #[serde(default)]
    pub locality: Locality,
    /// Its weight among a service's endpoints; 0 takes nothing.
    #[serde(default = "one")]
    pub capacity: u32,
    /// The services that it is an endpoint of, by namespace/hostname, each with the target ports that
    /// differ from the service's own, by service port.
    #[serde(default)]
    pub services: BTreeMap<String, BTreeMap<u16, u16>>,
    /// The policies of scope WORKLOAD_SELECTOR that apply to it, by namespace/name. As long as one of
    /// them is not known, nobody may connect to the workload.
    #[serde(default)]
    pub authorization_policies: Vec<String>,
    /// Whether plaintext from outside may reach it, where that differs from its namespace.
    #[serde(default)]
    pub mtls: WorkloadMtls,
    /// The pod's labels, by which resources select it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The pod's annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The TCP ports that its containers declare.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ContainerPort>,
    /// The HTTP paths at which the kubelet probes it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<HttpProbe>,
    /// The waypoint that serves it, as namespace/name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waypoint: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ContainerPort {
    #[serde(default)]
    pub name: String,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HttpProbe {
    pub port: u16,
    pub path: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Protocol {
    #[serde(rename = "HBONE")]
    Hbone,
    #[serde(rename = "TCP", alias = "NONE")]
    Tcp,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Locality {
    pub region: String,
    pub zone: String,
    pub subzone: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct WorkloadMtls {
    /// STRICT or PERMISSIVE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<MtlsMode>,
    /// The same for single ports of the application.
    pub ports: BTreeMap<u16, MtlsMode>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Service {
    /// When left out, the first part of the host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub namespace: String,
    /// Its full name in the DNS; with the namespace, what workloads refer to it by.
    pub hostname: String,
    /// Its virtual addresses, single ones or ranges. A headless service has none.
    #[serde(default)]
    pub vips: Vec<Cidr>,
    /// Its ports, each with the endpoints' target port; 0 leaves it to each endpoint.
    #[serde(default)]
    pub ports: BTreeMap<u16, u16>,
    /// Identities that an endpoint may prove instead of its own workload's.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub subject_alt_names: Vec<SpiffeId>,
    /// How an endpoint is chosen.
    #[serde(default)]
    pub load_balancing: LoadBalancing,
    /// Whether it wins where services of several namespaces, none of them the client's, claim one host
    /// name or virtual address.
    #[serde(default)]
    pub canonical: bool,
    /// PUBLIC, or NAMESPACE for clients of its own namespace only.
    #[serde(default)]
    pub visibility: Visibility,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LoadBalancing {
    /// ONLY_HEALTHY, or ALLOW_ALL to send to unhealthy endpoints too.
    pub health_policy: HealthPolicy,
    /// UNSPECIFIED takes every endpoint, STRICT those that agree with the client in all of
    /// routingPreference, FAILOVER those that agree the farthest.
    pub mode: BalancingMode,
    /// What is compared with the client's, in order: REGION, ZONE, SUBZONE, NODE, CLUSTER, NETWORK.
    pub routing_preference: Vec<LocalityScope>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum HealthPolicy {
    #[default]
    OnlyHealthy,
    AllowAll,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Policy {
    pub name: String,
    pub namespace: String,
    /// What it applies to: GLOBAL to every workload, NAMESPACE to those of its namespace,
    /// WORKLOAD_SELECTOR to those that name it.
    pub scope: Scope,
    /// ALLOW or DENY. A connection that a DENY policy matches is refused. If ALLOW policies apply to a
    /// workload, a connection has to match one of them.
    pub action: Action,
    /// The policy decides nothing; the access log's dry_run says what the answer would be with it.
    #[serde(default)]
    pub dry_run: bool,
    /// The policy matches when one of its groups does. Without groups it never does, so that an ALLOW
    /// policy without groups allows nobody.
    #[serde(default)]
    pub groups: Vec<Group>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Group {
    /// All of them have to hold. Without rules the group matches everything.
    pub rules: Vec<Rule>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Rule {
    /// One of them has to hold. Without matches the rule always holds; a match without fields never
    /// does.
    pub matches: Vec<Match>,
}

/// All fields that are given have to hold; a field holds when one of its values fits, a `not…` field
/// when none does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Match {
    /// The client's namespace: name, prefix*, *suffix, or * for any. On plaintext it is not known, and
    /// none fits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<Pattern>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<Pattern>,
    /// The client's identity without spiffe://, in the same forms. On plaintext none fits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<Pattern>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<Pattern>,
    /// The client's service account as namespace/name, in any trust domain.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<ServiceAccountName>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_service_accounts: Vec<ServiceAccountName>,
    /// The client's address: single ones or ranges.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_ips: Vec<Cidr>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_source_ips: Vec<Cidr>,
    /// The pod's own address, not a service's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ips: Vec<Cidr>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ips: Vec<Cidr>,
    /// The application's own port, not a service's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ports: Vec<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ports: Vec<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LocalPod {
    /// Unique on the node.
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// What the pod's certificate will say.
    #[serde(default = "default_name")]
    pub service_account: String,
    /// When left out, the mesh's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub trust_domain: Option<TrustDomain>,
    /// The path of its network namespace: /run/netns/…, or /proc/…/ns/net.
    pub netns: PathBuf,
    /// Every address of the pod, the primary one of each family first.
    pub addresses: Vec<Ip>,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            trust_domain: default_trust_domain(),
            network: String::new(),
            ranges: Vec::new(),
            unknown_destinations: UnknownDestinations::default(),
            mtls: permissive(),
            namespace_mtls: BTreeMap::new(),
            policy: PolicySettings::default(),
        }
    }
}

impl Workload {
    /// With every optional field left out.
    pub fn new(namespace: &str, name: &str, protocol: Protocol) -> Self {
        Self {
            uid: None,
            name: name.into(),
            namespace: namespace.into(),
            service_account: default_name(),
            trust_domain: None,
            workload_ips: Vec::new(),
            protocol,
            network: None,
            network_mode: standard(),
            node: String::new(),
            cluster_id: default_cluster(),
            canonical_name: None,
            canonical_revision: default_revision(),
            workload_type: pod(),
            workload_name: None,
            status: healthy(),
            locality: Locality::default(),
            capacity: one(),
            services: BTreeMap::new(),
            authorization_policies: Vec::new(),
            mtls: WorkloadMtls::default(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            ports: Vec::new(),
            probes: Vec::new(),
            waypoint: None,
        }
    }
}

fn default_trust_domain() -> TrustDomain {
    TrustDomain::cluster_local()
}

fn permissive() -> MtlsMode {
    MtlsMode::Permissive
}

fn standard() -> NetworkMode {
    NetworkMode::Standard
}

fn pod() -> WorkloadType {
    WorkloadType::Pod
}

fn healthy() -> Health {
    Health::Healthy
}

fn default_name() -> String {
    "default".into()
}

fn default_cluster() -> String {
    "Kubernetes".into()
}

fn default_revision() -> String {
    "latest".into()
}

fn one() -> u32 {
    1
}
