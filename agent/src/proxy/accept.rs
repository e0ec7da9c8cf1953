//! Accepts on a pod's listeners until the pod leaves, and gives every connection a task of its own.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::node::PodProxy;

/// Serves each connection of `listener` with `serve`.
pub async fn run<F, Fut>(listener: TcpListener, pod: Arc<PodProxy>, stop: CancellationToken, serve: F)
where
    F: Fn(Arc<PodProxy>, TcpStream) -> Fut,
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
            Ok((stream, _)) => {
                pod.enrolled.tasks.spawn(serve(Arc::clone(&pod), stream));
            }
            Err(e) if is_of_the_connection(&e) => {}
            Err(e) => {
                // Out of descriptors or memory: the queue keeps what waits, and spinning helps nobody.
                tracing::error!(pod = %pod.enrolled.pod.name, error = %e,
                    "accept failed; if descriptors ran out, raise the agent's LimitNOFILE");
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

const PAUSE: Duration = Duration::from_millis(50);
