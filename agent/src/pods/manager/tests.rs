//! The manager with a kernel in memory and an issuer that never answers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc as channel;

use futures::FutureExt;
use futures::future::BoxFuture;
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Socket, Type};
use tokio_util::task::TaskTracker;

use super::*;
use crate::bpf::fake::FakeKernel;
use crate::bpf::{BpfError, Kernel, PodSocket};
use crate::certs::{self, CertError, Issued, Issuer};
use crate::discovery::{State, Store};
use crate::lifecycle::Stop;
use crate::model::workload::{LoadBalancing, Visibility};
use crate::model::{InboundAction, InboundPlan, Service, SpiffeId, TrustDomain};
use crate::pods::{Destinations, Numbers, Wanted};
use crate::sys::diag::{Diag, TcpState};
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

/// Another address of the namespace, which nobody has told of.
const OTHER: &str = "10.1.0.10";

impl Manager {
    /// As if it had been enrolled; with these addresses as its own.
    fn enrolled_by_hand(&mut self, pod: &LocalPod, own: &[&str]) -> Arc<EnrolledPod> {
        let netns = Netns::open(&pod.netns).unwrap();
        let own: Vec<_> = own.iter().map(|ip| ip.parse().unwrap()).collect();
        // Nothing of the namespace is looked after in this mode.
        let capture = bpf::CaptureMode::Loopback;
        self.setting.kernel.enrol(&crate::pods::enrolled::row(&netns, &own, capture)).unwrap();
        let pod = Arc::new(EnrolledPod {
            lease: self.setting.certs.lease(&pod.identity),
            pod: Arc::new(pod.clone()),
            netns,
            capture,
            own: own.into(),
            keeps_source: true,
            acceptors: TaskTracker::new(),
            tasks: TaskTracker::new(),
            leaving: CancellationToken::new(),
            cut: Stop::default(),
            ended: CancellationToken::new(),
        });
        self.known.insert(pod.pod.uid.clone(), Known::Enrolled(Arc::clone(&pod)));
        pod
    }
}

/// Otherwise a connection that begins in between passes for one that was looked for already.
#[tokio::test]
async fn what_is_forbidden_is_looked_for_once_the_kernel_has_the_rules() {
    let Some(namespace) = Namespace::new() else { return };
    let (mut manager, kernel, store) = manager();
    let one = pod("one", &namespace.path);
    let enrolled = manager.enrolled_by_hand(&one, &[ADDRESS]);
    let cookie = enrolled.netns.cookie();
    let plan = InboundPlan::all(InboundAction::Pass);
    kernel.set_inbound(cookie, &plan).unwrap();
    kernel.state().inbound_failures.push(BpfError::Full { map: "INBOUND" });
    store.publish(state(vec![one]));
    soon(manager.sync()).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let told = |kernel: &FakeKernel| kernel.state().pods[&cookie].inbound.clone();
    assert_eq!(kernel.state().listings, 0);
    assert_eq!(told(&kernel), plan);
    soon(manager.audit()).await;
    assert_eq!(told(&kernel), InboundPlan::all(InboundAction::Drop));
    soon(async {
        while kernel.state().listings == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// A connection in a namespace, and both ends as the kernel lists them.
struct Inside {
    client: TcpStream,
    server: TcpStream,
    listed: Vec<PodSocket>,
}

impl Inside {
    fn new(netns: &Netns, from: &str, to: &str) -> Self {
        let connect = || {
            let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            listener.bind(&SocketAddr::new(to.parse().unwrap(), 0).into()).unwrap();
            listener.listen(1).unwrap();
            let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            client.bind(&SocketAddr::new(from.parse().unwrap(), 0).into()).unwrap();
            client.connect(&listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            let sockets = Diag::open().unwrap().tcp(&[]).unwrap().into_iter();
            let listed = sockets.map(|socket| PodSocket { socket, known: bpf::Known::Nothing }).collect();
            Self { client: client.into(), server: server.into(), listed }
        };
        netns.run(connect).unwrap()
    }

    /// Without the client's end, as if it were elsewhere.
    fn of_elsewhere(mut self) -> Self {
        let client = self.client.local_addr().unwrap();
        self.listed.retain(|one| one.socket.local != client);
        self
    }

    /// Without what listens.
    fn without_listener(mut self) -> Self {
        self.listed.retain(|one| one.socket.state != TcpState::Listen);
        self
    }

    /// As the programs know the server's end.
    fn known(mut self, known: bpf::Known) -> Self {
        let server = (self.server.local_addr().unwrap(), self.server.peer_addr().unwrap());
        for one in &mut self.listed {
            if (one.socket.local, one.socket.remote) == server {
                one.known = known;
            }
        }
        self
    }

    fn is_open(&mut self) -> bool {
        self.client.write_all(b"x").is_ok() && self.server.read(&mut [0; 1]).is_ok_and(|n| n == 1)
    }
}

#[tokio::test]
async fn forbidden_plaintext_is_ended_if_it_came_from_outside_and_nothing_else_is() {
    let Some(namespace) = Namespace::new() else { return };
    let (mut manager, kernel, store) = manager();
    let one = pod("one", &namespace.path);
    // It has no workload: whatever comes is forbidden.
    store.publish(state(vec![one.clone()]));
    let enrolled = manager.enrolled_by_hand(&one, &[ADDRESS]);
    let netns = &enrolled.netns;
    let ip = |line: &str| Command::new("ip").args(line.split(' ')).status().unwrap();
    netns.run(|| ["link set lo up", &format!("addr add {OTHER} dev lo")].map(ip)).unwrap();
    let inside = |from, to| Inside::new(netns, from, to);
    for (what, mut connection, open) in [
        ("from outside", inside(OTHER, ADDRESS).of_elsewhere(), false),
        ("both ends are the pod's", inside(OTHER, ADDRESS), true),
        ("from an address of its own", inside(ADDRESS, ADDRESS).of_elsewhere(), true),
        ("over loopback", inside("127.0.0.2", "127.0.0.1").of_elsewhere(), true),
        ("it has dialled", inside(OTHER, ADDRESS).of_elsewhere().known(bpf::Known::Dialled), true),
        ("the agent's", inside(OTHER, ADDRESS).of_elsewhere().known(bpf::Known::Agent), true),
        ("nobody listens there", inside(OTHER, ADDRESS).of_elsewhere().without_listener(), true),
        (
            "it was seen to be accepted",
            inside(OTHER, ADDRESS).of_elsewhere().without_listener().known(bpf::Known::Accepted),
            false,
        ),
    ] {
        kernel.state().sockets = connection.listed.clone();
        forbidden::end(&enrolled, &store.current(), &*kernel, &manager.setting.telemetry);
        assert_eq!(connection.is_open(), open, "{what}");
    }
}
