//! Reading and writing a TCP socket without wasted system calls.

use std::io;
use std::net::Shutdown;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Closes the connection with RST: the application shall see an error, not the end of its peer's data.
pub fn reset(tcp: TcpStream) {
    arm_reset(&tcp);
}

/// Makes whatever closes the connection send RST, and throw away what the kernel has not sent yet. Armed
/// for as long as bytes may be missing: the kernel closes the sockets of an agent that is killed, and
/// would end half an answer in order.
pub fn arm_reset(tcp: &TcpStream) {
    if let Err(error) = tcp.set_zero_linger() {
        tracing::debug!(%error, "setsockopt SO_LINGER: the application may see an end in order");
    }
}

/// All is over in order, and so is the close to come: the kernel sends what it still has.
pub fn disarm_reset(tcp: &TcpStream) {
    if let Err(error) = SockRef::from(tcp).set_linger(None) {
        tracing::debug!(%error, "setsockopt SO_LINGER: the application may see a reset after its last byte");
    }
}

/// `read` is one of `TcpStream::try_read*` into `room` bytes. Ready only with its result.
///
/// A read that does not fill its buffer has emptied the socket, so we clear Tokio's readiness as
/// `AsyncRead for TcpStream` does, and save the call that would say EAGAIN. The outer `try_io` does that
/// with the tick it took before the read: an event that comes in between is not lost.
pub(super) fn poll_read(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    room: usize,
    read: impl FnMut() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    let poll_ready = |cx: &mut Context<'_>| tcp.poll_read_ready(cx);
    poll_io(tcp, Interest::READABLE, cx, room, poll_ready, read)
}

/// `write` is one of `TcpStream::try_write*` from `len` bytes; the same saving as in [`poll_read`].
pub(super) fn poll_write(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    len: usize,
    write: impl FnMut() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    let poll_ready = |cx: &mut Context<'_>| tcp.poll_write_ready(cx);
    poll_io(tcp, Interest::WRITABLE, cx, len, poll_ready, write)
}

fn poll_io(
    tcp: &TcpStream,
    interest: Interest,
    cx: &mut Context<'_>,
    full: usize,
    mut poll_ready: impl FnMut(&mut Context<'_>) -> Poll<io::Result<()>>,
    mut io: impl FnMut() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(poll_ready(cx))?;
        let mut moved = None;
        let result = tcp.try_io(interest, || {
            let n = io()?;
            moved = Some(n);
            if 0 < n && n < full { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match (moved, result) {
            (Some(n), _) => return Poll::Ready(Ok(n)),
            (None, Err(e)) if e.kind() == io::ErrorKind::WouldBlock => {}
            (None, Err(e)) => return Poll::Ready(Err(e)),
            // Not reached: without an error the closure has set `moved`.
            (None, Ok(())) => return Poll::Pending,
        }
    }
}

/// Ends our way in order.
pub(super) fn send_fin(tcp: &TcpStream) -> io::Result<()> {
    SockRef::from(tcp).shutdown(Shutdown::Write)
}

/// Ready when the connection broke, also while nobody reads from it; not at its end in order.
pub async fn broken(tcp: &TcpStream) -> io::Error {
    match tcp.ready(Interest::ERROR).await {
        Ok(_) => socket_error(tcp),
        Err(e) => e,
    }
}

/// What the kernel has to say about a socket that reported an error without being read or written.
pub(super) fn socket_error(tcp: &TcpStream) -> io::Error {
    match tcp.take_error() {
        Ok(Some(e)) | Err(e) => e,
        // Somebody took it before us: a reset is what is left to assume.
        Ok(None) => io::ErrorKind::ConnectionReset.into(),
    }
}
