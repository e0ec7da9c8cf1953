//! Underpass' own controller: Istio's certificate service, and a stream on which news of roots comes at once.
//!
//! Certificates are asked for as of any authority that speaks Istio's service; the node proves itself by a
//! certificate of its own, by its service account's token, or by both. [`ControllerIssuer::follow`] keeps the
//! roots up to date and tells the controller what this node trusts and holds.

mod follow;
mod report;
mod state;
mod update;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};

pub use report::ReportSource;

use super::istio::channel::Followed;
use super::istio::{IstioConfig, IstioIssuer};
use super::keeping::read_file;
use super::{CertError, Issued, Issuer, Nudge};
use crate::model::SpiffeId;
use crate::tls::TrustBundles;

/// Asks the controller for certificates, and follows what it says about roots.
pub struct ControllerIssuer {
    asked: IstioIssuer,
    /// What the controller is known by from now on.
    followed: watch::Sender<Option<Followed>>,
    /// Where that is kept.
    state: PathBuf,
    roots: watch::Sender<Option<TrustBundles>>,
    nudges: mpsc::UnboundedSender<Nudge>,
    /// Until the manager takes it.
    nudged: Mutex<Option<mpsc::UnboundedReceiver<Nudge>>>,
}

impl ControllerIssuer {
    /// Connects to nobody yet: a controller that is down must not keep the agent from starting. Reads what
    /// an earlier agent kept in the file `state`, and nothing that is wrong with it is an error.
    ///
    /// # Errors
    /// The address or an alternative host name is none, or there is nothing by which the node could prove
    /// itself.
    pub fn new(config: IstioConfig, state: PathBuf) -> Result<Self, String> {
        if config.client.is_none() && config.token_file.is_none() {
            return Err(
                "set clientCertificate and clientKey, or tokenFile: the node has to prove itself".into()
            );
        }
        let kept = state::load(&state, &config.trust_domain, SystemTime::now()).unwrap_or_else(|why| {
            tracing::warn!(state = %state.display(), why, rootCertificate = %config.root_certificate.display(),
                "the roots that were kept are not used: the controller is known by rootCertificate");
            None
        });
        let followed = watch::Sender::new(kept.clone());
        let root_file = read_file(&config.root_certificate).map_err(|e| e.source);
        let asked = IstioIssuer::following(config, Some(followed.subscribe()))?;
        // Of another file, as of none that can be used, the next call speaks.
        let counts =
            |kept: &Followed| asked.channels().choose(root_file).is_ok_and(|known| known.file == kept.file);
        let roots = kept.filter(counts).map(|kept| kept.roots);
        match &roots {
            Some(roots) => tracing::info!(
                roots = roots.roots(&asked.config().trust_domain).count(),
                state = %state.display(),
                "the controller is known by the roots that it brought"
            ),
            None if followed.borrow().is_some() => tracing::info!(
                rootCertificate = %asked.config().root_certificate.display(),
                "the file is another than when the controller was known by it: it counts again"
            ),
            None => {}
        }
        let roots = watch::Sender::new(roots);
        let (nudges, nudged) = mpsc::unbounded_channel();
        Ok(Self { asked, followed, state, roots, nudges, nudged: Mutex::new(Some(nudged)) })
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
