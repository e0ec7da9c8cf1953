//! An enrolled pod: all that belongs to it and goes with it.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bpf::{BpfError, CaptureMode, Enrolment, Kernel, Marks, OwnPorts};
use crate::certs::Lease;
use crate::discovery::Snapshot;
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
    /// Which addresses the kernel was told are its own.
    pub own: Mutex<Vec<IpAddr>>,
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
    /// Tells the kernel of the addresses that the namespace has by now, if they are others than before.
    /// One that is leaving is told of no more.
    pub fn update_addresses(&self, kernel: &dyn Kernel, snapshot: &Snapshot) -> Result<(), BpfError> {
        let found = self.netns.addresses().unwrap_or_default();
        let now = own_addresses(found, &self.pod, snapshot);
        let mut told = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if *told == now || self.leaving.is_cancelled() {
            return Ok(());
        }
        kernel.enrol(&row(&self.netns, &now, self.capture))?;
        *told = now;
        Ok(())
    }

    /// Whether a dial to this address would come back to the agent: it is on an interface of the
    /// namespace, and the kernel was not told that it is the pod's.
    pub fn would_loop(&self, ip: IpAddr) -> bool {
        let there = self.netns.addresses().is_ok_and(|all| all.contains(&ip));
        there && !self.own.lock().unwrap_or_else(PoisonError::into_inner).contains(&ip)
    }

    /// Takes no new connection from here on.
    pub(super) fn leave(&self) {
        // Under the lock: an address that is told of later would enrol the pod again.
        let _told = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        self.leaving.cancel();
    }

    /// Takes no new connection from here on, and waits until the listeners are closed.
    pub(super) async fn close_listeners(&self) {
        self.leave();
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

/// What the pod is said to have, and what else is on its interfaces. Left out, and so captured, is what
/// the mesh knows as somebody else's: with that on its lo a pod would reach them, and be reached by them,
/// past the mesh. And what is too much: the map is shared by all pods.
pub(super) fn own_addresses(found: Vec<IpAddr>, pod: &LocalPod, snapshot: &Snapshot) -> Vec<IpAddr> {
    let mut own = pod.addresses.clone();
    let of_another = |ip: IpAddr| {
        let workload = snapshot.workload(ip);
        workload.is_some_and(|w| w.namespace != pod.namespace || w.name != pod.name)
            || snapshot.service_by_vip(ip, &pod.namespace).is_some()
    };
    own.extend(found.into_iter().filter(|ip| !pod.addresses.contains(ip) && !of_another(*ip)));
    if own.len() > MOST_ADDRESSES {
        tracing::warn!(uid = %pod.uid, pod = %pod.name, addresses = own.len(), limit = MOST_ADDRESSES,
            "the pod has more addresses than are taken as its own; to the rest it cannot connect");
        own.truncate(MOST_ADDRESSES);
    }
    own
}

const MOST_ADDRESSES: usize = 64;

const LAST: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::State;
    use crate::model::workload::{LoadBalancing, Visibility};
    use crate::model::{PodUid, Service, SpiffeId, TrustDomain, Workload};

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn pod() -> LocalPod {
        LocalPod {
            uid: PodUid("client".into()),
            namespace: "shop".into(),
            name: "client".into(),
            identity: SpiffeId::new(TrustDomain::cluster_local(), "shop", "client").unwrap(),
            netns: "/run/netns/client".into(),
            addresses: ips(&["10.1.0.9", "fd00:1::9"]),
        }
    }

    fn mesh() -> Snapshot {
        let workload = |name: &str, address: &str| Workload {
            addresses: ips(&[address]),
            ..Workload::new(
                &format!("Kubernetes//Pod/shop/{name}"),
                "shop",
                name,
                SpiffeId::new(TrustDomain::cluster_local(), "shop", name).unwrap(),
            )
        };
        let service = Service {
            name: "web".into(),
            namespace: "shop".into(),
            hostname: "web.example".into(),
            vips: vec!["10.96.0.1/32".parse().unwrap()],
            ports: Vec::new(),
            subject_alt_names: Vec::new(),
            allow_unhealthy: false,
            load_balancing: LoadBalancing::default(),
            canonical: false,
            visibility: Visibility::default(),
        };
        let state = State {
            workloads: vec![workload("client", "10.1.0.9"), workload("server", "10.1.0.2")],
            services: vec![service],
            ..State::empty(TrustDomain::cluster_local())
        };
        Snapshot::build(1, state)
    }

    #[test]
    fn what_is_somebody_elses_is_not_the_pods_whatever_its_interfaces_say() {
        let found = ips(&["10.1.0.2", "10.1.0.9", "10.1.0.77", "10.96.0.1", "192.0.2.1"]);
        let own = own_addresses(found, &pod(), &mesh());
        assert_eq!(own, ips(&["10.1.0.9", "fd00:1::9", "10.1.0.77", "192.0.2.1"]));
    }

    #[test]
    fn a_pod_with_very_many_addresses_keeps_those_that_it_is_said_to_have() {
        let found = (0..16_000u32).map(|n| IpAddr::from((0x0a01_0100 + n).to_be_bytes())).collect();
        let own = own_addresses(found, &pod(), &mesh());
        assert_eq!(own.len(), MOST_ADDRESSES);
        assert_eq!(own[..2], pod().addresses);
    }
}
