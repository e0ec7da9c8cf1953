//! Peers for tests: tunnels over in-memory pipes, with either end ours or plain `h2`.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use http::{Request, Response};
use tokio::io::{DuplexStream, duplex};

use super::*;
use crate::model::{NextHop, PodUid, SpiffeId};

pub(crate) fn pod(name: &str) -> PodUid {
    PodUid(name.into())
}

pub(crate) fn hop(n: u8) -> NextHop {
    NextHop(SocketAddr::from(([10, 0, 0, n], 15008)))
}

pub(crate) fn identity(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/default/sa/{account}").parse().unwrap()
}

/// The key of pod `a` towards `hop(n)`.
pub(crate) fn key(n: u8) -> Key {
    Key::new(pod("a"), hop(n), &[identity("server")])
}

pub(crate) fn request() -> Connect {
    Connect::to("10.0.0.9:80".parse().unwrap())
}

pub(crate) fn pool(settings: ClientSettings) -> Pool {
    Pool::new(pod("a"), settings)
}

pub(crate) type Dialling = Pin<Box<dyn Future<Output = Result<Dialled<DuplexStream>, DialError>> + Send>>;

/// Counts dials; each gets the near end of a pipe whose far end `peer` runs in a task of its own.
pub(crate) struct Peers<P> {
    dials: AtomicUsize,
    peer: Arc<P>,
}

impl<P, F> Peers<P>
where
    P: Fn(DuplexStream, usize) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    pub(crate) fn new(peer: P) -> Self {
        Self { dials: AtomicUsize::new(0), peer: Arc::new(peer) }
    }

    /// A connector. Peers are numbered from 1.
    pub(crate) fn dial(&self) -> Dialling {
        let n = self.dials.fetch_add(1, Ordering::SeqCst) + 1;
        let peer = Arc::clone(&self.peer);
        Box::pin(async move {
            let (near, far) = duplex(64 * 1024);
            tokio::spawn(peer(far, n));
            Ok(near.into())
        })
    }

    pub(crate) fn dials(&self) -> usize {
        self.dials.load(Ordering::SeqCst)
    }
}

/// Our own server that echoes on every stream.
pub(crate) async fn echo_server(transport: DuplexStream, settings: ServerSettings, drain: Drain) -> Ended {
    serve(transport, &settings, drain, |inbound: Inbound| {
        tokio::spawn(async move {
            if let Ok(stream) = inbound.respond.accept(None) {
                echo(stream).await;
            }
        });
    })
    .await
}

pub(crate) async fn echo(mut stream: TunnelStream) {
    while let Ok(Some(bytes)) = next(&mut stream).await {
        stream.release(bytes.len());
        if stream.send(bytes).is_err() {
            return;
        }
    }
    let _ = stream.finish();
}

pub(crate) async fn next(stream: &mut TunnelStream) -> Result<Option<Bytes>, StreamError> {
    poll_fn(|cx| stream.poll_data(cx)).await.transpose()
}

/// Sends `text` and waits until as many bytes came back.
pub(crate) async fn ping(stream: &mut TunnelStream, text: &str) -> String {
    stream.send(Bytes::copy_from_slice(text.as_bytes())).unwrap();
    let mut got = Vec::new();
    while got.len() < text.len() {
        let bytes = next(stream).await.unwrap().expect("the echo ended early");
        stream.release(bytes.len());
        got.extend_from_slice(&bytes);
    }
    String::from_utf8(got).unwrap()
}

/// A server of plain `h2` with `settings` that gives each request to `take`, in its own task.
pub(crate) async fn plain_server<F, Fut>(
    transport: DuplexStream,
    builder: h2::server::Builder,
    take: F,
) -> Result<(), h2::Error>
where
    F: Fn(Request<h2::RecvStream>, SendResponse<Bytes>) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let mut connection = builder.handshake::<_, Bytes>(transport).await?;
    while let Some(request) = connection.accept().await {
        let (request, respond) = request?;
        tokio::spawn(take(request, respond));
    }
    Ok(())
}

/// Answers 200 and echoes.
pub(crate) async fn plain_echo(request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>) {
    let Ok(mut send) = respond.send_response(Response::new(()), false) else { return };
    let mut recv = request.into_body();
    while let Some(Ok(bytes)) = recv.data().await {
        let _ = recv.flow_control().release_capacity(bytes.len());
        let _ = send.send_data(bytes, false);
    }
    let _ = send.send_data(Bytes::new(), true);
}

/// For conditions that another task brings about: fails the test when they never come.
pub(crate) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(3600), waiting).await.is_ok(), "never: {what}");
}
