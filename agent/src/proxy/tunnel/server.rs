//! The listening end of one tunnel: its task, and what it hands out for each CONNECT request.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{Request, Response, StatusCode};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::keepalive::{Beat, Keepalive};
use super::request::BAGGAGE;
use super::stream::stream_error;
use super::{
    Baggage, Chunk, Connect, Lease, Reject, ServerSettings, Session, StreamError, Transport, TunnelStream,
    parse_request,
};
use crate::lifecycle::Stop;
use crate::model::Cause;

/// Serves one tunnel, whose TLS stands, to its end. Streams live in the tasks that `accept` starts for
/// them; when this future ends, or is dropped, they end with it.
pub async fn serve<T: Transport>(
    transport: T,
    settings: &ServerSettings,
    drain: Drain,
    accept: impl Accept,
) -> Ended {
    let preface = timeout(settings.preface_timeout, settings.builder().handshake(transport));
    let connection = tokio::select! {
        preface = preface => match preface {
            Ok(Ok(connection)) => connection,
            Ok(Err(e)) => return Ended::Failed(e),
            Err(_) => return Ended::NoPreface,
        },
        cause = drain.cut.ended() => return Ended::Cut(cause),
    };
    let served = Served { connection, settings, session: Session::new(), accept };
    served.run(drain).await
}

/// Who takes the requests.
pub trait Accept: Send {
    /// Called in the tunnel's own task, so it must not wait: it starts a task for the stream.
    fn inbound(&mut self, inbound: Inbound);

    /// A request was answered with 400.
    fn rejected(&mut self, why: Reject) {
        tracing::debug!(%why, "CONNECT rejected");
    }
}

impl<F: FnMut(Inbound) + Send> Accept for F {
    fn inbound(&mut self, inbound: Inbound) {
        self(inbound);
    }
}

/// When to stop: a pod's end, or the process's.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    /// Sends GOAWAY: no new streams, those that live go on.
    pub begin: CancellationToken,
    /// Ends the tunnel and every stream in it, which say why.
    pub cut: Stop,
}

/// How a tunnel came to its end.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error("closed in order")]
    Closed,
    #[error("drained: every stream ended by itself")]
    Drained,
    #[error("cut: {}", .0.as_str())]
    Cut(Cause),
    #[error("the peer sent no HTTP/2 preface in time")]
    NoPreface,
    #[error("the peer did not answer a PING in time")]
    PingTimeout,
    #[error("HTTP/2: {0}")]
    Failed(#[source] h2::Error),
}

/// One request whose target parsed.
pub struct Inbound {
    pub connect: Connect,
    pub respond: Respond,
}

/// The answer that is owed. Dropped, it resets the stream.
pub struct Respond {
    send: SendResponse<Chunk>,
    recv: RecvStream,
    lease: Lease,
}

impl Respond {
    /// 200. Only once the application's connection stands.
    pub fn accept(mut self, own: Option<&Baggage>) -> Result<TunnelStream, StreamError> {
        let mut response = Response::new(());
        if let Some(baggage) = own {
            response.headers_mut().insert(BAGGAGE, baggage.header().clone());
        }
        match self.send.send_response(response, false) {
            Ok(send) => Ok(TunnelStream::new(send, self.recv, self.lease)),
            Err(e) => Err(stream_error(&e, &self.lease)),
        }
    }

    /// Any other status, and the end of the stream.
    pub fn reject(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        // Fails only when the peer does not wait for it any more.
        let _ = self.send.send_response(response, true);
    }

    /// Tells the peer that nothing was done for this request: another tunnel may serve it.
    pub fn refuse(mut self) {
        self.send.send_reset(Reason::REFUSED_STREAM);
    }

    /// Ready when the peer no longer waits for the answer: it reset the stream, or the tunnel ended.
    pub fn poll_cancelled(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        Poll::Ready(match ready!(self.send.poll_reset(cx)) {
            // `h2` gives the reason of a GOAWAY here as well, also of our own.
            _ if self.lease.cause().is_some() => {
                StreamError::Lost { cause: self.lease.cause_of_loss(), detail: "by this agent".to_owned() }
            }
            Ok(reason) => StreamError::Reset(reason),
            Err(e) => stream_error(&e, &self.lease),
        })
    }

    /// [`Self::poll_cancelled`] as a future, to be raced with the dial to the application.
    pub async fn cancelled(&mut self) -> StreamError {
        poll_fn(|cx| self.poll_cancelled(cx)).await
    }
}

struct Served<'a, T, A> {
    connection: Connection<T, Chunk>,
    settings: &'a ServerSettings,
    session: Arc<Session>,
    accept: A,
}

impl<T: Transport, A: Accept> Served<'_, T, A> {
    async fn run(mut self, drain: Drain) -> Ended {
        let Some(ping) = self.connection.ping_pong() else { return Ended::Closed };
        let mut keepalive = Keepalive::new(ping, &self.settings.keepalive);
        let mut begin = pin!(drain.begin.cancelled());
        let mut cut = pin!(drain.cut.ended());
        let mut draining = false;
        let mut said_goaway = false;
        let ended = poll_fn(|cx| {
            if let Poll::Ready(cause) = cut.as_mut().poll(cx) {
                return Poll::Ready(Ended::Cut(cause));
            }
            if !draining && begin.as_mut().poll(cx).is_ready() {
                (draining, said_goaway) = (true, true);
                self.connection.graceful_shutdown();
            }
            while let Poll::Ready(beat) = keepalive.poll(cx) {
                match beat {
                    Beat::TimedOut => return Poll::Ready(Ended::PingTimeout),
                    Beat::Alive if self.session.idle() >= self.settings.idle_timeout => {
                        said_goaway = true;
                        self.connection.graceful_shutdown();
                    }
                    Beat::Alive => {}
                }
            }
            self.poll_requests(cx)
        })
        .await;
        match ended {
            Ended::Closed if draining => Ended::Drained,
            // A client without streams answers GOAWAY by hanging up, before the exchange is complete.
            Ended::Failed(e) if said_goaway && e.is_io() && self.session.streams() == 0 => {
                if draining {
                    Ended::Drained
                } else {
                    Ended::Closed
                }
            }
            Ended::Cut(cause) => self.abort(cause, ended).await,
            Ended::PingTimeout => self.abort(Cause::TunnelFailed, Ended::PingTimeout).await,
            other => other,
        }
    }

    /// Drives the connection as well: ready when it is over.
    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        loop {
            match ready!(self.connection.poll_accept(cx)) {
                Some(Ok((request, respond))) => self.take(request, respond),
                Some(Err(e)) => return Poll::Ready(Ended::Failed(e)),
                None => return Poll::Ready(Ended::Closed),
            }
        }
    }

    fn take(&mut self, request: Request<RecvStream>, mut send: SendResponse<Chunk>) {
        // A stream that the peer reset no longer counts for `h2`, though its task may still be about to
        // notice: a peer that opens and resets in a loop must not gather tasks without limit.
        if self.session.streams() >= 2 * self.settings.max_streams as usize {
            send.send_reset(Reason::REFUSED_STREAM);
            return;
        }
        let parsed = parse_request(&request);
        let respond = Respond { send, recv: request.into_body(), lease: self.session.lease() };
        match parsed {
            Ok(connect) => self.accept.inbound(Inbound { connect, respond }),
            Err(why) => {
                respond.reject(why.status());
                self.accept.rejected(why);
            }
        }
    }

    /// GOAWAY, if the peer still reads, and the end of every stream.
    async fn abort(mut self, cause: Cause, ended: Ended) -> Ended {
        self.session.ends_for(cause);
        self.connection.abrupt_shutdown(Reason::NO_ERROR);
        // Errors and the limit alike mean that the peer does not take it.
        let _ = timeout(ABORT_TIMEOUT, poll_fn(|cx| self.connection.poll_closed(cx))).await;
        ended
    }
}

/// For GOAWAY to leave; a TLS session that still works takes it at once.
const ABORT_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(200);

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
