//! The client's end of a connection: what was read ahead of it to see what it speaks, bytes counted, and
//! when the head of a request begins.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::telemetry::Counts;

/// What a client's stream must be. Dropped before `poll_shutdown`, it resets.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Transport for T {}

pub(super) struct Client<T> {
    below: T,
    /// Read already, and not counted.
    ahead: Bytes,
    counts: Arc<Counts>,
    phase: Phase,
}

impl<T> Client<T> {
    pub(super) fn new(below: T, ahead: Bytes, counts: Arc<Counts>, phase: Phase) -> Self {
        Self { below, ahead, counts, phase }
    }

    fn came(&self, n: usize) {
        add(&self.counts.sent, n);
        self.phase.bytes_came();
    }
}

fn add(to: &AtomicU64, n: usize) {
    to.fetch_add(n as u64, Ordering::Relaxed);
}

impl<T: Transport> AsyncRead for Client<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.has_remaining() {
            let n = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead.split_to(n));
            self.came(n);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.below).poll_read(cx, buf))?;
        let n = buf.filled().len() - before;
        if n > 0 {
            self.came(n);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: Transport> AsyncWrite for Client<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.below).poll_write(cx, buf))?;
        add(&self.counts.received, n);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.below).poll_write_vectored(cx, bufs))?;
        add(&self.counts.received, n);
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        self.below.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.below).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.below).poll_shutdown(cx)
    }
}

/// Where an HTTP/1 connection is between two requests. hyper's own deadline for heads runs while nothing
/// is asked for as well, and would close connections that are kept for later.
#[derive(Clone, Debug)]
pub(super) struct Phase(Arc<watch::Sender<Now>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Now {
    /// Since then.
    Idle(Instant),
    /// A head has begun, and is not complete.
    Head(Instant),
    /// So many requests are being served.
    Busy(usize),
}

/// What has not come in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    /// The rest of a head.
    Head,
    /// Another request.
    Request,
}

impl Phase {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Now::Idle(Instant::now()))))
    }

    fn bytes_came(&self) {
        self.0.send_if_modified(|now| {
            let began = matches!(now, Now::Idle(_));
            if began {
                *now = Now::Head(Instant::now());
            }
            began
        });
    }

    pub(super) fn request_began(&self) {
        self.0.send_modify(|now| {
            let before = if let Now::Busy(requests) = now { *requests } else { 0 };
            *now = Now::Busy(before + 1);
        });
    }

    pub(super) fn request_ended(&self) {
        self.0.send_modify(|now| {
            *now = match now {
                Now::Busy(requests @ 2..) => Now::Busy(*requests - 1),
                _ => Now::Idle(Instant::now()),
            };
        });
    }

    /// Ready when a head has taken longer than `head`, or the next one longer than `idle` to begin.
    pub(super) async fn late(&self, head: Duration, idle: Option<Duration>) -> Late {
        self.longer(|now| match now {
            Now::Head(began) => Some((began + head, Late::Head)),
            Now::Idle(since) => Some((since + idle?, Late::Request)),
            Now::Busy(_) => None,
        })
        .await
    }

    /// Ready when no request was open for longer than `limit`, in HTTP/2, where bytes need not be a head's.
    pub(super) async fn idle(&self, limit: Option<Duration>) {
        self.longer(|now| match now {
            Now::Head(since) | Now::Idle(since) => Some((since + limit?, ())),
            Now::Busy(_) => None,
        })
        .await;
    }

    async fn longer<T>(&self, until: impl Fn(Now) -> Option<(Instant, T)>) -> T {
        let mut now = self.0.subscribe();
        loop {
            let phase = *now.borrow_and_update();
            match until(phase) {
                Some((end, late)) => {
                    if tokio::time::timeout_at(end, now.changed()).await.is_err() {
                        return late;
                    }
                }
                // Never an error: we hold the sender.
                None => drop(now.changed().await),
            }
        }
    }
}
