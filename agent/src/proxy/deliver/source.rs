//! Bytes from a TCP socket in pieces that own their memory, as large as what comes.

use std::cell::RefCell;
use std::io;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::net::TcpStream;

use super::tcp::poll_read;

/// Small reads go through a buffer of the thread's and are copied into exactly as much memory as they
/// need. A read that fills it shows bulk: from then on we read into memory that is handed on without a
/// copy. Either way nothing is held while nothing comes.
#[derive(Default)]
pub(super) struct Source {
    is_bulk: bool,
    buffer: BytesMut,
}

impl Source {
    /// `None` is the end of the application's bytes.
    pub(super) fn poll_next(
        &mut self,
        tcp: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<Bytes>>> {
        let read = if self.is_bulk { self.poll_bulk(tcp, cx) } else { self.poll_small(tcp, cx) };
        read.map_ok(|bytes| if bytes.is_empty() { None } else { Some(bytes) })
    }

    fn poll_small(&mut self, tcp: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let n = ready!(poll_read(tcp, cx, SMALL, || tcp.try_read(scratch)))?;
            self.is_bulk = n == SMALL;
            Poll::Ready(Ok(Bytes::copy_from_slice(&scratch[..n])))
        })
    }

    fn poll_bulk(&mut self, tcp: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if tcp.poll_read_ready(cx).is_pending() {
            self.buffer = BytesMut::new();
            return Poll::Pending;
        }
        let buffer = &mut self.buffer;
        buffer.reserve(BULK);
        let n = ready!(poll_read(tcp, cx, buffer.capacity(), || tcp.try_read_buf(buffer)))?;
        self.is_bulk = n >= STILL_BULK;
        let bytes = self.buffer.split().freeze();
        if !self.is_bulk {
            self.buffer = BytesMut::new();
        }
        Poll::Ready(Ok(bytes))
    }
}

const SMALL: usize = 16 * 1024;
/// A read in bulk, and so a DATA frame: with its head of nine bytes four whole TLS records, which is also
/// what rustls takes at once. One byte more would make a record, a system call and a packet of its own.
const BULK: usize = 64 * 1024 - 9;
/// Less than this at once is no longer bulk.
const STILL_BULK: usize = 8 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SMALL].into());
}
