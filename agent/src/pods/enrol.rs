//! Enrols one pod: namespace checked, closed in the kernel, certificate held, routing given, listeners
//! open, kernel told, in that order. So a pod that is enrolled is ready for traffic, and one that cannot be
//! enrolled sends and takes nothing past the mesh, whatever its own processes did before.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::destinations::Destinations;
use super::enrolled::{self, EnrolledPod};
use super::listeners::{ListenError, Listeners};
use super::manager::Started;
use super::plumbing::{self, Numbers, Wanted};
use crate::bpf::{self, BpfError, CaptureMode, Kernel};
use crate::certs::{self, CertError};
use crate::discovery::Snapshot;
use crate::lifecycle::Stop;
use crate::model::{InboundAction, InboundPlan, LocalPod, NetnsCookie, PodUid};
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
    #[error("{path} is pod {holder}'s already; one namespace is one pod")]
    Held { path: String, holder: PodUid },
    #[error("the pod's description changed meanwhile")]
    Outdated,
    #[error("the agent failed while enrolling it; its log says how")]
    Crashed,
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

/// A try to enrol one pod in a namespace that is open.
pub(super) struct Attempt {
    pub setting: Arc<Setting>,
    pub pod: Arc<LocalPod>,
    pub netns: Netns,
    pub snapshot: Arc<Snapshot>,
    /// Held while a namespace is worked on, never while something is waited for: one at a time, so that
    /// threads stay free for connections.
    pub turn: Arc<tokio::sync::Mutex<()>>,
    /// Cancelled when the pod's description is another by now.
    pub outdated: CancellationToken,
}

impl Attempt {
    /// # Errors
    /// Once the namespace is known as the pod's, it is left closed: the kernel has its row, without
    /// listeners and with nothing allowed in.
    pub(super) async fn run(self) -> Result<Started, EnrolError> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let own = check_owner(&self.netns, &self.pod, &self.snapshot)?;
        let (setting, cookie) = (Arc::clone(&self.setting), self.netns.cookie());
        let closed = setting.kernel.enrol(&enrolled::row(&self.netns, &own, self.assumed_capture()));
        drop(turn);
        let done = match closed {
            Err(e @ BpfError::Neighbours { .. }) => return Err(e.into()),
            Err(e) => Err(e.into()),
            Ok(()) => self.open(own).await,
        };
        if done.is_err() {
            close(&*setting.kernel, cookie);
        }
        done
    }

    /// How captured connections are refused until the namespace has shown how it can be captured.
    fn assumed_capture(&self) -> CaptureMode {
        if self.setting.wanted == Wanted::Loopback { CaptureMode::Loopback } else { CaptureMode::Mark }
    }

    async fn open(self, own: Vec<IpAddr>) -> Result<Started, EnrolError> {
        let assumed = self.assumed_capture();
        let Self { setting, pod, netns, snapshot, turn, outdated } = self;
        let lease = setting.certs.lease(&pod.identity);
        let identity = || pod.identity.to_string();
        let failed = |source| EnrolError::Certificate { identity: identity(), source: Box::new(source) };
        let late = || EnrolError::CertificateLate { identity: identity(), after: setting.certificate_wait };
        tokio::select! {
            ready = tokio::time::timeout(setting.certificate_wait, lease.warm_up()) => ready
                // Perhaps the issuer is not to be asked again yet.
                .map_err(|_| lease.last_error().map_or_else(late, failed))?
                .map_err(failed)?,
            () = outdated.cancelled() => return Err(EnrolError::Outdated),
        };

        let _turn = turn.lock().await;
        let plumbed = plumbing::install(&netns, &pod.addresses, setting.wanted, setting.numbers)
            .map_err(EnrolError::Plumbing)?;
        let listeners = Listeners::open(&netns, &*setting.kernel)?;
        let cookie = netns.cookie();
        if plumbed.capture != assumed {
            setting.kernel.enrol(&enrolled::row(&netns, &own, plumbed.capture))?;
        }
        setting.kernel.set_listeners(cookie, &listeners.as_kernel())?;
        setting.kernel.set_inbound(cookie, &snapshot.inbound_policy(&pod).kernel_plan())?;
        let listeners = listeners.accepting()?;
        let pod = EnrolledPod {
            pod,
            netns,
            lease,
            capture: plumbed.capture,
            own: Mutex::new(own),
            keeps_source: plumbed.keeps_source,
            ended: CancellationToken::new(),
            acceptors: TaskTracker::new(),
            tasks: TaskTracker::new(),
            leaving: CancellationToken::new(),
            cut: Stop::default(),
        };
        Ok(Started { pod: Arc::new(pod), listeners })
    }
}

/// Leaves the pod's row in the kernel with nothing that it may do.
fn close(kernel: &dyn Kernel, pod: NetnsCookie) {
    let shut = kernel
        .set_listeners(pod, &bpf::Listeners::default())
        .and(kernel.set_inbound(pod, &InboundPlan::all(InboundAction::Drop)));
    if let Err(e) = shut {
        tracing::error!(netns = %pod, error = %e, "cannot close a pod that is not enrolled");
    }
}

/// The addresses of the namespace, after checking that it is a pod's and this pod's.
fn check_owner(netns: &Netns, pod: &LocalPod, snapshot: &Snapshot) -> Result<Vec<IpAddr>, EnrolError> {
    let path = || netns.path().display().to_string();
    if netns.is_home() {
        return Err(EnrolError::HostNetwork { path: path() });
    }
    let found = netns.addresses().map_err(EnrolError::Namespace)?;
    if !pod.addresses.iter().any(|a| found.contains(a)) {
        return Err(EnrolError::Stranger { path: path(), wanted: pod.addresses.clone(), found });
    }
    Ok(enrolled::own_addresses(found, pod, snapshot))
}
