//! The stream on which the controller brings roots and hears of what the node holds.

use std::time::{Duration, SystemTime};

use futures::Stream;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Status, Streaming};
use underpass_proto::underpass::v1::trust_service_client::TrustServiceClient;
use underpass_proto::underpass::v1::{AgentReport, TrustUpdate};

use super::update::{self, Update};
use super::{ControllerIssuer, ReportSource, report, state};
use crate::certs::istio::channel::{Followed, Known, Unfinished};
use crate::certs::istio::{answer, failure, request};
use crate::certs::{Nudge, renewal};

/// How often the agent looks whether there is anything new to report.
const LOOK: Duration = Duration::from_secs(1);
/// The same while an update is still being put into force.
const LOOK_SOON: Duration = Duration::from_millis(50);
/// At least so long between two updates that are acted on, whatever the controller sends.
const PAUSE: Duration = Duration::from_millis(100);
/// How long after roots could not be kept it is tried again.
const KEEP_AGAIN: Duration = Duration::from_secs(1);
/// How long after their time certificates of another authority may be there before they are asked for again.
const LATE: Duration = Duration::from_secs(60);

pub(super) struct Follower<'a> {
    issuer: &'a ControllerIssuer,
    source: &'a dyn ReportSource,
    /// The newest update that was taken.
    taken: Option<Update>,
    /// The newest whose roots every handshake is judged by.
    in_force: String,
    /// The newest update was of this revision, and was refused.
    refused: Option<u64>,
    /// What is on the disk.
    kept: Option<Followed>,
    /// When keeping what is followed now is tried again, after it failed.
    keep_again: Option<Instant>,
    /// When certificates of other authorities should all be gone.
    renewed_by: Option<Instant>,
}

impl<'a> Follower<'a> {
    pub(super) fn new(issuer: &'a ControllerIssuer, source: &'a dyn ReportSource) -> Self {
        let kept = issuer.followed.borrow().clone();
        Self {
            issuer,
            source,
            taken: None,
            in_force: String::new(),
            refused: None,
            kept,
            keep_again: None,
            renewed_by: None,
        }
    }

    pub(super) async fn run(&mut self) {
        let mut failures = 0_u32;
        loop {
            let (why, heard) = match self.open().await {
                Ok(opened) => match self.stay(opened).await {
                    Ended::Lost(why) => (why, true),
                    Ended::Doubted(what) => {
                        tracing::info!("{what}: the controller has to prove itself anew");
                        continue;
                    }
                },
                Err(why) => (why, false),
            };
            // Whoever accepts and ends the stream at once must not be asked in a tight loop.
            failures = if heard { 1 } else { failures.saturating_add(1) };
            let wait = renewal::backoff(failures, rand::random());
            tracing::warn!(
                failures,
                retry_in = format!("{wait:.1?}"),
                error = why,
                "not in touch with the controller; the roots of before stay in force"
            );
            tokio::time::sleep(wait).await;
        }
    }

    /// Until the first update is there.
    async fn open(&mut self) -> Result<Opened, String> {
        let config = self.issuer.asked.config();
        let (channel, unfinished, known) =
            self.issuer.asked.channels().get().await.map_err(|e| e.to_string())?;
        let mut client = TrustServiceClient::new(channel).max_decoding_message_size(answer::MOST_BYTES);
        let reports = watch::Sender::new(self.report());
        let mut request = Request::new(newest(reports.subscribe()));
        request::credentials(config, request.metadata_mut()).await.map_err(|e| e.to_string())?;
        let opened = async {
            let mut updates = client.follow(request).await?.into_inner();
            let first = updates.message().await?;
            Ok::<_, Status>((updates, first))
        };
        match tokio::time::timeout(config.deadline, opened).await {
            Ok(Ok((updates, Some(first)))) => {
                unfinished.finished();
                Ok(Opened { updates, first, reports, known })
            }
            Ok(Ok((_, None))) => Err(self.told("the stream ended before the first update")),
            Ok(Err(status)) => Err(self.ended(&status, Some(unfinished))),
            Err(_elapsed) => Err(self.told(&format!("no update within {} s", config.deadline.as_secs_f32()))),
        }
    }

    /// Until the stream ends; says why it did.
    async fn stay(&mut self, opened: Opened) -> Ended {
        let Opened { mut updates, first, reports, known } = opened;
        let file = known.file;
        self.take(first, file);
        loop {
            self.keep().await;
            let pending = self.taken.as_ref().is_some_and(|taken| taken.version != self.in_force);
            tokio::select! {
                update = updates.message() => match update {
                    Ok(Some(update)) => {
                        if let Some(what) = self.doubted(&known).await {
                            return Ended::Doubted(what);
                        }
                        self.take(update, file);
                        self.keep().await;
                        tokio::time::sleep(PAUSE).await;
                    }
                    Ok(None) => return Ended::Lost(self.told("the stream was ended by the controller")),
                    Err(status) => return Ended::Lost(self.ended(&status, None)),
                },
                () = tokio::time::sleep(if pending { LOOK_SOON } else { LOOK }) => {}
            }
            if let Some(what) = self.doubted(&known).await {
                return Ended::Doubted(what);
            }
            let report = self.report();
            self.ask_again(&report);
            reports.send_if_modified(|sent| {
                let differs = *sent != report;
                *sent = report;
                differs
            });
        }
    }

    /// What has changed of that by which the controller was `known`. Else an impostor whom the operator has just
    /// ruled out would go on being believed.
    async fn doubted(&self, known: &Known) -> Option<&'static str> {
        match self.issuer.asked.channels().known().await {
            Ok(now) if now.file != known.file => Some("rootCertificate was replaced"),
            Ok(now) if now.revoked != known.revoked => Some("the revocation lists have changed"),
            _ => None,
        }
    }

    /// `file`: SHA-256 of the root file that counted when the controller proved itself.
    fn take(&mut self, update: TrustUpdate, file: [u8; 32]) {
        let domain = &self.issuer.asked.config().trust_domain;
        let revision = update.revision;
        let (update, others) = match update::read(update, domain, SystemTime::now()) {
            Ok(read) => read,
            Err(why) => {
                tracing::warn!(
                    why,
                    "an update of the controller's is refused; the roots of before stay in force"
                );
                self.refused = Some(revision);
                return;
            }
        };
        if let Some(holds) = self.holds(file)
            && update.revision < holds
        {
            if self.refused.replace(update.revision) != Some(update.revision) {
                tracing::warn!(
                    revision = update.revision,
                    holds,
                    "an update of an earlier revision is refused: the controller lags behind, or works on an old \
                     copy of its folder (docs/identity.md, \"A folder from a backup\")"
                );
            }
            return;
        }
        self.refused = None;
        let (roots, revision) = (update.roots.clone(), update.revision);
        self.issuer.followed.send_replace(Some(Followed { roots, revision, file }));
        if self.taken.as_ref() == Some(&update) {
            return;
        }
        if !others.is_empty() {
            tracing::warn!(domains = ?others, trust_domain = %domain,
                "the controller's roots for other trust domains are left alone");
        }
        tracing::info!(
            version = update.version,
            revision = update.revision,
            roots = update.roots.roots(domain).count(),
            "roots from the controller"
        );
        // First the roots: what is issued from now on may rest on a new one.
        self.issuer.roots.send_if_modified(|held| {
            let differs = held.as_ref() != Some(&update.roots);
            *held = Some(update.roots.clone());
            differs
        });
        let asked = |u: &Update| (u.authority.clone(), u.renew_within);
        let known = self.taken.as_ref().map(asked) == Some(asked(&update));
        self.taken = Some(update);
        if !known {
            self.nudge();
        }
    }

    /// The revision of what is held, if the controller was known by this root file then too: an operator who
    /// names another one may have to undo what somebody else has told.
    fn holds(&self, file: [u8; 32]) -> Option<u64> {
        self.issuer.followed.borrow().as_ref().filter(|held| held.file == file).map(|held| held.revision)
    }

    /// Writes down what the controller is to be known by after a restart. Until that is done nothing is
    /// acknowledged: the rotation goes on then, and a restarted agent would not find the controller.
    async fn keep(&mut self) {
        if self.is_kept() || self.keep_again.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let Some(followed) = self.issuer.followed.borrow().clone() else { return };
        let (path, domain) = (self.issuer.state.clone(), self.issuer.asked.config().trust_domain.clone());
        let saved =
            tokio::task::spawn_blocking(move || state::save(&path, &domain, &followed).map(|()| followed));
        match saved.await {
            Ok(Ok(followed)) => (self.kept, self.keep_again) = (Some(followed), None),
            Ok(Err(error)) => {
                if self.keep_again.is_none() {
                    tracing::error!(%error, "the controller's roots cannot be kept for a restart, and are not \
                        acknowledged before: make room in the folder of certificates.controller.state");
                }
                self.keep_again = Some(Instant::now() + KEEP_AGAIN);
            }
            Err(panicked) => tracing::error!("keeping the controller's roots failed: {panicked}"),
        }
    }

    fn is_kept(&self) -> bool {
        self.kept == *self.issuer.followed.borrow()
    }

    fn nudge(&mut self) {
        self.renewed_by = None;
        let Some(Update { authority, renew_within: Some(within), .. }) = &self.taken else { return };
        self.renewed_by = Some(Instant::now() + *within + LATE);
        // Without a manager nobody has certificates.
        self.issuer.nudges.send(Nudge::SignedByOthers { authority: authority.clone(), within: *within }).ok();
    }

    /// A replica that lagged behind may have signed with the former authority after the first time.
    fn ask_again(&mut self, report: &AgentReport) {
        let Some(taken) = &self.taken else { return };
        // Whoever signs now need not be whom the update that was taken names: nobody could give what is asked for.
        if self.refused.is_some() {
            return;
        }
        if self.renewed_by.is_some_and(|by| by < Instant::now())
            && report.certificates.iter().any(|held| held.authority != taken.authority)
        {
            self.nudge();
        }
    }

    fn report(&mut self) -> AgentReport {
        if let Some(taken) = &self.taken
            && taken.version != self.in_force
            && self.is_kept()
            && self.source.in_force(&taken.roots)
        {
            self.in_force.clone_from(&taken.version);
        }
        let authority = self.taken.as_ref().map_or(&[][..], |taken| &taken.authority);
        let revision = self.issuer.followed.borrow().as_ref().map_or(0, |held| held.revision);
        report::make(
            &self.issuer.asked.config().caller.node,
            (&self.in_force, revision),
            authority,
            self.source,
        )
    }

    fn ended(&self, status: &Status, unfinished: Option<Unfinished>) -> String {
        if failure::is_of_the_server(status)
            && let Some(unfinished) = unfinished
        {
            unfinished.finished();
        }
        let next = failure::next_step(status, self.issuer.asked.config());
        format!("{}: {next}", self.told(&failure::said(status)))
    }

    fn told(&self, what: &str) -> String {
        let config = self.issuer.asked.config();
        format!("{what}, following {} as {}", config.address, config.caller)
    }
}

struct Opened {
    updates: Streaming<TrustUpdate>,
    first: TrustUpdate,
    reports: watch::Sender<AgentReport>,
    /// What the controller was judged by.
    known: Known,
}

enum Ended {
    Lost(String),
    /// The operator has said anew who the controller is, or who it is not: what has changed.
    Doubted(&'static str),
}

/// The newest report whenever there is one: a controller that is slow to read misses those between.
fn newest(mut reports: watch::Receiver<AgentReport>) -> impl Stream<Item = AgentReport> {
    reports.mark_changed();
    futures::stream::unfold(reports, async |mut reports| {
        reports.changed().await.ok()?;
        let report = reports.borrow_and_update().clone();
        Some((report, reports))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::{ControllerIssuer, Issuer};
    use crate::tls::TrustBundles;
    use crate::tls::testing::Authority;
    use underpass_proto::underpass::v1::{Bundle, HeldCertificate, RestingTunnels};

    struct Nothing;

    impl ReportSource for Nothing {
        fn certificates(&self) -> Vec<HeldCertificate> {
            Vec::new()
        }

        fn tunnels(&self) -> Vec<RestingTunnels> {
            Vec::new()
        }

        fn in_force(&self, _: &TrustBundles) -> bool {
            false
        }
    }

    /// A replica that lagged behind may have signed one after the first nudge was obeyed.
    #[tokio::test(start_paused = true)]
    async fn certificates_of_another_authority_that_stay_are_asked_for_again_after_their_time() {
        let issuer = ControllerIssuer::new(
            crate::certs::IstioConfig {
                name: "controller",
                address: "https://127.0.0.1:1".into(),
                root_certificate: "/nowhere".into(),
                trust: Default::default(),
                alternative_host_names: Vec::new(),
                client: None,
                token_file: Some("/nowhere".into()),
                cluster_id: String::new(),
                cert_signer: None,
                headers: Default::default(),
                trust_domain: "mesh.test".parse().unwrap(),
                lifetime: LATE,
                deadline: LATE,
                caller: Default::default(),
            },
            "/nowhere/state".into(),
        )
        .unwrap();
        let mut nudges = issuer.nudges().unwrap();
        let mut follower = Follower::new(&issuer, &Nothing);
        let root = Authority::root();
        let update = |revision| TrustUpdate {
            version: "one".into(),
            bundles: vec![Bundle {
                trust_domain: "mesh.test".into(),
                roots: vec![root.certificate.to_vec()],
            }],
            authority: vec![1],
            renew_within_seconds: 300,
            revision,
        };
        follower.take(update(1), [0; 32]);
        assert!(nudges.try_recv().is_ok());
        let held = |authority| AgentReport {
            certificates: vec![HeldCertificate { authority: vec![authority], ..Default::default() }],
            ..Default::default()
        };
        let mut after = async |follower: &mut Follower<'_>, seconds, authority| {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            follower.ask_again(&held(authority));
            nudges.try_recv().is_ok()
        };
        assert!(!after(&mut follower, 350, 2).await, "still in time");
        assert!(!after(&mut follower, 100, 1).await, "of the authority itself");
        assert!(after(&mut follower, 1, 2).await);
        assert!(!after(&mut follower, 1, 2).await, "these have their time again");
        assert!(after(&mut follower, 400, 2).await);
        for refused in [0, u64::MAX] {
            follower.take(update(refused), [0; 32]);
            assert!(!after(&mut follower, 400, 2).await, "another authority may sign than we know of");
            follower.take(update(1), [0; 32]);
            assert!(after(&mut follower, 400, 2).await);
        }
    }
}
