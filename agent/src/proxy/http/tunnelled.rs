//! A client beyond a tunnel, as a stream of bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::lifecycle::Stop;
use crate::model::Cause;
use crate::proxy::deliver::{NOT_HTTP, REVOKED};
use crate::proxy::tunnel::{Reason, TunnelStream};

/// Resets unless it was shut down in order.
pub struct Tunnelled {
    stream: TunnelStream,
    /// Received, and not taken yet: its room in the window is not given back before.
    left: Bytes,
    is_shut: bool,
    /// Says why, if it ended.
    stop: Stop,
}

impl Tunnelled {
    pub fn new(stream: TunnelStream, stop: Stop) -> Self {
        Self { stream, left: Bytes::new(), is_shut: false, stop }
    }
}

impl AsyncRead for Tunnelled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.left.has_remaining() {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(bytes)) => self.left = bytes,
                Some(Err(e)) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, e)));
                }
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = self.left.len().min(buf.remaining());
        buf.put_slice(&self.left.split_to(n));
        self.stream.release(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnelled {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.stream.poll_room(cx));
        let n = buf.len().min(CHUNK);
        self.stream
            .send(Bytes::copy_from_slice(&buf[..n]))
            .map_err(|e| io::Error::new(io::ErrorKind::BrokenPipe, e))?;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_shut {
            self.is_shut = true;
            self.stream.finish().map_err(|e| io::Error::new(io::ErrorKind::BrokenPipe, e))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Tunnelled {
    fn drop(&mut self) {
        if !self.is_shut {
            self.stream.reset(match self.stop.ended().now_or_never() {
                Some(Cause::PolicyRevoked) => REVOKED,
                Some(Cause::NotHttp) => NOT_HTTP,
                _ => Reason::CONNECT_ERROR,
            });
        }
    }
}

const CHUNK: usize = 64 * 1024;
