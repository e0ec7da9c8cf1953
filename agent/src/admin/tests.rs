use super::*;
use crate::bpf::Kernel as _;
use crate::bpf::fake::FakeKernel;
use crate::bpf::{CaptureMode, Enrolment, Marks, OwnPorts};
use crate::certs::{CertState, CertView, FileView, TrustView};
use crate::discovery::{State, Store};
use crate::lifecycle::{Readiness, Shutdown};
use crate::model::workload::Health;
use crate::model::{
    Cause, ClientAddr, ConnectionId, Direction, LocalPod, NetnsCookie, OriginalDst, PodUid, Service,
    SpiffeId, TrustDomain, Workload,
};
use crate::pods::{PodState, Table};
use crate::policy::{Action, Kind, Object, Policy, Resources, Scope, Settings, wire};
use crate::telemetry::{Opened, Record, Telemetry, TelemetryConfig, process};
use arc_swap::ArcSwap;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// A served agent that has one pod it could not enrol.
struct Agent {
    sources: Arc<Sources>,
    kernel: Arc<FakeKernel>,
    config: AdminConfig,
    health: SocketAddr,
    metrics: SocketAddr,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<()>,
    _folder: Folder,
}

/// Removed with what is in it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("up{}-{}", std::process::id(), ConnectionId::next()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn config(folder: &Path) -> AdminConfig {
    let any = Some("127.0.0.1:0".parse().unwrap());
    AdminConfig { socket: folder.join("run/admin.sock"), health_address: any, metrics_address: any }
}

async fn agent() -> Agent {
    let folder = Folder::new();
    let config = config(&folder.0);
    let kernel = Arc::new(FakeKernel::default());
    let store = Store::new();
    store.publish(mesh());
    let refused = PodState::Refused { pod: Arc::new(pod()), why: "no such namespace".into(), closed: None };
    let sources = Arc::new(Sources {
        instance: "test".into(),
        node: "node-1".into(),
        started: SystemTime::UNIX_EPOCH,
        telemetry: Telemetry::with_output(&TelemetryConfig::default(), std::io::sink()).unwrap(),
        readiness: Readiness::new(),
        shutdown: Shutdown::new(Duration::from_secs(1)),
        log: process::detached("info"),
        store,
        pods: Arc::new(ArcSwap::from_pointee(Table::from([refused]))),
        kernel: kernel.clone(),
        trust: Box::new(|| TrustView {
            bundles: vec![],
            revocation_lists: vec![],
            files: vec![FileView {
                path: "/etc/friend.pem".into(),
                trust_domain: None,
                items: 1,
                accepted: "2026-08-22T09:00:00Z".into(),
                next_update: None,
                problem: Some("it is empty".into()),
            }],
        }),
        certificates: Box::new(|| vec![certificate()]),
        mesh: Box::new(|| views::SourceView {
            name: "file".into(),
            accepted: Some("2026-08-22T09:30:00.000000Z".into()),
            refused: Some("mesh.yaml:3: workloads[0].name: missing".into()),
        }),
        config: json!({ "certificates": { "root": "/etc/underpass/root.pem" } }),
    });
    let admin = Admin::bind(&config).await.unwrap();
    let (health, metrics) = (admin.health_address().unwrap(), admin.metrics_address().unwrap());
    let stop = CancellationToken::new();
    let served = tokio::spawn(admin.serve(Arc::clone(&sources), stop.clone()));
    Agent { sources, kernel, config, health, metrics, stop, served, _folder: folder }
}

fn identity(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local".parse().unwrap(), "shop", account).unwrap()
}

fn pod() -> LocalPod {
    LocalPod {
        uid: PodUid("uid-1".into()),
        namespace: "shop".into(),
        name: "client-1".into(),
        identity: identity("client"),
        netns: "/run/netns/none".into(),
        addresses: vec!["10.0.1.5".parse().unwrap()],
    }
}

fn mesh() -> State {
    let mut state = State::empty("cluster.local".parse().unwrap());
    for (name, health) in [("server-2", Health::Unhealthy), ("server-1", Health::Healthy)] {
        let mut workload = Workload::new(&format!("c1//Pod/shop/{name}"), "shop", name, identity("server"));
        workload.services.insert("shop/server.shop.svc.cluster.local".into(), vec![]);
        workload.health = health;
        state.workloads.push(workload);
    }
    state.services.push(Service {
        name: "server".into(),
        namespace: "shop".into(),
        hostname: "server.shop.svc.cluster.local".into(),
        vips: vec!["10.96.0.7/32".parse().unwrap()],
        ports: vec![],
        subject_alt_names: vec![],
        allow_unhealthy: false,
        load_balancing: Default::default(),
        canonical: false,
        visibility: Default::default(),
    });
    state.policies.push(Policy {
        kind: Kind::Authorization,
        namespace: "shop".into(),
        name: "deny-all".into(),
        scope: Scope::Namespace,
        action: Action::Allow,
        groups: vec![],
        dry_run: false,
        defect: None,
    });
    state
}

fn certificate() -> CertView {
    CertView {
        identity: identity("client"),
        trust_domain: "cluster.local".parse().unwrap(),
        state: CertState::Valid,
        serial: Some("0a".into()),
        not_before: Some("2026-08-22T09:00:00Z".into()),
        not_after: Some("2026-08-23T09:00:00Z".into()),
        expires_in_seconds: Some(86_400.0),
        renewal_due: None,
        chain_length: 1,
        chain: vec![],
        authority: None,
        authority_key_id: None,
        root_sha256: None,
        issuer_ahead_seconds: None,
        issuer: "embedded".into(),
        leases: 1,
        last_error: None,
    }
}

fn open(telemetry: &Telemetry) -> Record {
    telemetry.open(Opened {
        id: ConnectionId::next(),
        direction: Direction::Outbound,
        pod: Arc::new(pod()),
        client: ClientAddr("10.0.1.5:40000".parse().unwrap()),
        destination: OriginalDst("10.96.0.7:80".parse().unwrap()),
    })
}

/// Sends a request over any stream and gives back status and body.
async fn ask(mut stream: impl Read + Write + Send + 'static, request: &str) -> (u16, String) {
    let request = request.to_owned();
    let answer = tokio::task::spawn_blocking(move || {
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let answer = answer.await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

async fn get(agent: &Agent, path: &str) -> (u16, String) {
    ask(UnixStream::connect(&agent.config.socket).unwrap(), &request("GET", path, "")).await
}

async fn get_json(agent: &Agent, path: &str) -> Value {
    let (status, body) = get(agent, path).await;
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

async fn get_tcp(address: SocketAddr, path: &str) -> (u16, String) {
    ask(std::net::TcpStream::connect(address).unwrap(), &request("GET", path, "")).await
}

fn request(method: &str, path: &str, body: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: underpass\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn state_as_json_over_the_socket() {
    let agent = agent().await;
    let record = open(&agent.sources.telemetry);

    let status = get_json(&agent, "/status").await;
    assert_eq!(status["ready"], true);
    assert_eq!(
        status["mesh"],
        json!({
            "revision": 1, "trust_domain": "cluster.local", "workloads": 2, "services": 1, "policies": 1,
        })
    );
    assert_eq!(status["pods"], json!({ "enrolled": 0, "refused": 1, "leaving": 0 }));
    assert_eq!(status["source"]["refused"], "mesh.yaml:3: workloads[0].name: missing");
    assert_eq!(status["connections"], 1);
    assert_eq!(
        status["findings"],
        json!([
            "pod shop/client-1 is not enrolled: no such namespace",
            "trust file /etc/friend.pem: it is empty; what was read at 2026-08-22T09:00:00Z is in force",
        ])
    );

    let workloads = get_json(&agent, "/workloads").await;
    let names: Vec<_> = workloads.as_array().unwrap().iter().map(|w| w["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["server-1", "server-2"]);

    let services = get_json(&agent, "/services").await;
    assert_eq!(services[0]["hostname"], "server.shop.svc.cluster.local");
    assert_eq!((&services[0]["endpoints"], &services[0]["healthy"]), (&json!(2), &json!(1)));

    let report = get_json(&agent, "/analyze").await;
    assert_eq!(report["findings"].as_array().map(Vec::is_empty), Some(false), "{report}");
    assert_eq!(report["summary"]["errors"], 0);

    let policies = get_json(&agent, "/policies").await;
    assert_eq!((&policies[0]["name"], &policies[0]["action"]), (&json!("deny-all"), &json!("ALLOW")));

    let pods = get_json(&agent, "/pods").await;
    assert_eq!((&pods[0]["state"], &pods[0]["reason"]), (&json!("refused"), &json!("no such namespace")));
    assert_eq!(pods[0]["connections"], 1);

    let certificates = get_json(&agent, "/certificates").await;
    assert_eq!(certificates[0]["identity"], "spiffe://cluster.local/ns/shop/sa/client");

    let connections = get_json(&agent, "/connections").await;
    assert_eq!(connections[0]["original_destination"], "10.96.0.7:80");
    assert_eq!(connections[0]["source"]["workload"], "client-1");

    let config = get_json(&agent, "/config").await;
    assert_eq!(config["certificates"]["root"], "/etc/underpass/root.pem");

    record.finish(Cause::Closed, None);
    assert_eq!(get_json(&agent, "/connections").await, json!([]));
    assert_eq!(get(&agent, "/nothing").await.0, 404);
}

#[tokio::test]
async fn status_tells_of_policies_that_are_not_taken_as_they_stand() {
    let agent = agent().await;
    assert_eq!(get_json(&agent, "/status").await["policy_defects"], json!([]));

    let object = |name: &str, spec: Value| {
        let object = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": { "name": name, "namespace": "shop" }, "spec": spec,
        });
        Arc::new(Object::read(object).unwrap())
    };
    let objects = [
        object(
            "jwt",
            json!({ "rules": [{ "when": [{ "key": "request.auth.claims[iss]", "values": ["x"] }] }] }),
        ),
        object("ext", json!({ "action": "CUSTOM", "provider": { "name": "x" }, "rules": [{}] })),
        object("sound", json!({})),
    ];
    let domain: TrustDomain = "cluster.local".parse().unwrap();
    let resources = Resources::new(&objects, Settings::new(domain.clone()));
    let sent = wire::read("shop/sent", &[0xff]);
    agent.sources.store.publish(State {
        policies: vec![sent.policy],
        policy_defects: sent.defects,
        resources: Some(Arc::new(resources)),
        ..State::empty(domain)
    });
    let status = get_json(&agent, "/status").await;
    let all = status["policy_defects"].as_array().unwrap();
    let told: Vec<_> = all
        .iter()
        .map(|one| ["kind", "namespace", "name"].map(|key| one["resource"][key].as_str().unwrap()).join("/"))
        .collect();
    const ISTIO: &str = "AuthorizationPolicy.security.istio.io";
    assert_eq!(
        told,
        ["Authorization/shop/sent".into(), format!("{ISTIO}/shop/ext"), format!("{ISTIO}/shop/jwt")]
    );
    assert_eq!((&all[1]["field"], &all[1]["kind"]), (&json!("spec.action"), &json!("unsupported")));
    for (one, holds) in all.iter().zip(["is denied", "is denied", "admits nobody"]) {
        let message = one["message"].as_str().unwrap();
        assert!(message.ends_with(holds), "{message}");
    }
}

#[tokio::test]
async fn status_tells_where_kernel_and_agent_disagree() {
    let agent = agent().await;
    let here = std::fs::File::open("/proc/self/ns/net").unwrap();
    let stranger = Enrolment {
        cookie: NetnsCookie(4711),
        netns: std::os::fd::AsFd::as_fd(&here),
        addresses: &[],
        capture: CaptureMode::Mark,
        marks: Marks::default(),
        ports: OwnPorts::default(),
    };
    agent.kernel.enrol(&stranger).unwrap();
    let findings = get_json(&agent, "/status").await["findings"].to_string();
    assert!(findings.contains("namespace 4711, which is no enrolled pod"), "{findings}");
}

#[tokio::test]
async fn the_log_filter_is_read_and_changed() {
    let agent = agent().await;
    assert_eq!(get_json(&agent, "/log").await, json!({ "filter": "info" }));
    let put = |filter: &str| request("PUT", "/log", filter);
    let connect = || UnixStream::connect(&agent.config.socket).unwrap();
    assert_eq!(ask(connect(), &put("warn\n")).await.0, 200);
    assert_eq!(get_json(&agent, "/log").await, json!({ "filter": "warn" }));
    let (status, body) = ask(connect(), &put("x=loud")).await;
    assert_eq!(status, 400);
    assert!(body.contains("is not a log filter"), "{body}");
    assert_eq!(get_json(&agent, "/log").await, json!({ "filter": "warn" }));
    assert_eq!(ask(connect(), &put(&"x".repeat(5000))).await.0, 413);
}

#[tokio::test]
async fn readiness_names_what_it_waits_for() {
    let agent = agent().await;
    assert_eq!(get_tcp(agent.health, "/healthz/ready").await, (200, "ready\n".into()));
    let certificates = agent.sources.readiness.guard("certificates");
    certificates.waits_for("the issuer\ndoes not answer");
    let programs = agent.sources.readiness.guard("programs");
    assert_eq!(
        get_tcp(agent.health, "/healthz/ready").await,
        (503, "not ready\ncertificates: the issuer\\ndoes not answer (0 s)\nprograms (0 s)\n".into())
    );
    drop((certificates, programs));
    assert_eq!(get_tcp(agent.health, "/healthz/ready").await.0, 200);
}

#[tokio::test]
async fn the_network_sees_readiness_and_metrics_and_nothing_else() {
    let agent = agent().await;
    for path in ["/metrics", "/stats/prometheus"] {
        let (status, body) = get_tcp(agent.metrics, path).await;
        assert_eq!(status, 200);
        assert!(body.contains("\nunderpass_build{"), "{body}");
    }
    assert_ne!(agent.health, agent.metrics);
    for address in [agent.health, agent.metrics] {
        for path in ["/status", "/config", "/log", "/connections", "/certificates", "/"] {
            assert_eq!(get_tcp(address, path).await.0, 404, "{address} {path}");
        }
    }
    assert_eq!(get_tcp(agent.health, "/metrics").await.0, 404);
    assert_eq!(get_tcp(agent.metrics, "/healthz/ready").await.0, 404);
}

#[tokio::test]
async fn one_address_may_serve_health_and_metrics() {
    let folder = Folder::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let both = AdminConfig { health_address: Some(free), metrics_address: Some(free), ..config(&folder.0) };
    let admin = Admin::bind(&both).await.unwrap();
    assert_eq!((admin.health_address(), admin.metrics_address()), (Some(free), Some(free)));
    let stop = CancellationToken::new();
    let agent = agent().await;
    let served = tokio::spawn(admin.serve(Arc::clone(&agent.sources), stop.clone()));
    assert_eq!(get_tcp(free, "/healthz/ready").await.0, 200);
    assert_eq!(get_tcp(free, "/metrics").await.0, 200);
    stop.cancel();
    served.await.unwrap();
}

#[tokio::test]
async fn only_the_owner_may_open_the_socket_and_it_goes_with_the_agent() {
    let agent = agent().await;
    let found = std::fs::symlink_metadata(&agent.config.socket).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    agent.stop.cancel();
    agent.served.await.unwrap();
    assert!(!agent.config.socket.exists());
}

#[tokio::test]
async fn a_dead_agents_socket_is_replaced_and_a_live_ones_is_not() {
    let folder = Folder::new();
    let config = AdminConfig { health_address: None, metrics_address: None, ..config(&folder.0) };
    std::fs::create_dir(folder.0.join("run")).unwrap();
    drop(StdListener::bind(&config.socket).unwrap());
    assert!(config.socket.exists(), "std leaves the file behind, as a killed agent does");
    let first = Admin::bind(&config).await.unwrap();
    let Err(AdminError::InUse(path)) = Admin::bind(&config).await else { panic!() };
    assert_eq!(path, config.socket);
    drop(first);
    std::fs::write(&config.socket, "precious").unwrap();
    assert!(matches!(Admin::bind(&config).await, Err(AdminError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&config.socket).unwrap(), "precious");
}

#[tokio::test]
async fn a_successors_socket_survives_its_predecessor() {
    let folder = Folder::new();
    let config = AdminConfig { health_address: None, metrics_address: None, ..config(&folder.0) };
    let first = Admin::bind(&config).await.unwrap();
    std::fs::remove_file(&config.socket).unwrap();
    let _second = Admin::bind(&config).await.unwrap();
    drop(first);
    assert!(config.socket.exists());
}

#[tokio::test]
async fn a_taken_address_is_named_in_the_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = Folder::new();
    let config = AdminConfig { metrics_address: taken.local_addr().ok(), ..config(&folder.0) };
    let Err(error) = Admin::bind(&config).await else { panic!() };
    let text = error.to_string();
    assert!(text.contains(&taken.local_addr().unwrap().to_string()), "{text}");
    assert!(text.contains("admin.metricsAddress"), "{text}");
}

/// Half-open requests must not keep a kubelet's probe from being answered.
#[tokio::test]
async fn idle_connections_do_not_block_others() {
    let agent = agent().await;
    let idle: Vec<_> = (0..100).map(|_| std::net::TcpStream::connect(agent.health).unwrap()).collect();
    for mut stream in &idle {
        stream.write_all(b"GET /healthz").unwrap();
    }
    assert_eq!(get_tcp(agent.health, "/healthz/ready").await.0, 200);
}

#[tokio::test]
async fn a_controller_that_is_not_ready_says_what_it_waits_for() {
    let folder = Folder::new();
    let admin = Admin::bind(&config(&folder.0)).await.unwrap();
    let (health, stop, readiness) =
        (admin.health_address().unwrap(), CancellationToken::new(), Readiness::new());
    let guard = readiness.guard("port");
    guard.waits_for("it does not listen yet");
    let sources = ControllerSources {
        agents: Box::new(|| Box::pin(async { Err("the controller is starting".into()) })),
        metrics: Box::new(|| Err("the controller is starting".into())),
        pending: Box::new(move || readiness.pending()),
    };
    let served = tokio::spawn(admin.serve_controller(Arc::new(sources), stop.clone()));
    let (status, body) = get_tcp(health, "/healthz/ready").await;
    assert!(
        status == 503 && body.starts_with("not ready\nport: it does not listen yet ("),
        "{status} {body}"
    );
    guard.done();
    assert_eq!(get_tcp(health, "/healthz/ready").await, (200, "ready\n".into()));
    stop.cancel();
    served.await.unwrap();
}
