//! Kubernetes' API server, as far as an authority needs it: the secret that it signs with, who its callers
//! are, and where its roots are published.
//!
//! Answers are read here and not by `kube`, which logs the text of an answer that it does not understand: a
//! secret's, or that of a token.

mod attest;
mod call;
mod follow;
mod places;
mod secret;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

pub use call::CallError;
pub use places::KubernetesPlaces;
pub use secret::{Held, Keys, SecretName, follow_secret};

/// One cluster's API server. Clones share its connections.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    patience: Patience,
}

/// How long one call may take.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// Until there is an answer, with all tries after a 429.
    answer: Duration,
    /// How long a watch may stay silent: longer than the server leaves it open.
    watch: Duration,
}

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("{} is no kubeconfig of use: {why}", .path.display())]
    Kubeconfig { path: PathBuf, why: String },
    #[error(
        "no Kubernetes API server is known here ({0}): outside of a pod, name a kubeconfig; in a pod, its service account's token has to be mounted"
    )]
    Nowhere(String),
    #[error("the API server's address or papers are of no use: {0}")]
    Unusable(#[from] kube::Error),
}

impl Cluster {
    /// By this kubeconfig's current context, or as the service account of the pod that we are in. To be called
    /// in a runtime.
    pub async fn connect(kubeconfig: Option<&Path>) -> Result<Self, ClusterError> {
        let mut config = match kubeconfig {
            Some(path) => {
                let unusable = |why: String| ClusterError::Kubeconfig { path: path.to_owned(), why };
                let read = Kubeconfig::read_from(path).map_err(|e| unusable(e.to_string()))?;
                let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
                config.map_err(|e| unusable(e.to_string()))?
            }
            None => Config::incluster().map_err(|e| ClusterError::Nowhere(e.to_string()))?,
        };
        // How often and when is asked again is decided here, by what the server says of it.
        config.default_retry = false;
        let client = Client::try_from(config)?;
        let patience = Patience { answer: Duration::from_secs(30), watch: Duration::from_secs(330) };
        Ok(Self { client, patience })
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}
