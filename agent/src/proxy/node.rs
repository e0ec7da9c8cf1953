//! What every connection's path uses: the node's parts, and one pod's.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::admission::{Handshakes, Rate};
use super::authorize::Authorizer;
use super::dial::{DialError, Dialer};
use super::http;
use super::tunnel::{Baggage, BaggageFields, ClientSettings, Pool, ServerSettings};
use crate::bpf::Kernel;
use crate::discovery::Snapshot;
use crate::model::{AppAddr, ClientAddr};
use crate::pods::{Destinations, EnrolledPod};
use crate::sys::socket::Keepalive;
use crate::telemetry::Telemetry;

/// The parts that all pods of the node share.
pub struct Node {
    pub kernel: Arc<dyn Kernel>,
    pub destinations: Arc<Destinations>,
    pub telemetry: Telemetry,
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    pub client: ClientSettings,
    pub server: ServerSettings,
    pub connect_timeout: Duration,
    pub handshake_timeout: Duration,
    pub keepalive: Keepalive,
    /// Of requests that are judged.
    pub http: http::Limits,
    pub handshakes: Arc<Handshakes>,
    /// How many connections, and streams in tunnels to it, one pod may have in the agent at once.
    pub share_of_a_pod: usize,
}

/// One enrolled pod and what its connections share. Tunnels are never shared with another pod, not
/// even of the same service account.
pub struct PodProxy {
    pub node: Arc<Node>,
    pub enrolled: Arc<EnrolledPod>,
    pub pool: Pool,
    pub authorizer: Arc<Authorizer>,
    pub share: Arc<Semaphore>,
    /// Those that get a line in the access log.
    pub failed_handshakes: Rate,
}

impl Node {
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }
}

impl PodProxy {
    pub fn dialer(&self) -> Dialer<'_> {
        Dialer {
            netns: &self.enrolled.netns,
            kernel: &*self.node.kernel,
            timeout: self.node.connect_timeout,
            keepalive: self.node.keepalive,
        }
    }

    /// A place for one more connection; `None` when the pod has its share of the agent already.
    pub fn admit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.share).try_acquire_owned().ok()
    }

    /// The pod's first address of a family: what its tunnels come from.
    pub fn source_for(&self, to: IpAddr) -> Option<IpAddr> {
        self.enrolled.pod.addresses.iter().copied().find(|a| a.is_ipv4() == to.is_ipv4())
    }

    /// A connection to the pod's application with the client's address as source. A pod that calls
    /// itself has that address anyway.
    pub async fn deliver_as(&self, app: AppAddr, client: ClientAddr) -> Result<TcpStream, DialError> {
        if self.enrolled.pod.owns(client.ip()) || !self.enrolled.keeps_source {
            return self.dialer().as_pod(app.0, self.source_for(app.ip())).await;
        }
        self.dialer().as_client(app.0, client.ip()).await
    }

    /// Who we are, for the peer's telemetry.
    pub fn baggage(&self) -> Option<Baggage> {
        let snapshot = self.node.snapshot();
        let w = snapshot.workload_of(&self.enrolled.pod)?;
        Some(Baggage::new(&BaggageFields {
            cluster: &w.cluster,
            namespace: &w.namespace,
            workload_type: w.workload_type.as_str(),
            workload: &w.workload_name,
            service: &w.canonical_name,
            revision: &w.canonical_revision,
            region: &w.locality.region,
            zone: &w.locality.zone,
        }))
    }
}
