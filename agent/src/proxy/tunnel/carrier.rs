//! The TCP connection below a tunnel's TLS, read in large pieces.
//!
//! rustls asks for 4 KiB at a time, which is four system calls for a record and as many window updates
//! for the peer to wake up for. Once a read has filled what was asked for, more is waiting: from then on
//! we read ahead, for as long as much comes. While nothing comes, nothing is held.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// `T` is the TCP connection.
pub struct Carrier<T> {
    below: T,
    ahead: BytesMut,
    is_bulk: bool,
}

impl<T> Carrier<T> {
    pub fn new(below: T) -> Self {
        Self { below, ahead: BytesMut::new(), is_bulk: false }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Carrier<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_empty() {
            if !this.is_bulk {
                ready!(Pin::new(&mut this.below).poll_read(cx, buf))?;
                this.is_bulk = buf.remaining() == 0;
                return Poll::Ready(Ok(()));
            }
            ready!(this.poll_ahead(cx))?;
        }
        let n = buf.remaining().min(this.ahead.len());
        buf.put_slice(&this.ahead[..n]);
        this.ahead.advance(n);
        if this.ahead.is_empty() && !this.is_bulk {
            this.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + Unpin> Carrier<T> {
    /// Reads once. Nothing ahead afterwards is the end.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ahead.reserve(AHEAD);
        let read = tokio_util::io::poll_read_buf(Pin::new(&mut self.below), cx, &mut self.ahead);
        if !matches!(read, Poll::Ready(Ok(n)) if n >= STILL_BULK) {
            self.is_bulk = false;
        }
        if self.ahead.is_empty() {
            self.ahead = BytesMut::new();
        }
        read.map_ok(drop)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Carrier<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.below).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.below).poll_write_vectored(cx, bufs)
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

const AHEAD: usize = 64 * 1024;
/// Less than this at once is no longer bulk.
const STILL_BULK: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// Gives one piece at each read, as a socket does whose peer writes so; then nothing for now.
    struct Pieces(VecDeque<Vec<u8>>);

    impl AsyncRead for Pieces {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let Some(piece) = self.0.front_mut() else { return Poll::Pending };
            let n = piece.len().min(buf.remaining());
            buf.put_slice(&piece[..n]);
            piece.drain(..n);
            if piece.is_empty() {
                self.0.pop_front();
            }
            Poll::Ready(Ok(()))
        }
    }

    const ASKED: usize = 4096;

    /// Reads as rustls does, until nothing comes.
    fn read_all(carrier: &mut Carrier<Pieces>) -> Vec<u8> {
        let mut all = Vec::new();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        loop {
            let mut space = [0; ASKED];
            let mut buf = ReadBuf::new(&mut space);
            if Pin::new(&mut *carrier).poll_read(&mut cx, &mut buf).is_pending() {
                return all;
            }
            all.extend_from_slice(buf.filled());
        }
    }

    #[test]
    fn bytes_come_in_order_whatever_their_pieces() {
        let table: [&[usize]; 6] = [
            &[1],
            &[ASKED, 1],
            &[ASKED, AHEAD, AHEAD + 1, 3],
            &[300_000, 17, 0, 5],
            &[ASKED - 1, ASKED, STILL_BULK - 1, 9000, 9000],
            &[2 * ASKED, 40, 40, 70_000],
        ];
        for sizes in table {
            let mut next = 0u32;
            let mut sent = Vec::new();
            let mut pieces = VecDeque::new();
            for size in sizes.iter().filter(|s| **s > 0) {
                let piece: Vec<u8> = (0..*size)
                    .map(|_| {
                        next = next.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        (next >> 24) as u8
                    })
                    .collect();
                sent.extend_from_slice(&piece);
                pieces.push_back(piece);
            }
            let mut carrier = Carrier::new(Pieces(pieces));
            assert!(read_all(&mut carrier) == sent, "{sizes:?}");
            assert_eq!(carrier.ahead.capacity(), 0, "nothing is held while nothing comes: {sizes:?}");
        }
    }

    #[test]
    fn an_end_is_an_end_also_while_reading_ahead() {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut carrier = Carrier::new(&[7; ASKED + 1][..]);
        let mut lengths = Vec::new();
        loop {
            let mut space = [0; ASKED];
            let mut buf = ReadBuf::new(&mut space);
            assert!(Pin::new(&mut carrier).poll_read(&mut cx, &mut buf).is_ready());
            lengths.push(buf.filled().len());
            if buf.filled().is_empty() {
                break;
            }
        }
        assert_eq!(lengths, [ASKED, 1, 0]);
    }
}
