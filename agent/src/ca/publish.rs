//! Publishes the roots in Kubernetes, for whoever judges our certificates and is no agent: a
//! ClusterTrustBundle, which pods can mount, and a ConfigMap in each namespace for clusters without it.
//!
//! Only certificates are ever published: what goes out is written anew from what was parsed, never a copy of
//! a file's text.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Signing;
use super::signing::pem;
use crate::certs::backoff;
use crate::model::TrustDomain;

/// The key of a ConfigMap under which the roots are.
pub const CONFIG_MAP_KEY: &str = "root-cert.pem";

/// Where roots are published.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// `certificates.k8s.io/v1beta1`; the PEM is in `spec.trustBundle`.
    ClusterTrustBundle { name: String, signer: String },
    /// The PEM is under [`CONFIG_MAP_KEY`]; other keys are left alone.
    ConfigMap { namespace: String, name: String },
}

/// What is at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    pub pem: String,
    /// `metadata.resourceVersion`.
    pub version: String,
}

/// Why something could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// Somebody has made, changed or removed it since it was read.
    #[error("it was changed by somebody else meanwhile")]
    Conflict,
    #[error("{0}")]
    Failed(String),
}

/// What is asked of Kubernetes' API server.
pub trait Places: Send + Sync + 'static {
    fn read<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Result<Option<Published>, PlaceError>>;

    /// Replaces what has this version; makes it when there is none.
    fn write<'a>(
        &'a self,
        place: &'a Place,
        pem: &'a str,
        version: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), PlaceError>>;

    /// The namespaces that there are, now and later.
    fn namespaces(&self) -> watch::Receiver<BTreeSet<String>>;
}

/// Where to publish, and how patiently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishConfig {
    pub trust_domain: TrustDomain,
    /// The bundle's `spec.signerName`, such as `underpass.dev/ca`; `None` publishes no bundle.
    pub signer: Option<String>,
    /// What the bundle's name ends with.
    pub suffix: String,
    /// The name of the ConfigMap in each namespace; `None` publishes none.
    pub config_map: Option<String>,
    /// How long one place may take.
    pub deadline: Duration,
    /// How often it is looked whether everything is still as it should be.
    pub look_again: Duration,
}

impl PublishConfig {
    /// Publishes nothing yet.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            signer: None,
            suffix: "roots".into(),
            config_map: None,
            deadline: Duration::from_secs(10),
            look_again: Duration::from_secs(600),
        }
    }

    fn places(&self, namespaces: &BTreeSet<String>) -> BTreeSet<Place> {
        let bundle = self.signer.iter().map(|signer| Place::ClusterTrustBundle {
            // Kubernetes insists on such a name for a bundle with a signer.
            name: format!("{}:{}", signer.replace('/', ":"), self.suffix),
            signer: signer.clone(),
        });
        let maps = self.config_map.iter().flat_map(|name| {
            let in_each =
                |namespace: &String| Place::ConfigMap { namespace: namespace.clone(), name: name.clone() };
            namespaces.iter().map(in_each)
        });
        bundle.chain(maps).collect()
    }
}

/// Until `stop`: publishes what `state` has to be trusted, whenever it or the namespaces change.
pub async fn publish(
    places: Arc<dyn Places>,
    config: PublishConfig,
    state: watch::Receiver<Arc<Signing>>,
    stop: CancellationToken,
) {
    stop.run_until_cancelled(follow(&*places, &config, state)).await;
}

async fn follow(places: &dyn Places, config: &PublishConfig, mut state: watch::Receiver<Arc<Signing>>) {
    let mut namespaces = places.namespaces();
    let (mut done, mut failures) = (BTreeSet::new(), 0);
    loop {
        let text = text(&state.borrow_and_update(), &config.trust_domain);
        let wanted = config.places(&namespaces.borrow_and_update());
        done.retain(|place| wanted.contains(place));
        let pass = pass(places, config, &text, wanted.difference(&done));
        let failed = tokio::select! {
            // What is being written is out of date.
            _ = state.changed() => { done.clear(); continue }
            (published, failed) = pass => { done.extend(published); failed }
        };
        let wait = match failed.first() {
            None => {
                failures = 0;
                config.look_again
            }
            Some((place, error)) => {
                failures += 1;
                let wait = backoff(failures, rand::random());
                tracing::warn!(failed = failed.len(), of = wanted.len(), again_in = ?wait,
                    "the roots are not published everywhere; {place}: {error}");
                wait
            }
        };
        tokio::select! {
            changed = state.changed() => {
                done.clear();
                if changed.is_err() {
                    return;
                }
            }
            Ok(()) = namespaces.changed() => {}
            () = tokio::time::sleep(wait) => if failed.is_empty() { done.clear() },
        }
    }
}

type Failed = Vec<(Place, PlaceError)>;

async fn pass<'a>(
    places: &dyn Places,
    config: &PublishConfig,
    text: &str,
    wanted: impl Iterator<Item = &'a Place>,
) -> (Vec<Place>, Failed) {
    let one = |place: Place| async move {
        let late = |_| Err(PlaceError::Failed(format!("no answer within {:?}", config.deadline)));
        let said = tokio::time::timeout(config.deadline, put(places, &place, text)).await;
        (place, said.unwrap_or_else(late))
    };
    let all: Vec<_> =
        stream::iter(wanted.cloned().collect::<Vec<_>>()).map(one).buffer_unordered(AT_ONCE).collect().await;
    let (mut published, mut failed) = (Vec::new(), Vec::new());
    for (place, said) in all {
        match said {
            Ok(()) => published.push(place),
            Err(error) => failed.push((place, error)),
        }
    }
    (published, failed)
}

/// Writes what is not there already: another replica may have.
async fn put(places: &dyn Places, place: &Place, text: &str) -> Result<(), PlaceError> {
    for _ in 0..CONFLICTS {
        let held = places.read(place).await?;
        if held.as_ref().is_some_and(|held| held.pem == text) {
            return Ok(());
        }
        match places.write(place, text, held.as_ref().map(|held| held.version.as_str())).await {
            Err(PlaceError::Conflict) => {}
            Ok(()) => {
                tracing::info!(%place, "roots published");
                return Ok(());
            }
            failed => return failed,
        }
    }
    Err(PlaceError::Conflict)
}

/// The roots in one order and one spelling, so that replicas agree and an unchanged set is left alone.
fn text(signing: &Signing, domain: &TrustDomain) -> String {
    let mut roots: Vec<_> = signing.bundles.roots(domain).collect();
    roots.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
    roots.into_iter().map(pem).collect()
}

const AT_ONCE: usize = 8;
/// How often in a row another writer may come first.
const CONFLICTS: usize = 5;

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClusterTrustBundle { name, .. } => write!(f, "ClusterTrustBundle {name}"),
            Self::ConfigMap { namespace, name } => write!(f, "ConfigMap {namespace}/{name}"),
        }
    }
}

#[cfg(test)]
mod tests;
