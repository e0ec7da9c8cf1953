//! What was observed, as `GET /observed` and `underpass migrate report -o json` write it.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::SpiffeId;
use crate::model::workload::PodFacts;

/// Of one or several nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedView {
    pub agents: Vec<ObservedAgent>,
}

/// What one agent has observed since it started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObservedAgent {
    pub node: String,
    pub instance: String,
    /// RFC 3339, UTC, as every time here.
    pub since: String,
    pub until: String,
    pub left_out: LeftOut,
    pub servers: Vec<ObservedServer>,
}

/// What there was no room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftOut {
    pub connections: u64,
    /// Of these.
    pub denied: u64,
    pub requests_denied: u64,
}

/// Instances of one thing, with what policy knows of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObservedServer {
    pub namespace: Arc<str>,
    /// Of what its pods are instances.
    pub name: Arc<str>,
    pub identity: SpiffeId,
    /// Whether anybody knew the pod's workload: its labels and ports are not known otherwise.
    pub known: bool,
    pub pod: PodFacts,
    pub clients: Vec<Seen>,
}

/// One client at one port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    pub client: ClientView,
    pub port: u16,
    /// The address of the pod that it connected to last.
    pub destination: IpAddr,
    pub connections: ConnectionCounts,
    /// Where requests are judged.
    pub requests: RequestCounts,
    /// Connections that would have been refused: by policies that run dry, or where phases refuse nothing.
    pub would_deny: u64,
    /// What would have become of the last connection, where it would have been refused.
    pub would: Option<Arc<str>>,
    pub denials: Vec<DenialView>,
    /// What policy said of the last connection that it decided about.
    pub last: Option<OutcomeView>,
    pub first_seen: String,
    pub last_seen: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientView {
    pub transport: Transport,
    /// Proved by mutual TLS.
    pub identity: Option<SpiffeId>,
    /// Of the workload at its address.
    pub namespace: Option<Arc<str>>,
    pub workload: Option<Arc<str>>,
    /// In plaintext: what the workload at its address would prove if it were of the mesh.
    pub expected_identity: Option<SpiffeId>,
    /// The first few.
    pub addresses: Vec<IpAddr>,
    /// Connections from addresses that are not listed.
    pub from_other_addresses: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Mtls,
    Plaintext,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionCounts {
    /// The application was reached, and where requests are judged one of them was allowed.
    pub allowed: u64,
    pub denied: u64,
    /// Not refused by policy, and come to nothing: nobody listened, or no request came.
    pub unreached: u64,
    /// Of those allowed.
    pub open: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCounts {
    pub allowed: u64,
    pub denied: u64,
}

/// Refused connections and requests, by what refused them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenialView {
    pub policy: Option<Arc<str>>,
    pub rule: Option<u32>,
    pub reason: Arc<str>,
    pub count: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutcomeView {
    Allowed,
    Denied,
}

impl ObservedServer {
    pub(super) fn order(&self) -> impl Ord + use<> {
        let labels: Vec<_> = self.pod.labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        (self.namespace.clone(), self.name.clone(), self.identity.clone(), labels)
    }
}

impl Seen {
    pub(super) fn order(&self) -> impl Ord + use<> {
        (self.port, self.client.clone())
    }
}
