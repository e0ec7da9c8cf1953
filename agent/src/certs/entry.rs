//! One identity's certificate and the task that keeps it fresh.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use futures::FutureExt;
use tokio::sync::{Semaphore, watch};

use super::view::{CertState, CertView, rfc3339};
use super::{CertError, Clock, Identity, Issuer, renewal};
use crate::model::SpiffeId;

/// What every entry's task works with.
pub(super) struct Workshop {
    pub(super) issuer: Arc<dyn Issuer>,
    pub(super) clock: Clock,
    /// How long one call to the issuer may take.
    pub(super) deadline: Duration,
    /// How many calls may be under way at once.
    pub(super) slots: Semaphore,
    /// Uniform in 0.0..1.0.
    pub(super) die: Box<dyn Fn() -> f64 + Send + Sync>,
}

pub(super) struct Entry {
    identity: SpiffeId,
    current: ArcSwapOption<Identity>,
    progress: Mutex<Progress>,
    /// How the latest attempt ended; a new value for each attempt.
    outcome: watch::Sender<Option<CertError>>,
}

#[derive(Default)]
struct Progress {
    failures: u32,
    last_error: Option<CertError>,
    next_attempt: Option<SystemTime>,
}

impl Entry {
    pub(super) fn new(identity: SpiffeId) -> Self {
        Self {
            identity,
            current: ArcSwapOption::empty(),
            progress: Mutex::default(),
            outcome: watch::Sender::new(None),
        }
    }

    /// The certificate, if there is one that is valid at `now`.
    pub(super) fn current(&self, now: SystemTime) -> Option<Arc<Identity>> {
        self.current.load_full().filter(|identity| identity.certificate().is_valid_at(now))
    }

    /// The certificate as soon as there is a valid one; or why the next attempt to end failed.
    pub(super) async fn ready(&self, clock: &Clock) -> Result<Arc<Identity>, CertError> {
        let mut outcome = self.outcome.subscribe();
        loop {
            if let Some(identity) = self.current(clock.now()) {
                return Ok(identity);
            }
            if outcome.changed().await.is_err() {
                return Err(CertError::Issuer("the certificate manager has stopped".into()));
            }
            if let Some(error) = &*outcome.borrow_and_update() {
                return Err(error.clone());
            }
        }
    }

    /// Fetches, and renews for ever. The manager aborts it with the last lease.
    pub(super) async fn keep_fresh(self: Arc<Self>, workshop: Arc<Workshop>) {
        loop {
            let result = self.fetch(&workshop).await;
            let next = self.note(result, &workshop);
            workshop.clock.reach(next).await;
        }
    }

    async fn fetch(&self, workshop: &Workshop) -> Result<Identity, CertError> {
        // The semaphore is never closed; if it were, going on without a slot would be the lesser evil.
        let _slot = workshop.slots.acquire().await;
        // A panic in an issuer must not end the renewals of an identity for ever.
        let call = AssertUnwindSafe(async { workshop.issuer.issue(&self.identity).await }).catch_unwind();
        let issued = match tokio::time::timeout(workshop.deadline, call).await {
            Ok(Ok(answer)) => answer?,
            Ok(Err(_panic)) => return Err(CertError::Issuer("the issuer panicked: report it".into())),
            Err(_elapsed) => return Err(CertError::Deadline(workshop.deadline)),
        };
        Identity::from_issued(issued, &self.identity, workshop.clock.now())
    }

    /// Publishes how an attempt ended and says when the next is due.
    fn note(&self, result: Result<Identity, CertError>, workshop: &Workshop) -> SystemTime {
        let now = workshop.clock.now();
        let die = (workshop.die)();
        let mut progress = self.progress();
        let (next, error) = match result {
            Ok(identity) => {
                let certificate = identity.certificate().clone();
                let due_at =
                    if workshop.issuer.pushes() { renewal::pushed_due } else { renewal::renewal_due };
                let due = due_at(certificate.not_before(), certificate.not_after(), die);
                // An issuer that gives what is half used up already must not be asked in a tight loop.
                let due = due.max(now + renewal::backoff(1, die));
                tracing::info!(identity = %self.identity, serial = certificate.serial(),
                    not_after = rfc3339(certificate.not_after()), renewal_due = rfc3339(due), "certificate issued");
                self.current.store(Some(Arc::new(identity)));
                progress.failures = 0;
                (due, None)
            }
            Err(error) => {
                progress.failures = progress.failures.saturating_add(1);
                let held = self.current.load_full().map(|i| i.certificate().not_after());
                let at = renewal::retry_at(now, progress.failures, held, die);
                tracing::warn!(identity = %self.identity, failures = progress.failures,
                    retry_at = rfc3339(at), %error, "no certificate issued");
                (at, Some(error))
            }
        };
        progress.last_error = error.clone();
        progress.next_attempt = Some(next);
        drop(progress);
        self.outcome.send_replace(error);
        next
    }

    pub(super) fn view(&self, issuer: &str, leases: usize, now: SystemTime) -> CertView {
        let held = self.current.load_full();
        let certificate = held.as_ref().map(|identity| identity.certificate());
        let progress = self.progress();
        let state = match (certificate.map(|c| c.is_valid_at(now)), &progress.last_error) {
            (Some(true), None) => CertState::Valid,
            (Some(true), Some(_)) => CertState::RenewalFailing,
            (Some(false), _) => CertState::Expired,
            (None, None) => CertState::Fetching,
            (None, Some(_)) => CertState::Failed,
        };
        CertView {
            identity: self.identity.clone(),
            trust_domain: self.identity.trust_domain().clone(),
            state,
            serial: certificate.map(|c| c.serial().to_owned()),
            not_before: certificate.map(|c| rfc3339(c.not_before())),
            not_after: certificate.map(|c| rfc3339(c.not_after())),
            renewal_due: progress.next_attempt.map(rfc3339),
            chain_length: certificate.map_or(0, |c| c.chain().len()),
            authority: certificate.map(|c| c.issuer().to_owned()),
            issuer: issuer.to_owned(),
            leases,
            last_error: progress.last_error.as_ref().map(ToString::to_string),
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        // Plain fields that are each written whole: a panic elsewhere leaves them usable.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
