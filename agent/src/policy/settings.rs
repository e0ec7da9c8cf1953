//! What holds for the whole mesh and is in none of its policies, with the dialects' own defaults.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::TrustDomain;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Istio: policies of this namespace are the whole mesh's.
    pub root_namespace: Arc<str>,
    /// Istio: what a request's path is brought to before it is compared.
    pub path_normalization: PathNormalization,
    /// What `cluster.local` in a principal stands for as well.
    pub trust_domain: TrustDomain,
    /// Istio: other names of it. A principal of any of them is one of all.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// Linkerd: what holds for a port that no Server names.
    pub default_inbound_policy: InboundDefault,
    /// Linkerd: the namespace of its control plane, a part of its identities.
    pub linkerd_namespace: Arc<str>,
    /// Linkerd: what `cluster-authenticated` and `cluster-unauthenticated` admit.
    pub cluster_networks: Vec<IpNet>,
    /// Linkerd: from where probes are admitted.
    pub probe_networks: Vec<IpNet>,
    /// The default stance of the mesh.
    pub stance: Stance,
    /// The default stance of single namespaces.
    pub namespace_stances: BTreeMap<Arc<str>, Stance>,
}

impl Settings {
    pub fn new(trust_domain: TrustDomain) -> Self {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a range")).collect();
        Self {
            root_namespace: "istio-system".into(),
            path_normalization: PathNormalization::default(),
            trust_domain,
            trust_domain_aliases: Vec::new(),
            default_inbound_policy: InboundDefault::default(),
            linkerd_namespace: "linkerd".into(),
            cluster_networks: nets(&[
                "10.0.0.0/8",
                "100.64.0.0/10",
                "172.16.0.0/12",
                "192.168.0.0/16",
                "fd00::/8",
            ]),
            probe_networks: nets(&["0.0.0.0/0", "::/0"]),
            stance: Stance::default(),
            namespace_stances: BTreeMap::new(),
        }
    }
}

impl Settings {
    pub fn stance_of(&self, namespace: &str) -> Stance {
        self.namespace_stances.get(namespace).copied().unwrap_or(self.stance)
    }
}

/// The same as people write it; what they leave out has the dialects' own defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PolicySettings {
    /// Istio: the namespace whose policies are the whole mesh's; istio-system when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_namespace: Option<String>,
    /// Istio: what a request's path is brought to before it is compared and sent on: NONE, BASE, MERGE_SLASHES or
    /// DECODE_AND_MERGE_SLASHES.
    pub path_normalization: PathNormalization,
    /// Istio: other names of the mesh's trust domain, as after it was renamed: a principal of any of them in an
    /// AuthorizationPolicy means the same account in all of them. Whether their certificates are believed is
    /// for certificates.trust.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// What holds where no policy says anything: allow, mtls (whoever proves an identity) or deny (whom a
    /// policy allows by name).
    pub stance: Stance,
    /// The same for single namespaces.
    pub namespace_stances: BTreeMap<String, Stance>,
    /// What the mesh takes over from Linkerd's own configuration.
    pub linkerd: LinkerdSettings,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LinkerdSettings {
    /// What holds for a port that no Server names: all-unauthenticated, all-authenticated,
    /// cluster-authenticated, cluster-unauthenticated, deny or audit.
    pub default_inbound_policy: InboundDefault,
    /// The namespace of its control plane, a part of its identities; linkerd when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// What counts as the cluster; the private ranges when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<String>>")]
    pub cluster_networks: Option<Vec<IpNet>>,
    /// From where probes are let in; everywhere when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<String>>")]
    pub probe_networks: Option<Vec<IpNet>>,
}

impl PolicySettings {
    pub fn settings(&self, trust_domain: TrustDomain) -> Settings {
        let defaults = Settings::new(trust_domain);
        let text = |given: &Option<String>, default| given.as_deref().map_or(default, Into::into);
        let stances = self.namespace_stances.iter().map(|(name, stance)| (name.as_str().into(), *stance));
        Settings {
            root_namespace: text(&self.root_namespace, defaults.root_namespace),
            path_normalization: self.path_normalization,
            trust_domain: defaults.trust_domain,
            trust_domain_aliases: self.trust_domain_aliases.clone(),
            default_inbound_policy: self.linkerd.default_inbound_policy,
            linkerd_namespace: text(&self.linkerd.namespace, defaults.linkerd_namespace),
            cluster_networks: self.linkerd.cluster_networks.clone().unwrap_or(defaults.cluster_networks),
            probe_networks: self.linkerd.probe_networks.clone().unwrap_or(defaults.probe_networks),
            stance: self.stance,
            namespace_stances: stances.collect(),
        }
    }
}

/// What holds where no policy says anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stance {
    /// Everybody may connect, in plaintext too.
    #[default]
    Allow,
    /// Whoever proves an identity of the mesh may connect.
    Mtls,
    /// Nobody may connect whom no policy allows by name.
    Deny,
}

/// Istio's `pathNormalization.normalization`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PathNormalization {
    /// As sent.
    None,
    /// By RFC 3986: `.` and `..` resolved, `\` is `/`, unreserved characters decoded.
    #[default]
    #[serde(alias = "DEFAULT")]
    Base,
    /// And runs of `/` are one.
    MergeSlashes,
    /// And `%2F`, `%5C` are decoded first.
    DecodeAndMergeSlashes,
}

/// Linkerd's default inbound policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InboundDefault {
    #[default]
    AllUnauthenticated,
    AllAuthenticated,
    ClusterAuthenticated,
    ClusterUnauthenticated,
    Deny,
    Audit,
}

impl InboundDefault {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AllUnauthenticated => "all-unauthenticated",
            Self::AllAuthenticated => "all-authenticated",
            Self::ClusterAuthenticated => "cluster-authenticated",
            Self::ClusterUnauthenticated => "cluster-unauthenticated",
            Self::Deny => "deny",
            Self::Audit => "audit",
        }
    }
}

impl fmt::Display for InboundDefault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for InboundDefault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const ALL: [InboundDefault; 6] = [
            InboundDefault::AllUnauthenticated,
            InboundDefault::AllAuthenticated,
            InboundDefault::ClusterAuthenticated,
            InboundDefault::ClusterUnauthenticated,
            InboundDefault::Deny,
            InboundDefault::Audit,
        ];
        ALL.into_iter().find(|policy| policy.as_str() == text).ok_or_else(|| {
            format!("{text:?} is no default inbound policy: one of {}", ALL.map(Self::as_str).join(", "))
        })
    }
}
