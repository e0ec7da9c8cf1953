//! Policies as written: the fields of Istio's `authorization.proto`, in our own words.
//!
//! Policies are alternatives, groups are alternatives, rules of a group must all hold, matches of a
//! rule are alternatives, fields of a match must all hold, values of a field are alternatives.

use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Policy {
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
}

/// Holds when all of its rules hold; without rules, always.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Group {
    pub rules: Vec<Rule>,
}

/// Holds when one of its matches holds; without matches, always.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rule {
    pub matches: Vec<Match>,
}

/// Holds when every field that has values holds. One in which no field has values never holds.
///
/// A positive field holds when one of its values fits, a negative one when none does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Match {
    /// The peer's namespace; that of a peer without identity is the empty string.
    pub namespaces: Vec<StringMatch>,
    pub not_namespaces: Vec<StringMatch>,
    /// The peer's identity, with or without `spiffe://` in front; no peer without identity fits.
    pub principals: Vec<StringMatch>,
    pub not_principals: Vec<StringMatch>,
    /// The peer's service account in any trust domain; no peer without identity fits.
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
