//! The configuration of `underpass controller`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ConfigError, Tls, example};
use crate::admin::AdminConfig;
use crate::ca::attest::{KubernetesConfig, ListedNode, PublicKeyPin, ServiceAccount, listed_twice};
use crate::ca::kubernetes::SecretName;
use crate::ca::publish::PublishConfig;
use crate::ca::{AuthorityConfig, Source};
use crate::discovery::yaml::{self, Complaints, Invalid, Path as Field};
use crate::model::{SpiffeId, TrustDomain, units};
use crate::telemetry::LogConfig;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ControllerConfig {
    /// Where agents come to. `[::]` takes IPv4 too.
    pub listen: SocketAddr,
    /// Host names and addresses that agents reach it by: they are in its own certificate.
    pub names: Vec<String>,
    /// The trust domain that it issues for.
    #[schemars(with = "String")]
    pub trust_domain: TrustDomain,
    /// What it signs with.
    pub authority: AuthoritySection,
    /// How Kubernetes' API server is reached, where something needs it.
    pub kubernetes: KubernetesSection,
    /// Who may ask for what.
    pub attestation: Attestation,
    /// How agents come to another root or another issuing certificate.
    pub rotation: Rotation,
    /// Where roots are published in Kubernetes, for whoever judges certificates and is no agent.
    pub publish: Publish,
    /// The cryptography that it offers and accepts.
    pub tls: Tls,
    /// Its own log; it goes to standard error.
    pub log: LogConfig,
    /// How operators ask it.
    pub admin: ControllerAdmin,
}

/// What it signs with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct AuthoritySection {
    /// The folder with ca-cert.pem, ca-key.pem, cert-chain.pem and root-cert.pem, as `underpass ca` makes it
    /// and Istio's secret `cacerts` has it. It is watched. Null: /etc/underpass/ca, if there is no secret.
    pub folder: Option<PathBuf>,
    /// A secret that has these files as its keys, instead of a folder: `{namespace, name}`. It is read and
    /// watched by Kubernetes' API, for which a Role has to allow to get, list and watch it.
    pub secret: Option<SecretName>,
    /// How long a certificate is valid when the agent does not say.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub lifetime: Duration,
    /// The longest that an agent may ask for; it gets no more. What a stolen node holds works as long.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub max_lifetime: Duration,
    /// How far validity begins in the past, for peers whose clocks are behind.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub backdate: Duration,
}

/// How Kubernetes' API server is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct KubernetesSection {
    /// By this kubeconfig's current context. Null: as the service account of the controller's own pod.
    pub kubeconfig: Option<PathBuf>,
}

/// Who may ask for what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Attestation {
    /// Machines, each known by the key of its papers. The list is taken anew whenever this file changes.
    pub nodes: Vec<NodeSection>,
    /// Nodes of the cluster, each known by the token of the agent's pod on it, and what their pods may be:
    /// `{audience, serviceAccounts: [{namespace, name}]}`. For it a ClusterRole has to allow to create
    /// tokenreviews (authentication.k8s.io) and to get and list pods. Null: none.
    pub kubernetes: Option<ClusterNodes>,
}

/// Whom to believe among the cluster's pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ClusterNodes {
    /// What agents' tokens have to be made for.
    pub audience: String,
    /// The service accounts that agents run as.
    pub service_accounts: Vec<AccountSection>,
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AccountSection {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Where roots are published in Kubernetes, for whoever judges certificates and is no agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Publish {
    /// The signer of a ClusterTrustBundle, such as `underpass.dev/ca`. For it a ClusterRole has to allow to get,
    /// create and patch clustertrustbundles, and to attest for the signer (certificates.k8s.io). Null: none.
    pub signer: Option<String>,
    /// The name of a ConfigMap in each namespace. For it a ClusterRole has to allow to get, create and patch
    /// configmaps and to list and watch namespaces. Null: none.
    pub config_map: Option<String>,
}

/// One machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NodeSection {
    /// As its agent calls it.
    pub name: String,
    /// What `underpass ca node` printed: `sha256:` and 64 hexadecimal digits.
    pub key: String,
    /// The SPIFFE IDs of what runs there, and of nothing else.
    #[schemars(with = "Vec<String>")]
    #[serde(default)]
    pub identities: BTreeSet<SpiffeId>,
}

/// How agents come to another root or another issuing certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Rotation {
    /// Over how long agents spread the renewal of certificates that another authority has signed; 0s leaves
    /// them to their usual renewal.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub renew_within: Duration,
}

/// How operators ask it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ControllerAdmin {
    /// The Unix socket that `underpass ca rotate` asks.
    pub socket: PathBuf,
    /// Where /healthz/ready and /metrics answer; null for nowhere. `[::]` takes IPv4 too.
    pub address: Option<SocketAddr>,
}

impl Default for ControllerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0u16; 8], 15012)),
            names: vec!["underpass-controller.underpass-system.svc".into()],
            trust_domain: TrustDomain::default(),
            authority: AuthoritySection::default(),
            kubernetes: KubernetesSection::default(),
            attestation: Attestation::default(),
            rotation: Rotation::default(),
            publish: Publish::default(),
            tls: Tls::default(),
            log: LogConfig::default(),
            admin: ControllerAdmin::default(),
        }
    }
}

impl Default for AuthoritySection {
    fn default() -> Self {
        let AuthorityConfig { lifetime, max_lifetime, backdate, .. } =
            AuthorityConfig::new(FOLDER, TrustDomain::default());
        Self { folder: None, secret: None, lifetime, max_lifetime, backdate }
    }
}

impl Default for Rotation {
    fn default() -> Self {
        Self { renew_within: Duration::from_secs(600) }
    }
}

impl Default for ControllerAdmin {
    fn default() -> Self {
        Self {
            socket: "/run/underpass/controller.sock".into(),
            address: Some(SocketAddr::from(([0u16; 8], 15024))),
        }
    }
}

impl ControllerConfig {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Names the file, and line, column and field of what is wrong with it.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
        Self::parse(&text).map_err(|invalid| ConfigError::Invalid { path: path.to_path_buf(), invalid })
    }

    /// As [`Self::read`], of the text itself. Never panics, whatever the text.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let config: Self = yaml::read(text)?;
        config.check().into_result(text)?;
        Ok(config)
    }

    /// The whole configuration with every default, each field explained.
    pub fn example() -> String {
        let head = "The configuration of `underpass controller`. Every field may be left out; these are the defaults.";
        example::explained(head, &Self::default())
    }

    /// The machines that are attested by a list.
    pub fn nodes(&self) -> Vec<ListedNode> {
        let nodes = self.attestation.nodes.iter().filter_map(|node| {
            // Checked when it was read.
            let key = node.key.parse().ok()?;
            Some(ListedNode { name: node.name.clone(), key, identities: node.identities.clone() })
        });
        nodes.collect()
    }

    /// What the authority needs of it.
    pub fn authority(&self) -> AuthorityConfig {
        let AuthoritySection { folder, secret, lifetime, max_lifetime, backdate } = self.authority.clone();
        let folder = folder.unwrap_or_else(|| FOLDER.into());
        let source = secret.map_or(Source::Folder(folder.clone()), Source::Secret);
        let config = AuthorityConfig::new(folder, self.trust_domain.clone());
        AuthorityConfig { source, lifetime, max_lifetime, backdate, ..config }
    }

    /// Whom to believe in the cluster, if anybody.
    pub fn cluster_nodes(&self) -> Option<KubernetesConfig> {
        let ClusterNodes { audience, service_accounts } = self.attestation.kubernetes.as_ref()?;
        let accounts = service_accounts.iter().map(|account| ServiceAccount {
            namespace: account.namespace.clone(),
            name: account.name.clone(),
        });
        Some(KubernetesConfig::new(self.trust_domain.clone(), audience, accounts))
    }

    /// Where to publish, if anywhere.
    pub fn publish(&self) -> Option<PublishConfig> {
        let Publish { signer, config_map } = self.publish.clone();
        let config = PublishConfig::new(self.trust_domain.clone());
        (signer.is_some() || config_map.is_some()).then_some(PublishConfig { signer, config_map, ..config })
    }

    /// What the admin listeners need of it.
    pub fn admin(&self) -> AdminConfig {
        AdminConfig {
            socket: self.admin.socket.clone(),
            health_address: self.admin.address,
            metrics_address: self.admin.address,
        }
    }

    fn check(&self) -> Complaints {
        let mut check = Check::default();
        check.itself(self);
        check.times(self);
        check.nodes(self);
        check.cluster(self);
        check.complaints
    }
}

/// What types cannot say.
#[derive(Default)]
struct Check {
    complaints: Complaints,
}

impl Check {
    fn itself(&mut self, config: &ControllerConfig) {
        if config.names.is_empty() {
            self.refuse("names", "has at least the name that agents call it by");
        }
        for (at, name) in config.names.iter().enumerate() {
            if let Err(why) = crate::certs::check_host_name(name) {
                self.complaints.add(field("names").index(at), why);
            }
        }
        for (name, path) in [
            ("authority.folder", config.authority.folder.as_ref()),
            ("kubernetes.kubeconfig", config.kubernetes.kubeconfig.as_ref()),
            ("admin.socket", Some(&config.admin.socket)),
        ] {
            if path.is_some_and(|path| path.as_os_str().is_empty()) {
                self.refuse(name, "must not be empty");
            }
        }
        if let Some(secret) = &config.authority.secret {
            if config.authority.folder.is_some() {
                self.refuse("authority.secret", "stands beside a folder: the authority is in one of the two");
            }
            if let Err(why) = secret.check() {
                self.refuse("authority.secret", &why);
            }
        }
        if config.admin.address == Some(config.listen) && config.listen.port() != 0 {
            self.refuse("admin.address", "is the address of listen: operators and agents need one each");
        }
    }

    fn times(&mut self, config: &ControllerConfig) {
        let authority = &config.authority;
        let second = Duration::from_secs(1);
        for (name, value, least, most) in [
            ("authority.lifetime", authority.lifetime, second, MOST_LIFETIME),
            ("authority.maxLifetime", authority.max_lifetime, second, MOST_LIFETIME),
            ("authority.backdate", authority.backdate, Duration::ZERO, MOST_BACKDATE),
            ("rotation.renewWithin", config.rotation.renew_within, Duration::ZERO, MOST_RENEWAL),
        ] {
            if !(least..=most).contains(&value) {
                let [least, most] = [least, most].map(units::duration::format);
                self.refuse(name, &format!("must be {least} to {most}"));
            }
        }
        if authority.lifetime > authority.max_lifetime {
            self.refuse("authority.lifetime", "is longer than maxLifetime, the longest that there is");
        }
        // Agents are told whole seconds, and 0 has a meaning of its own.
        if config.rotation.renew_within.subsec_nanos() > 0 {
            self.refuse("rotation.renewWithin", "must be whole seconds");
        }
    }

    fn nodes(&mut self, config: &ControllerConfig) {
        let nodes = || field("attestation").key("nodes");
        for (at, node) in config.attestation.nodes.iter().enumerate() {
            let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            if !(1..=253).contains(&node.name.len()) || !node.name.bytes().all(sound) {
                let why = "is 1 to 253 letters, digits, '.', '-' and '_'";
                self.complaints.add(nodes().index(at).key("name"), why);
            }
            if let Err(why) = node.key.parse::<PublicKeyPin>() {
                self.complaints.add(nodes().index(at).key("key"), why);
            }
            for identity in &node.identities {
                if identity.trust_domain() != &config.trust_domain {
                    let why = format!("{identity} is not of the trust domain {}", config.trust_domain);
                    self.complaints.add(nodes().index(at).key("identities"), why);
                }
                if let Err(why) = identity.check_account() {
                    self.complaints.add(nodes().index(at).key("identities"), why.to_string());
                }
            }
        }
        if let Some(name) = listed_twice(&config.nodes()) {
            self.complaints.add(nodes(), format!("two lines have the name or the key of {name}"));
        }
    }

    fn cluster(&mut self, config: &ControllerConfig) {
        if let Some(nodes) = &config.attestation.kubernetes {
            if nodes.audience.is_empty() {
                self.refuse("attestation.kubernetes.audience", "must not be empty: any token would do");
            }
            if nodes.service_accounts.is_empty() {
                self.refuse(
                    "attestation.kubernetes.serviceAccounts",
                    "has at least the one that agents run as",
                );
            }
            for (at, account) in nodes.service_accounts.iter().enumerate() {
                let AccountSection { namespace, name } = account.clone();
                if let Err(why) = (SecretName { namespace, name }).check() {
                    let path = field("attestation").key("kubernetes").key("serviceAccounts").index(at);
                    self.complaints.add(path, why.replace("secret's", "service account's"));
                }
            }
        }
        // As Kubernetes has them: a domain, and a path below it.
        let whole = |signer: &str| {
            signer.split_once('/').is_some_and(|(d, path)| d.contains('.') && !path.is_empty())
        };
        let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'/');
        if config.publish.signer.as_ref().is_some_and(|s| !whole(s) || !s.bytes().all(sound)) {
            self.refuse("publish.signer", "is a domain and a path, such as underpass.dev/ca");
        }
        let sound = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-');
        if config
            .publish
            .config_map
            .as_ref()
            .is_some_and(|n| n.is_empty() || n.len() > 253 || !n.bytes().all(sound))
        {
            self.refuse("publish.configMap", "is 1 to 253 of a-z, 0-9, '-' and '.'");
        }
    }

    fn refuse(&mut self, name: &str, why: &str) {
        self.complaints.add(name.split('.').fold(Field::default(), |path, key| path.key(key)), why);
    }
}

fn field(name: &str) -> Field {
    Field::default().key(name)
}

/// Where the authority is when nothing is said.
const FOLDER: &str = "/etc/underpass/ca";
const DAY: Duration = Duration::from_secs(24 * 3600);
const MOST_LIFETIME: Duration = Duration::from_secs(3650 * 24 * 3600);
const MOST_BACKDATE: Duration = DAY;
const MOST_RENEWAL: Duration = Duration::from_secs(365 * 24 * 3600);

#[cfg(test)]
mod tests;
