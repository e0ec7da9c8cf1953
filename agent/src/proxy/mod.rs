//! A connection's path, outbound and inbound. The stages are values: only [`authorize`] makes a
//! `Permit`, so an inbound delivery without a decision does not compile.

mod accept;
mod authorize;
mod capture;
pub mod deliver;
mod dial;
mod end;
mod inbound;
mod node;
mod outbound;
mod plaintext;
pub mod tunnel;

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use node::Node;

use crate::pods::Started;
use authorize::Authorizer;
use node::PodProxy;
use tunnel::Pool;

/// Serves every pod that is enrolled, until `stop`; live connections go on after that, in their pods'
/// task trackers.
pub async fn run(node: Arc<Node>, mut started: mpsc::UnboundedReceiver<Started>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            pod = started.recv() => match pod {
                Some(pod) => serve_pod(&node, pod, &stop),
                None => return,
            },
        }
    }
}

fn serve_pod(node: &Arc<Node>, Started { pod: enrolled, listeners }: Started, stop: &CancellationToken) {
    let authorizer = Authorizer::new(Arc::clone(&enrolled.pod), node.snapshots.clone());
    let pod = Arc::new(PodProxy {
        node: Arc::clone(node),
        enrolled: Arc::clone(&enrolled),
        pool: Pool::new(enrolled.pod.uid.clone(), node.client.clone()),
        authorizer: Arc::clone(&authorizer),
    });
    let acceptors = &enrolled.acceptors;
    for listener in listeners.outbound {
        acceptors.spawn(accept::run(listener, Arc::clone(&pod), stop.clone(), outbound::serve));
    }
    for listener in listeners.plaintext {
        acceptors.spawn(accept::run(listener, Arc::clone(&pod), stop.clone(), plaintext::serve));
    }
    for listener in listeners.hbone {
        acceptors.spawn(accept::run(listener, Arc::clone(&pod), stop.clone(), inbound::serve));
    }
    // Reviews for as long as connections may live, which is longer than listeners do.
    tokio::spawn(authorizer.review(enrolled.ended.clone()));
}
