//! What may be typed after `underpass why`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use ipnet::IpNet;

use crate::cli::args::{Output, Place};
use crate::discovery::ask;
use crate::model::TrustDomain;
use crate::policy::{InboundDefault, LinkerdSettings, PathNormalization, PolicySettings, Settings, Stance};

const EXAMPLES: &str = "\
Examples:
  underpass why shop/web shop/db --port 5432            asks the agent of this node
  underpass why shop/web shop/api --method GET --path /orders/7 -f k8s/
  underpass why plaintext shop/db -f k8s/ -o json       whoever is not of the mesh

Exit codes:
  0  allowed
  3  denied
  1  it could not be answered; 2: the command line is wrong";

/// One connection or request, and the world that it is judged in.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct WhyArgs {
    /// Who calls: a pod (NAMESPACE/NAME), a SPIFFE id, or plaintext for a client without identity
    pub from: String,
    /// The pod that is called: NAMESPACE/NAME
    pub to: String,
    /// The pod's port, by number or name [default: the first that it declares, or 80]
    #[arg(long, value_name = "N")]
    pub port: Option<String>,
    /// The request's method; any of method, path, host and header makes it an HTTP request [default: GET]
    #[arg(long, value_name = "M", value_parser = ask::method)]
    pub method: Option<String>,
    /// The request's path, with its query [default: /]
    #[arg(long, value_name = "P")]
    pub path: Option<String>,
    /// The request's Host or :authority
    #[arg(long, value_name = "H", value_parser = ask::host)]
    pub host: Option<String>,
    /// A header of the request; may be repeated
    #[arg(long = "header", value_name = "KEY=VALUE")]
    pub headers: Vec<String>,
    /// The server name in the application's own TLS
    #[arg(long, value_name = "S")]
    pub sni: Option<String>,
    /// The client's address [default: the calling pod's]
    #[arg(long, value_name = "A")]
    pub from_ip: Option<IpAddr>,
    /// Kubernetes YAML or JSON with Namespaces, Pods and policies, a file or a folder of them, - for standard
    /// input; may be repeated.
    /// Without it the running agent is asked
    #[arg(short = 'f', long = "file", value_name = "FILE|DIR")]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub place: Place,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// What holds for the whole mesh and is in none of its resources.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "The mesh, with -f")]
pub(crate) struct MeshArgs {
    /// Istio: the namespace whose policies are the whole mesh's [default: istio-system]
    #[arg(long, value_name = "NAME", requires = "files")]
    root_namespace: Option<String>,
    /// The trust domain of the pods' identities [default: cluster.local]
    #[arg(long, value_name = "NAME", requires = "files")]
    trust_domain: Option<TrustDomain>,
    /// Istio: other names of it, separated by commas; a principal of one is one of all
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "files")]
    trust_domain_aliases: Vec<TrustDomain>,
    /// Istio: NONE, BASE, MERGE_SLASHES or DECODE_AND_MERGE_SLASHES [default: BASE]
    #[arg(long, value_name = "HOW", requires = "files", value_parser = of_word::<PathNormalization>)]
    path_normalization: Option<PathNormalization>,
    /// Linkerd: what holds for ports that no Server names [default: all-unauthenticated]
    #[arg(long, visible_alias = "default-inbound-policy", value_name = "POLICY", requires = "files")]
    linkerd_default_inbound_policy: Option<InboundDefault>,
    /// Linkerd: the namespace of its control plane, a part of its identities [default: linkerd]
    #[arg(long, value_name = "NAME", requires = "files")]
    linkerd_namespace: Option<String>,
    /// Linkerd: what counts as the cluster, separated by commas [default: the private ranges]
    #[arg(
        long,
        visible_alias = "linkerd-cluster-networks",
        value_name = "CIDRS",
        value_delimiter = ',',
        requires = "files"
    )]
    cluster_networks: Option<Vec<IpNet>>,
    /// Linkerd: from where probes are let in, separated by commas [default: everywhere]
    #[arg(
        long,
        visible_alias = "linkerd-probe-networks",
        value_name = "CIDRS",
        value_delimiter = ',',
        requires = "files"
    )]
    probe_networks: Option<Vec<IpNet>>,
    /// What holds where no policy says anything: allow, mtls or deny [default: allow]
    #[arg(long, value_name = "STANCE", requires = "files", value_parser = of_word::<Stance>)]
    stance: Option<Stance>,
}

impl MeshArgs {
    pub fn settings(&self) -> Settings {
        self.settings_in(TrustDomain::cluster_local())
    }

    /// As [`Self::settings`], with another trust domain where none is given.
    pub fn settings_in(&self, trust_domain: TrustDomain) -> Settings {
        let written = PolicySettings {
            root_namespace: self.root_namespace.clone(),
            path_normalization: self.path_normalization.unwrap_or_default(),
            trust_domain_aliases: self.trust_domain_aliases.clone(),
            stance: self.stance.unwrap_or_default(),
            linkerd: LinkerdSettings {
                default_inbound_policy: self.linkerd_default_inbound_policy.unwrap_or_default(),
                namespace: self.linkerd_namespace.clone(),
                cluster_networks: self.cluster_networks.clone(),
                probe_networks: self.probe_networks.clone(),
            },
            ..PolicySettings::default()
        };
        written.settings(self.trust_domain.clone().unwrap_or(trust_domain))
    }
}

/// A word as configuration files have it.
fn of_word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(text.to_string()))
        .map_err(|e| e.to_string().replace("unknown variant ", ""))
}
