//! The manager with a kernel in memory and an issuer that never answers.

use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc as channel;

use futures::FutureExt;
use futures::future::BoxFuture;
use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::bpf::fake::FakeKernel;
use crate::bpf::{BpfError, Kernel};
use crate::certs::{self, CertError, Issued, Issuer};
use crate::discovery::{State, Store};
use crate::model::workload::{LoadBalancing, Visibility};
use crate::model::{InboundAction, InboundPlan, Service, SpiffeId, TrustDomain};
use crate::pods::{Destinations, Numbers, Wanted};
use crate::telemetry::{Telemetry, TelemetryConfig};

struct Silent;

impl Issuer for Silent {
    fn issue<'a>(&'a self, _: &'a SpiffeId) -> BoxFuture<'a, Result<Issued, CertError>> {
        std::future::pending().boxed()
    }

    fn name(&self) -> &str {
        "silent"
    }
}

fn manager() -> (Manager, Arc<FakeKernel>, Store) {
    let (fake, store) = (Arc::new(FakeKernel::default()), Store::new());
    let kernel: Arc<dyn Kernel> = Arc::clone(&fake) as _;
    let settings = certs::Config { deadline: Duration::from_secs(3600), concurrency: 1 };
    let setting = Setting {
        destinations: Arc::new(Destinations::new(Arc::clone(&kernel))),
        kernel,
        certs: certs::Manager::new(Arc::new(Silent), &settings),
        telemetry: Telemetry::with_output(&TelemetryConfig::default(), std::io::sink()).unwrap(),
        wanted: Wanted::Auto,
        numbers: Numbers::default(),
        certificate_wait: Duration::from_secs(3600),
        drain: Duration::ZERO,
    };
    (Manager::new(setting, store.subscribe()).0, fake, store)
}

fn state(local_pods: Vec<LocalPod>) -> State {
    State { local_pods, ..State::empty(TrustDomain::cluster_local()) }
}

fn pod(name: &str, netns: &Path) -> LocalPod {
    LocalPod {
        uid: PodUid(name.into()),
        namespace: "shop".into(),
        name: name.into(),
        identity: SpiffeId::new(TrustDomain::cluster_local(), "shop", name).unwrap(),
        netns: netns.into(),
        addresses: vec![ADDRESS.parse().unwrap()],
    }
}

const ADDRESS: &str = "10.1.0.9";

/// A network namespace with [`ADDRESS`], as long as its thread waits. Only root may make one.
struct Namespace {
    path: PathBuf,
    _end: channel::Sender<()>,
}

impl Namespace {
    fn new() -> Option<Self> {
        let (tell, told) = channel::channel();
        let (end, ended) = channel::channel::<()>();
        std::thread::spawn(move || {
            let made = unshare(CloneFlags::CLONE_NEWNET).is_ok();
            let address = || Command::new("ip").args(["addr", "add", ADDRESS, "dev", "lo"]).status();
            let ready = made && address().is_ok_and(|status| status.success());
            let tid = nix::unistd::gettid();
            tell.send(ready.then(|| PathBuf::from(format!("/proc/self/task/{tid}/ns/net")))).unwrap();
            let _ = ended.recv();
        });
        Some(Self { path: told.recv().unwrap()?, _end: end })
    }
}

async fn soon<T>(done: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), done).await.expect("it waits for something")
}

impl Manager {
    /// Until the kernel has this many pods.
    async fn rows(&self, kernel: &FakeKernel, wanted: usize) {
        soon(async {
            while kernel.state().pods.len() != wanted {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    async fn one_tried(&mut self) {
        let done = soon(self.enrolling.join_next()).await.expect("nobody is being enrolled");
        soon(self.tried(done)).await;
    }
}

#[tokio::test]
async fn a_pod_that_waits_for_its_certificate_is_closed_and_holds_nobody_up() {
    let Some(namespace) = Namespace::new() else { return };
    let (mut manager, kernel, store) = manager();
    store.publish(state(vec![pod("one", &namespace.path)]));
    soon(manager.sync()).await;
    manager.rows(&kernel, 1).await;
    let row = kernel.state().pods.values().next().unwrap().clone();
    assert_eq!((row.listeners, &row.inbound), ([None; 6], &InboundPlan::all(InboundAction::Drop)));
    assert_eq!(row.capture, bpf::CaptureMode::Mark, "its dials would leave uncaptured");

    // Described anew: the former description is not enrolled, and the namespace stays closed.
    store.publish(state(vec![LocalPod { uid: PodUid("two".into()), ..pod("one", &namespace.path) }]));
    soon(manager.sync()).await;
    manager.one_tried().await;
    assert_eq!(kernel.state().pods.len(), 1);
    let on_its_way = |m: &Manager| m.known.values().any(|k| matches!(k, Known::Enrolling { .. }));
    assert!(on_its_way(&manager) && manager.known.contains_key(&PodUid("two".into())));

    // Gone from the mesh: it is let go although nobody has answered yet.
    store.publish(state(Vec::new()));
    soon(manager.sync()).await;
    manager.one_tried().await;
    assert!(kernel.state().pods.is_empty() && kernel.state().released.is_empty());
    assert!(manager.known.is_empty());
}

#[tokio::test]
async fn two_pods_do_not_share_a_namespace() {
    let Some(namespace) = Namespace::new() else { return };
    let (mut manager, kernel, store) = manager();
    store.publish(state(vec![pod("one", &namespace.path), pod("two", &namespace.path)]));
    soon(manager.sync()).await;
    manager.rows(&kernel, 1).await;
    let refused = manager.known.values().filter(|k| matches!(k, Known::Refused { closed: None, .. }));
    assert_eq!((refused.count(), manager.enrolling.len()), (1, 1));
}

#[tokio::test]
async fn a_namespace_that_is_not_the_pods_is_left_alone() {
    let Some(namespace) = Namespace::new() else { return };
    let (mut manager, kernel, store) = manager();
    let stranger = LocalPod { addresses: vec!["10.1.0.10".parse().unwrap()], ..pod("one", &namespace.path) };
    store.publish(state(vec![stranger, pod("host", Path::new("/proc/self/ns/net"))]));
    soon(manager.sync()).await;
    manager.one_tried().await;
    manager.one_tried().await;
    assert!(kernel.state().pods.is_empty());
    assert!(manager.known.values().all(|k| matches!(k, Known::Refused { closed: None, .. })));
}

#[tokio::test]
async fn the_next_agent_tidies_what_one_before_it_only_released() {
    let Some(namespace) = Namespace::new() else { return };
    let (mut manager, kernel, store) = manager();
    let cookie = Netns::open(&namespace.path).unwrap().cookie();
    kernel.state().released.insert(cookie);
    store.publish(state(Vec::new()));
    soon(manager.sync()).await;
    manager.forget_strangers();
    assert!(kernel.state().released.is_empty());
}

#[tokio::test]
async fn what_the_kernel_did_not_take_it_is_told_again() {
    let (mut manager, kernel, store) = manager();
    kernel.state().destination_failures.push(BpfError::Full { map: "DESTINATIONS" });
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
    store.publish(State { services: vec![service], ..state(Vec::new()) });
    soon(manager.sync()).await;
    assert!(kernel.state().destinations.is_empty());
    soon(manager.audit()).await;
    assert_eq!(kernel.state().destinations.len(), 1);
}
