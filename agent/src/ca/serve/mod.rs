//! The controller's one port: TLS 1.3, HTTP/2, Istio's certificate service and our own about roots.
//!
//! Callers are bounded before they have proven anything (connections, handshakes, sizes, times), and nothing
//! that they send is read (`door.rs`); each node is afterwards (`Turns`).

mod certificates;
mod door;
mod metrics;
mod papers;
mod places;
mod refusals;
mod sample;
mod tls;
mod trust;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::codegen::Service as _;
use underpass_proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateServiceServer;
use underpass_proto::underpass::v1::trust_service_server::TrustServiceServer;

pub use metrics::Metrics;
pub use papers::ServerCertificate;
pub(crate) use trust::update;

use self::door::Shown;
use self::places::{Most, Place, Places};
use self::refusals::{Cause, Refusals};
use self::sample::Sample;
use super::Authority;
use super::agents::Agents;
use super::attest::{Attestor, NodeName};
use super::turns::{Share, Turns};

/// What answers. Clones share it.
#[derive(Clone)]
pub struct Service {
    authority: Authority,
    attestor: Arc<dyn Attestor>,
    agents: Agents,
    /// To ask what a node runs, which may take somebody else's time.
    asking: Turns<NodeName>,
    /// To sign, which takes our own.
    signing: Turns<NodeName>,
    metrics: Metrics,
    refusals: Refusals,
    /// What known nodes did not get, by node and result.
    denials: Sample<(NodeName, &'static str)>,
    renew_within: Duration,
    limits: Limits,
}

/// What callers may take before they have proven anything.
#[derive(Clone, Copy)]
struct Limits {
    connections: Most,
    handshake: Duration,
    /// How long after the handshake a caller may take to show who it is.
    proof: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: Most::default(),
            handshake: Duration::from_secs(10),
            proof: Duration::from_secs(30),
        }
    }
}

impl Service {
    /// `renew_within`: over how long agents spread the renewal of what another authority has signed.
    pub fn new(
        authority: Authority,
        attestor: Arc<dyn Attestor>,
        agents: Agents,
        metrics: Metrics,
        renew_within: Duration,
    ) -> Self {
        let at_once = std::thread::available_parallelism().map_or(2, usize::from).max(2);
        Self {
            authority,
            attestor,
            agents,
            asking: Turns::new(Share { at_once: 64, of_one: 8, waiting: WAITING }),
            signing: Turns::new(Share { at_once, of_one: 2, waiting: WAITING }),
            refusals: Refusals::new(metrics.clone()),
            denials: Sample::new(|(node, result), left_out| {
                tracing::warn!(%node, result, left_out, "more requests were refused than are logged");
            }),
            metrics,
            renew_within,
            limits: Limits::default(),
        }
    }

    /// Accepts until `stop`, then lets the calls under way end, for a while.
    pub async fn serve(self, listener: TcpListener, certificate: ServerCertificate, stop: CancellationToken) {
        let (open, places) = (TaskTracker::new(), Places::new(self.limits.connections));
        let tls = TlsAcceptor::from(tls::config(certificate));
        loop {
            let (stream, from) = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(e) => {
                        // Out of descriptors, most likely: the next try would fail at once too.
                        tracing::warn!("accept failed: {e}; trying again");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            // Closed rather than queued: agents come again, and with a backoff.
            let place = places.take(from.ip());
            if place.as_ref().is_none_or(|(_, other_lost_it)| *other_lost_it) {
                self.refusals.note(
                    Cause::TurnedAway,
                    from,
                    &"there are too many connections that have proven nothing",
                );
            }
            let Some((place, _)) = place else { continue };
            let (service, tls, stop) = (self.clone(), tls.clone(), stop.clone());
            open.spawn(async move {
                let place = Arc::new(place);
                tokio::select! {
                    () = place.lost() => {}
                    () = service.connection(stream, from, tls, Arc::clone(&place), stop) => {}
                }
            });
        }
        open.close();
        let _ = tokio::time::timeout(LAST, open.wait()).await;
    }

    async fn connection(
        self,
        stream: TcpStream,
        from: SocketAddr,
        tls: TlsAcceptor,
        place: Arc<Place>,
        stop: CancellationToken,
    ) {
        let (limits, refusals) = (self.limits, self.refusals.clone());
        let _ = stream.set_nodelay(true);
        let stream = match tokio::time::timeout(limits.handshake, tls.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) => return self.refusals.note(Cause::Tls, from, &format_args!("TLS handshake: {e}")),
            Err(_) => return self.refusals.note(Cause::TlsTimeout, from, &"no TLS handshake in time"),
        };
        let key = stream.get_ref().1.peer_certificates().and_then(|chain| tls::key_of(chain.first()?));
        let shown = Shown::new(from, key, Arc::clone(&place));
        let service = service_fn(move |mut request: http::Request<Incoming>| {
            let (service, shown) = (self.clone(), shown.clone());
            async move {
                if let Err(refused) = service.admit(&shown, &mut request).await {
                    return Ok(refused.into_http());
                }
                if request.uri().path().starts_with(TRUST) {
                    TrustServiceServer::new(service).max_decoding_message_size(REPORT).call(request).await
                } else {
                    let mut istio =
                        IstioCertificateServiceServer::new(service).max_decoding_message_size(REQUEST);
                    istio.call(request).await
                }
            }
        });
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10))
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(HEADERS)
            .initial_stream_window_size(UNREAD)
            .initial_connection_window_size(UNREAD_OF_ALL)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let unproven = async {
            tokio::time::sleep(limits.proof).await;
            if place.is_proven() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            _ = connection.as_mut() => {}
            () = unproven => {
                refusals.note(Cause::Unproven, from, &"it has not shown in time which node it is");
            }
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                // Streams of followers do not end by themselves.
                let _ = tokio::time::timeout(Duration::from_secs(1), connection).await;
            }
        }
    }
}

/// Of a node; an agent has eight under way.
const WAITING: usize = 512;
const LAST: Duration = Duration::from_secs(5);
/// An agent usually has eight requests under way, and follows. A client may send more before it has heard of
/// the limit, which are refused then.
const STREAMS: u32 = 64;
const HEADERS: u32 = 16 << 10;
/// What a client may send on a stream before it is read, and on all of a connection. A report takes more, in
/// pieces.
const UNREAD: u32 = 64 << 10;
const UNREAD_OF_ALL: u32 = 256 << 10;
/// What paths of our own service begin with.
const TRUST: &str = "/underpass.v1.TrustService/";
/// A signing request and a few names.
const REQUEST: usize = 32 << 10;
/// More than agents keep to.
const REPORT: usize = 2 << 20;

#[cfg(test)]
mod tests;
