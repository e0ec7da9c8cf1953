//! Requests judged one by one, on ports whose policies say something of requests. Where nothing that decides
//! does, requests are only listened to (`tap`).
//!
//! hyper reads the client's requests and writes them anew to the application, so what was judged is what
//! arrives, and nothing that was not judged does. The application is spoken to in the version that the
//! client speaks, over one connection for each of the client's: what is true of a connection stays true.

mod answer;
mod body;
mod client;
mod detect;
mod expect;
mod fuzz;
mod http1;
mod http2;
mod judge;
mod open;
mod request;
mod shape;
mod tally;
mod tap;
mod tcp;
mod tunnelled;
mod upgrade;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use client::Transport;
#[doc(hidden)]
pub use fuzz::fuzz_requests;
pub use judge::{Advice, Judge, Observer, Ruling};
pub use tally::Tally;
pub use tap::Tap;
pub use tcp::Socket;
pub use tunnelled::Tunnelled;

use super::deliver::Outcome;
use crate::lifecycle::Stop;
use crate::model::Cause;
use crate::policy::Request;
use crate::telemetry::Counts;
use client::{Client, Phase};
use detect::{NotHttp, Version, detect};
use judge::About;
use open::Requests;

/// What one connection is served with.
#[derive(Clone)]
pub struct Service {
    pub judge: Arc<dyn Judge>,
    pub observer: Arc<dyn Observer>,
    pub limits: Limits,
    /// Is ended for whatever ends the client's stream that is not the application's doing: the stream says so.
    pub client: Stop,
}

impl Service {
    /// Tells what policies that decide nothing make of it.
    fn advise(&self, about: About<'_>, request: Option<&Request<'_>>) {
        let advice = self.judge.advise(request);
        if !advice.is_nothing() {
            self.observer.advised(about, &advice);
        }
    }
}

/// What is asked of whoever sends requests that are judged. Those of Envoy, where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For the first bytes of the connection to come, and to be a request's.
    pub first_bytes: Duration,
    /// For the head of a request, from its first byte on.
    pub head: Duration,
    /// Between requests, while none is open. None: as long as it likes.
    pub idle: Option<Duration>,
    /// Bytes of a head.
    pub head_bytes: u32,
    /// Fields of a head.
    pub fields: usize,
    /// Requests at once on one connection of HTTP/2.
    pub streams: u32,
    /// Bytes that may be under way in one request of HTTP/2 before its reader has to keep up.
    pub stream_window: u32,
    /// The same, of all requests of a connection together.
    pub connection_window: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            first_bytes: Duration::from_secs(10),
            head: Duration::from_secs(10),
            idle: None,
            head_bytes: 60 << 10,
            fields: 100,
            streams: 250,
            stream_window: 256 << 10,
            connection_window: 1 << 20,
        }
    }
}

/// Serves the requests of `client` from `application` until either ends, or `stop` does.
pub async fn serve(
    mut client: impl Transport,
    application: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: Service,
    counts: &Arc<Counts>,
    stop: &Stop,
) -> Outcome {
    let mut ahead = BytesMut::new();
    let detected = tokio::select! {
        detected = detect(&mut client, &mut ahead, service.limits.first_bytes) => detected,
        cause = stop.ended() => return Outcome { cause, detail: None },
    };
    let version = match detected {
        Ok(detected) => detected,
        Err(NotHttp::Nothing) => return Outcome { cause: Cause::Closed, detail: None },
        Err(NotHttp::Broken(e)) => return Outcome { cause: Cause::ClientReset, detail: Some(e.to_string()) },
        Err(not) => {
            service.advise(About::Stream, None);
            let ruling = service.judge.not_http();
            if let Ruling::Allow { .. } = ruling {
                let client = Client::new(client, ahead.freeze(), Arc::clone(counts), Phase::new());
                return bytes(client, application, stop).await;
            }
            service.observer.refused(&ruling);
            service.client.end(Cause::NotHttp);
            return Outcome { cause: Cause::NotHttp, detail: Some(not.to_string()) };
        }
    };
    let connection = Arc::new(Connection {
        service,
        requests: Arc::default(),
        phase: Phase::new(),
        failed: OnceLock::new(),
        tunnels: TaskTracker::new(),
        ended: CancellationToken::new(),
    });
    let _ended = connection.ended.clone().drop_guard();
    let client = Client::new(client, ahead.freeze(), Arc::clone(counts), connection.phase.clone());
    match version {
        Version::Http1 => http1::serve(client, application, connection, stop).await,
        Version::Http2 => http2::serve(client, application, connection, stop).await,
    }
}

/// What is not HTTP, where policy lets it through all the same: a Server of Linkerd whose protocol is not known.
async fn bytes(
    mut client: Client<impl Transport>,
    mut application: impl AsyncRead + AsyncWrite + Unpin,
    stop: &Stop,
) -> Outcome {
    // What ends early is dropped, which resets it.
    tokio::select! {
        carried = tokio::io::copy_bidirectional(&mut client, &mut application) => match carried {
            Ok(_) => Outcome { cause: Cause::Closed, detail: None },
            Err(e) => Outcome { cause: Cause::ClientReset, detail: Some(e.to_string()) },
        },
        cause = stop.ended() => Outcome { cause, detail: None },
    }
}

/// What the requests of one connection share.
struct Connection {
    service: Service,
    requests: Arc<Requests>,
    phase: Phase,
    /// The first thing that went wrong which is not the client's doing.
    failed: OnceLock<(Cause, String)>,
    /// Streams that are no HTTP any more.
    tunnels: TaskTracker,
    /// Ends them.
    ended: CancellationToken,
}

impl Connection {
    fn fail(&self, cause: Cause, why: impl ToString) {
        if cause == Cause::PolicyRevoked {
            self.service.client.end(cause);
        }
        let _ = self.failed.set((cause, why.to_string()));
    }

    fn review(&self) {
        self.requests.review(&*self.service.judge);
    }

    fn outcome(&self, otherwise: Outcome) -> Outcome {
        match self.failed.get() {
            Some((cause, why)) => Outcome { cause: *cause, detail: Some(why.clone()) },
            None => otherwise,
        }
    }
}

#[cfg(test)]
mod tests;
