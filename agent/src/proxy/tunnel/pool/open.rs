//! From a reserved place to a stream: wait for the handshake if need be, ask, and read the answer.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response, StatusCode};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::super::{Chunk, Lease, TunnelError, TunnelStream};
use super::table::{Phase, Place, Tunnel};
use crate::model::Cause;

/// Requests that go out before the peer has said how many streams it takes. More would queue inside `h2`
/// if it takes fewer, behind streams that may live for days, and could not be taken back: `h2` sends a
/// cancelled request with a reset behind it, and a peer takes many of those for an attack. An odd
/// number, so that nearly any SETTINGS are seen to change it.
pub(super) const UNSETTLED: usize = 7;

pub(super) enum Failed {
    Final(TunnelError),
    /// By the tunnel with this id; another one may serve.
    NotProcessed(u64),
}

impl Place {
    pub(super) async fn open(self, request: Request<()>) -> Result<TunnelStream, Failed> {
        let mut sender = self.established().await?;
        let Self { tunnel, lease, reused, .. } = self;
        let (response, send) = match sender.send_request(request, false) {
            Ok(sent) => sent,
            // GOAWAY came, the connection broke, or its stream ids are used up: this one never left.
            Err(_) => return Err(tunnel.gone()),
        };
        let asked = Asked { pending: Some((response, send, lease)) };
        let (response, send, lease) = asked.await.map_err(|e| tunnel.unanswered(&e, reused))?;
        tunnel.settled();
        match response.status() {
            StatusCode::OK => {
                // Its baggage says nothing new: the workload behind a tunnel is always known.
                Ok(TunnelStream::new(send, response.into_body(), lease))
            }
            StatusCode::UNAUTHORIZED => Err(Failed::Final(TunnelError::Denied)),
            status => Err(Failed::Final(TunnelError::Rejected(status))),
        }
    }

    /// A sender that will send at once.
    async fn established(&self) -> Result<SendRequest<Chunk>, Failed> {
        let is_decided = |phase: &Phase| match phase {
            Phase::Connecting => false,
            Phase::Ready { settled, .. } => *settled || self.ahead < UNSETTLED,
            Phase::Failed(_) | Phase::Gone => true,
        };
        if !is_decided(&self.tunnel.phase.borrow()) {
            // Does not fail: the sending half lives in the tunnel, which we hold.
            let _ = self.tunnel.phase.subscribe().wait_for(is_decided).await;
        }
        match &*self.tunnel.phase.borrow() {
            Phase::Ready { settled: true, .. } if self.tunnel.is_over_limit() => {
                Err(Failed::NotProcessed(self.tunnel.id))
            }
            Phase::Ready { sender, .. } => Ok(sender.clone()),
            Phase::Failed(e) => Err(Failed::Final(e.clone())),
            Phase::Gone | Phase::Connecting => Err(self.tunnel.gone()),
        }
    }
}

impl Tunnel {
    /// What it means that `e` came instead of an answer.
    fn unanswered(&self, e: &h2::Error, reused: bool) -> Failed {
        // `h2` gives the peer's GOAWAY only to streams above its last-stream-id.
        if e.is_go_away() && e.is_remote() {
            return self.gone();
        }
        match e.reason() {
            Some(Reason::REFUSED_STREAM) if e.is_remote() => Failed::NotProcessed(self.id),
            Some(reason) if e.is_reset() => Failed::Final(TunnelError::Reset(reason)),
            _ if self.session.cause().is_none() && reused => self.gone(),
            _ => Failed::Final(match self.session.cause() {
                Some(cause) => TunnelError::Closed(cause),
                None => TunnelError::Lost(e.to_string().into()),
            }),
        }
    }

    /// It takes no more streams: nobody else should try it.
    fn gone(&self) -> Failed {
        self.retire();
        match self.session.cause() {
            // Whoever is there may have another certificate by now; if not, its handshake says what is wrong.
            None | Some(Cause::TrustRevoked) => Failed::NotProcessed(self.id),
            Some(cause) => Failed::Final(TunnelError::Closed(cause)),
        }
    }
}

/// A request that awaits its answer.
struct Asked {
    pending: Option<Pending>,
}

type Pending = (ResponseFuture, SendStream<Chunk>, Lease);

impl Future for Asked {
    type Output = Result<(Response<RecvStream>, SendStream<Chunk>, Lease), h2::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some((response, ..)) = &mut self.pending else { return Poll::Pending };
        let Poll::Ready(answer) = Pin::new(response).poll(cx) else { return Poll::Pending };
        let Some((_, send, lease)) = self.pending.take() else { return Poll::Pending };
        Poll::Ready(answer.map(|response| (response, send, lease)))
    }
}

impl Drop for Asked {
    /// The caller went away. A reset now could reach the peer together with the request, and a handful
    /// of those at once is what its guard against "rapid reset" ends the whole tunnel for. So the stream
    /// keeps its place, and is reset once the answer is there.
    fn drop(&mut self) {
        if let (Some((response, send, lease)), Ok(runtime)) = (self.pending.take(), Handle::try_current()) {
            runtime.spawn(async move {
                let _ = timeout(ABANDONED, response).await;
                drop(send);
                drop(lease);
            });
        }
    }
}

/// How long an abandoned request is waited for; by then it cannot be in one packet with its reset.
const ABANDONED: Duration = Duration::from_secs(30);
