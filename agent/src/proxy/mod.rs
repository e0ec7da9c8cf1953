//! A connection's path, outbound and inbound. The stages are values: only [`authorize`] makes a
//! `Permit`, so an inbound delivery without a decision does not compile.

mod accept;
mod admission;
mod authorize;
mod capture;
pub mod deliver;
mod dial;
mod end;
mod http;
mod inbound;
mod node;
mod outbound;
mod plaintext;
pub mod tunnel;

use std::sync::{Arc, Weak};

use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

pub use admission::{Handshakes, Limits};
pub use http::Limits as HttpLimits;
#[doc(hidden)]
pub use http::fuzz_requests;
pub use node::Node;

use crate::lifecycle::Shutdown;
use crate::model::{Cause, Direction};
use crate::pods::{EnrolledPod, Started};
use admission::Rate;
use authorize::Authorizer;
use node::PodProxy;
use tunnel::Pool;

/// Serves every pod that is enrolled until the agent stops, then lets their connections end by themselves
/// until the deadline, and tells their peers to go away.
pub async fn run(node: Arc<Node>, mut started: mpsc::UnboundedReceiver<Started>, shutdown: Shutdown) {
    // Not those of the table of pods: it is published later, and has one pod for each uid, while
    // connections of a former one may live.
    let mut served: Vec<Weak<EnrolledPod>> = Vec::new();
    loop {
        tokio::select! {
            () = shutdown.draining().cancelled() => break,
            pod = started.recv() => match pod {
                Some(pod) => {
                    served.retain(|p| p.strong_count() > 0);
                    served.push(Arc::downgrade(&pod.pod));
                    serve_pod(&node, pod, shutdown.draining());
                }
                None => break,
            },
        }
    }
    shutdown.draining().cancelled().await;
    let pods: Vec<_> = served.iter().filter_map(Weak::upgrade).collect();
    let draining = pods.iter().map(|p| p.drain(shutdown.cut().cancelled(), Cause::Drained));
    futures::future::join_all(draining).await;
}

/// Of one pod, that have a line each in the access log. Anybody can make them fail.
const FAILED_HANDSHAKES_A_SECOND: u32 = 50;

fn serve_pod(node: &Arc<Node>, Started { pod: enrolled, listeners }: Started, stop: &CancellationToken) {
    let authorizer = Authorizer::new(Arc::clone(&enrolled.pod), node.snapshots.clone());
    let pod = Arc::new(PodProxy {
        node: Arc::clone(node),
        enrolled: Arc::clone(&enrolled),
        pool: Pool::new(enrolled.pod.uid.clone(), node.client.clone()),
        authorizer: Arc::clone(&authorizer),
        share: Arc::new(Semaphore::new(node.share_of_a_pod)),
        failed_handshakes: Rate::new(FAILED_HANDSHAKES_A_SECOND),
    });
    let acceptors = &enrolled.acceptors;
    for listener in listeners.outbound {
        acceptors.spawn(accept::run(
            listener,
            Arc::clone(&pod),
            stop.clone(),
            Direction::Outbound,
            outbound::serve,
        ));
    }
    for listener in listeners.plaintext {
        acceptors.spawn(accept::run(
            listener,
            Arc::clone(&pod),
            stop.clone(),
            Direction::Inbound,
            plaintext::serve,
        ));
    }
    for listener in listeners.hbone {
        acceptors.spawn(accept::run(
            listener,
            Arc::clone(&pod),
            stop.clone(),
            Direction::Inbound,
            inbound::serve,
        ));
    }
    // Reviews for as long as connections may live, which is longer than listeners do.
    tokio::spawn(authorizer.review(enrolled.ended.clone()));
}
