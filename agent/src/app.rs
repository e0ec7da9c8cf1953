//! Builds the agent from its configuration, in the order in which the parts need each other, and takes
//! it down in the opposite one.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use underpass_proto::underpass::v1::{HeldCertificate, RestingTunnels};

use crate::admin::{self, Admin};
use crate::bpf::{Flows, Kernel, Programs};
use crate::certs::{
    self, Caller, ClientFiles, ControllerIssuer, EmbeddedConfig, EmbeddedIssuer, Issuer, IstioConfig,
    IstioIssuer, ReportSource, SpireConfig, SpireIssuer, Surroundings, TrustConfig, TrustFiles,
};
use crate::config::{CapturePreference, Config, Embedded, IssuerKind};
use crate::discovery::file::{FileOptions, FileSource, FileStatus};
use crate::discovery::{Source, Store, lapse};
use crate::lifecycle::{Readiness, Shutdown, Signals, TaskGroup};
use crate::model::NetnsCookie;
use crate::pods::{self, Destinations, Table};
use crate::policy::DefectKind;
use crate::proxy::tunnel::{ClientSettings, FlowSettings, KeepaliveSettings, ServerSettings};
use crate::proxy::{self, Handshakes, HttpLimits, Limits, Node};
use crate::sys::netns;
use crate::sys::socket::Keepalive;
use crate::telemetry::process::LogControl;
use crate::telemetry::{FlowLeftAlone, PolicySample, Telemetry};
use crate::tls::{self, TrustBundles};

/// Runs the agent until it is told to stop. `log` is the process's log, already set up.
///
/// # Errors
/// What could not be built, with the failing call and the next step. An agent that has begun to serve
/// ends without an error.
pub fn run(config: Config, log: LogControl) -> anyhow::Result<()> {
    tls::set_profile(config.tls.profile)?;
    netns::remember_home()?;
    let descriptors = raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers(config.proxy.workers))
        .enable_all()
        .build()
        .context("cannot start the runtime's threads")?;
    let done = runtime.block_on(serve(config, log, descriptors));
    // What still hangs in a blocking call must not hold the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

async fn serve(config: Config, log: LogControl, descriptors: usize) -> anyhow::Result<()> {
    let shutdown = Shutdown::new(config.proxy.drain_deadline);
    tokio::spawn(Signals::take()?.stop(shutdown.clone()));
    let readiness = Readiness::new();
    tls::tell_profile();
    let telemetry = Telemetry::new(&config.telemetry)?;
    let store = Store::new();

    let kernel = load(&config).await?;
    watch_policy(&telemetry, &kernel, &store);
    let (certs, controller) = certificates(&config, &telemetry)?;
    let source = file_source(&config, &telemetry);
    let source_status = source.status();
    let destinations = Arc::new(Destinations::new(Arc::clone(&kernel)));
    let (manager, table, started) = pods::Manager::new(
        pod_setting(&config, &kernel, &destinations, certs.clone(), &telemetry),
        store.subscribe(),
    );
    let admin = Admin::bind(&config.admin).await?;

    let pods_tried = readiness.guard("pods");
    pods_tried.waits_for(format!("the pods that {} names", config.discovery.file.display()));
    let draining = shutdown.draining();
    let node = node(&config, &kernel, &destinations, &telemetry, &store, descriptors);
    let mut tasks = TaskGroup::new();
    // Until the last connection is gone: what is forbidden meanwhile is cut.
    let drained = CancellationToken::new();
    tasks.spawn("mesh source", quiet(Box::new(source).run(store.clone(), drained.clone())));
    tasks.spawn("exceptions", {
        let (store, stop) = (store.clone(), drained.clone());
        quiet(async move {
            stop.run_until_cancelled(lapse::watch(store)).await;
        })
    });
    tasks.spawn(CONNECTIONS, quiet(proxy::run(node, started, shutdown.clone())));
    tasks.spawn("pods", {
        let stop = draining.clone();
        quiet(async move { manager.run(stop, move || pods_tried.done()).await })
    });
    tasks.spawn("flows", {
        let (flows, table, telemetry, stop) =
            (kernel.flows()?, Arc::clone(&table), telemetry.clone(), draining.clone());
        let store = store.clone();
        quiet(async move {
            stop.run_until_cancelled(count_flows(flows, table, store, telemetry)).await;
        })
    });
    tasks.spawn("metrics", {
        let (telemetry, stop) = (telemetry.clone(), draining.clone());
        quiet(async move {
            stop.run_until_cancelled(prune(telemetry)).await;
        })
    });
    if let Some(controller) = controller {
        // Until the last connection is gone: a root that is dropped meanwhile ends those that rest on it.
        let (reports, stop) = (Arc::new(Reports { certs: certs.clone() }), drained.clone());
        tasks.spawn(
            "controller",
            quiet(async move {
                stop.run_until_cancelled(controller.follow(reports)).await;
            }),
        );
    }
    let admin_stop = CancellationToken::new();
    let sources = Arc::new(admin::Sources {
        instance: config.bpf.instance.clone(),
        node: config.node.name.clone(),
        started: SystemTime::now(),
        telemetry: telemetry.clone(),
        readiness: readiness.clone(),
        shutdown: shutdown.clone(),
        log,
        store: store.clone(),
        pods: Arc::clone(&table),
        kernel: Arc::clone(&kernel),
        trust: Box::new({
            let certs = certs.clone();
            move || certs.trust()
        }),
        certificates: Box::new(move || certs.list()),
        mesh: Box::new(move || source_view(&source_status.get())),
        config: serde_json::to_value(&config).context("cannot show the configuration as JSON")?,
    });
    let admin = tokio::spawn(admin.serve(sources, admin_stop.clone()));

    wait(&mut tasks, &shutdown).await;
    let _not_ready = readiness.guard("stopping");
    drain(&mut tasks).await;
    drained.cancel();
    tasks.join(LAST).await;
    admin_stop.cancel();
    // Whoever still talks to the admin socket must not keep the agent.
    let _ = tokio::time::timeout(LAST, admin).await;
    telemetry.flush_within(LAST)?;
    tracing::info!("stopped; captured connections are refused until an agent is back");
    Ok(())
}

/// Until somebody asks to stop, or a part ends that should not.
async fn wait(tasks: &mut TaskGroup, shutdown: &Shutdown) {
    tokio::select! {
        // First: parts that end because they were told to are no reason to stop a second time, which
        // would cut what is to end by itself.
        biased;
        () = shutdown.draining().cancelled() => {}
        ended = tasks.next() => {
            // Told to stop, parts end too, and the first may be faster than we are.
            if shutdown.draining().is_cancelled() {
                return;
            }
            let why = ended.map_or_else(|| "nothing is left to do".to_owned(), |e| e.to_string());
            tracing::error!("stopping because a part of the agent ended: {why}");
            shutdown.stop(&why);
        }
    }
}

/// Until the last connection has ended, by itself or at the deadline.
async fn drain(tasks: &mut TaskGroup) {
    while let Some(ended) = tasks.next().await {
        if ended.name == CONNECTIONS {
            return;
        }
    }
}

const CONNECTIONS: &str = "connections";

async fn load(config: &Config) -> anyhow::Result<Arc<dyn Kernel>> {
    let bpf = config.bpf.clone();
    // The verifier takes its time, and no runtime thread should wait for it.
    let programs = tokio::task::spawn_blocking(move || Programs::load(&bpf)).await??;
    tokio::spawn(programs.forward_logs());
    Ok(Arc::new(programs))
}

/// The manager, and the controller if there is one that wants to be followed.
fn certificates(
    config: &Config,
    telemetry: &Telemetry,
) -> anyhow::Result<(certs::Manager, Option<Arc<ControllerIssuer>>)> {
    let c = &config.certificates;
    let trust = trust_files(config)?;
    let mut controller = None;
    let issuer: Arc<dyn Issuer> = match c.issuer {
        IssuerKind::Embedded => Arc::new(embedded_issuer(&c.embedded)?),
        IssuerKind::Istio => Arc::new(istio_issuer(config, &trust)?),
        IssuerKind::Spire => Arc::new(SpireIssuer::new(SpireConfig {
            admin_socket: c.spire.admin_socket.clone(),
            trust_domain: c.spire.trust_domain.clone(),
            deadline: issuer_deadline(config),
        })),
        IssuerKind::Controller => controller.insert(Arc::new(controller_issuer(config, &trust)?)).clone(),
    };
    let settings = certs::Config { deadline: c.deadline, concurrency: usize::from(c.concurrency) };
    let around = Surroundings { trust, telemetry: Some(telemetry.clone()), ..Surroundings::default() };
    Ok((certs::Manager::within(issuer, &settings, around), controller))
}

/// What the controller is told about this node.
struct Reports {
    certs: certs::Manager,
}

impl ReportSource for Reports {
    fn certificates(&self) -> Vec<HeldCertificate> {
        let held = self.certs.vouched_by().into_iter();
        held.map(|held| HeldCertificate {
            identity: held.identity.to_string(),
            authority: held.authority,
            root: held.root.map(|root| root.to_vec()).unwrap_or_default(),
        })
        .collect()
    }

    fn tunnels(&self) -> Vec<RestingTunnels> {
        let all = self.certs.tunnels_by_root().into_iter();
        all.map(|(root, count)| RestingTunnels { root: root.to_vec(), count: count as u64 }).collect()
    }

    fn in_force(&self, roots: &TrustBundles) -> bool {
        self.certs.judges_by(roots)
    }
}

fn trust_files(config: &Config) -> anyhow::Result<TrustFiles> {
    let trust = &config.certificates.trust;
    let files = TrustFiles::open(&TrustConfig {
        bundles: trust.bundles.iter().map(|b| (b.trust_domain.clone(), b.file.clone())).collect(),
        revocation_lists: trust.revocation_lists.clone(),
        poll: trust.poll_interval,
    });
    files.context("certificates.trust")
}

fn embedded_issuer(embedded: &Embedded) -> anyhow::Result<EmbeddedIssuer> {
    Ok(EmbeddedIssuer::open(&EmbeddedConfig {
        trust_domain: embedded.trust_domain.clone(),
        root_certificate: embedded.root_certificate.clone(),
        root_key: embedded.root_key.clone(),
        create: embedded.create_root,
        lifetime: embedded.lifetime,
        backdate: embedded.backdate,
    })?)
}

fn istio_issuer(config: &Config, trust: &TrustFiles) -> anyhow::Result<IstioIssuer> {
    let istio = config.certificates.istio.clone();
    let issuer = IstioIssuer::new(IstioConfig {
        name: "istio",
        address: istio.address,
        root_certificate: istio.root_certificate,
        trust: trust.clone(),
        alternative_host_names: istio.alternative_host_names,
        client: None,
        token_file: Some(istio.token_file),
        cluster_id: istio.cluster_id,
        cert_signer: istio.cert_signer,
        headers: istio.headers,
        trust_domain: istio.trust_domain,
        lifetime: istio.lifetime,
        deadline: issuer_deadline(config),
        caller: caller(config),
    });
    issuer.map_err(|why| anyhow::anyhow!("certificates.istio: {why}"))
}

fn controller_issuer(config: &Config, trust: &TrustFiles) -> anyhow::Result<ControllerIssuer> {
    let controller = config.certificates.controller.clone();
    let client = controller.client_certificate.zip(controller.client_key);
    let asked = IstioConfig {
        name: "controller",
        address: controller.address,
        root_certificate: controller.root_certificate,
        trust: trust.clone(),
        alternative_host_names: controller.alternative_host_names,
        client: client.map(|(certificate, key)| ClientFiles { certificate, key }),
        token_file: controller.token_file,
        cluster_id: controller.cluster_id,
        cert_signer: None,
        headers: BTreeMap::new(),
        trust_domain: controller.trust_domain,
        lifetime: controller.lifetime,
        deadline: issuer_deadline(config),
        caller: caller(config),
    };
    ControllerIssuer::new(asked, controller.state)
        .map_err(|why| anyhow::anyhow!("certificates.controller: {why}"))
}

/// A little less than the manager's, so that the error is the issuer's, which says more.
fn issuer_deadline(config: &Config) -> Duration {
    config.certificates.deadline.mul_f32(0.95)
}

fn caller(config: &Config) -> Caller {
    Caller {
        node: config.node.name.clone(),
        pod: config.node.pod.clone(),
        service_account: config.node.service_account.clone(),
    }
}

fn file_source(config: &Config, telemetry: &Telemetry) -> FileSource {
    let options =
        FileOptions { poll_interval: config.discovery.poll_interval, debounce: config.discovery.debounce };
    FileSource::new(&config.discovery.file, options, telemetry.clone())
}

fn source_view(status: &FileStatus) -> admin::views::SourceView {
    admin::views::SourceView {
        name: "file".into(),
        accepted: status.accepted_at.clone(),
        refused: status.refusal.as_ref().map(|r| r.message.clone()),
    }
}

fn pod_setting(
    config: &Config,
    kernel: &Arc<dyn Kernel>,
    destinations: &Arc<Destinations>,
    certs: certs::Manager,
    telemetry: &Telemetry,
) -> pods::Setting {
    pods::Setting {
        kernel: Arc::clone(kernel),
        destinations: Arc::clone(destinations),
        certs,
        telemetry: telemetry.clone(),
        wanted: match config.capture.mode {
            CapturePreference::Auto => pods::Wanted::Auto,
            CapturePreference::Mark => pods::Wanted::Mark,
            CapturePreference::Loopback => pods::Wanted::Loopback,
        },
        numbers: pods::Numbers::default(),
        certificate_wait: config.certificates.deadline,
        drain: config.proxy.drain_deadline,
    }
}

fn node(
    config: &Config,
    kernel: &Arc<dyn Kernel>,
    destinations: &Arc<Destinations>,
    telemetry: &Telemetry,
    store: &Store,
    descriptors: usize,
) -> Arc<Node> {
    let t = &config.tunnel;
    let keepalive = KeepaliveSettings { interval: t.ping_interval, timeout: t.ping_timeout };
    let flow = FlowSettings {
        stream_window: t.stream_window,
        connection_window: t.connection_window,
        max_frame: t.max_frame_size,
        max_header_list: t.max_header_list_size,
    };
    let (k, http) = (&config.proxy.keepalive, &config.proxy.http);
    Arc::new(Node {
        kernel: Arc::clone(kernel),
        destinations: Arc::clone(destinations),
        telemetry: telemetry.clone(),
        snapshots: store.subscribe(),
        client: ClientSettings {
            flow: FlowSettings { max_header_list: CLIENT_HEADER_LIST, ..flow.clone() },
            max_streams: t.max_streams as usize,
            connect_timeout: t.connect_timeout,
            answer_timeout: t.answer_timeout,
            idle_timeout: t.idle_timeout,
            keepalive: keepalive.clone(),
        },
        server: ServerSettings {
            flow,
            max_streams: t.max_peer_streams,
            keepalive,
            ..ServerSettings::default()
        },
        connect_timeout: config.proxy.connect_timeout,
        handshake_timeout: t.connect_timeout,
        keepalive: Keepalive { idle: k.idle, interval: k.interval, probes: u32::from(k.probes) },
        http: HttpLimits {
            first_bytes: http.first_bytes_timeout,
            head: http.head_timeout,
            idle: Some(http.idle_timeout).filter(|idle| !idle.is_zero()),
            head_bytes: http.max_head_size,
            fields: http.max_fields.into(),
            streams: http.max_streams,
            stream_window: http.stream_window,
            connection_window: http.connection_window,
        },
        handshakes: Arc::new(Handshakes::new(Limits::of(descriptors))),
        // Most connections hold one descriptor.
        share_of_a_pod: descriptors / 2,
    })
}

/// What an answer to CONNECT may carry; ztunnel's value.
const CLIENT_HEADER_LIST: u32 = 16 * 1024;

/// What the metrics of policy ask for when they are scraped.
fn watch_policy(telemetry: &Telemetry, kernel: &Arc<dyn Kernel>, store: &Store) {
    let (kernel, store) = (Arc::clone(kernel), store.clone());
    telemetry.watch_policy(move || {
        let (snapshot, now) = (store.current(), store.now());
        let next_lapse = snapshot.exceptions().map(|one| one.until).filter(|until| *until > now).min();
        let count = |kind| snapshot.policies().defects().filter(|defect| defect.kind == kind).count();
        PolicySample {
            // A map that cannot be read shows at once elsewhere.
            plaintext_dropped: kernel.plaintext_dropped().unwrap_or_default(),
            invalid: count(DefectKind::Invalid),
            unsupported: count(DefectKind::Unsupported),
            dangling: count(DefectKind::Dangling),
            next_lapse: next_lapse.map(|until| (until - now).whole_seconds()),
        }
    });
}

async fn count_flows(mut flows: Flows, table: Arc<ArcSwap<Table>>, store: Store, telemetry: Telemetry) {
    while let Some(flow) = flows.next().await {
        let table = table.load();
        let Some(pod) = pod_of(&table, flow.pod) else { continue };
        let snapshot = store.current();
        telemetry.flow_left_alone(&FlowLeftAlone {
            direction: flow.direction,
            pod: &pod.pod,
            workload: snapshot.workload_of(&pod.pod),
            local: flow.local,
            remote: flow.remote,
            peer: snapshot.workload(flow.remote.ip()).map(|workload| &**workload),
            sent: flow.sent,
            received: flow.received,
        });
    }
}

/// Drops label sets that nobody uses any more.
async fn prune(telemetry: Telemetry) {
    let mut tick = tokio::time::interval(Duration::from_secs(30));
    loop {
        tick.tick().await;
        telemetry.prune();
    }
}

fn pod_of(table: &Table, cookie: NetnsCookie) -> Option<&Arc<pods::EnrolledPod>> {
    table.iter().filter_map(pods::PodState::enrolled).find(|p| p.netns.cookie() == cookie)
}

async fn quiet(task: impl Future<Output = ()>) -> Result<(), std::convert::Infallible> {
    task.await;
    Ok(())
}

/// A quarter of the processors, two at least: what ztunnel measured as enough, and pods keep the rest.
fn workers(configured: u16) -> usize {
    let all = std::thread::available_parallelism().map_or(2, usize::from);
    if configured == 0 { all.div_ceil(4).max(2) } else { usize::from(configured) }
}

/// Two descriptors for each connection soon pass the usual soft limit of 1024. Gives back how many there
/// may be.
fn raise_descriptor_limit() -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(e) = raised {
        tracing::warn!(error = %e, "setrlimit RLIMIT_NOFILE failed; raise LimitNOFILE for more connections");
    }
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(limit).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS)
}

/// For what should end at once when it is told to.
const LAST: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_ends_because_of_the_stop_does_not_stop_a_second_time() {
        for _ in 0..100 {
            let shutdown = Shutdown::new(Duration::from_secs(3600));
            let mut tasks = TaskGroup::new();
            let draining = shutdown.draining().clone();
            tasks.spawn("part", quiet(async move { draining.cancelled().await }));
            shutdown.stop("test");
            tokio::task::yield_now().await;
            wait(&mut tasks, &shutdown).await;
            assert!(!shutdown.cut().is_cancelled(), "live connections are cut without a deadline");
        }
    }
}
