//! The controller's own certificate, which it signs for itself and keeps in memory.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;

use crate::ca::{Authority, IssueError};
use crate::certs::{Clock, backoff, renewal_due};
use crate::tls::provider;

/// The newest certificate. Clones share it.
#[derive(Clone)]
pub struct ServerCertificate {
    now: Arc<ArcSwap<CertifiedKey>>,
}

#[derive(Debug, thiserror::Error)]
pub enum PapersError {
    #[error("the controller's own certificate: {0}")]
    Issue(#[from] IssueError),
    #[error("the controller's own certificate is unusable: {0}")]
    Unusable(String),
}

impl ServerCertificate {
    /// The first one, for these host names or addresses, and the task that keeps it fresh until `stop`: at
    /// half of its life, and whenever the authority is another one.
    pub fn new(
        authority: &Authority,
        names: Vec<String>,
        stop: CancellationToken,
    ) -> Result<(Self, impl Future<Output = ()> + Send + use<>), PapersError> {
        let (first, due) = make(authority, &names)?;
        let this = Self { now: Arc::new(ArcSwap::from_pointee(first)) };
        let (held, authority) = (this.clone(), authority.clone());
        let fresh = async move {
            stop.run_until_cancelled(held.keep_fresh(authority, names, due)).await;
        };
        Ok((this, fresh))
    }

    async fn keep_fresh(&self, authority: Authority, names: Vec<String>, mut due: SystemTime) {
        let (clock, mut state, mut failures) = (Clock::system(), authority.state(), 0);
        loop {
            tokio::select! {
                () = clock.reach(due) => {}
                changed = state.changed() => if changed.is_err() { return },
            }
            match make(&authority, &names) {
                Ok((certificate, next)) => {
                    self.now.store(Arc::new(certificate));
                    (due, failures) = (next, 0);
                }
                Err(e) => {
                    failures += 1;
                    due = clock.now() + backoff(failures, rand::random());
                    tracing::warn!("the controller keeps the certificate that it has: {e}");
                }
            }
        }
    }
}

fn make(authority: &Authority, names: &[String]) -> Result<(CertifiedKey, SystemTime), PapersError> {
    let papers = authority.server(names, None)?;
    let least = Clock::system().now() + Duration::from_secs(1);
    let due = renewal_due(papers.not_before, papers.not_after, rand::random()).max(least);
    let key = CertifiedKey::from_der(papers.chain, papers.key.clone_key(), &provider())
        .map_err(|e| PapersError::Unusable(e.to_string()))?;
    Ok((key, due))
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now.load_full())
    }
}

impl fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCertificate").finish_non_exhaustive()
    }
}
