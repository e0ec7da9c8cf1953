//! From a reserved place to a stream: wait for the handshake if need be, ask, and read the answer.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use h2::client::SendRequest;
use h2::{Reason, SendStream};
use http::{Request, Response, StatusCode};

use super::super::request::BAGGAGE;
use super::super::{Baggage, Chunk, TunnelError, TunnelStream};
use super::table::{Phase, Place};

pub(super) enum Failed {
    Final(TunnelError),
    /// By the tunnel with this id; another one may serve.
    NotProcessed(u64),
}

impl Place {
    pub(super) async fn open(self, request: Request<()>) -> Result<TunnelStream, Failed> {
        let sender = self.established().await?;
        let (response, send) = self.ask(sender, request).await?;
        match response.status() {
            StatusCode::OK => {
                let (head, recv) = response.into_parts();
                let baggage = head.headers.get(BAGGAGE).cloned().and_then(Baggage::from_header);
                Ok(TunnelStream::new(send, recv, self.lease, baggage))
            }
            StatusCode::UNAUTHORIZED => Err(Failed::Final(TunnelError::Denied)),
            status => Err(Failed::Final(TunnelError::Rejected(status))),
        }
    }

    async fn established(&self) -> Result<SendRequest<Chunk>, Failed> {
        if let Phase::Ready(sender) = &*self.tunnel.phase.borrow() {
            return Ok(sender.clone());
        }
        let mut phase = self.tunnel.phase.subscribe();
        // The sender lives in the tunnel, which we hold.
        let _ = phase.wait_for(|p| !matches!(p, Phase::Connecting)).await;
        let result = match &*phase.borrow() {
            Phase::Ready(sender) => Ok(sender.clone()),
            Phase::Failed(e) => Err(Failed::Final(e.clone())),
            Phase::Gone | Phase::Connecting => Err(self.gone()),
        };
        result
    }

    async fn ask(
        &self,
        mut sender: SendRequest<Chunk>,
        request: Request<()>,
    ) -> Result<(Response<h2::RecvStream>, SendStream<Chunk>), Failed> {
        let (response, send) = match sender.send_request(request, false) {
            Ok(sent) => sent,
            // GOAWAY came, the connection broke, or its stream ids are used up: this one never left.
            Err(_) => return Err(self.gone()),
        };
        let mut response = pin!(response);
        let mut shrunk = pin!(self.tunnel.shrunk.notified());
        let mut sent = false;
        let answer = poll_fn(|cx| {
            if let Poll::Ready(answer) = response.as_mut().poll(cx) {
                return Poll::Ready(Some(answer));
            }
            // `h2` queues requests beyond the peer's limit, behind streams that may live for days.
            while !sent {
                match sender.poll_ready(cx) {
                    Poll::Ready(_) => sent = true,
                    Poll::Pending if self.tunnel.is_over_limit() => return Poll::Ready(None),
                    Poll::Pending => match shrunk.as_mut().poll(cx) {
                        Poll::Ready(()) => shrunk.set(self.tunnel.shrunk.notified()),
                        Poll::Pending => break,
                    },
                }
            }
            Poll::Pending
        })
        .await;
        match answer {
            Some(Ok(response)) => Ok((response, send)),
            Some(Err(e)) => Err(self.unanswered(&e)),
            None => Err(Failed::NotProcessed(self.tunnel.id)),
        }
    }

    /// What it means that `e` came instead of an answer.
    fn unanswered(&self, e: &h2::Error) -> Failed {
        // `h2` gives the peer's GOAWAY only to streams above its last-stream-id.
        if e.is_go_away() && e.is_remote() {
            return self.gone();
        }
        match e.reason() {
            Some(Reason::REFUSED_STREAM) if e.is_remote() => Failed::NotProcessed(self.tunnel.id),
            Some(reason) if e.is_reset() => Failed::Final(TunnelError::Reset(reason)),
            _ if self.tunnel.session.cause().is_none() && self.reused => self.gone(),
            _ => Failed::Final(match self.tunnel.session.cause() {
                Some(cause) => TunnelError::Closed(cause),
                None => TunnelError::Lost(e.to_string().into()),
            }),
        }
    }

    /// The tunnel takes no more streams: nobody else should try it.
    fn gone(&self) -> Failed {
        self.tunnel.retire();
        match self.tunnel.session.cause() {
            Some(cause) => Failed::Final(TunnelError::Closed(cause)),
            None => Failed::NotProcessed(self.tunnel.id),
        }
    }
}
