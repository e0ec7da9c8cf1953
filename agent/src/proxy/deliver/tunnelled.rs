//! Between an application's TCP connection and a tunnel's stream.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::backlog::Backlog;
use super::outcome::{Ends, Outcome};
use super::source::Source;
use super::tcp::{arm_reset, disarm_reset, send_fin, socket_error};
use super::{LAST_WORDS, Watched};
use crate::lifecycle::Stop;
use crate::model::{Cause, Direction};
use crate::proxy::tunnel::{Reason, StreamError, TunnelStream};
use crate::telemetry::Counts;

/// Carries bytes both ways until both ways are over. `direction` says whose socket `tcp` is: the client's
/// at the outbound end, the server's at the inbound end. Bytes count when the next one took them: the
/// tunnel, or the kernel. `watch` sees what comes through the tunnel.
///
/// Dropped before its end, it resets both.
pub async fn copy(
    tcp: TcpStream,
    stream: TunnelStream,
    direction: Direction,
    counts: &Counts,
    stop: &Stop,
    watch: Watched<'_>,
) -> Outcome {
    let (up_count, down_count) = match direction {
        Direction::Outbound => (&counts.sent, &counts.received),
        Direction::Inbound => (&counts.received, &counts.sent),
    };
    arm_reset(&tcp);
    let mut relay = Relay {
        tcp: &tcp,
        stream,
        up: Up { source: Source::default(), is_open: true, count: up_count },
        down: Down { backlog: Backlog::default(), state: Receiving::Open, count: down_count, watch },
        reset_reason: Some(Reason::INTERNAL_ERROR),
    };
    match relay.run(stop).await {
        Stopped::InOrder => relay.close(),
        Stopped::Near(error) => relay.reset_far(error, direction.into()).await,
        Stopped::Far(error) => relay.reset_near(error, direction.into()).await,
        Stopped::Told(cause) => relay.reset_both(cause),
    }
}

struct Relay<'a> {
    tcp: &'a TcpStream,
    stream: TunnelStream,
    up: Up<'a>,
    down: Down<'a>,
    /// What the drop tells the peer; `None` once all is over in order.
    reset_reason: Option<Reason>,
}

/// From the application into the tunnel.
struct Up<'a> {
    source: Source,
    is_open: bool,
    count: &'a AtomicU64,
}

/// From the tunnel to the application.
struct Down<'a> {
    backlog: Backlog,
    state: Receiving,
    count: &'a AtomicU64,
    watch: Watched<'a>,
}

#[derive(PartialEq)]
enum Receiving {
    Open,
    /// The peer is through; the backlog may not be.
    Ended,
    /// FIN was sent.
    Over,
}

/// What stopped the copying.
enum Stopped {
    InOrder,
    /// The application's connection broke.
    Near(io::Error),
    /// The stream did.
    Far(StreamError),
    /// Somebody ended it.
    Told(Cause),
}

impl Relay<'_> {
    async fn run(&mut self, stop: &Stop) -> Stopped {
        let tcp = self.tcp;
        let mut told = pin!(stop.ended());
        // Says that the application reset its connection while we do not read from it, because it sent
        // FIN before or because the tunnel is full.
        let mut broken = pin!(tcp.ready(Interest::ERROR));
        poll_fn(|cx| {
            if let Poll::Ready(cause) = told.as_mut().poll(cx) {
                return Poll::Ready(Stopped::Told(cause));
            }
            match self.poll_both(cx) {
                Err(stopped) => Poll::Ready(stopped),
                Ok(_) if self.is_over() => Poll::Ready(Stopped::InOrder),
                Ok(Reading::No) if broken.as_mut().poll(cx).is_ready() => {
                    Poll::Ready(Stopped::Near(socket_error(tcp)))
                }
                Ok(_) => Poll::Pending,
            }
        })
        .await
    }

    fn poll_both(&mut self, cx: &mut Context<'_>) -> Result<Reading, Stopped> {
        let reading = self.poll_up(cx)?;
        self.poll_down(cx)?;
        Ok(reading)
    }

    fn is_over(&self) -> bool {
        !self.up.is_open && self.down.state == Receiving::Over
    }

    fn poll_up(&mut self, cx: &mut Context<'_>) -> Result<Reading, Stopped> {
        while self.up.is_open {
            if self.stream.poll_room(cx).is_pending() {
                return Ok(Reading::No);
            }
            match self.up.source.poll_next(self.tcp, cx) {
                Poll::Pending => return Ok(Reading::Yes),
                Poll::Ready(Err(e)) => return Err(Stopped::Near(e)),
                Poll::Ready(Ok(Some(bytes))) => self.send(bytes, cx)?,
                Poll::Ready(Ok(None)) => {
                    self.up.is_open = false;
                    if self.stream.finish().is_err() {
                        self.why_refused(cx)?;
                    }
                }
            }
        }
        Ok(Reading::No)
    }

    fn send(&mut self, bytes: Bytes, cx: &mut Context<'_>) -> Result<(), Stopped> {
        let len = bytes.len() as u64;
        if self.stream.send(bytes).is_err() {
            self.up.is_open = false;
            return self.why_refused(cx);
        }
        self.up.count.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }

    /// The stream takes no more: because the peer wants no more, or because it broke.
    fn why_refused(&mut self, cx: &mut Context<'_>) -> Result<(), Stopped> {
        match self.stream.poll_reset(cx) {
            Poll::Ready(Err(e)) => Err(Stopped::Far(e)),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Result<(), Stopped> {
        self.receive(cx)?;
        if self.deliver(cx)?.is_ready() && self.down.state == Receiving::Ended {
            send_fin(self.tcp).map_err(Stopped::Near)?;
            self.down.state = Receiving::Over;
        }
        if self.down.state != Receiving::Open && self.up.is_open {
            // Nothing is received any more, so only this tells of a reset.
            match self.stream.poll_reset(cx) {
                Poll::Ready(Ok(())) => self.up.is_open = false,
                Poll::Ready(Err(e)) => return Err(Stopped::Far(e)),
                Poll::Pending => {}
            }
        }
        Ok(())
    }

    /// Takes all that the tunnel has, also when the application is slow: the bytes are bounded by the
    /// flow-control window, and small frames cost less here than where they lie.
    fn receive(&mut self, cx: &mut Context<'_>) -> Result<(), Stopped> {
        while self.down.state == Receiving::Open {
            match self.stream.poll_data(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(bytes))) => {
                    if let Some(watch) = &mut self.down.watch {
                        watch.bytes(&bytes);
                    }
                    self.down.backlog.push(bytes);
                }
                Poll::Ready(Some(Err(e))) => return Err(Stopped::Far(e)),
                Poll::Ready(None) => self.down.state = Receiving::Ended,
            }
        }
        Ok(())
    }

    /// Ready when the backlog is empty.
    fn deliver(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Stopped> {
        while !self.down.backlog.is_empty() {
            match self.down.backlog.poll_write(self.tcp, cx) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Err(e)) => return Err(Stopped::Near(e)),
                Poll::Ready(Ok(n)) => {
                    self.stream.release(n);
                    self.down.count.fetch_add(n as u64, Ordering::Relaxed);
                }
            }
        }
        Ok(Poll::Ready(()))
    }

    fn close(mut self) -> Outcome {
        self.reset_reason = None;
        disarm_reset(self.tcp);
        Outcome::closed()
    }

    /// The application's own bytes come first: a server that answers and closes without reading the whole
    /// request ends with a reset too, and its answer is worth reading.
    async fn reset_far(mut self, error: io::Error, ends: Ends) -> Outcome {
        let rest = poll_fn(|cx| {
            // A write may have met the reset before we read what came ahead of it.
            while self.up.is_open && self.stream.poll_room(cx).is_ready() {
                let carried = match self.up.source.poll_next(self.tcp, cx) {
                    Poll::Ready(Ok(Some(bytes))) => self.send(bytes, cx).is_ok(),
                    _ => false,
                };
                self.up.is_open &= carried;
            }
            if self.up.is_open { Poll::Pending } else { self.stream.poll_flushed(cx) }
        });
        let _ = timeout(LAST_WORDS, rest).await;
        // RFC 9113, 8.5: "the proxy treats any error in the TCP connection … as CONNECT_ERROR".
        self.reset_reason = Some(Reason::CONNECT_ERROR);
        Outcome::new(ends.near_reset, error)
    }

    async fn reset_near(mut self, error: StreamError, ends: Ends) -> Outcome {
        let rest = poll_fn(|cx| match self.deliver(cx) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) | Err(_) => Poll::Ready(()),
        });
        let _ = timeout(LAST_WORDS, rest).await;
        self.reset_reason = Some(Reason::CANCEL);
        let cause = match &error {
            // CANCEL is how a peer that drops a stream says so.
            StreamError::Reset(Reason::CONNECT_ERROR | Reason::CANCEL) => ends.far_reset,
            StreamError::Reset(REVOKED) => Cause::DeniedByPeer,
            StreamError::Reset(NOT_HTTP) => Cause::NotHttp,
            StreamError::Reset(_) => Cause::TunnelFailed,
            StreamError::Lost { cause, .. } => *cause,
        };
        Outcome::new(cause, error)
    }

    fn reset_both(mut self, cause: Cause) -> Outcome {
        if cause == Cause::PolicyRevoked {
            self.reset_reason = Some(REVOKED);
        }
        Outcome { cause, detail: None }
    }
}

impl Drop for Relay<'_> {
    fn drop(&mut self) {
        if let Some(reason) = self.reset_reason {
            self.stream.reset(reason);
        }
    }
}

/// Whether the application's socket is being waited on for bytes, and thus for errors.
enum Reading {
    Yes,
    No,
}

/// Between two agents: our policy no longer permits this connection. HTTP/2 has no better code, and to
/// every other peer it is an error like any.
pub const REVOKED: Reason = Reason::INADEQUATE_SECURITY;

/// Between two agents: our policy looks at requests, and this is none. To every other peer it is an error.
pub const NOT_HTTP: Reason = Reason::HTTP_1_1_REQUIRED;
