//! Received bytes that the application has not taken yet.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use tokio::net::TcpStream;

use super::tcp::poll_write;

/// Holds no memory when empty. Small pieces that have to wait are copied together: a piece is a slice of
/// the tunnel's read buffer and would keep all of that alive, so that a peer who sends single bytes to a
/// reader who is slow could make us hold thousands of times what it sent.
#[derive(Default)]
pub(super) struct Backlog {
    front: Bytes,
    rest: VecDeque<Bytes>,
    /// Collects small pieces; after `rest`.
    tail: BytesMut,
    len: usize,
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn push(&mut self, bytes: Bytes) {
        self.len += bytes.len();
        if self.front.is_empty() {
            self.front = bytes;
        } else if bytes.len() < SMALL {
            if self.tail.len() + bytes.len() > self.tail.capacity() {
                self.seal_tail();
                self.tail.reserve(TAIL);
            }
            self.tail.extend_from_slice(&bytes);
        } else {
            self.seal_tail();
            self.rest.push_back(bytes);
        }
    }

    /// Writes once; ready with how many bytes the kernel took. Not for an empty backlog.
    pub(super) fn poll_write(&mut self, tcp: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let written = if self.rest.is_empty() && self.tail.is_empty() {
            poll_write(tcp, cx, self.front.len(), || tcp.try_write(&self.front))
        } else {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let pieces = std::iter::once(&self.front[..])
                .chain(self.rest.iter().map(|b| &b[..]))
                .chain(std::iter::once(&self.tail[..]));
            let mut total = 0;
            let mut count = 0;
            for (slot, piece) in slices.iter_mut().zip(pieces) {
                *slot = IoSlice::new(piece);
                total += piece.len();
                count += 1;
            }
            poll_write(tcp, cx, total, || tcp.try_write_vectored(&slices[..count]))
        };
        if let Poll::Ready(Ok(n)) = written {
            self.advance(n);
        }
        written
    }

    fn advance(&mut self, mut n: usize) {
        self.len -= n;
        while n >= self.front.len() {
            n -= self.front.len();
            match self.rest.pop_front() {
                Some(next) => self.front = next,
                None => {
                    self.front = std::mem::take(&mut self.tail).freeze();
                    self.rest = VecDeque::new();
                    if self.front.is_empty() {
                        break;
                    }
                }
            }
        }
        self.front.advance(n);
    }

    fn seal_tail(&mut self) {
        if !self.tail.is_empty() {
            let full = std::mem::take(&mut self.tail).freeze();
            self.rest.push_back(full);
        }
    }
}

const SMALL: usize = 4 * 1024;
const TAIL: usize = 16 * 1024;
const MAX_SLICES: usize = 16;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn pieces_of_every_size_keep_their_order() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let sizes = [1, 2, SMALL - 1, SMALL, SMALL + 1, 3, 5, TAIL, 7, TAIL - 1, TAIL + 1, 11, 13, SMALL, 1];
        for first in 0..sizes.len() {
            let (mut backlog, mut expected) = (Backlog::default(), Vec::new());
            for size in sizes.iter().cycle().skip(first).take(sizes.len()) {
                let piece: Vec<u8> = (0..*size).map(|n| (expected.len() + n) as u8 ^ (*size as u8)).collect();
                expected.extend_from_slice(&piece);
                backlog.push(piece.into());
            }
            let write = async {
                while !backlog.is_empty() {
                    poll_fn(|cx| backlog.poll_write(&tcp, cx)).await.unwrap();
                }
            };
            let mut got = vec![0; expected.len()];
            let (read, ()) = tokio::join!(far.read_exact(&mut got), write);
            read.unwrap();
            assert!(got == expected, "beginning with the piece {first}");
        }
    }

    /// Each a slice of a buffer that it would keep alive.
    #[test]
    fn small_pieces_that_wait_are_copied_together() {
        let mut backlog = Backlog::default();
        for _ in 0..10_000 {
            backlog.push(Bytes::from_static(b"x"));
        }
        assert!(backlog.rest.len() <= 10_000 / TAIL + 1, "{} pieces", backlog.rest.len());
        assert_eq!(backlog.len, 10_000);
    }
}
