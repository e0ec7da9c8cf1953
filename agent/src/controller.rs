//! Builds the controller from its configuration, in the order in which the parts need each other.

mod cluster;
mod nodes;
mod ready;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use futures::FutureExt;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;

use self::ready::Guards;
use crate::admin::{Admin, ControllerSources};
use crate::ca::Authority;
use crate::ca::agents::Agents;
use crate::ca::attest::{Attestor, Nodes};
use crate::ca::rotation::{ControllerView, RootView};
use crate::ca::serve::{self, Metrics, ServerCertificate, Service};
use crate::config::ControllerConfig;
use crate::lifecycle::{Readiness, Shutdown, Signals, TaskGroup};
use crate::tls;

/// Runs the controller until it is told to stop. `file` is where the configuration was read from.
///
/// # Errors
/// What could not be built, with the failing call and the next step.
pub fn run(config: ControllerConfig, file: PathBuf) -> anyhow::Result<()> {
    tls::set_profile(config.tls.profile)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime's threads")?;
    let done = runtime.block_on(serve(config, file));
    // What still hangs in a blocking call must not hold the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

async fn serve(config: ControllerConfig, file: PathBuf) -> anyhow::Result<()> {
    let shutdown = Shutdown::new(Duration::from_secs(5));
    tokio::spawn(Signals::take()?.stop(shutdown.clone()));
    let stop = shutdown.draining();
    tls::tell_profile();

    // First of all, so that whoever asks meanwhile hears what is still missing.
    let admin = Admin::bind(&config.admin()).await?;
    let (readiness, parts) = (Readiness::new(), Arc::new(OnceLock::new()));
    let waiting = Guards::take(&readiness);
    let mut tasks = TaskGroup::new();
    let run = |task| async move {
        let () = task.await;
        Ok::<(), std::convert::Infallible>(())
    };
    let boxed = |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| run(task);
    let sources = Arc::new(sources(readiness, Arc::clone(&parts)));
    tasks.spawn("admin", boxed(Box::pin(admin.serve_controller(sources, stop.clone()))));

    let cluster = cluster::connect(&config).await?;
    let (authority, followed) = cluster::authority(&config, cluster.as_ref(), stop).await?;
    waiting.authority.done();
    let (list, listed) = watch::channel(config.nodes());
    let attestor = cluster::attestor(&config, cluster.as_ref(), Nodes::new(listed));
    let (certificate, fresh) = ServerCertificate::new(&authority, config.names.clone(), stop.clone())?;
    let (agents, metrics) = (Agents::default(), Metrics::new()?);
    let service = Service::new(
        authority.clone(),
        Arc::clone(&attestor),
        agents.clone(),
        metrics.clone(),
        config.rotation.renew_within,
    );
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}: set listen to a free address", config.listen))?;
    tell(&authority, &config);

    tasks.spawn("authority's files", boxed(followed));
    if let Some(publishing) = cluster::publishing(&config, cluster, &authority, stop) {
        tasks.spawn("publishing", boxed(publishing));
    }
    tasks.spawn("own certificate", boxed(Box::pin(fresh)));
    tasks.spawn("configuration", boxed(Box::pin(nodes::follow(config.clone(), file, list, stop.clone()))));
    tasks.spawn("port", boxed(Box::pin(service.serve(listener, certificate, stop.clone()))));
    waiting.port.done();
    let attestation = {
        let (attestor, stop) = (Arc::clone(&attestor), stop.clone());
        async move { ready::attestation(&*attestor, waiting.attestation, stop).await }
    };
    tasks.spawn("attestation", boxed(Box::pin(attestation)));
    let _ = parts.set(Parts { authority, attestor, agents, metrics, config });
    tokio::select! {
        () = stop.cancelled() => {}
        ended = tasks.next() => {
            // Told to stop, parts end too, and the first may be faster than we are.
            if !stop.is_cancelled() {
                let why = ended.map_or_else(|| "nothing is left to do".to_owned(), |e| e.to_string());
                tracing::error!("stopping because a part of the controller ended: {why}");
                shutdown.stop(&why);
            }
        }
    }
    tasks.join(Duration::from_secs(10)).await;
    tracing::info!("stopped; agents go on with the certificates that they have");
    Ok(())
}

/// What answers operators, once there is all of it.
#[derive(Clone)]
struct Parts {
    authority: Authority,
    attestor: Arc<dyn Attestor>,
    agents: Agents,
    metrics: Metrics,
    config: ControllerConfig,
}

fn sources(readiness: Readiness, parts: Arc<OnceLock<Parts>>) -> ControllerSources {
    let built = {
        let parts = Arc::clone(&parts);
        move || parts.get().cloned().ok_or_else(|| "the controller is starting".to_owned())
    };
    ControllerSources {
        agents: {
            let built = built.clone();
            Box::new(move || {
                let built = built();
                async move {
                    let Parts { authority, attestor, agents, config, .. } = built?;
                    view(&authority, &agents, &*attestor, &config).await
                }
                .boxed()
            })
        },
        metrics: Box::new(move || {
            let Parts { authority, agents, metrics, .. } = built()?;
            let end = authority.state().borrow().not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
            metrics.text(agents.connected(), end.as_secs()).map_err(|e| e.to_string())
        }),
        pending: Box::new(move || ready::pending(&readiness, parts.get().map(|parts| &parts.authority))),
    }
}

fn tell(authority: &Authority, config: &ControllerConfig) {
    let state = authority.state();
    let signing = state.borrow();
    tracing::info!(
        listen = %config.listen,
        trust_domain = %config.trust_domain,
        authority = signing.authority,
        root = signing.root,
        nodes = config.attestation.nodes.len(),
        "issuing"
    );
    if signing.chain.is_empty() {
        tracing::warn!(
            "a root itself signs: whoever gets at this machine has the root's key. `underpass ca rotate` moves to a root that is kept offline"
        );
    }
}

/// # Errors
/// What could not be asked. A list that lacks nodes would let a rotation go on without them.
async fn view(
    authority: &Authority,
    agents: &Agents,
    attestor: &dyn Attestor,
    config: &ControllerConfig,
) -> Result<Value, String> {
    let expected = attestor.expected().await.map_err(|refusal| refusal.to_string())?;
    let signing = Arc::clone(&authority.state().borrow());
    let update = serve::update(&signing, &config.trust_domain, config.rotation.renew_within);
    let roots = signing.roots.iter().map(|root| RootView {
        sha256: root.sha256.clone(),
        subject: root.subject.clone(),
        not_after: crate::certs::rfc3339(root.not_after),
    });
    let view = ControllerView {
        version: update.version,
        revision: update.revision,
        authority: signing.authority.clone(),
        root: signing.root.clone(),
        roots: roots.collect(),
        expected,
        agents: agents.view(),
        trouble: authority.trouble(),
    };
    serde_json::to_value(view).map_err(|e| e.to_string())
}
