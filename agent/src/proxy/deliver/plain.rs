//! Between two TCP connections: what leaves the mesh, or came in without it.

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
use super::outcome::Outcome;
use super::source::Source;
use super::tcp::{arm_reset, disarm_reset, send_fin, socket_error};
use super::{LAST_WORDS, Watched};
use crate::lifecycle::Stop;
use crate::model::Cause;
use crate::telemetry::Counts;

/// Carries bytes both ways until both ways are over; `watch` sees the client's. Bytes count when the kernel
/// took them.
///
/// Dropped before its end, it resets both.
pub async fn copy_tcp(
    client: TcpStream,
    server: TcpStream,
    counts: &Counts,
    stop: &Stop,
    watch: Watched<'_>,
) -> Outcome {
    let ends = [&client, &server];
    ends.into_iter().for_each(arm_reset);
    let mut relay = Relay {
        sent: Way::new(&client, &server, &counts.sent, watch),
        received: Way::new(&server, &client, &counts.received, None),
    };
    let stopped = relay.run(stop).await;
    match stopped {
        Stopped::InOrder => {
            ends.into_iter().for_each(disarm_reset);
            Outcome::closed()
        }
        Stopped::Client(error) => {
            relay.sent.last_words().await;
            Outcome::new(Cause::ClientReset, error)
        }
        Stopped::Server(error) => {
            relay.received.last_words().await;
            Outcome::new(Cause::ServerReset, error)
        }
        Stopped::Told(cause) => Outcome { cause, detail: None },
    }
}

struct Relay<'a> {
    sent: Way<'a>,
    received: Way<'a>,
}

enum Stopped {
    InOrder,
    Client(io::Error),
    Server(io::Error),
    Told(Cause),
}

impl Relay<'_> {
    async fn run(&mut self, stop: &Stop) -> Stopped {
        let (client, server) = (self.sent.from, self.sent.to);
        let mut told = pin!(stop.ended());
        // For the one that is not being read; see `tunnelled`.
        let mut client_broken = pin!(client.ready(Interest::ERROR));
        let mut server_broken = pin!(server.ready(Interest::ERROR));
        poll_fn(|cx| {
            if let Poll::Ready(cause) = told.as_mut().poll(cx) {
                return Poll::Ready(Stopped::Told(cause));
            }
            match self.sent.poll(cx) {
                Err(Broken::From(e)) => return Poll::Ready(Stopped::Client(e)),
                Err(Broken::To(e)) => return Poll::Ready(Stopped::Server(e)),
                Ok(()) => {}
            }
            match self.received.poll(cx) {
                Err(Broken::From(e)) => return Poll::Ready(Stopped::Server(e)),
                Err(Broken::To(e)) => return Poll::Ready(Stopped::Client(e)),
                Ok(()) => {}
            }
            if !self.sent.is_open && !self.received.is_open {
                return Poll::Ready(Stopped::InOrder);
            }
            if !self.sent.is_reading() && client_broken.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Stopped::Client(socket_error(client)));
            }
            if !self.received.is_reading() && server_broken.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Stopped::Server(socket_error(server)));
            }
            Poll::Pending
        })
        .await
    }
}

/// One of the two ways.
struct Way<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    source: Source,
    /// What one read gave and the other socket has not taken.
    backlog: Backlog,
    is_open: bool,
    count: &'a AtomicU64,
    watch: Watched<'a>,
}

enum Broken {
    From(io::Error),
    To(io::Error),
}

impl<'a> Way<'a> {
    fn new(from: &'a TcpStream, to: &'a TcpStream, count: &'a AtomicU64, watch: Watched<'a>) -> Self {
        Self { from, to, source: Source::default(), backlog: Backlog::default(), is_open: true, count, watch }
    }

    fn take(&mut self, bytes: Bytes) {
        if let Some(watch) = &mut self.watch {
            watch.bytes(&bytes);
        }
        self.backlog.push(bytes);
    }

    fn is_reading(&self) -> bool {
        self.is_open && self.backlog.is_empty()
    }

    /// Until nothing more can be done now.
    fn poll(&mut self, cx: &mut Context<'_>) -> Result<(), Broken> {
        while self.is_open {
            if self.poll_write(cx)?.is_pending() {
                return Ok(());
            }
            match self.source.poll_next(self.from, cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Err(e)) => return Err(Broken::From(e)),
                Poll::Ready(Ok(Some(bytes))) => self.take(bytes),
                Poll::Ready(Ok(None)) => {
                    send_fin(self.to).map_err(Broken::To)?;
                    self.is_open = false;
                }
            }
        }
        Ok(())
    }

    /// Ready when the backlog is empty.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Broken> {
        while !self.backlog.is_empty() {
            match self.backlog.poll_write(self.to, cx) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Err(e)) => return Err(Broken::To(e)),
                Poll::Ready(Ok(n)) => {
                    self.count.fetch_add(n as u64, Ordering::Relaxed);
                }
            }
        }
        Ok(Poll::Ready(()))
    }

    /// Carries over what the broken end had said before it broke. Reading from it does not block.
    async fn last_words(&mut self) {
        let rest = poll_fn(|cx| {
            loop {
                match self.poll_write(cx) {
                    Ok(Poll::Ready(())) => {}
                    Ok(Poll::Pending) => return Poll::Pending,
                    Err(_) => return Poll::Ready(()),
                }
                match self.source.poll_next(self.from, cx) {
                    Poll::Ready(Ok(Some(bytes))) => self.take(bytes),
                    _ => return Poll::Ready(()),
                }
            }
        });
        let _ = timeout(LAST_WORDS, rest).await;
    }
}
