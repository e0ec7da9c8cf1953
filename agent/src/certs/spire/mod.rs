//! SPIRE, by its agent's Delegated Identity API: certificates and keys of the pods on this node, and roots by
//! trust domain, streamed whenever they change.
//!
//! The SPIRE agent has to list the identity of this agent among its `authorized_delegates`. It then believes
//! the selectors that it is given, so whoever can be this agent can be any pod that it has an entry for.

mod answer;
mod bundles;
mod channel;
mod failure;
mod subscription;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tonic::transport::Channel;
use zeroize::Zeroizing;

use self::subscription::Subscription;
use super::{CertError, Issued, Issuer, Nudge};
use crate::model::{SpiffeId, TrustDomain};
use crate::tls::TrustBundles;

/// Which SPIRE agent is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpireConfig {
    /// Its admin socket.
    pub admin_socket: PathBuf,
    /// The only trust domain that is asked for.
    pub trust_domain: TrustDomain,
    /// How long an answer may take: a little less than the manager allows, so that the error is ours, which
    /// says more.
    pub deadline: Duration,
}

/// Follows a SPIRE agent: one stream for each identity that is asked for, and one for the roots.
pub struct SpireIssuer {
    shared: Arc<Shared>,
    bundles: AbortHandle,
    /// Until the manager takes it.
    nudged: Mutex<Option<mpsc::UnboundedReceiver<Nudge>>>,
}

struct Shared {
    config: SpireConfig,
    channel: Channel,
    /// What the manager sees of `known`.
    roots: watch::Sender<Option<TrustBundles>>,
    known: watch::Sender<Known>,
    nudges: mpsc::UnboundedSender<Nudge>,
    subscriptions: Mutex<HashMap<SpiffeId, Subscription>>,
}

/// What there is of something that is streamed, and why there is nothing newer.
struct Streamed<T> {
    value: Option<T>,
    error: Option<CertError>,
}

type Known = Streamed<TrustBundles>;

impl<T> Default for Streamed<T> {
    fn default() -> Self {
        Self { value: None, error: None }
    }
}

impl SpireIssuer {
    /// Must be called within a tokio runtime. A SPIRE agent that is down does not matter yet.
    pub fn new(config: SpireConfig) -> Self {
        let (nudges, nudged) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            channel: channel::open(&config.admin_socket),
            config,
            roots: watch::Sender::new(None),
            known: watch::Sender::default(),
            nudges,
            subscriptions: Mutex::default(),
        });
        let bundles = tokio::spawn(bundles::follow(shared.clone())).abort_handle();
        Self { shared, bundles, nudged: Mutex::new(Some(nudged)) }
    }

    async fn fetch(&self, identity: &SpiffeId) -> Result<Issued, CertError> {
        let (svid, roots) = tokio::join!(
            subscription::newest(&self.shared, identity),
            self.within(newest(self.shared.known.subscribe()), "roots"),
        );
        let (svid, roots) = (svid?, roots?);
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.key.to_vec()));
        Ok(Issued { chain: svid.chain.clone(), key: Zeroizing::new(key), roots })
    }

    async fn within<T>(
        &self,
        wait: impl Future<Output = Result<T, CertError>>,
        what: &str,
    ) -> Result<T, CertError> {
        let waited = tokio::time::timeout(self.shared.config.deadline, wait).await;
        waited.unwrap_or_else(|_elapsed| Err(failure::late(&self.shared.config, what)))
    }
}

/// The value as soon as there is one, or why there is none.
async fn newest<T: Clone>(mut streamed: watch::Receiver<Streamed<T>>) -> Result<T, CertError> {
    let known = streamed.wait_for(|s| s.value.is_some() || s.error.is_some()).await;
    let known = known.map_err(|_closed| CertError::Issuer("the issuer has stopped".into()))?;
    match &*known {
        Streamed { value: Some(value), .. } => Ok(value.clone()),
        Streamed { error, .. } => Err(error.clone().unwrap_or(CertError::Issuer("nothing came".into()))),
    }
}

impl Shared {
    fn subscriptions(&self) -> MutexGuard<'_, HashMap<SpiffeId, Subscription>> {
        // No code of ours panics while holding it, and each change to the table is a single step.
        self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Issuer for SpireIssuer {
    fn issue<'a>(&'a self, identity: &'a SpiffeId) -> BoxFuture<'a, Result<Issued, CertError>> {
        async move {
            if identity.trust_domain() != &self.shared.config.trust_domain {
                return Err(CertError::Refused {
                    issuer: self.name().into(),
                    identity: identity.clone(),
                    why: format!("its trust domain is {}", self.shared.config.trust_domain),
                });
            }
            self.fetch(identity).await
        }
        .boxed()
    }

    fn name(&self) -> &str {
        "spire"
    }

    fn pushes(&self) -> bool {
        true
    }

    fn roots(&self) -> Option<watch::Receiver<Option<TrustBundles>>> {
        Some(self.shared.roots.subscribe())
    }

    /// Nobody's before the first certificate.
    fn federates(&self, identity: &SpiffeId) -> Option<BTreeSet<TrustDomain>> {
        let subscriptions = self.shared.subscriptions();
        Some(subscriptions.get(identity).map(Subscription::federates).unwrap_or_default())
    }

    fn nudges(&self) -> Option<mpsc::UnboundedReceiver<Nudge>> {
        // It is taken as a whole, so a panic elsewhere leaves it usable.
        self.nudged.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for SpireIssuer {
    fn drop(&mut self) {
        self.bundles.abort();
        self.shared.subscriptions().drain().for_each(|(_, subscription)| subscription.stop());
    }
}

impl fmt::Debug for SpireIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpireIssuer").field("config", &self.shared.config).finish_non_exhaustive()
    }
}
