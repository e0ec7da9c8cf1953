//! Serves a router over HTTP/1.1, one request a connection, with bounds on how many there are at once
//! and how long one lasts: the TCP listeners are open to the whole network.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::unix::UnixSocket;

pub(super) trait Accept: Send {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<TcpStream> {
        TcpListener::accept(self).await.map(|(stream, _)| stream)
    }
}

impl Accept for UnixSocket {
    type Stream = UnixStream;

    async fn accept(&mut self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

/// Accepts until `stop`, then lets the requests under way end.
pub(super) async fn serve(mut listener: impl Accept, router: Router, stop: CancellationToken) {
    let (room, requests) = (Arc::new(Semaphore::new(AT_ONCE)), TaskTracker::new());
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(stream) => stream,
                Err(e) => {
                    // Out of descriptors, most likely: the next try would fail at once too.
                    tracing::warn!("accept on an admin listener failed: {e}; trying again");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            },
        };
        // Closed rather than queued: a probe that is refused at once tells more than one that hangs.
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else { continue };
        let router = router.clone();
        requests.spawn(async move {
            let _place = place;
            // A client that goes away, stalls or talks nonsense is its own business.
            let _ = tokio::time::timeout(LONGEST, answer(stream, router)).await;
        });
    }
    requests.close();
    requests.wait().await;
}

const AT_ONCE: usize = 256;
const LONGEST: Duration = Duration::from_secs(30);
const HEADERS: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(100);

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
) -> hyper::Result<()> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .keep_alive(false)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await
}
