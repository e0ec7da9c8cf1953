//! A connection in HTTP/1.0 and 1.1.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::server;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::Connection;
use super::answer;
use super::client::{Client, Late, Transport};
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
    let handshake = hyper::client::conn::http1::Builder::new()
        .preserve_header_case(true)
        .handshake(TokioIo::new(application))
        .await;
    let (sender, application) = match handshake {
        Ok((sender, application)) => (sender, application.with_upgrades()),
        Err(e) => return Outcome { cause: Cause::ServerReset, detail: Some(e.to_string()) },
    };
    let limits = connection.service.limits;
    let mut application = Box::pin(application);
    let sender = Arc::new(Application::Http1(Mutex::new(sender)));
    let service = service_fn({
        let connection = Arc::clone(&connection);
        move |request| handle(Arc::clone(&connection), Arc::clone(&sender), request)
    });
    let mut client = server::conn::http1::Builder::new()
        .preserve_header_case(true)
        .auto_date_header(false)
        .header_read_timeout(None)
        .max_headers(limits.fields)
        .max_header_size(limits.head_bytes as usize)
        .serve_connection(TokioIo::new(client), service)
        .with_upgrades();
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
                    tracing::debug!(error = %chain(&e), "the application's connection ended");
                }
                // Its last answer may be one that switches protocols, which is ended otherwise.
                if let Poll::Ready(done) = futures::poll!(&mut client) {
                    break done;
                }
                // The next request would meet nobody.
                if connection.tunnels.is_empty() {
                    std::pin::Pin::new(&mut client).graceful_shutdown();
                }
            }
            late = connection.phase.late(limits.head, limits.idle.filter(|_| !is_leaving)) => match late {
                Late::Head => return timed_out(client.into_parts().map(|parts| parts.io.into_inner())).await,
                Late::Request => {
                    is_leaving = true;
                    std::pin::Pin::new(&mut client).graceful_shutdown();
                }
            }
        }
    };
    // With it goes the sender, and the connection to the application ends in order.
    drop(client);
    let rest = async {
        if application_lives {
            let _ = timeout(LAST_WORDS, &mut application).await;
        }
        connection.tunnels.close();
        connection.tunnels.wait().await;
    };
    tokio::select! {
        cause = stop.ended() => return Outcome { cause, detail: None },
        never = &mut reviewing => match never {},
        () = rest => {}
    }
    connection.outcome(outcome(done))
}

/// Judges open requests again whenever policies change.
pub(super) async fn reviewed(connection: &Connection) -> Infallible {
    let mut changes = connection.service.judge.changes();
    while changes.changed().await.is_ok() {
        connection.review();
    }
    std::future::pending().await
}

fn outcome(done: hyper::Result<()>) -> Outcome {
    let Err(e) = done else { return Outcome { cause: Cause::Closed, detail: None } };
    let cause = if e.is_parse() {
        Cause::BadRequest
    } else if e.is_user() {
        Cause::ServerReset
    } else {
        Cause::ClientReset
    };
    Outcome { cause, detail: Some(chain(&e)) }
}

/// An error with what it came from: hyper's own words say only where.
pub(super) fn chain(e: &(dyn StdError + 'static)) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(e) = source {
        let told = e.to_string();
        if !text.ends_with(&told) {
            text = format!("{text}: {told}");
        }
        source = e.source();
    }
    text
}

async fn timed_out(client: Option<Client<impl Transport>>) -> Outcome {
    if let Some(mut client) = client {
        let told: io::Result<()> = async {
            client.write_all(answer::TIMED_OUT).await?;
            client.shutdown().await
        }
        .await;
        drop(told);
    }
    Outcome { cause: Cause::BadRequest, detail: Some("the head of a request did not end in time".into()) }
}

const LAST_WORDS: Duration = Duration::from_secs(1);
