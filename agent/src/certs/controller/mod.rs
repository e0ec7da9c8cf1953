//! Underpass' own controller: Istio's certificate service, and a stream on which news of roots comes at once.
//!
//! Certificates are asked for as of any authority that speaks Istio's service; the node proves itself by a
//! certificate of its own, by its service account's token, or by both. [`ControllerIssuer::follow`] keeps the
//! roots up to date and tells the controller what this node trusts and holds.

mod follow;
mod report;
mod update;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};

pub use report::ReportSource;

use super::istio::{IstioConfig, IstioIssuer};
use super::{CertError, Issued, Issuer, Nudge};
use crate::model::SpiffeId;
use crate::tls::TrustBundles;

/// Asks the controller for certificates, and follows what it says about roots.
pub struct ControllerIssuer {
    asked: IstioIssuer,
    roots: watch::Sender<Option<TrustBundles>>,
    nudges: mpsc::UnboundedSender<Nudge>,
    /// Until the manager takes it.
    nudged: Mutex<Option<mpsc::UnboundedReceiver<Nudge>>>,
}

impl ControllerIssuer {
    /// Reads and connects nothing yet: a controller that is down must not keep the agent from starting.
    ///
    /// # Errors
    /// The address or the alternative host name is none, or there is nothing by which the node could prove
    /// itself.
    pub fn new(config: IstioConfig) -> Result<Self, String> {
        if config.client.is_none() && config.token_file.is_none() {
            return Err(
                "set clientCertificate and clientKey, or tokenFile: the node has to prove itself".into()
            );
        }
        let roots = watch::Sender::new(None);
        let asked = IstioIssuer::following(config, Some(roots.subscribe()))?;
        let (nudges, nudged) = mpsc::unbounded_channel();
        Ok(Self { asked, roots, nudges, nudged: Mutex::new(Some(nudged)) })
    }

    /// Stays in touch with the controller, for ever: connects again whenever the stream ends. `source` says
    /// what there is to report.
    pub async fn follow(self: Arc<Self>, source: Arc<dyn ReportSource>) {
        follow::Follower::new(&self, &*source).run().await;
    }
}

impl Issuer for ControllerIssuer {
    fn issue<'a>(&'a self, identity: &'a SpiffeId) -> BoxFuture<'a, Result<Issued, CertError>> {
        self.asked.issue(identity)
    }

    fn name(&self) -> &str {
        self.asked.name()
    }

    fn roots(&self) -> Option<watch::Receiver<Option<TrustBundles>>> {
        Some(self.roots.subscribe())
    }

    fn nudges(&self) -> Option<mpsc::UnboundedReceiver<Nudge>> {
        // It is taken as a whole, so a panic elsewhere leaves it usable.
        self.nudged.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for ControllerIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControllerIssuer").field("asked", &self.asked).finish_non_exhaustive()
    }
}
