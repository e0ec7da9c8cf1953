//! The sections of the configuration, with their defaults.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::{TrustDomain, units};
use crate::tls::Profile;

/// The machine that this agent serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Node {
    /// The node's name in the cluster. When empty, the environment's NODE_NAME.
    pub name: String,
    /// The agent's own pod as namespace/name, for messages. When empty, the environment's POD_NAMESPACE
    /// and POD_NAME.
    pub pod: String,
    /// The agent's own service account, for messages. When empty, the environment's SERVICE_ACCOUNT.
    pub service_account: String,
}

/// How pods' outgoing connections come to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Capture {
    /// mark: by a mark on the socket with a rule and a route in the pod's namespace; loopback: by a
    /// loopback address for each connection, which the application can see; auto: mark, and loopback
    /// where a namespace cannot have the rule.
    pub mode: CapturePreference,
}

impl Default for Capture {
    fn default() -> Self {
        Self { mode: CapturePreference::Auto }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CapturePreference {
    Auto,
    Mark,
    Loopback,
}

/// What the mesh consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Discovery {
    /// A YAML file with the mesh's workloads, services and policies and this node's pods
    /// (deploy/examples/mesh.yaml shows one). It is watched; an edit that cannot be understood is
    /// refused as a whole and the last good state stays.
    pub file: PathBuf,
    /// The file is read again this often even if no change was noticed.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub poll_interval: Duration,
    /// How long the file has to be quiet after a change before it is read.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub debounce: Duration,
}

impl Default for Discovery {
    fn default() -> Self {
        Self {
            file: "/etc/underpass/mesh.yaml".into(),
            poll_interval: Duration::from_secs(30),
            debounce: Duration::from_millis(100),
        }
    }
}

/// Who issues the certificates of this node's pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Certificates {
    /// embedded: an authority inside the agent; controller: `underpass controller`; istio: another
    /// authority that speaks Istio's certificate service, as istiod and istio-csr do; spire: the node's SPIRE
    /// agent. Each has a section below, and the others' are not used.
    pub issuer: IssuerKind,
    /// An authority inside the agent, for one machine, demos and tests: agents that are given the same
    /// root files trust each other, and whoever can read the key can be anybody in the mesh.
    pub embedded: Embedded,
    /// Underpass' own controller. The node proves itself by a certificate of its own, by the token of the
    /// agent's service account, or by both; news of roots comes at once.
    pub controller: Controller,
    /// An authority that speaks Istio's certificate service. It looks this agent's own pod up, by the
    /// token, and gives it certificates of the pods on its node.
    pub istio: Istio,
    /// The SPIRE agent on this node, by its Delegated Identity API. It has to list this agent's SPIFFE id in
    /// authorized_delegates, and to have an entry for each service account with the selectors
    /// k8s:ns:<namespace> and k8s:sa:<service account> and no others.
    pub spire: Spire,
    /// What peers are judged by besides what the issuer says to trust. The files are followed: a new root
    /// counts at once, and what a removed one vouched for ends.
    pub trust: Trust,
    /// How long one request for a certificate may take.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub deadline: Duration,
    /// How many requests may be under way at once.
    #[schemars(range(min = 1))]
    pub concurrency: u16,
}

impl Default for Certificates {
    fn default() -> Self {
        Self {
            issuer: IssuerKind::Embedded,
            embedded: Embedded::default(),
            controller: Controller::default(),
            istio: Istio::default(),
            spire: Spire::default(),
            trust: Trust::default(),
            deadline: Duration::from_secs(30),
            concurrency: 8,
        }
    }
}

/// What peers are judged by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Trust {
    /// PEM files with roots. Those of another trust domain let its workloads in, as far as policy does
    /// (mind that a policy's namespaces fit theirs too; principals name the trust domain), and can never
    /// vouch for ours; those of the mesh's own add to the issuer's.
    pub bundles: Vec<TrustBundle>,
    /// PEM or DER files of certificates that their issuers have taken back, at any place in a chain.
    pub revocation_lists: Vec<PathBuf>,
    /// How often the files are looked at where the file system does not tell of changes.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub poll_interval: Duration,
}

impl Default for Trust {
    fn default() -> Self {
        Self { bundles: Vec::new(), revocation_lists: Vec::new(), poll_interval: Duration::from_secs(10) }
    }
}

/// Roots of one trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TrustBundle {
    /// Whose certificates they vouch for.
    #[schemars(with = "String")]
    pub trust_domain: TrustDomain,
    /// Each CERTIFICATE section is a root.
    pub file: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IssuerKind {
    Embedded,
    Controller,
    Istio,
    Spire,
}

/// An authority inside the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Embedded {
    /// The only trust domain that it issues for: the mesh's.
    #[schemars(with = "String")]
    pub trust_domain: TrustDomain,
    /// PEM file of the root's certificate.
    pub root_certificate: PathBuf,
    /// PEM file of the root's key; mode 0600 when the agent makes it.
    pub root_key: PathBuf,
    /// Make the root if neither file is there.
    pub create_root: bool,
    /// How long a pod's certificate is valid. It is renewed in good time.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub lifetime: Duration,
    /// How far its validity begins in the past, for peers whose clocks are behind; at most a quarter of its life.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub backdate: Duration,
}

impl Default for Embedded {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::default(),
            root_certificate: "/var/lib/underpass/root-cert.pem".into(),
            root_key: "/var/lib/underpass/root-key.pem".into(),
            create_root: true,
            lifetime: Duration::from_secs(24 * 3600),
            backdate: Duration::from_secs(120),
        }
    }
}

/// Underpass' own controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Controller {
    /// The only trust domain that it is asked for, and whose roots are taken from it: the mesh's.
    #[schemars(with = "String")]
    pub trust_domain: TrustDomain,
    /// Where it listens: https://host:port.
    pub address: String,
    /// PEM file of the roots that its server certificate is judged by until it has brought some itself, and
    /// again when the file is replaced. Read for each request.
    pub root_certificate: PathBuf,
    /// Where the agent keeps the roots that it brought, by which it is known after a restart. Each agent of a
    /// machine needs a file of its own.
    pub state: PathBuf,
    /// Other names that its server certificate may be for, instead of the address's.
    pub alternative_host_names: Vec<String>,
    /// PEM file of the node's own certificate, as `underpass ca node` makes it. Read for each request, so
    /// it may be replaced.
    pub client_certificate: Option<PathBuf>,
    /// PEM file of its key.
    pub client_key: Option<PathBuf>,
    /// A token of the agent's own service account. Read for each request, so it may be replaced.
    pub token_file: Option<PathBuf>,
    /// The cluster that is to judge the token, where the controller serves several.
    pub cluster_id: String,
    /// How long a pod's certificate is asked to be valid. The controller may give less; it is renewed in
    /// good time.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub lifetime: Duration,
}

impl Default for Controller {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::default(),
            address: "https://underpass-controller.underpass-system.svc:15012".into(),
            root_certificate: "/etc/underpass/root-cert.pem".into(),
            state: "/var/lib/underpass/controller-roots.json".into(),
            alternative_host_names: Vec::new(),
            client_certificate: None,
            client_key: None,
            token_file: None,
            cluster_id: String::new(),
            lifetime: Duration::from_secs(24 * 3600),
        }
    }
}

/// An authority that speaks Istio's certificate service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Istio {
    /// The only trust domain that it is asked for: the mesh's.
    #[schemars(with = "String")]
    pub trust_domain: TrustDomain,
    /// Where it listens: https://host:port.
    pub address: String,
    /// PEM file of the roots that its server certificate is judged by. Read for each request, so it may
    /// be replaced.
    pub root_certificate: PathBuf,
    /// Other names that its server certificate may be for, instead of the address's.
    pub alternative_host_names: Vec<String>,
    /// The token of the agent's own service account. Read for each request, so it may be replaced.
    pub token_file: PathBuf,
    /// The cluster that is to judge the token, as the control plane names it.
    pub cluster_id: String,
    /// Which of the authority's signers is to sign, where it has several.
    pub cert_signer: Option<String>,
    /// Headers that are sent with each request beside the service's own, by name in lower case.
    pub headers: BTreeMap<String, String>,
    /// How long a pod's certificate is asked to be valid. The authority may give less; it is renewed in
    /// good time.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub lifetime: Duration,
}

impl Default for Istio {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::default(),
            address: "https://istiod.istio-system.svc:15012".into(),
            root_certificate: "/var/run/secrets/istio/root-cert.pem".into(),
            alternative_host_names: Vec::new(),
            token_file: "/var/run/secrets/tokens/istio-token".into(),
            cluster_id: "Kubernetes".into(),
            cert_signer: None,
            headers: BTreeMap::new(),
            lifetime: Duration::from_secs(24 * 3600),
        }
    }
}

/// The cryptography of tunnels, of calls to issuers, and of the controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Tls {
    /// default: what an Istio ambient mesh speaks, preferring the key exchange that withstands quantum
    /// computers; pq-only: nobody who cannot do that exchange, X25519MLKEM768; fips: only algorithms
    /// that FIPS 140-3 approves of (docs/identity.md says what that is not). Peers whose profiles do not
    /// meet do not connect; all of these meet at X25519MLKEM768.
    pub profile: Profile,
}

/// The SPIRE agent on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Spire {
    /// The only trust domain that certificates are asked for: the mesh's. Roots of others count for pods
    /// whose entries federate with them.
    #[schemars(with = "String")]
    pub trust_domain: TrustDomain,
    /// Its admin socket: admin_socket_path in its configuration.
    pub admin_socket: PathBuf,
}

impl Default for Spire {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::default(),
            admin_socket: "/run/spire/agent-sockets/admin.sock".into(),
        }
    }
}

/// The HTTP/2 tunnels between agents (HBONE).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Tunnel {
    /// How much may be under way to us in one stream before its reader has to keep up.
    #[serde(with = "units::bytes")]
    #[schemars(with = "String")]
    pub stream_window: u32,
    /// The same for all streams of a tunnel together. A few times the stream's, so that one slow
    /// reader does not stop the others.
    #[serde(with = "units::bytes")]
    #[schemars(with = "String")]
    pub connection_window: u32,
    /// The largest frame that we accept: 16KiB to just under 16MiB.
    #[serde(with = "units::bytes")]
    #[schemars(with = "String")]
    pub max_frame_size: u32,
    /// The largest header list that we accept.
    #[serde(with = "units::bytes")]
    #[schemars(with = "String")]
    pub max_header_list_size: u32,
    /// How many streams we open in one tunnel before we open another one.
    pub max_streams: u32,
    /// How many streams a peer may have open in one tunnel to us.
    pub max_peer_streams: u32,
    /// How long a tunnel is quiet before it is pinged.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub ping_interval: Duration,
    /// How long the answer may take before the tunnel counts as broken.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub ping_timeout: Duration,
    /// How long a tunnel without streams is kept.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub idle_timeout: Duration,
    /// How long TCP, TLS and HTTP/2 together may take to set a tunnel up.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub connect_timeout: Duration,
    /// How long a connection may take to be opened through a tunnel, the other agent's connecting to
    /// its application included.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub answer_timeout: Duration,
}

impl Default for Tunnel {
    fn default() -> Self {
        Self {
            stream_window: 4 << 20,
            connection_window: 16 << 20,
            max_frame_size: 1 << 20,
            max_header_list_size: 64 << 10,
            max_streams: 100,
            max_peer_streams: 200,
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(60),
        }
    }
}

/// The data path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Proxy {
    /// Threads that carry connections; 0 means a quarter of the machine's processors, at least 2.
    pub workers: u16,
    /// How long connecting to an application may take.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub connect_timeout: Duration,
    /// How long connections may go on after the agent was told to stop.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub drain_deadline: Duration,
    /// TCP keepalive on every connection that the agent holds.
    pub keepalive: Keepalive,
    /// Of requests to ports on which a policy that is in force looks at requests. Nothing else is asked for
    /// HTTP, or held to these.
    pub http: Http,
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            workers: 0,
            connect_timeout: Duration::from_secs(10),
            drain_deadline: Duration::from_secs(25),
            keepalive: Keepalive::default(),
            http: Http::default(),
        }
    }
}

/// Requests that are judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Http {
    /// How long a connection's first bytes may take to come and to be a request's. One of another kind,
    /// or on which the server speaks first, ends with the cause not_http.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub first_bytes_timeout: Duration,
    /// How long the head of a request of HTTP/1 may take, from its first byte on; the client is told 408.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub head_timeout: Duration,
    /// How long a connection may be kept while no request is open; 0s means for as long as the client and
    /// the application like.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub idle_timeout: Duration,
    /// The largest head of a request, and answer of HTTP/2: 8KiB to 256KiB; the client is told 431.
    #[serde(with = "units::bytes")]
    #[schemars(with = "String")]
    pub max_head_size: u32,
    /// How many header fields a request may have; the client is told 431.
    pub max_fields: u16,
    /// How many requests one connection of HTTP/2 may have open.
    pub max_streams: u32,
    /// How much of one request or answer of HTTP/2 may be under way before its reader has to keep up.
    #[serde(with = "units::bytes")]
    #[schemars(with = "String")]
    pub stream_window: u32,
    /// The same for all of a connection together.
    #[serde(with = "units::bytes")]
    #[schemars(with = "String")]
    pub connection_window: u32,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            first_bytes_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::ZERO,
            max_head_size: 60 << 10,
            max_fields: 100,
            max_streams: 250,
            stream_window: 256 << 10,
            connection_window: 1 << 20,
        }
    }
}

/// TCP keepalive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Keepalive {
    /// How long a connection is idle before the first probe.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub idle: Duration,
    /// The time between probes.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub interval: Duration,
    /// How many probes go unanswered before the connection counts as dead.
    pub probes: u16,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { idle: Duration::from_secs(180), interval: Duration::from_secs(180), probes: 9 }
    }
}
