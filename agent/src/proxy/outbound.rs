//! A connection that one of our pods makes: captured → routed → tunnelled (or passed on) → delivered →
//! recorded.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::capture::{self, Captured};
use super::deliver;
use super::dial::DialError;
use super::end::{End, while_wanted};
use super::node::PodProxy;
use super::tunnel::{self, Carrier, Connect, Forwarded, Key, Target, TraceParent, TunnelError, TunnelStream};
use crate::certs::{Clock, Identity};
use crate::discovery::{self, Route};
use crate::model::{AppAddr, Cause, ClientAddr, Direction, NextHop, Service, SpiffeId, Workload};
use crate::telemetry::{Party, Record};
use crate::tls;

/// Serves one connection to its end.
pub async fn serve(pod: Arc<PodProxy>, stream: TcpStream) {
    let captured = match capture::outbound(&pod, stream) {
        Some(Ok(captured)) => captured,
        Some(Err(refused)) => return refused.record.finish(refused.cause, Some(refused.why)),
        None => return,
    };
    let Captured { stream, client, destination, record } = captured;
    let snapshot = pod.node.snapshot();
    record.set_source(Party {
        workload: snapshot.workload_of(&pod.enrolled.pod).cloned(),
        identity: Some(pod.enrolled.pod.identity.clone()),
    });
    let route = discovery::route(&snapshot, &pod.enrolled.pod, destination, &mut rand::rng());
    let revision = snapshot.revision();
    drop(snapshot);
    let end = match route {
        Route::Hbone { next_hop, target, expected, service, workload } => {
            let way = Way { next_hop, target, expected, service, workload };
            through_tunnel(&pod, stream, client, &record, way).await
        }
        Route::Plain { to, service, workload, learn } => {
            record.set_destination(Party { workload, identity: None });
            if let Some(service) = service {
                record.set_service(service);
            }
            if learn {
                teach(&pod, revision, to.ip());
            }
            passed_on(&pod, stream, &record, to).await
        }
        Route::Refuse(cause, why) => End::refused(stream, cause, why),
    };
    record.finish(end.cause, end.detail);
}

/// A destination inside the mesh, and who must answer for it.
struct Way {
    next_hop: NextHop,
    target: AppAddr,
    expected: Arc<[SpiffeId]>,
    service: Option<Arc<Service>>,
    workload: Arc<Workload>,
}

async fn through_tunnel(
    pod: &Arc<PodProxy>,
    stream: TcpStream,
    client: ClientAddr,
    record: &Record,
    way: Way,
) -> End {
    record.set_destination(Party {
        workload: Some(Arc::clone(&way.workload)),
        identity: Some(way.workload.identity.clone()),
    });
    if let Some(service) = &way.service {
        record.set_service(Arc::clone(service));
    }
    record.set_next_hop(way.next_hop);
    record.set_hbone_addr(way.target.0);
    let trace = TraceParent::random(&mut rand::rng());
    record.set_trace(trace.trace_id());
    let Some(identity) = pod.enrolled.lease.current() else {
        let why = "no valid certificate for this service account".to_owned();
        return End::refused(stream, Cause::NoCertificate, why);
    };
    let stop = pod.enrolled.cut.child();
    let tunnel = match while_wanted(&stream, &stop, open(pod, identity, client, trace, way)).await {
        Ok(Ok(tunnel)) => tunnel,
        Ok(Err(e)) => return End::refused(stream, e.cause(), e.to_string()),
        Err((cause, why)) => return End::refused(stream, cause, why),
    };
    // The pool hands out only tunnels whose peer proved one of the expected identities.
    record.set_mtls(true);
    record.established();
    deliver::copy(stream, tunnel, Direction::Outbound, record.counts(), &stop, None).await.into()
}

async fn open(
    pod: &Arc<PodProxy>,
    identity: Arc<Identity>,
    client: ClientAddr,
    trace: TraceParent,
    way: Way,
) -> Result<TunnelStream, TunnelError> {
    let request = Connect {
        baggage: pod.baggage(),
        forwarded: Some(Forwarded { client: client.0, host: way.service.map(|s| Arc::clone(&s.hostname)) }),
        trace: Some(trace),
        ..Connect::to(Target::Address(way.target.0))
    };
    let key = Key::new(pod.enrolled.pod.uid.clone(), way.next_hop, &way.expected)
        .with_certificate(identity.number());
    let connect = || connect(Arc::clone(pod), Arc::clone(&identity), way.next_hop, Arc::clone(&way.expected));
    pod.pool.open(&key, &request, connect).await
}

/// One new tunnel: TCP from inside the pod's namespace, then TLS with the pod's certificate.
async fn connect(
    pod: Arc<PodProxy>,
    identity: Arc<Identity>,
    to: NextHop,
    expected: Arc<[SpiffeId]>,
) -> Result<tunnel::Dialled<tokio_rustls::client::TlsStream<Carrier<TcpStream>>>, tunnel::DialError> {
    let config = identity.client_config(&expected).map_err(|e| tunnel::DialError::new(e.cause(), e))?;
    let tcp = pod
        .dialer()
        .as_pod(to.0, pod.source_for(to.ip()))
        .await
        .map_err(|e| tunnel::DialError::new(Cause::PeerUnreachable, e.to_string()))?;
    // SNI is off; rustls asks for a name all the same, and the verifier does not look at it.
    let name = rustls_pki_types::ServerName::from(to.ip());
    let handshake = TlsConnector::from(config).connect(name, Carrier::new(tcp));
    match tokio::time::timeout(pod.node.handshake_timeout, handshake).await {
        Ok(Ok(tls)) => {
            let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
            let peer = identity.trust().hold(chain).map_err(|e| {
                tunnel::DialError::new(e.cause(), format!("TLS with {to}, on a second look: {e}"))
            })?;
            let valid_until = tls::peer_valid_until(tls.get_ref().1)
                .map_err(|e| tunnel::DialError::new(e.cause(), format!("TLS with {to}: {e}")))?;
            let renewed = pod.enrolled.lease.renewed(&identity);
            let outdated = outdated(renewed, valid_until, Clock::system());
            Ok(tunnel::Dialled { transport: tls, peer: Some(peer), outdated: Some(Box::pin(outdated)) })
        }
        Ok(Err(e)) => {
            Err(tunnel::DialError::new(tls::cause_of(&e), format!("TLS with {to}: {}", tls::reason_of(&e))))
        }
        Err(_) => Err(tunnel::DialError::new(Cause::TlsFailed, format!("TLS with {to}: no answer in time"))),
    }
}

/// Ready when our own certificate is `renewed`, or when the peer's has ended: who has proven itself by that must
/// prove itself anew before it is given more.
async fn outdated(renewed: impl Future<Output = ()>, peer_valid_until: SystemTime, clock: Clock) {
    tokio::select! {
        () = renewed => {}
        () = clock.reach(peer_valid_until) => {}
    }
}

/// A destination that is not the mesh's after all, or a service's endpoint outside the mesh: plain TCP
/// from the pod's own address, as the application would have made it.
async fn passed_on(pod: &PodProxy, stream: TcpStream, record: &Record, to: SocketAddr) -> End {
    record.set_next_hop(NextHop(to));
    if pod.enrolled.would_loop(to.ip()) {
        let why = format!("{} is on an interface of the pod and not taken as its own", to.ip());
        return End::refused(stream, Cause::Loop, why);
    }
    let stop = pod.enrolled.cut.child();
    let upstream = match while_wanted(&stream, &stop, pod.dialer().as_pod(to, None)).await {
        Ok(Ok(upstream)) => upstream,
        Ok(Err(e)) => return End::refused(stream, dial_cause(&e), e.to_string()),
        Err((cause, why)) => return End::refused(stream, cause, why),
    };
    record.established();
    deliver::copy_tcp(stream, upstream, record.counts(), &stop, None).await.into()
}

/// Tells the kernel that this address is not the mesh's. An address that the application put on an
/// interface of its own is told as the pod's: else our own dial would loop back to us.
fn teach(pod: &PodProxy, revision: u64, ip: IpAddr) {
    let own = pod.enrolled.netns.addresses().is_ok_and(|all| all.contains(&ip));
    let told = if own {
        pod.enrolled.update_addresses(&*pod.node.kernel, &pod.node.snapshot())
    } else {
        pod.node.destinations.teach_leave(revision, ip)
    };
    if let Err(e) = told {
        tracing::warn!(%ip, error = %e, "the kernel was not told of an address; its connections keep coming to the agent");
    }
}

pub(super) fn dial_cause(e: &DialError) -> Cause {
    match e {
        DialError::Prepare(_) | DialError::Own(_) | DialError::NoPort { .. } => Cause::Internal,
        DialError::Connect { .. } | DialError::Timeout { .. } => Cause::ConnectRefused,
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::proxy::tunnel::testing::{Peers, echo_server, key, ping, pool, request};
    use crate::proxy::tunnel::{ClientSettings, Dialled, Drain, ServerSettings};

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_takes_nothing_new_once_the_peers_certificate_has_ended_and_live_streams_go_on() {
        let (start, since) = (SystemTime::now(), tokio::time::Instant::now());
        let clock = Clock::from_fn(move || start + since.elapsed());
        let (hour, minute) = (Duration::from_secs(3600), Duration::from_secs(60));
        let peers = Peers::new(|far, _: usize| async move {
            echo_server(far, ServerSettings::default(), Drain::default()).await;
        });
        let (pool, key) = (pool(ClientSettings::default()), key(1));
        let dial = || {
            let (dialled, until) = (peers.dial(), clock.now() + hour);
            let outdated = outdated(pending(), until, clock.clone());
            async move { Ok(Dialled { outdated: Some(Box::pin(outdated)), ..dialled.await? }) }
        };
        let mut old = pool.open(&key, &request(), dial).await.unwrap();
        sleep(hour - minute).await;
        pool.open(&key, &request(), dial).await.unwrap();
        assert_eq!(peers.dials(), 1, "it is still valid");
        sleep(2 * minute).await;
        pool.open(&key, &request(), dial).await.unwrap();
        assert_eq!(peers.dials(), 2, "it has to be proven anew");
        assert_eq!(ping(&mut old, "old").await, "old");

        timeout(minute, outdated(ready(()), clock.now() + hour, clock)).await.expect("ours was renewed");
    }
}
