//! What `/healthz/ready` waits for.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::ca::attest::Attestor;
use crate::ca::{Authority, IssueError};
use crate::certs::backoff;
use crate::lifecycle::{Guard, Pending, Readiness};

/// What there is to wait for from the start.
pub(super) struct Guards {
    pub(super) authority: Guard,
    pub(super) port: Guard,
    pub(super) attestation: Guard,
}

impl Guards {
    pub(super) fn take(readiness: &Readiness) -> Self {
        let guard = |name, reason| {
            let guard = readiness.guard(name);
            guard.waits_for(reason);
            guard
        };
        Self {
            authority: guard("authority", "its files have not been read yet"),
            port: guard("port", "it does not listen yet"),
            attestation: guard("attestation", "nobody has said yet which nodes there are"),
        }
    }
}

/// What is waited for now, also what was there once and is no more.
pub(super) fn pending(readiness: &Readiness, authority: Option<&Authority>) -> Vec<Pending> {
    let mut pending = readiness.pending();
    if let Some(Err(why)) = authority.map(Authority::can_sign) {
        let seconds = if let IssueError::Expired(seconds) = why { seconds } else { 0 };
        pending.push(Pending { name: "authority".into(), reason: why.to_string(), seconds });
    }
    pending
}

/// Asks until there is an answer: before, no caller would be known. Then waits for `stop`.
pub(super) async fn attestation(attestor: &dyn Attestor, guard: Guard, stop: CancellationToken) {
    let answered = async {
        let mut failures = 0;
        while let Err(refusal) = attestor.expected().await {
            guard.waits_for(refusal.to_string());
            failures += 1;
            let wait = backoff(failures, rand::random()).min(LONGEST);
            tokio::time::sleep(wait).await;
        }
        guard.done();
    };
    stop.run_until_cancelled(answered).await;
    stop.cancelled().await;
}

/// A kubelet asks about as often.
const LONGEST: Duration = Duration::from_secs(10);

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    use std::time::SystemTime;

    use futures::future::BoxFuture;
    use futures::{FutureExt, StreamExt, stream};

    use super::*;
    use crate::ca::AuthorityConfig;
    use crate::ca::attest::{Changes, NodeName, Papers, Refusal};
    use crate::ca::hierarchy::{self, INTERMEDIATE_LIFETIME, ROOT_LIFETIME};
    use crate::certs::Clock;
    use crate::model::SpiffeId;

    struct Folder(PathBuf);

    impl Drop for Folder {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).ok();
        }
    }

    fn names(pending: &[Pending]) -> Vec<&str> {
        pending.iter().map(|p| p.name.as_str()).collect()
    }

    #[test]
    fn each_part_is_waited_for_by_name() {
        let readiness = Readiness::new();
        let Guards { authority, port, attestation } = Guards::take(&readiness);
        assert_eq!(names(&pending(&readiness, None)), ["authority", "port", "attestation"]);
        assert!(pending(&readiness, None).iter().all(|p| !p.reason.is_empty()));
        authority.done();
        port.done();
        assert_eq!(names(&pending(&readiness, None)), ["attestation"]);
        attestation.done();
        assert_eq!(pending(&readiness, None), []);
    }

    #[test]
    fn an_authority_out_of_its_time_is_not_ready() {
        let folder = std::env::temp_dir();
        let name = format!("underpass-ready-{}-{:016x}", std::process::id(), rand::random::<u64>());
        let folder = Folder(folder.join(name));
        let (domain, now) = ("mesh.test".parse().unwrap(), SystemTime::now());
        let (root, ca) = (folder.0.join("root"), folder.0.join("ca"));
        std::fs::create_dir(&folder.0).unwrap();
        hierarchy::make_root(&root, Some(&domain), ROOT_LIFETIME, now).unwrap();
        hierarchy::make_intermediate(&root, &ca, &domain, INTERMEDIATE_LIFETIME, now).unwrap();
        let ahead = Arc::new(AtomicU64::new(0));
        let clock = {
            let ahead = Arc::clone(&ahead);
            Clock::from_fn(move || now + Duration::from_secs(ahead.load(Ordering::SeqCst)))
        };
        let authority = Authority::open(&AuthorityConfig::new(&ca, domain), clock).unwrap();
        let readiness = Readiness::new();
        assert_eq!(pending(&readiness, Some(&authority)), []);
        ahead.store(INTERMEDIATE_LIFETIME.as_secs() + 60, Ordering::SeqCst);
        let said = pending(&readiness, Some(&authority));
        assert_eq!(names(&said), ["authority"]);
        assert!(said[0].reason.contains("ended") && (1..=60).contains(&said[0].seconds), "{said:?}");
        ahead.store(0, Ordering::SeqCst);
        assert_eq!(pending(&readiness, Some(&authority)), []);
    }

    /// Answers the third question.
    struct Slow(AtomicUsize);

    impl Attestor for Slow {
        fn who<'a>(&'a self, _: &'a Papers) -> BoxFuture<'a, Result<NodeName, Refusal>> {
            std::future::pending().boxed()
        }

        fn runs<'a>(&'a self, _: &'a NodeName, _: &'a SpiffeId) -> BoxFuture<'a, Result<(), Refusal>> {
            std::future::pending().boxed()
        }

        fn expected(&self) -> BoxFuture<'_, Result<Vec<String>, Refusal>> {
            let said = match self.0.fetch_add(1, Ordering::SeqCst) {
                0 | 1 => Err(Refusal::Unavailable("the API server is away".into())),
                _ => Ok(Vec::new()),
            };
            std::future::ready(said).boxed()
        }

        fn changes(&self) -> Changes {
            stream::pending().boxed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_not_ready_before_nodes_can_be_asked_about() {
        let (readiness, stop) = (Readiness::new(), CancellationToken::new());
        let Guards { authority, port, attestation: guard } = Guards::take(&readiness);
        authority.done();
        port.done();
        let slow = Slow(AtomicUsize::new(0));
        let mut asking = std::pin::pin!(attestation(&slow, guard, stop.clone()));
        assert!(asking.as_mut().now_or_never().is_none());
        let said = pending(&readiness, None);
        assert_eq!((names(&said), said[0].reason.as_str()), (vec!["attestation"], "the API server is away"));
        tokio::select! {
            () = asking.as_mut() => panic!("a part that ends stops the controller"),
            () = readiness.ready() => {}
        }
        assert_eq!(slow.0.load(Ordering::SeqCst), 3);
        stop.cancel();
        asking.await;
    }
}
