//! One identity's certificate and the task that keeps it fresh.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use futures::FutureExt;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use super::clock::{Deadline, LOOK};
use super::failures::Setback;
use super::identity::vouched;
use super::slots::Urgency;
use super::view::{CertState, CertView, link_views, rfc3339, seconds};
use super::workshop::{Signing, Workshop};
use super::{CertError, Clock, Identity, renewal};
use crate::model::SpiffeId;
use crate::tls::{Certificate, Trust, TrustBundles, Trusted, hex, rests_on};

pub(super) struct Entry {
    identity: SpiffeId,
    held: ArcSwap<Held>,
    /// Shared by all certificates that this identity has one after the other.
    trust: Trust,
    /// The roots that came with the newest certificate. Locked while `trust` is replaced.
    roots: Mutex<TrustBundles>,
    /// See [`Self::vouched_by`]: a certificate's number, what it was judged by, and the root.
    found: Mutex<Option<Found>>,
    progress: Mutex<Progress>,
    /// How the latest attempt ended; a new value for each attempt.
    outcome: watch::Sender<Option<CertError>>,
    urgency: Arc<Urgency>,
    /// To fetch now, whatever is planned.
    nudged: AtomicBool,
    /// To look again at what is to be done.
    wake: Notify,
}

/// At most one of both is used: the newer as soon as it is valid, the older until then.
#[derive(Default)]
struct Held {
    newest: Option<Arc<Identity>>,
    older: Option<Arc<Identity>>,
}

struct Progress {
    failures: u32,
    /// Certificates in a row that another authority had signed than `awaited`.
    strangers: u32,
    /// Who the issuer says signs now.
    awaited: Vec<u8>,
    last_error: Option<CertError>,
    next: Option<Deadline>,
    /// Whether `next` is there so that a failing issuer is not asked in a tight loop.
    is_retry: bool,
    /// Since when the issuer owes an answer.
    asked: Option<Instant>,
    /// The start of the newest certificate's validity against our clock when it was asked for, in seconds.
    /// Above zero, the issuer's clock is ahead of ours by so much at least.
    ahead: Option<f64>,
    skew_told: Option<Instant>,
}

type Found = (u64, Arc<Trusted>, Option<[u8; 32]>);

/// Who vouches for a certificate that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VouchedBy {
    pub identity: SpiffeId,
    /// The key identifier of the authority that signed it.
    pub authority: Vec<u8>,
    /// SHA-256 of the root that it rests on; `None` when it rests on none that is trusted.
    pub root: Option<[u8; 32]>,
}

struct Fetched {
    identity: Identity,
    roots: TrustBundles,
    asked: SystemTime,
}

impl Held {
    fn at(&self, now: SystemTime) -> Option<&Arc<Identity>> {
        let valid = |identity: &&Arc<Identity>| identity.certificate().is_valid_at(now);
        self.newest.as_ref().filter(valid).or_else(|| self.older.as_ref().filter(valid))
    }
}

impl Progress {
    /// Answers of the former authority say nothing of the next one's.
    fn await_authority(&mut self, signing: &Signing) {
        if self.awaited != signing.authority {
            self.awaited.clone_from(&signing.authority);
            self.strangers = 0;
        }
    }

    /// How long until a certificate of `signing` is asked for: longer each time that another's came instead.
    fn pause_for(&self, signing: &Signing, die: f64) -> Duration {
        let pause = match self.strangers {
            0 => Duration::ZERO,
            strangers => Duration::from_secs(1 << strangers.min(20)),
        };
        signing.within.mul_f64(die.clamp(0.0, 1.0)).max(pause)
    }
}

impl Entry {
    /// `before` is what a former holder has left.
    pub(super) fn new(identity: SpiffeId, workshop: &Workshop, before: Option<Setback>) -> Self {
        let trusted = workshop.compose_for(&identity, &TrustBundles::new());
        Self {
            identity,
            held: ArcSwap::default(),
            trust: Trust::counted(trusted, &workshop.in_use),
            roots: Mutex::default(),
            found: Mutex::default(),
            progress: Mutex::new(Progress {
                failures: before.as_ref().map_or(0, |b| b.failures),
                strangers: 0,
                awaited: Vec::new(),
                is_retry: before.is_some(),
                next: before.as_ref().map(|b| b.next),
                last_error: before.map(|b| b.error),
                asked: None,
                ahead: None,
                skew_told: None,
            }),
            outcome: watch::Sender::new(None),
            urgency: Arc::default(),
            nudged: AtomicBool::new(false),
            wake: Notify::new(),
        }
    }

    pub(super) fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// The certificate, if there is one that is valid at `now`. Not to have one is a reason to hurry.
    pub(super) fn current(&self, now: SystemTime) -> Option<Arc<Identity>> {
        let current = self.usable(now);
        if current.is_none() && self.urgency.miss() {
            self.wake.notify_one();
        }
        current
    }

    fn usable(&self, now: SystemTime) -> Option<Arc<Identity>> {
        self.held.load().at(now).cloned()
    }

    /// The certificate as soon as there is a valid one; or why the next attempt to end failed.
    pub(super) async fn ready(&self, clock: &Clock) -> Result<Arc<Identity>, CertError> {
        let mut outcome = self.outcome.subscribe();
        loop {
            if let Some(identity) = self.usable(clock.now()) {
                return Ok(identity);
            }
            self.wake.notify_one();
            if outcome.changed().await.is_err() {
                return Err(CertError::Issuer("the certificate manager has stopped".into()));
            }
            if let Some(error) = &*outcome.borrow_and_update() {
                return Err(error.clone());
            }
        }
    }

    /// Ready when a newer certificate than `held` serves; or, with `by_others`, one that another authority has
    /// signed. Never, once the manager is gone.
    pub(super) async fn superseded(&self, clock: &Clock, held: &Identity, by_others: bool) {
        let mut outcome = self.outcome.subscribe();
        let authority = held.certificate().authority_key_id();
        loop {
            let newer = self.usable(clock.now()).filter(|newest| newest.number() != held.number());
            if newer.is_some_and(|n| !by_others || n.certificate().authority_key_id() != authority) {
                return;
            }
            if outcome.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    pub(super) fn last_error(&self) -> Option<CertError> {
        self.progress().last_error.clone()
    }

    /// What a later holder goes on with: the back-off of an issuer that failed, also by no answer.
    pub(super) fn setback(&self, workshop: &Workshop) -> Option<Setback> {
        let mut progress = self.progress();
        if let Some(took) = progress.asked.map(|at| at.elapsed()).filter(|took| *took >= SLOW) {
            progress.failures = progress.failures.saturating_add(1);
            progress.last_error = Some(CertError::Deadline(took));
            let at = renewal::retry_at(workshop.clock.now(), progress.failures, None, (workshop.die)());
            progress.next = Some(workshop.clock.deadline(at));
        }
        let Progress { failures, last_error: Some(error), next: Some(next), .. } = &*progress else {
            return None;
        };
        Some(Setback { failures: *failures, error: error.clone(), next: *next })
    }

    pub(super) fn urgency(&self) -> &Urgency {
        &self.urgency
    }

    /// Fetches, and renews for ever. The manager aborts it with the last lease.
    pub(super) async fn keep_fresh(self: Arc<Self>, workshop: Arc<Workshop>) {
        if self.progress().is_retry {
            self.rest(&workshop).await;
        }
        loop {
            let started = Instant::now();
            self.nudged.store(false, Ordering::Relaxed);
            let result = self.fetch(&workshop).await;
            workshop.count(
                started.elapsed(),
                result.as_ref().err(),
                self.usable(workshop.clock.now()).is_some(),
            );
            self.note(result, &workshop);
            self.rest(&workshop).await;
        }
    }

    /// Waits for the next attempt's time, or for a reason not to.
    async fn rest(&self, workshop: &Workshop) {
        let clock = &workshop.clock;
        loop {
            let (next, is_retry) = {
                let progress = self.progress();
                (progress.next.unwrap_or_else(|| clock.deadline(clock.now())), progress.is_retry)
            };
            tokio::select! {
                () = clock.reached(next) => return,
                () = self.until_newest_is_valid(clock) => self.settle(clock.now()),
                () = self.wake.notified() => {}
                () = sleep(LOOK) => {}
            }
            // When the clock was set, a certificate may have lost its validity without a timer to tell.
            let lacks_one = !is_retry && self.usable(clock.now()).is_none();
            if self.nudged.load(Ordering::Relaxed) || lacks_one {
                return;
            }
        }
    }

    async fn until_newest_is_valid(&self, clock: &Clock) {
        let held = self.held.load_full();
        let later = |i: &&Arc<Identity>| i.certificate().not_before() > clock.now();
        match held.newest.as_ref().filter(later) {
            Some(newest) => clock.reach(newest.certificate().not_before()).await,
            None if held.older.is_some()
                && held.newest.as_ref().is_some_and(|n| n.certificate().is_valid_at(clock.now())) => {}
            None => std::future::pending().await,
        }
    }

    /// Lets the older go once the newest serves.
    fn settle(&self, now: SystemTime) {
        let held = self.held.load_full();
        let Some(newest) = held.newest.as_ref().filter(|n| n.certificate().is_valid_at(now)) else { return };
        self.held.store(Arc::new(Held { newest: Some(newest.clone()), older: None }));
        self.urgency.served(newest.certificate().not_before(), newest.certificate().not_after());
        self.outcome.send_replace(None);
    }

    async fn fetch(&self, workshop: &Workshop) -> Result<Fetched, CertError> {
        let _slot = workshop.slots.take(self.urgency.clone()).await;
        let asked = workshop.clock.now();
        self.progress().asked = Some(Instant::now());
        // A panic in an issuer must not end the renewals of an identity for ever.
        let call = AssertUnwindSafe(async { workshop.issuer.issue(&self.identity).await }).catch_unwind();
        let issued = match tokio::time::timeout(workshop.deadline, call).await {
            Ok(Ok(answer)) => answer?,
            Ok(Err(_panic)) => return Err(CertError::Issuer("the issuer panicked: report it".into())),
            Err(_elapsed) => return Err(CertError::Deadline(workshop.deadline)),
        };
        let roots = issued.roots.clone();
        let trusted = workshop.compose_for(&self.identity, &roots);
        let now = workshop.clock.now();
        let identity = Identity::from_issued(issued, &self.identity, &trusted, &self.trust, now);
        match identity {
            Ok(identity) => Ok(Fetched { identity, roots, asked }),
            Err(CertError::Certificate(source)) if workshop.issuer_keeps_roots() && source.is_unvouched() => {
                Err(CertError::NotVouched { issuer: workshop.issuer.name().into(), source: Box::new(source) })
            }
            Err(other) => Err(other),
        }
    }

    /// Publishes how an attempt ended and plans the next.
    fn note(&self, result: Result<Fetched, CertError>, workshop: &Workshop) {
        let now = workshop.clock.now();
        let die = (workshop.die)();
        let taken = result.map(|fetched| self.take(fetched, workshop, now));
        let held = self.held.load_full();
        let usable = held.at(now).map(|i| i.certificate().not_after());
        let mut progress = self.progress();
        progress.asked = None;
        let error = match &taken {
            Ok((certificate, ahead)) => {
                progress.ahead = Some(*ahead);
                self.tell_skew(&mut progress, certificate, *ahead, now);
                // Nothing is valid until the newest is: to ask again may be sooner.
                let gap = usable.is_none_or(|end| end < certificate.not_before());
                (gap && now < certificate.not_before()).then(|| CertError::NotYet {
                    identity: self.identity.clone(),
                    not_before: rfc3339(certificate.not_before()),
                    now: rfc3339(now),
                    ahead: ahead.max(0.0).ceil() as u64,
                })
            }
            Err(error) => Some(error.clone()),
        };
        let next = match (&error, &taken) {
            (None, Ok((certificate, _))) => {
                progress.failures = 0;
                self.plan_renewal(&mut progress, certificate, workshop, now, die)
            }
            (Some(error), _) => {
                progress.failures = progress.failures.saturating_add(1);
                let at = renewal::retry_at(now, progress.failures, usable, die);
                tracing::warn!(identity = %self.identity, failures = progress.failures,
                    retry_at = rfc3339(at), %error, "no certificate issued that can be used now");
                at
            }
            (None, Err(_)) => now,
        };
        progress.is_retry = error.is_some();
        progress.last_error = error.clone();
        progress.next = Some(workshop.clock.deadline(next));
        drop(progress);
        self.outcome.send_replace(error);
    }

    /// Puts a new certificate in force, after the trust that it was checked against.
    fn take(&self, fetched: Fetched, workshop: &Workshop, now: SystemTime) -> (Certificate, f64) {
        let Fetched { identity, roots, asked } = fetched;
        {
            let mut held = self.roots();
            *held = roots;
            self.trust.set(workshop.compose_for(&self.identity, &held));
        }
        let certificate = identity.certificate().clone();
        let ahead = seconds(certificate.not_before(), asked);
        let before = self.held.load_full();
        let valid = certificate.is_valid_at(now);
        // Each answer of an issuer that is ahead begins later than the one before: the first is kept, or none
        // would ever begin.
        let sooner = before.newest.as_ref().filter(|newest| {
            let waits = newest.certificate();
            !valid && now < waits.not_before() && waits.not_before() <= certificate.not_before()
        });
        if let Some(sooner) = sooner {
            return (sooner.certificate().clone(), ahead);
        }
        let older = if valid { None } else { before.at(now).cloned() };
        self.held.store(Arc::new(Held { newest: Some(Arc::new(identity)), older }));
        if valid {
            self.urgency.served(certificate.not_before(), certificate.not_after());
        }
        (certificate, ahead)
    }

    fn plan_renewal(
        &self,
        progress: &mut Progress,
        certificate: &Certificate,
        workshop: &Workshop,
        now: SystemTime,
        die: f64,
    ) -> SystemTime {
        let due_at = if workshop.issuer.pushes() { renewal::pushed_due } else { renewal::renewal_due };
        let due = due_at(certificate.not_before(), certificate.not_after(), die);
        // Past half of its life when it comes, as when our clock is ahead: at half of what is left, for the
        // next will be no better.
        let due = if due > now { due } else { due_at(now, certificate.not_after(), die) };
        // Never in a tight loop.
        let mut due = due.max(now + renewal::backoff(1, die));
        match workshop.signing().filter(|s| s.is_other(certificate)) {
            // The answer was on its way when the authority changed, or a replica is behind.
            Some(signing) => {
                progress.await_authority(&signing);
                progress.strangers = progress.strangers.saturating_add(1);
                due = due.min(now + progress.pause_for(&signing, die));
            }
            None => progress.strangers = 0,
        }
        tracing::info!(identity = %self.identity, serial = certificate.serial(),
            not_after = rfc3339(certificate.not_after()), renewal_due = rfc3339(due), "certificate issued");
        due
    }

    fn tell_skew(&self, progress: &mut Progress, certificate: &Certificate, ahead: f64, now: SystemTime) {
        if certificate.not_before() <= now || progress.skew_told.is_some_and(|t| t.elapsed() < QUIET) {
            return;
        }
        progress.skew_told = Some(Instant::now());
        tracing::warn!(identity = %self.identity, not_before = rfc3339(certificate.not_before()),
            now = rfc3339(now), ahead_at_least = format!("{ahead:.0} s"),
            "the issuer's clock is ahead of this node's: the certificate is used once it is valid here; \
             compare the clocks");
    }

    /// Fetches now.
    pub(super) fn nudge(&self) {
        self.nudged.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// Renews within `workshop`'s newest word on who signs, if somebody else has signed what is held.
    pub(super) fn heed_signing(&self, workshop: &Workshop) {
        let Some(signing) = workshop.signing() else { return };
        let mut progress = self.progress();
        let held = self.held.load_full();
        let Some(newest) = held.newest.as_ref() else { return };
        if progress.is_retry || !signing.is_other(newest.certificate()) {
            return;
        }
        progress.await_authority(&signing);
        let at = workshop.clock.now() + progress.pause_for(&signing, (workshop.die)());
        if progress.next.is_none_or(|next| at < next.at) {
            progress.next = Some(workshop.clock.deadline(at));
            drop(progress);
            self.wake.notify_one();
        }
    }

    /// Puts changed roots and revocations in force, and asks anew if they speak against what is held.
    pub(super) fn recompose(&self, workshop: &Workshop) {
        let trusted = {
            let roots = self.roots();
            let trusted = workshop.compose_for(&self.identity, &roots);
            self.trust.set(trusted.clone());
            trusted
        };
        let held = self.held.load_full();
        let Some(newest) = &held.newest else { return };
        let certificate = newest.certificate();
        let at = workshop.clock.now().min(certificate.not_after());
        if let Err(error) = vouched(certificate, &trusted, at) {
            tracing::warn!(identity = %self.identity, %error,
                "peers with our roots do not take the certificate in use: fetching another");
            self.nudge();
        }
    }

    pub(super) fn trusted(&self) -> Arc<Trusted> {
        self.trust.now()
    }

    /// Whom the certificate is signed by, that is or will be presented, and the root that it rests on. Asked
    /// every second, so the root is found once for a certificate and a state of trust.
    pub(super) fn vouched_by(&self, now: SystemTime) -> Option<VouchedBy> {
        let held = self.held.load_full();
        let waits = |i: &&Arc<Identity>| now < i.certificate().not_before();
        let shown = held.at(now).or(held.newest.as_ref().filter(waits))?;
        let certificate = shown.certificate();
        let trusted = self.trust.now();
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            found.as_ref().filter(|(number, by, _)| *number == shown.number() && Arc::ptr_eq(by, &trusted));
        let root = match known {
            Some((_, _, root)) => *root,
            None => {
                let at = now.max(certificate.not_before());
                let root = rests_on(certificate.chain(), &trusted, at).ok();
                *found = Some((shown.number(), trusted, root));
                root
            }
        };
        Some(VouchedBy {
            identity: self.identity.clone(),
            authority: certificate.authority_key_id().unwrap_or_default().to_vec(),
            root,
        })
    }

    pub(super) fn view(&self, issuer: &str, leases: usize, now: SystemTime) -> CertView {
        let held = self.held.load_full();
        let shown = held.at(now).or(held.newest.as_ref());
        let certificate = shown.map(|identity| identity.certificate());
        let trusted = self.trust.now();
        let root = certificate.and_then(|c| rests_on(c.chain(), &trusted, now.max(c.not_before())).ok());
        let progress = self.progress();
        let state = match (certificate, &progress.last_error) {
            (Some(c), None) if c.is_valid_at(now) => CertState::Valid,
            (Some(c), Some(_)) if c.is_valid_at(now) => CertState::RenewalFailing,
            (Some(c), _) if now < c.not_before() => CertState::NotYetValid,
            (Some(_), _) => CertState::Expired,
            (None, None) => CertState::Fetching,
            (None, Some(_)) => CertState::Failed,
        };
        let own = self.identity.trust_domain();
        CertView {
            identity: self.identity.clone(),
            trust_domain: own.clone(),
            state,
            serial: certificate.map(|c| c.serial().to_owned()),
            not_before: certificate.map(|c| rfc3339(c.not_before())),
            not_after: certificate.map(|c| rfc3339(c.not_after())),
            expires_in_seconds: certificate.map(|c| seconds(c.not_after(), now)),
            renewal_due: progress.next.map(|next| rfc3339(next.at)),
            chain_length: certificate.map_or(0, |c| c.chain().len()),
            chain: certificate
                .map_or_else(Vec::new, |c| link_views(c, root.as_ref(), trusted.bundles.roots(own), now)),
            authority: certificate.map(|c| c.issuer().to_owned()),
            authority_key_id: certificate.and_then(Certificate::authority_key_id).map(hex),
            root_sha256: root.map(|digest| hex(&digest)),
            issuer: issuer.to_owned(),
            issuer_ahead_seconds: progress.ahead,
            leases,
            last_error: progress.last_error.as_ref().map(ToString::to_string),
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        // Plain fields that are each written whole: a panic elsewhere leaves them usable.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn roots(&self) -> MutexGuard<'_, TrustBundles> {
        self.roots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that has taken so long and is given up counts as failed.
const SLOW: Duration = Duration::from_secs(5);

/// Between two complaints about one identity's clock skew.
const QUIET: Duration = Duration::from_secs(600);
