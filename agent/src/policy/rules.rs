//! The one form that every dialect's policies are brought to: the shape of Istio's `authorization.proto`, with
//! the fields of requests beside those of connections.
//!
//! Policies are alternatives, groups are alternatives, rules of a group must all hold, matches of a
//! rule are alternatives, fields of a match must all hold, values of a field are alternatives.

use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::resource::{Kind, ResourceRef};
use super::template::PathTemplate;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// What it was written as.
    pub kind: Kind,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub scope: Scope,
    pub action: Action,
    /// Evaluated and told of, and never decides.
    pub dry_run: bool,
    /// Without any group the policy never matches: as an ALLOW policy it then allows nobody.
    pub groups: Vec<Group>,
    /// Why the policy could not be understood as a whole. Such a policy denies all that it applies to.
    pub defect: Option<Arc<str>>,
}

impl Policy {
    /// `namespace/name`, by which workloads, logs and verdicts name it.
    pub fn key(&self) -> Arc<str> {
        format!("{}/{}", self.namespace, self.name).into()
    }

    /// The resource that its effect is traced back to.
    pub fn resource(&self) -> ResourceRef {
        ResourceRef { kind: self.kind, namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

/// Which workloads a policy applies to without being named by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Scope {
    /// Every workload of the mesh.
    Global,
    /// Every workload of the policy's own namespace.
    Namespace,
    /// Only workloads that name it ([`crate::model::Workload::policies`]).
    WorkloadSelector,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Action {
    Allow,
    Deny,
    /// Told of when it matches, and never decides.
    Audit,
}

/// Holds when all of its rules hold; without rules, always.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Group {
    pub rules: Vec<Rule>,
    /// Why it cannot be evaluated, where that means that it must never hold (in a policy that allows). A group
    /// of a policy that denies is written without what cannot be evaluated instead, so that it holds more often.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub never: Option<Arc<str>>,
}

/// Holds when one of its matches holds; without matches, always.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Rule {
    pub matches: Vec<Match>,
}

/// Holds when every field that has values holds. One in which no field has values never holds.
///
/// A positive field holds when one of its values fits, a negative one when none does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Match {
    /// The peer's namespace; that of a peer without identity, and of one that is no service account, is the
    /// empty string.
    pub namespaces: Vec<StringMatch>,
    pub not_namespaces: Vec<StringMatch>,
    /// The peer's identity, with or without `spiffe://` in front; no peer without identity fits.
    pub principals: Vec<StringMatch>,
    pub not_principals: Vec<StringMatch>,
    /// The peer's service account in any trust domain; no peer fits that is none.
    pub service_accounts: Vec<ServiceAccount>,
    pub not_service_accounts: Vec<ServiceAccount>,
    pub source_ips: Vec<IpNet>,
    pub not_source_ips: Vec<IpNet>,
    /// The application's address: the pod's, never a service's virtual one.
    pub destination_ips: Vec<IpNet>,
    pub not_destination_ips: Vec<IpNet>,
    /// The application's port: the target port, never a service's or the tunnel's.
    pub destination_ports: Vec<u16>,
    pub not_destination_ports: Vec<u16>,
    /// The trust domain of the peer's identity; that of a peer without identity is the empty string.
    pub trust_domains: Vec<StringMatch>,
    pub not_trust_domains: Vec<StringMatch>,
    /// Where the client was before proxies that are trusted; without any, the same as `source_ips`.
    pub remote_ips: Vec<IpNet>,
    pub not_remote_ips: Vec<IpNet>,
    /// The server name of the application's own TLS; the empty string where there is none.
    pub snis: Vec<StringMatch>,
    pub not_snis: Vec<StringMatch>,
    /// The peer's identity as Linkerd writes it,
    /// `<account>.<namespace>.serviceaccount.identity.<control plane's namespace>.<trust domain>`; no peer
    /// without identity fits.
    pub linkerd_identities: Vec<StringMatch>,
    /// The request's authority as it is sent, port included; compared without regard to case.
    pub hosts: Vec<StringMatch>,
    pub not_hosts: Vec<StringMatch>,
    pub methods: Vec<StringMatch>,
    pub not_methods: Vec<StringMatch>,
    /// The request's path, normalised, without its query.
    pub paths: Vec<PathMatch>,
    pub not_paths: Vec<PathMatch>,
    /// All of them have to hold.
    pub headers: Vec<HeaderMatch>,
}

impl Match {
    /// Whether it can only be judged when the request is known.
    pub fn is_of_request(&self) -> bool {
        !(self.hosts.is_empty()
            && self.not_hosts.is_empty()
            && self.methods.is_empty()
            && self.not_methods.is_empty()
            && self.paths.is_empty()
            && self.not_paths.is_empty()
            && self.headers.is_empty())
    }
}

/// Values of one header. A header that is sent several times has its values joined by commas, as in HTTP; one
/// that is not sent fits no value. `host` and `:authority`, `:method` and `:path` are what HTTP/2 has instead of
/// headers. One without values asks for nothing, as a field without values does.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct HeaderMatch {
    /// In lower case.
    pub name: Arc<str>,
    pub one_of: Vec<StringMatch>,
    pub none_of: Vec<StringMatch>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PathMatch {
    String(StringMatch),
    Template(PathTemplate),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum StringMatch {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    /// Anything that is not empty.
    Presence,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccount {
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
}
