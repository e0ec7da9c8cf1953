//! Accepts on a pod's listeners until the pod leaves, and gives every connection a task of its own.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::admission::Rate;
use super::deliver;
use super::node::PodProxy;
use crate::model::{Cause, Direction};

/// Serves each connection of `listener` with `serve`.
pub async fn run<F, Fut>(
    listener: TcpListener,
    pod: Arc<PodProxy>,
    stop: CancellationToken,
    direction: Direction,
    serve: F,
) where
    F: Fn(Arc<PodProxy>, TcpStream) -> Fut + Copy + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    loop {
        // A log that nobody reads holds back new connections, not live ones.
        pod.node.telemetry.room().await;
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = pod.enrolled.leaving.cancelled() => return,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => match pod.admit() {
                Some(place) => {
                    let of = Arc::clone(&pod);
                    // Called in the task: a future that is moved into another one is there twice.
                    pod.enrolled.tasks.spawn(async move {
                        serve(of, stream).await;
                        drop(place);
                    });
                }
                None => {
                    deliver::reset(stream);
                    pod.node.telemetry.refused(direction, Cause::Overloaded);
                    if FULL.allows() {
                        tracing::error!(pod = %pod.enrolled.pod.name, most = pod.node.share_of_a_pod,
                            "a connection was reset: the pod has as many as one pod may; if they are honest, raise the agent's LimitNOFILE");
                    }
                }
            },
            Err(e) if is_of_the_connection(&e) => {}
            Err(e) => {
                // Out of descriptors or memory: the queue keeps what waits, and spinning helps nobody.
                if FAILED.allows() {
                    tracing::error!(pod = %pod.enrolled.pod.name, error = %e,
                        "accept failed; if descriptors ran out, raise the agent's LimitNOFILE");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// The client went away while it waited (accept(2), "Error handling").
fn is_of_the_connection(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

/// For the whole process: every listener meets the same shortage.
static FAILED: Rate = Rate::new(1);
static FULL: Rate = Rate::new(1);

const PAUSE: Duration = Duration::from_millis(50);
