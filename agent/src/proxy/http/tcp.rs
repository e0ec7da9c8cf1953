//! A plaintext client's socket.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::proxy::deliver;

/// Resets unless it was shut down in order.
pub struct Socket {
    /// None once dropped.
    tcp: Option<TcpStream>,
    is_shut: bool,
    is_read: bool,
}

impl Socket {
    pub fn new(tcp: TcpStream) -> Self {
        deliver::arm_reset(&tcp);
        Self { tcp: Some(tcp), is_shut: false, is_read: false }
    }

    fn tcp(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        self.tcp.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(self.tcp()?.poll_read(cx, buf))?;
        self.is_read |= buf.filled().len() == before;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.tcp()?.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.tcp()?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.tcp()?.poll_shutdown(cx))?;
        if let Some(tcp) = &self.tcp {
            deliver::disarm_reset(tcp);
        }
        self.is_shut = true;
        Poll::Ready(Ok(()))
    }
}

impl Drop for Socket {
    /// What the client still sends must not turn into a reset that overtakes our answer: the kernel sends
    /// one for bytes that nobody reads.
    fn drop(&mut self) {
        if let Some(mut tcp) = self.tcp.take().filter(|_| self.is_shut && !self.is_read) {
            tokio::spawn(async move {
                let mut left = [0; 4096];
                let reading = async {
                    for _ in 0..LINGER_READS {
                        if !matches!(tcp.read(&mut left).await, Ok(n) if n > 0) {
                            return;
                        }
                    }
                };
                let _ = tokio::time::timeout(LINGER, reading).await;
            });
        }
    }
}

const LINGER: Duration = Duration::from_secs(2);
const LINGER_READS: usize = 256;
