//! `underpass.v1.TrustService`: tells agents of roots, and hears what they trust and hold.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::sync::{mpsc, watch};
use tonic::{Request, Response, Status, Streaming};
use underpass_proto::underpass::v1::trust_service_server::TrustService;
use underpass_proto::underpass::v1::{AgentReport, Bundle, TrustUpdate};

use super::Service;
use super::door::Caller;
use super::metrics::Following;
use crate::ca::Signing;
use crate::ca::agents::{Session, is_plausible};
use crate::ca::attest::{Changes, NodeName, Papers, Refusal};
use crate::ca::signing::{hex, unhex};
use crate::model::TrustDomain;
use crate::model::spiffe::shorten;
use crate::tls::sha256;

#[tonic::async_trait]
impl TrustService for Service {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<TrustUpdate, Status>> + Send>>;

    async fn follow(
        &self,
        request: Request<Streaming<AgentReport>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let changes = self.attestor.changes();
        let Caller { node, papers } = Caller::of(&request)?;
        let session = self.agents.enter(&node).ok_or_else(|| {
            let why = format!("node {node} has too many streams open");
            self.metrics.follows(Following::TooMany);
            if self.denials.may_log(&(node.clone(), "too_many_streams")) {
                tracing::warn!("a follower was refused: {why}");
            }
            Status::resource_exhausted(why)
        })?;
        self.metrics.follows(Following::Accepted);
        tracing::info!(%node, "an agent follows");
        let (send, mut updates) = mpsc::channel(1);
        let follower = Follower { service: self.clone(), papers, node, session, changes };
        tokio::spawn(follower.run(request.into_inner(), send));
        Ok(Response::new(Box::pin(futures::stream::poll_fn(move |cx| updates.poll_recv(cx)))))
    }
}

struct Follower {
    service: Service,
    papers: Papers,
    node: NodeName,
    session: Session,
    changes: Changes,
}

impl Follower {
    async fn run(
        mut self,
        mut reports: Streaming<AgentReport>,
        send: mpsc::Sender<Result<TrustUpdate, Status>>,
    ) {
        let mut state = self.service.authority.state();
        let mut told = false;
        let ended = loop {
            tokio::select! {
                // Nothing else waits for an agent that does not read.
                room = send.reserve(), if !told => match room {
                    Ok(room) => {
                        room.send(Ok(self.service.update(&mut state)));
                        told = true;
                    }
                    Err(_) => break None,
                },
                changed = state.changed(), if told => match changed {
                    Ok(()) => told = false,
                    Err(_) => break None,
                },
                report = reports.message() => match report {
                    Ok(Some(report)) if !is_plausible(&report) => {
                        break Some(Status::invalid_argument("no agent of ours makes such a report"));
                    }
                    Ok(Some(report)) if report.node == self.node.as_str() => self.session.report(report),
                    Ok(Some(report)) => {
                        let why = format!(
                            "a report of {:?} by a node that the controller knows as {node}: set the agent's node name \
                             to {node}, or rename it where the controller has it",
                            shorten(&report.node),
                            node = self.node
                        );
                        break Some(Status::permission_denied(why));
                    }
                    Ok(None) => break None,
                    Err(status) => break Some(status),
                },
                Some(()) = self.changes.next() => match self.service.attestor.who(&self.papers).await {
                    Ok(node) if node == self.node => {}
                    Err(Refusal::Unavailable(_)) => {}
                    _ => break Some(Status::unauthenticated("the node is not known any more")),
                },
                () = send.closed() => break None,
            }
        };
        tracing::info!(node = %self.node, why = ended.as_ref().map(ToString::to_string), "an agent follows no more");
        drop(self.session);
        if let Some(status) = ended {
            let _ = send.send(Err(status)).await;
        }
    }
}

impl Service {
    fn update(&self, state: &mut watch::Receiver<Arc<Signing>>) -> TrustUpdate {
        let signing = Arc::clone(&state.borrow_and_update());
        update(&signing, &self.authority.config().trust_domain, self.renew_within)
    }
}

/// What agents are told. Replicas with the same files say the same, version included.
pub(crate) fn update(signing: &Signing, domain: &TrustDomain, renew_within: Duration) -> TrustUpdate {
    let mut roots: Vec<Vec<u8>> = signing.bundles.roots(domain).map(|root| root.to_vec()).collect();
    roots.sort();
    let renew_within_seconds = u32::try_from(renew_within.as_secs()).unwrap_or(u32::MAX);
    let mut all = Vec::new();
    for part in
        roots.iter().map(Vec::as_slice).chain([domain.as_str().as_bytes(), signing.authority.as_bytes()])
    {
        all.extend_from_slice(&sha256(part));
    }
    all.extend_from_slice(&renew_within_seconds.to_be_bytes());
    // The same roots at another time are another version: who acknowledged the first has not heard of this.
    all.extend_from_slice(&signing.revision.to_be_bytes());
    TrustUpdate {
        version: hex(&sha256(&all)),
        bundles: vec![Bundle { trust_domain: domain.to_string(), roots }],
        authority: unhex(&signing.authority),
        renew_within_seconds,
        revision: signing.revision,
    }
}
