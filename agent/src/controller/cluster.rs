//! What of the controller asks Kubernetes: each part only where the configuration says so.

use std::sync::Arc;

use anyhow::Context;
use futures::FutureExt;
use futures::future::{BoxFuture, join};
use tokio_util::sync::CancellationToken;

use crate::ca::attest::{Attestor, Both, Kubernetes, Nodes};
use crate::ca::kubernetes::{Cluster, KubernetesPlaces, follow_secret};
use crate::ca::publish::publish;
use crate::ca::{Authority, Source};
use crate::certs::Clock;
use crate::config::ControllerConfig;

/// The way to the API server, if anything needs it.
pub(super) async fn connect(config: &ControllerConfig) -> anyhow::Result<Option<Cluster>> {
    let in_secret = matches!(config.authority().source, Source::Secret(_));
    if !in_secret && config.cluster_nodes().is_none() && config.publish().is_none() {
        return Ok(None);
    }
    Ok(Some(Cluster::connect(config.kubernetes.kubeconfig.as_deref()).await?))
}

/// What is signed with, and what takes it in whenever it is replaced.
pub(super) async fn authority(
    config: &ControllerConfig,
    cluster: Option<&Cluster>,
    stop: &CancellationToken,
) -> anyhow::Result<(Authority, BoxFuture<'static, ()>)> {
    let (own, stop) = (config.authority(), stop.clone());
    let (Source::Secret(secret), Some(cluster)) = (&own.source, cluster) else {
        let authority = Authority::open(&own, Clock::system())?;
        return Ok((authority.clone(), authority.follow_files(stop).boxed()));
    };
    let keys = cluster.secret(secret).await.context("cannot read the authority's secret")?.keys;
    let authority = Authority::open_keys(&own, &keys, Clock::system())?;
    let follow = follow_secret(cluster.clone(), secret.clone(), authority.clone(), stop);
    Ok((authority, follow.boxed()))
}

/// Who knows callers.
pub(super) fn attestor(
    config: &ControllerConfig,
    cluster: Option<&Cluster>,
    machines: Nodes,
) -> Arc<dyn Attestor> {
    match (config.cluster_nodes(), cluster) {
        (Some(nodes), Some(cluster)) => {
            Arc::new(Both::new(machines, Kubernetes::new(cluster.clone(), nodes)))
        }
        _ => Arc::new(machines),
    }
}

/// Publishes the roots, if they are to be.
pub(super) fn publishing(
    config: &ControllerConfig,
    cluster: Option<Cluster>,
    authority: &Authority,
    stop: &CancellationToken,
) -> Option<BoxFuture<'static, ()>> {
    let config = config.publish()?;
    let in_namespaces = config.config_map.is_some();
    let (places, namespaces) = KubernetesPlaces::new(cluster?, stop.clone());
    let published = publish(Arc::new(places), config, authority.state(), stop.clone());
    let known = async move {
        if in_namespaces {
            namespaces.await;
        }
    };
    Some(join(published, known).map(|_| ()).boxed())
}

#[cfg(test)]
mod tests;
