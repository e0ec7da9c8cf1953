//! An enrolled pod: all that belongs to it and goes with it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bpf::{BpfError, CaptureMode, Enrolment, Kernel, Marks, OwnPorts};
use crate::certs::Lease;
use crate::lifecycle::Stop;
use crate::model::{Cause, LocalPod};
use crate::sys::netns::Netns;

/// One pod while it is of the mesh. Shared by its connections; what they hold on to (the namespace, the
/// certificate) lives until the last of them ends.
#[derive(Debug)]
pub struct EnrolledPod {
    pub pod: Arc<LocalPod>,
    pub netns: Netns,
    /// The lease on the certificate of the pod's service account.
    pub lease: Lease,
    pub capture: CaptureMode,
    /// Whether its applications see the client's own address.
    pub keeps_source: bool,
    /// The tasks that accept on the pod's listeners; when they have ended, the ports are free.
    pub acceptors: TaskTracker,
    /// Every task that serves a connection of this pod.
    pub tasks: TaskTracker,
    /// Cancelled when no new connection is to be taken: tunnels are told to go away, live connections
    /// go on.
    pub leaving: CancellationToken,
    /// Ended when live connections are to end too.
    pub cut: Stop,
    /// Cancelled when the last connection has ended.
    pub ended: CancellationToken,
}

impl EnrolledPod {
    /// Tells the kernel of every address that the namespace has by now.
    pub fn update_addresses(&self, kernel: &dyn Kernel) -> Result<(), BpfError> {
        let found = self.netns.addresses().unwrap_or_default();
        kernel.enrol(&row(&self.netns, &own_addresses(found, &self.pod), self.capture))
    }

    /// Takes no new connection from here on, and waits until the listeners are closed.
    pub(super) async fn close_listeners(&self) {
        self.leaving.cancel();
        self.acceptors.close();
        if tokio::time::timeout(LAST, self.acceptors.wait()).await.is_err() {
            tracing::warn!(pod = %self.pod.name, "a listener did not close");
        }
    }

    /// Lets live connections end by themselves until `deadline`, then ends them for `cause`.
    pub async fn drain(&self, deadline: impl Future<Output = ()>, cause: Cause) {
        self.close_listeners().await;
        self.tasks.close();
        let _ended = self.ended.clone().drop_guard();
        tokio::select! {
            () = self.tasks.wait() => return,
            () = deadline => self.cut.end(cause),
        }
        // Each task watches `cut`; this bound is for one that is stuck in the kernel.
        if tokio::time::timeout(LAST, self.tasks.wait()).await.is_err() {
            tracing::warn!(pod = %self.pod.name, left = self.tasks.len(),
                "connections did not end when they were cut; leaving them behind");
        }
    }
}

/// The pod's row in the kernel's maps.
pub(super) fn row<'a>(netns: &'a Netns, addresses: &'a [IpAddr], capture: CaptureMode) -> Enrolment<'a> {
    Enrolment {
        cookie: netns.cookie(),
        netns: netns.fd(),
        addresses,
        capture,
        marks: Marks::default(),
        ports: OwnPorts::default(),
    }
}

/// What is on the interfaces, and what the pod is said to have.
pub(super) fn own_addresses(mut found: Vec<IpAddr>, pod: &LocalPod) -> Vec<IpAddr> {
    found.extend(&pod.addresses);
    found.sort_unstable();
    found.dedup();
    found
}

const LAST: Duration = Duration::from_secs(5);
