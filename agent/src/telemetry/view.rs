//! A live connection as the admin API shows it.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;

use crate::model::{ConnectionId, Direction, PodUid, SpiffeId};

#[derive(Clone, Debug, Serialize)]
pub struct ConnectionView {
    pub id: ConnectionId,
    pub direction: Direction,
    pub state: ConnectionState,
    /// The pod on this node that it belongs to.
    pub pod: PodUid,
    pub source: PartyView,
    /// Its address is the next hop's once that is known.
    pub destination: PartyView,
    pub original_destination: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hbone_addr: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<Arc<str>>,
    pub mtls: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Arc<str>>,
    /// From client to server.
    pub bytes_sent: u64,
    /// From server to client.
    pub bytes_received: u64,
    /// RFC 3339, UTC.
    pub since: String,
    pub age_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ConnectionState {
    /// Captured, and not yet decided or not yet connected.
    Opening,
    Established,
}

#[derive(Clone, Debug, Serialize)]
pub struct PartyView {
    pub addr: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Arc<str>>,
    /// Only if mutual TLS proved it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<SpiffeId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Arc<str>>,
}
