//! A tunnel that another node opens to one of our pods, and each connection in it: identified →
//! authorized → delivered → recorded.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use ::http::StatusCode;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::capture;
use super::deliver;
use super::end::End;
use super::http;
use super::node::PodProxy;
use super::outbound::dial_cause;
use super::tunnel::{self, Baggage, Carrier, Connect, Drain, Inbound, Reject, Respond, Target};
use crate::certs::{Clock, Identity};
use crate::discovery::Snapshot;
use crate::lifecycle::Stop;
use crate::model::{
    AppAddr, Cause, ClientAddr, Direction, LocalPod, OriginalDst, Service, SpiffeId, Workload, ports,
};
use crate::policy::Conn;
use crate::sys::socket;
use crate::telemetry::{Party, Record};
use crate::tls::{self, Held};

/// Serves one connection to port 15008 to its end.
pub async fn serve(pod: Arc<PodProxy>, stream: TcpStream) {
    let (Ok(client), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else { return };
    let client = ClientAddr(SocketAddr::new(client.ip().to_canonical(), client.port()));
    let local = OriginalDst(SocketAddr::new(local.ip().to_canonical(), local.port()));
    let _ = socket::tune(std::os::fd::AsFd::as_fd(&stream), pod.node.keepalive);
    let place = pod.node.handshakes.enter(pod.enrolled.netns.cookie(), client.ip());
    let done = tokio::select! {
        done = handshake(&pod, stream) => done,
        () = place.gives_way() => Err((Cause::Overloaded, "too many handshakes; this was the oldest".into())),
        cause = pod.enrolled.cut.ended() => Err((cause, "ended during the TLS handshake".into())),
    };
    drop(place);
    let Proven { tls, own, peer, valid_until, held } = match done {
        Ok(done) => done,
        Err((cause, _)) if !pod.failed_handshakes.allows() => {
            return pod.node.telemetry.unlogged(Direction::Inbound, cause);
        }
        Err((cause, why)) => {
            // Nothing was asked for yet, so the record is of the attempt itself.
            let record = capture::open(&pod, Direction::Inbound, client, local);
            return record.finish(cause, Some(why));
        }
    };
    let peer = Arc::new(peer);
    let cut = pod.enrolled.cut.child();
    let drain = Drain { begin: pod.enrolled.leaving.child_token(), cut: cut.clone() };
    let begin = drain.begin.clone();
    let requests = Requests { pod: &pod, client, local, peer, valid_until, cut: cut.clone() };
    let ended = tokio::select! {
        ended = tunnel::serve(tls, &pod.node.server, drain, requests) => ended,
        never = go_away(&pod, &own, valid_until, begin) => match never {},
        never = cut_when_lost(&held, cut) => match never {},
    };
    tracing::debug!(pod = %pod.enrolled.pod.name, %client, %ended, "tunnel ended");
}

/// Asks the peer to come again once its certificate has expired, or once ours is one of another authority:
/// as long as the tunnel takes new streams it holds the root that it rests on. Streams that live go on.
async fn go_away(
    pod: &PodProxy,
    own: &Arc<Identity>,
    valid_until: SystemTime,
    begin: CancellationToken,
) -> Infallible {
    let clock = Clock::system();
    tokio::select! {
        () = clock.reach(valid_until) => {}
        () = pod.enrolled.lease.signed_by_another(own) => {}
    }
    begin.cancel();
    std::future::pending().await
}

/// Ends the tunnel and every stream in it when the peer is trusted no more.
async fn cut_when_lost(held: &Held, cut: Stop) -> Infallible {
    held.lost().await;
    cut.end(Cause::TrustRevoked);
    std::future::pending().await
}

/// What to do with each CONNECT of one tunnel.
struct Requests<'a> {
    pod: &'a Arc<PodProxy>,
    client: ClientAddr,
    local: OriginalDst,
    peer: Arc<SpiffeId>,
    valid_until: SystemTime,
    /// Ends this tunnel.
    cut: Stop,
}

impl tunnel::Accept for Requests<'_> {
    fn inbound(&mut self, inbound: Inbound) {
        // `h2` takes streams until the peer confirms GOAWAY, which it need not do.
        if SystemTime::now() > self.valid_until {
            self.record().finish(Cause::TlsFailed, Some("the client's certificate has expired".into()));
            return inbound.respond.refuse();
        }
        let (pod, peer) = (Arc::clone(self.pod), Arc::clone(&self.peer));
        let (client, local, cut) = (self.client, self.local, self.cut.clone());
        self.pod.enrolled.tasks.spawn(one(pod, client, local, peer, cut, inbound));
    }

    fn rejected(&mut self, why: Reject) {
        self.record().finish(Cause::BadRequest, Some(why.to_string()));
    }
}

impl Requests<'_> {
    /// Of a request that nothing is done for.
    fn record(&self) -> Record {
        let record = capture::open(self.pod, Direction::Inbound, self.client, self.local);
        record.set_source(Party { workload: None, identity: Some((*self.peer).clone()) });
        record.set_mtls(true);
        record
    }
}

/// What a handshake came to.
struct Proven {
    tls: tokio_rustls::server::TlsStream<Carrier<TcpStream>>,
    /// What we have shown.
    own: Arc<Identity>,
    peer: SpiffeId,
    valid_until: SystemTime,
    held: Held,
}

async fn handshake(pod: &PodProxy, stream: TcpStream) -> Result<Proven, (Cause, String)> {
    let identity =
        pod.enrolled.lease.current().ok_or_else(|| {
            (Cause::NoCertificate, "no valid certificate for this service account".to_owned())
        })?;
    let accept = TlsAcceptor::from(identity.server_config()).accept(Carrier::new(stream));
    let tls = tokio::time::timeout(pod.node.handshake_timeout, accept)
        .await
        .map_err(|_| (Cause::TlsFailed, "the client did not finish the TLS handshake in time".to_owned()))?
        .map_err(|e| (tls::cause_of(&e), format!("TLS handshake: {}", tls::reason_of(&e))))?;
    let refused = |e: tls::TlsError| (e.cause(), e.to_string());
    let peer = tls::peer_of(tls.get_ref().1).map_err(refused)?;
    let valid_until = tls::peer_valid_until(tls.get_ref().1).map_err(refused)?;
    let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
    let held = identity.trust().hold(chain).map_err(refused)?;
    Ok(Proven { tls, own: identity, peer, valid_until, held })
}

/// One CONNECT.
async fn one(
    pod: Arc<PodProxy>,
    client: ClientAddr,
    local: OriginalDst,
    peer: Arc<SpiffeId>,
    cut: Stop,
    inbound: Inbound,
) {
    let destination = match inbound.connect.target {
        Target::Address(addr) => OriginalDst(addr),
        Target::Host(..) => local,
    };
    let record = capture::open(&pod, Direction::Inbound, client, destination);
    let snapshot = pod.node.snapshot();
    // Behind a gateway of another network the address that we see is the gateway's.
    let near = inbound.connect.network.as_ref().is_none_or(|network| network == snapshot.network());
    let source = snapshot.workload(client.ip()).filter(|w| near && w.identity == *peer).cloned();
    let told = || inbound.connect.baggage.as_ref().map(|baggage| Arc::new(told_of(baggage, &peer)));
    record.set_source(Party { workload: source.or_else(told), identity: Some((*peer).clone()) });
    if let Some(trace) = inbound.connect.trace {
        record.set_trace(trace.trace_id());
    }
    if let Some(service) = service_asked_for(&pod, &snapshot, &inbound.connect) {
        record.set_service(service);
    }
    record.set_destination(Party {
        workload: snapshot.workload_of(&pod.enrolled.pod).cloned(),
        identity: Some(pod.enrolled.pod.identity.clone()),
    });
    record.set_mtls(true);
    let target = target(&pod.enrolled.pod, &snapshot, local, &inbound.connect.target);
    drop(snapshot);
    let place = pod.admit();
    let end = match target {
        Ok(_) if place.is_none() => {
            let why = "the pod has as many connections as one pod may".to_owned();
            reject(inbound.respond, StatusCode::SERVICE_UNAVAILABLE, Cause::Overloaded, why)
        }
        Ok(app) => connection(&pod, client, &peer, app, &record, &cut, inbound.respond).await,
        Err((status, cause, why)) => reject(inbound.respond, status, cause, why),
    };
    record.finish(end.cause, end.detail);
}

async fn connection(
    pod: &Arc<PodProxy>,
    client: ClientAddr,
    peer: &SpiffeId,
    app: AppAddr,
    record: &Record,
    cut: &Stop,
    mut respond: Respond,
) -> End {
    record.set_hbone_addr(app.0);
    let conn = Conn::new(Some(peer.clone()), client.ip(), app.ip(), app.port());
    pod.authorizer.note(&conn, record);
    let permit = match pod.authorizer.authorize(record.id(), conn, cut) {
        Ok(permit) => permit,
        Err(denied) => {
            record.set_denial(&denied.told);
            return reject(respond, StatusCode::UNAUTHORIZED, Cause::PolicyDenied, denied.why);
        }
    };
    permit.tell(record.teller());
    if let Some(policy) = permit.policy() {
        record.set_policy(Arc::clone(policy));
    }
    let upstream = tokio::select! {
        // Who has taken the request back by now, as a flood does, must not cost the application anything.
        biased;
        gone = respond.cancelled() => {
            return End { cause: gone.cause(), detail: Some(gone.to_string()) };
        }
        cause = permit.stop().ended() => {
            return reject(respond, StatusCode::SERVICE_UNAVAILABLE, cause, "ended while connecting".into());
        }
        // Boxed, as in `while_wanted`.
        dialled = Box::pin(pod.deliver_as(app, client)) => match dialled {
            Ok(upstream) => upstream,
            Err(e) => return reject(respond, StatusCode::SERVICE_UNAVAILABLE, dial_cause(&e), e.to_string()),
        },
    };
    let tunnel = match respond.accept(pod.baggage().as_ref()) {
        Ok(tunnel) => tunnel,
        Err(e) => return End::refused(upstream, Cause::ClientReset, e.to_string()),
    };
    record.established();
    let judge = match permit.requests() {
        Some(judge) if judge.binding() => judge,
        advised => {
            let mut heard = Heard::of(pod, advised);
            let (counts, stop) = (record.counts(), permit.stop());
            let watch = heard.as_mut().map(Heard::watch);
            let ended = deliver::copy(upstream, tunnel, Direction::Inbound, counts, stop, watch).await;
            heard.into_iter().for_each(|heard| heard.tell(record));
            return ended.into();
        }
    };
    let told = permit.stop().child();
    let client = http::Tunnelled::new(tunnel, told.clone());
    judged_requests(pod, client, told, upstream, judge, record, permit.stop()).await
}

/// Delivers the requests of `client` that policy allows; `told` says what ends it.
pub(super) async fn judged_requests(
    pod: &PodProxy,
    client: impl http::Transport,
    told: Stop,
    application: TcpStream,
    judge: &Arc<dyn http::Judge>,
    record: &Record,
    stop: &Stop,
) -> End {
    let tally = Arc::new(http::Tally::new(pod.node.telemetry.clone(), Some(record.requests())));
    let service = http::Service { client: told, ..service(pod, judge, &tally) };
    let application = http::Socket::new(application);
    // Boxed, as in `while_wanted`.
    let outcome = Box::pin(http::serve(client, application, service, record.counts(), stop)).await;
    tally.tell(record);
    End { cause: outcome.cause, detail: outcome.detail.or_else(|| tally.told()) }
}

fn service(pod: &PodProxy, judge: &Arc<dyn http::Judge>, tally: &Arc<http::Tally>) -> http::Service {
    let (judge, observer) = (Arc::clone(judge), tally.clone());
    http::Service { judge, observer, limits: pod.node.http, client: Stop::default() }
}

/// What is heard of the requests of a connection, where nothing that decides depends on them.
pub(super) struct Heard {
    // Boxed, as connections are many and few are listened to.
    tap: Box<http::Tap>,
    tally: Arc<http::Tally>,
}

impl Heard {
    /// None where nobody wants to know.
    pub(super) fn of(pod: &PodProxy, judge: Option<&Arc<dyn http::Judge>>) -> Option<Self> {
        let tally = Arc::new(http::Tally::new(pod.node.telemetry.clone(), None));
        let tap = Box::new(http::Tap::new(service(pod, judge?, &tally)));
        Some(Self { tap, tally })
    }

    pub(super) fn watch(&mut self) -> &mut (dyn deliver::Watch + 'static) {
        &mut *self.tap
    }

    pub(super) fn tell(mut self, record: &Record) {
        self.tap.finish();
        self.tally.tell(record);
    }
}

fn reject(respond: Respond, status: StatusCode, cause: Cause, why: String) -> End {
    respond.reject(status);
    End { cause, detail: Some(why) }
}

/// What a client that is not found by its address says of itself: labels, never proof. Its namespace is
/// in its certificate, if it is a service account.
fn told_of(baggage: &Baggage, peer: &SpiffeId) -> Workload {
    let told = baggage.fields();
    let mut workload = Workload::new("", peer.namespace().unwrap_or_default(), "", peer.clone());
    workload.cluster = told.cluster.into();
    workload.workload_name = told.workload.into();
    workload.canonical_name = told.service.into();
    workload.canonical_revision = told.revision.into();
    workload
}

/// What may be asked for: this pod, at the address that the tunnel came to, on any port but our own.
fn target(
    pod: &LocalPod,
    snapshot: &Snapshot,
    local: OriginalDst,
    asked: &Target,
) -> Result<AppAddr, (StatusCode, Cause, String)> {
    if !pod.owns(local.ip()) {
        // A link-local address, say: no policy on destinations knows it.
        let why = format!("the tunnel came to {}, which is no address of this pod", local.ip());
        return Err((StatusCode::BAD_REQUEST, Cause::BadTarget, why));
    }
    let app = match asked {
        Target::Address(addr) => {
            let ip = addr.ip().to_canonical();
            if ip != local.ip() {
                let why = format!("CONNECT to {addr}, which is not the address {} of this pod", local.ip());
                return Err((StatusCode::BAD_REQUEST, Cause::BadTarget, why));
            }
            SocketAddr::new(ip, addr.port())
        }
        Target::Host(name, port) => {
            let found = own_port_of(pod, snapshot, name, *port);
            let port = found.ok_or_else(|| {
                let why = format!("CONNECT to {name}:{port}, which is no service of this pod");
                (StatusCode::SERVICE_UNAVAILABLE, Cause::BadTarget, why)
            })?;
            SocketAddr::new(local.ip(), port)
        }
    };
    if ports::ALL.contains(&app.port()) {
        let why = format!("CONNECT to port {}, which is the agent's own", app.port());
        return Err((StatusCode::SERVICE_UNAVAILABLE, Cause::BadTarget, why));
    }
    Ok(AppAddr(app))
}

/// The service that the client says it addressed, if this pod is of it. It labels, and decides nothing.
fn service_asked_for(pod: &PodProxy, snapshot: &Snapshot, asked: &Connect) -> Option<Arc<Service>> {
    let host = match &asked.target {
        Target::Host(name, _) => name,
        Target::Address(_) => asked.forwarded.as_ref()?.host.as_ref()?,
    };
    let me = snapshot.workload_of(&pod.enrolled.pod)?;
    let mine = |s: &&Arc<Service>| me.services.contains_key(&*s.key());
    let mut services: Vec<_> = snapshot.services_by_host(host).filter(mine).collect();
    services.sort_by_key(|s| (s.namespace != me.namespace, !s.canonical));
    services.first().map(|s| Arc::clone(s))
}

/// The target port of a service by that name that this pod is an endpoint of; its own namespace's first,
/// then the canonical one.
fn own_port_of(pod: &LocalPod, snapshot: &Snapshot, host: &str, port: u16) -> Option<u16> {
    let me = snapshot.workload_of(pod)?;
    let mut services: Vec<_> = snapshot.services_by_host(host).collect();
    services.sort_by_key(|s| (s.namespace != me.namespace, !s.canonical));
    services.into_iter().find_map(|service| {
        snapshot.endpoints(&service.key(), port).find(|(w, _)| w.uid == me.uid).map(|(_, target)| target)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::Store;
    use crate::discovery::file::parse;
    use crate::proxy::tunnel::BaggageFields;

    /// A pod that two services of one name lead to, and somebody else's service.
    const MESH: &str = "mesh: {}
localPods:
- {uid: p, name: web, namespace: shop, serviceAccount: web, netns: /run/netns/p, addresses: [10.0.0.1, fd00::1]}
workloads:
- {uid: p, name: web, namespace: shop, serviceAccount: web, workloadIps: [10.0.0.1, fd00::1], protocol: HBONE,
   services: {shop/web.mesh: {80: 8080}, ant/web.mesh: {80: 9090}}}
- {uid: q, name: other, namespace: shop, workloadIps: [10.0.0.2], protocol: HBONE,
   services: {shop/other.mesh: {80: 7070}}}
services:
- {name: web, namespace: ant, hostname: web.mesh, ports: {80: 9090}}
- {name: web, namespace: shop, hostname: web.mesh, ports: {80: 8080}}
- {name: other, namespace: shop, hostname: other.mesh, ports: {80: 7070}}
";

    #[test]
    fn a_tunnel_leads_to_its_own_address_and_the_applications_ports() {
        let store = Store::new();
        store.publish(parse(MESH).unwrap_or_else(|e| panic!("{e}")).state);
        let snapshot = store.current();
        let pod = snapshot.local_pods().next().unwrap();
        for (local, asked, expected) in [
            ("10.0.0.1:15008", "10.0.0.1:80", Ok("10.0.0.1:80")),
            ("10.0.0.1:15008", "[::ffff:10.0.0.1]:80", Ok("10.0.0.1:80")),
            ("[fd00::1]:15008", "[fd00::1]:80", Ok("[fd00::1]:80")),
            // The pod's, but not where this tunnel came to.
            ("10.0.0.1:15008", "[fd00::1]:80", Err(400)),
            // Where the tunnel came to, but not said to be the pod's.
            ("10.0.0.9:15008", "10.0.0.9:80", Err(400)),
            ("10.0.0.1:15008", "10.0.0.2:80", Err(400)),
            ("10.0.0.1:15008", "127.0.0.1:80", Err(400)),
            ("10.0.0.1:15008", "10.0.0.1:15001", Err(503)),
            ("10.0.0.1:15008", "10.0.0.1:15006", Err(503)),
            ("10.0.0.1:15008", "10.0.0.1:15008", Err(503)),
            // By name: the own namespace's first, of two services that are called alike.
            ("10.0.0.1:15008", "web.mesh:80", Ok("10.0.0.1:8080")),
            ("[fd00::1]:15008", "web.mesh:80", Ok("[fd00::1]:8080")),
            ("10.0.0.1:15008", "web.mesh:82", Err(503)),
            ("10.0.0.1:15008", "other.mesh:80", Err(503)),
            ("10.0.0.1:15008", "nobody.mesh:80", Err(503)),
        ] {
            let local = OriginalDst(local.parse().unwrap());
            let found = target(pod, &snapshot, local, &asked.parse().unwrap());
            let found = found.map(|app| app.to_string()).map_err(|(status, cause, _)| {
                assert_eq!(cause, Cause::BadTarget, "{asked}");
                status.as_u16()
            });
            assert_eq!(found, expected.map(str::to_owned), "{asked} in a tunnel to {local}");
        }
    }

    #[test]
    fn what_a_client_says_of_itself_labels_it_and_does_not_move_it_to_another_namespace() {
        let peer: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let told = told_of(
            &Baggage::new(&BaggageFields {
                cluster: "c2",
                namespace: "payments",
                workload_type: "deployment",
                workload: "web",
                service: "web-service",
                revision: "v2",
                ..BaggageFields::default()
            }),
            &peer,
        );
        let labels = [&told.cluster, &told.namespace, &told.workload_name, &told.canonical_name];
        assert_eq!(labels.map(|l| &**l), ["c2", "shop", "web", "web-service"]);
        assert_eq!((&*told.canonical_revision, told.identity), ("v2", peer));

        // Nor into one at all, if its certificate names none.
        let machine: SpiffeId = "spiffe://partner.example/billing/api".parse().unwrap();
        let baggage = Baggage::new(&BaggageFields { namespace: "payments", ..BaggageFields::default() });
        assert_eq!(&*told_of(&baggage, &machine).namespace, "");
    }
}
