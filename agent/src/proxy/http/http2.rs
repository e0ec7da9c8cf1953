//! A connection in HTTP/2: streams side by side, each judged for itself.

use std::error::Error as StdError;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Connection;
use super::client::{Client, Transport};
use super::http1::{chain, reviewed};
use super::request::{Application, handle};
use crate::lifecycle::Stop;
use crate::model::Cause;
use crate::proxy::deliver::Outcome;

pub(super) async fn serve<T: Transport>(
    client: Client<T>,
    application: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    connection: Arc<Connection>,
    stop: &Stop,
) -> Outcome {
    let limits = connection.service.limits;
    let settled = CancellationToken::new();
    let application = Settling { below: application, was_read: false, settled: settled.clone() };
    let handshake = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .max_header_list_size(limits.head_bytes)
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .handshake(TokioIo::new(application))
        .await;
    let (sender, mut application) = match handshake {
        Ok(connected) => connected,
        Err(e) => return Outcome { cause: Cause::ServerReset, detail: Some(chain(&e)) },
    };
    // What it says of itself is what we say of ourselves, so it is heard first.
    let first_settings = timeout(SETTINGS_TIME, settled.cancelled());
    tokio::select! {
        cause = stop.ended() => return Outcome { cause, detail: None },
        ended = &mut application => return lost(ended),
        _ = first_settings => {}
    }
    let sender = Arc::new(Application::Http2(sender));
    let service = service_fn({
        let connection = Arc::clone(&connection);
        move |request| handle(Arc::clone(&connection), Arc::clone(&sender), request)
    });
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .auto_date_header(false)
        .max_header_list_size(limits.head_bytes)
        .max_concurrent_streams(limits.streams)
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window);
    if application.is_extended_connect_protocol_enabled() {
        builder.enable_connect_protocol();
    }
    let mut client = builder.serve_connection(TokioIo::new(client), service);
    let mut reviewing = pin!(reviewed(&connection));
    let mut application_lives = true;
    let mut is_leaving = false;
    let done = loop {
        tokio::select! {
            biased;
            cause = stop.ended() => return Outcome { cause, detail: None },
            never = &mut reviewing => match never {},
            done = &mut client => break done,
            ended = &mut application, if application_lives => {
                application_lives = false;
                if let Err(e) = ended {
                    connection.fail(Cause::ServerReset, chain(&e));
                }
                // It said GOAWAY, or nothing more: streams that live go on.
                Pin::new(&mut client).graceful_shutdown();
            }
            () = connection.phase.idle(limits.idle), if !is_leaving => {
                is_leaving = true;
                Pin::new(&mut client).graceful_shutdown();
            }
        }
    };
    drop(client);
    connection.outcome(match done {
        Ok(()) => Outcome { cause: Cause::Closed, detail: None },
        Err(e) => Outcome { cause: cause_of(&e), detail: Some(chain(&e)) },
    })
}

fn lost(ended: hyper::Result<()>) -> Outcome {
    let detail = ended.err().map_or_else(|| "the application closed".to_owned(), |e| chain(&e));
    Outcome { cause: Cause::ServerReset, detail: Some(detail) }
}

/// A peer that breaks the protocol, or one that went away.
fn cause_of(e: &hyper::Error) -> Cause {
    let h2 = e.source().and_then(|source| source.downcast_ref::<h2::Error>());
    if h2.is_some_and(|e| e.is_library()) { Cause::BadRequest } else { Cause::ClientReset }
}

/// The application's stream; `settled` once its first SETTINGS hold, as the frame that we write after we
/// read it shows.
struct Settling<T> {
    below: T,
    was_read: bool,
    settled: CancellationToken,
}

impl<T: AsyncRead + Unpin> AsyncRead for Settling<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.below).poll_read(cx, buf))?;
        self.was_read |= buf.filled().len() > before;
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> Settling<T> {
    fn written(&self) {
        if self.was_read {
            self.settled.cancel();
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Settling<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.written();
        Pin::new(&mut self.below).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.written();
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

const SETTINGS_TIME: Duration = Duration::from_secs(1);
