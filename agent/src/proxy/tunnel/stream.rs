//! One application connection inside a tunnel: bytes both ways, an end of each way, and reset.
//!
//! Memory is bounded both ways. What we receive and have not passed on is bounded by the flow-control
//! window, since [`TunnelStream::release`] opens it again only for bytes that left us. What we send and
//! the tunnel has not taken yet is counted by the chunks themselves ([`Chunk`] tells when it is dropped),
//! not by `h2`'s capacity calls: those reserve parts of the connection's window for streams that are
//! idle, and cost three locks a chunk instead of one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::task::AtomicWaker;
use h2::{Reason, RecvStream, SendStream};

use super::{Lease, StreamError};

pub struct TunnelStream {
    send: SendStream<Chunk>,
    recv: RecvStream,
    queue: Arc<Queue>,
    /// Dropped after the handles above, so that the stream's place is free only when `h2` knows.
    lease: Lease,
}

impl TunnelStream {
    pub(super) fn new(send: SendStream<Chunk>, recv: RecvStream, lease: Lease) -> Self {
        Self { send, recv, queue: Arc::default(), lease }
    }

    /// The next bytes, `None` when the peer ended its way in order. Bytes that came before a reset are
    /// given before the reset is. A reset with NO_ERROR is an end in order (RFC 9113, 8.1: "the response
    /// is complete, stop sending").
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>> {
        loop {
            match ready!(self.recv.poll_data(cx)) {
                // An empty DATA frame is no news, and the peer may send a hundred.
                Some(Ok(bytes)) if bytes.is_empty() => continue,
                Some(Ok(bytes)) => return Poll::Ready(Some(Ok(bytes))),
                Some(Err(e)) if e.is_reset() && e.reason() == Some(Reason::NO_ERROR) => {
                    return Poll::Ready(None);
                }
                Some(Err(e)) => return Poll::Ready(Some(Err(self.error(&e)))),
                None => return Poll::Ready(None),
            }
        }
    }

    /// Lets the peer send `n` more bytes, for `n` received ones that left us.
    pub fn release(&mut self, n: usize) {
        // Refused only for more than was received, or on a stream that is over: nothing to do then.
        let _ = self.recv.flow_control().release_capacity(n);
    }

    /// Ready while the tunnel holds less than 256 KiB of this stream's bytes. Wakes one task only.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.queue.poll_below(MAX_QUEUED, cx)
    }

    /// Ready when the tunnel has taken every byte of this stream into its own buffers, from where only
    /// the end of the whole tunnel can remove it.
    pub fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.queue.poll_below(1, cx)
    }

    /// Queues `bytes`, whatever is queued already: ask [`Self::poll_room`] before. Fails when the stream
    /// is over; [`Self::poll_data`] or [`Self::poll_reset`] tell why.
    pub fn send(&mut self, bytes: Bytes) -> Result<(), Over> {
        self.send.send_data(Chunk::new(bytes, &self.queue), false).map_err(|_| Over)
    }

    /// Ends our way in order, after everything that is queued.
    pub fn finish(&mut self) -> Result<(), Over> {
        self.send.send_data(Chunk::new(Bytes::new(), &self.queue), true).map_err(|_| Over)
    }

    /// Ends both ways at once. What is queued and not flushed is lost.
    pub fn reset(&mut self, reason: Reason) {
        self.send.send_reset(reason);
    }

    /// Ready when the peer, or the end of the tunnel, ended the stream: for one whose receiving way is
    /// over and who would not learn it from [`Self::poll_data`]. `Ok` is a reset with NO_ERROR: the peer
    /// wants no more bytes.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        let reset = ready!(self.send.poll_reset(cx));
        Poll::Ready(match reset {
            // `h2` gives the reason of a GOAWAY here as well, also of our own.
            _ if self.lease.cause().is_some() => Err(StreamError::Lost {
                cause: self.lease.cause_of_loss(),
                detail: "by this agent".to_owned(),
            }),
            Ok(Reason::NO_ERROR) => Ok(()),
            Ok(reason) => Err(StreamError::Reset(reason)),
            Err(e) => Err(self.error(&e)),
        })
    }

    fn error(&self, e: &h2::Error) -> StreamError {
        stream_error(e, &self.lease)
    }
}

/// The stream takes no more bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream is over")]
pub struct Over;

/// As much as keeps a connection busy for some round trips of a fast network, once for each stream.
const MAX_QUEUED: usize = 256 * 1024;

pub(super) fn stream_error(e: &h2::Error, lease: &Lease) -> StreamError {
    match (e.is_reset(), e.reason()) {
        (true, Some(reason)) => StreamError::Reset(reason),
        _ => StreamError::Lost { cause: lease.cause_of_loss(), detail: e.to_string() },
    }
}

/// Bytes on their way into the tunnel. Its drop is how we learn that `h2` has copied them into its write
/// buffer or written them, or threw them away with the stream.
pub(super) struct Chunk {
    bytes: Bytes,
    len: usize,
    queue: Arc<Queue>,
}

impl Chunk {
    fn new(bytes: Bytes, queue: &Arc<Queue>) -> Self {
        let len = bytes.len();
        queue.bytes.fetch_add(len, Ordering::AcqRel);
        Self { bytes, len, queue: Arc::clone(queue) }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let before = self.queue.bytes.fetch_sub(self.len, Ordering::AcqRel);
        let after = before - self.len;
        if after == 0 || (before >= MAX_QUEUED && after < MAX_QUEUED) {
            self.queue.waker.wake();
        }
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, n: usize) {
        self.bytes.advance(n);
    }
}

#[derive(Default)]
struct Queue {
    bytes: AtomicUsize,
    waker: AtomicWaker,
}

impl Queue {
    fn poll_below(&self, limit: usize, cx: &mut Context<'_>) -> Poll<()> {
        if self.bytes.load(Ordering::Acquire) < limit {
            return Poll::Ready(());
        }
        self.waker.register(cx.waker());
        // Again, for the chunk that was dropped before the waker stood.
        if self.bytes.load(Ordering::Acquire) < limit { Poll::Ready(()) } else { Poll::Pending }
    }
}
