//! Where roots are published: ClusterTrustBundles and ConfigMaps.

use std::collections::{BTreeMap, BTreeSet};

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Cluster;
use super::call::{Call, CallError, Verb};
use super::follow::{Follower, Seen};
use crate::ca::publish::{CONFIG_MAP_KEY, Place, PlaceError, Places, Published};
use crate::certs::backoff;

/// The places of one cluster.
#[derive(Debug)]
pub struct KubernetesPlaces {
    cluster: Cluster,
    namespaces: watch::Receiver<BTreeSet<String>>,
}

impl KubernetesPlaces {
    /// Also what keeps its list of namespaces up to date until `stop`. It is for somebody to run, if anything
    /// is to be published in each.
    pub fn new(cluster: Cluster, stop: CancellationToken) -> (Self, impl Future<Output = ()>) {
        let (known, namespaces) = watch::channel(BTreeSet::new());
        let follow = follow(cluster.clone(), known);
        (Self { cluster, namespaces }, async move {
            stop.run_until_cancelled(follow).await;
        })
    }

    async fn held(&self, place: &Place) -> Result<Option<Published>, CallError> {
        let held: Object = match self.cluster.ask(&call(place, Verb::Get), None).await {
            Err(CallError::Absent(_)) => return Ok(None),
            other => other?,
        };
        let pem = match place {
            Place::ClusterTrustBundle { .. } => Some(held.spec.trust_bundle),
            Place::ConfigMap { .. } => held.data.unwrap_or_default().remove(CONFIG_MAP_KEY),
        };
        Ok(Some(Published { pem: pem.unwrap_or_default(), version: held.metadata.resource_version }))
    }
}

impl Places for KubernetesPlaces {
    fn read<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Result<Option<Published>, PlaceError>> {
        self.held(place).map(|held| held.map_err(said)).boxed()
    }

    fn write<'a>(
        &'a self,
        place: &'a Place,
        pem: &'a str,
        version: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), PlaceError>> {
        async move {
            let (verb, body) = match version {
                None => (Verb::Create, whole(place, pem)),
                Some(version) => (Verb::Patch, change(place, pem, version)),
            };
            let answer: Result<serde::de::IgnoredAny, _> =
                self.cluster.ask(&call(place, verb), Some(&body)).await;
            match (answer, verb) {
                (Ok(_), _) => Ok(()),
                // It was there when it was read.
                (Err(CallError::Absent(_)), Verb::Patch) => Err(PlaceError::Conflict),
                (Err(error), _) => Err(said(error)),
            }
        }
        .boxed()
    }

    fn namespaces(&self) -> watch::Receiver<BTreeSet<String>> {
        self.namespaces.clone()
    }
}

fn call(place: &Place, verb: Verb) -> Call {
    match place {
        Place::ClusterTrustBundle { name, .. } => {
            Call::core(verb, "clustertrustbundles").of("certificates.k8s.io", "v1beta1").named(name)
        }
        Place::ConfigMap { namespace, name } => Call::core(verb, "configmaps").within(namespace).named(name),
    }
}

fn whole(place: &Place, pem: &str) -> Value {
    match place {
        Place::ClusterTrustBundle { name, signer } => json!({
            "apiVersion": "certificates.k8s.io/v1beta1",
            "kind": "ClusterTrustBundle",
            "metadata": { "name": name },
            "spec": { "signerName": signer, "trustBundle": pem },
        }),
        Place::ConfigMap { namespace, name } => json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "namespace": namespace, "name": name },
            "data": { CONFIG_MAP_KEY: pem },
        }),
    }
}

/// A merge patch: whatever else is there stays.
fn change(place: &Place, pem: &str, version: &str) -> Value {
    let mut change = json!({ "metadata": { "resourceVersion": version } });
    match place {
        Place::ClusterTrustBundle { .. } => change["spec"] = json!({ "trustBundle": pem }),
        Place::ConfigMap { .. } => change["data"] = json!({ CONFIG_MAP_KEY: pem }),
    }
    change
}

fn said(error: CallError) -> PlaceError {
    match error {
        CallError::Conflict(_) => PlaceError::Conflict,
        other => PlaceError::Failed(other.to_string()),
    }
}

async fn follow(cluster: Cluster, known: watch::Sender<BTreeSet<String>>) {
    let mut names = Follower::new(&cluster, Call::core(Verb::List, "namespaces"));
    let mut failures = 0;
    loop {
        match names.next().await {
            Ok(seen) => {
                failures = 0;
                known.send_if_modified(|known| match seen {
                    Seen::All(all) => {
                        let all = BTreeSet::from_iter(all);
                        let differs = *known != all;
                        *known = all;
                        differs
                    }
                    Seen::Here(name) => known.insert(name),
                    Seen::Gone(name) => known.remove(&name),
                });
            }
            Err(error) => {
                failures += 1;
                let wait = backoff(failures, rand::random());
                tracing::warn!(again_in = ?wait, "the namespaces are not known: {error}");
                tokio::time::sleep(wait).await;
            }
        }
    }
}

#[derive(Deserialize)]
struct Object {
    metadata: Meta,
    #[serde(default)]
    data: Option<BTreeMap<String, String>>,
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    resource_version: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    trust_bundle: String,
}
