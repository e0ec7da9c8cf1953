//! Enrols one pod: namespace checked, certificate held, listeners open, routing given, kernel told, in
//! that order, so that a pod that is enrolled is ready for traffic. Up to the listeners, whose ports only
//! one agent can have, nothing in the namespace is touched: it may be another agent's.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::destinations::Destinations;
use super::enrolled::{self, EnrolledPod};
use super::listeners::{Accepting, ListenError, Listeners};
use super::manager::Started;
use super::plumbing::{self, Numbers, Plumbed, Wanted};
use crate::bpf::{BpfError, Kernel};
use crate::certs::{self, CertError};
use crate::discovery::Snapshot;
use crate::lifecycle::Stop;
use crate::model::{LocalPod, NetnsCookie};
use crate::sys::SysError;
use crate::sys::netns::Netns;
use crate::telemetry::Telemetry;

/// What every enrolment uses.
pub struct Setting {
    pub kernel: Arc<dyn Kernel>,
    pub destinations: Arc<Destinations>,
    pub certs: certs::Manager,
    pub telemetry: Telemetry,
    pub wanted: Wanted,
    pub numbers: Numbers,
    /// How long a pod waits for its certificate before it is tried again later.
    pub certificate_wait: Duration,
    /// How long live connections of a pod that leaves may go on.
    pub drain: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    #[error("{0}; does the sandbox still run?")]
    Namespace(#[source] SysError),
    #[error("{path} is the host's own network namespace: a pod on the host's network is not meshed")]
    HostNetwork { path: String },
    #[error("{path} has none of the pod's addresses {wanted:?}, only {found:?}: it is another pod's")]
    Stranger { path: String, wanted: Vec<IpAddr>, found: Vec<IpAddr> },
    #[error("no certificate for {identity}: {source}")]
    Certificate { identity: String, source: Box<CertError> },
    #[error("no certificate for {identity} within {after:?}")]
    CertificateLate { identity: String, after: Duration },
    #[error("cannot give the namespace what capture needs: {0}")]
    Plumbing(#[source] SysError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Kernel(#[from] BpfError),
}

/// Where it fails, a namespace is as it was: closed if it was enrolled before, under another description,
/// and untouched if it was not. `in_use` says in which ones connections of before still live.
pub(super) async fn enrol(
    setting: &Setting,
    pod: Arc<LocalPod>,
    snapshot: &Snapshot,
    in_use: impl Fn(NetnsCookie) -> bool,
) -> Result<Started, EnrolError> {
    let netns = Netns::open(&pod.netns).map_err(EnrolError::Namespace)?;
    let addresses = check_owner(&netns, &pod)?;
    if let Some(other) = setting.kernel.other_instance(netns.cookie(), netns.fd())? {
        return Err(BpfError::Neighbours { other }.into());
    }

    let lease = setting.certs.lease(&pod.identity);
    let identity = || pod.identity.to_string();
    tokio::time::timeout(setting.certificate_wait, lease.ready())
        .await
        .map_err(|_| EnrolError::CertificateLate { identity: identity(), after: setting.certificate_wait })?
        .map_err(|source| EnrolError::Certificate { identity: identity(), source: Box::new(source) })?;

    let cookie = netns.cookie();
    let fresh = !in_use(cookie) && !setting.kernel.enrolled()?.contains(&cookie);
    let (plumbed, listeners) = open(setting, &pod, &netns, &addresses, snapshot).inspect_err(|_| {
        if fresh {
            // It is the first failure that is told, and a later try repairs what this one leaves.
            let _ = setting.kernel.unenrol(cookie);
            let _ = plumbing::give_back(&*setting.kernel, &netns, setting.numbers);
        }
    })?;
    let pod = EnrolledPod {
        pod,
        netns,
        lease,
        capture: plumbed.capture,
        keeps_source: plumbed.keeps_source,
        ended: CancellationToken::new(),
        acceptors: TaskTracker::new(),
        tasks: TaskTracker::new(),
        leaving: CancellationToken::new(),
        cut: Stop::default(),
    };
    Ok(Started { pod: Arc::new(pod), listeners })
}

/// All that is done to the namespace and told to the kernel.
fn open(
    setting: &Setting,
    pod: &LocalPod,
    netns: &Netns,
    addresses: &[IpAddr],
    snapshot: &Snapshot,
) -> Result<(Plumbed, Accepting), EnrolError> {
    let listeners = Listeners::open(netns, &*setting.kernel)?;
    let plumbed = plumbing::install(netns, &pod.addresses, setting.wanted, setting.numbers)
        .map_err(EnrolError::Plumbing)?;
    let (kernel, cookie) = (&*setting.kernel, netns.cookie());
    kernel.enrol(&enrolled::row(netns, addresses, plumbed.capture))?;
    kernel.set_listeners(cookie, &listeners.as_kernel())?;
    kernel.set_inbound(cookie, &snapshot.inbound_policy(pod).kernel_plan())?;
    Ok((plumbed, listeners.accepting()?))
}

/// The addresses of the namespace, after checking that it is a pod's and this pod's.
fn check_owner(netns: &Netns, pod: &LocalPod) -> Result<Vec<IpAddr>, EnrolError> {
    let found = netns.addresses().map_err(EnrolError::Namespace)?;
    own(netns.is_home(), &netns.path().display().to_string(), found, pod)
}

fn own(is_home: bool, path: &str, found: Vec<IpAddr>, pod: &LocalPod) -> Result<Vec<IpAddr>, EnrolError> {
    if is_home {
        return Err(EnrolError::HostNetwork { path: path.to_owned() });
    }
    if !pod.addresses.iter().any(|a| found.contains(a)) {
        return Err(EnrolError::Stranger { path: path.to_owned(), wanted: pod.addresses.clone(), found });
    }
    Ok(enrolled::own_addresses(found, pod))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_a_pods_and_the_pods_own() {
        let ips = |all: &[&str]| all.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
        let pod = LocalPod {
            uid: crate::model::PodUid("p".into()),
            namespace: "shop".into(),
            name: "cart".into(),
            identity: "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap(),
            netns: "/run/netns/p".into(),
            addresses: ips(&["10.0.0.1", "fd00::1"]),
        };
        let judge = |is_home, found: &[&str]| own(is_home, "/run/netns/p", ips(found), &pod);
        // All that is there, and all that is said to be.
        assert_eq!(
            judge(false, &["10.0.0.1", "10.9.9.9"]).unwrap(),
            ips(&["10.0.0.1", "10.9.9.9", "fd00::1"])
        );
        assert!(matches!(judge(true, &["10.0.0.1"]), Err(EnrolError::HostNetwork { .. })));
        assert!(matches!(judge(false, &["10.0.0.2"]), Err(EnrolError::Stranger { .. })));
        assert!(matches!(judge(false, &[]), Err(EnrolError::Stranger { .. })));
    }
}
