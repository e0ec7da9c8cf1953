//! The stage: client application ⇄ agent ⇄ TLS ⇄ agent ⇄ server application, on loopback.

use std::future::Future;
use std::io;
use std::sync::{Arc, OnceLock};

use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_util::sync::CancellationToken;

use super::super::*;
use crate::lifecycle::Stop;
use crate::model::{Cause, Direction};
use crate::proxy::tunnel::testing::{key, pod, request};
use crate::proxy::tunnel::*;
use crate::telemetry::Counts;
use crate::tls::testing::{Authority, bundles};
use crate::tls::{client_config, server_config};

/// What lies between the applications.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Between {
    Tunnel,
    /// One agent, no tunnel: `copy_tcp`.
    Plain,
}

pub(super) const BOTH: [Between; 2] = [Between::Tunnel, Between::Plain];

pub(super) struct World {
    pub(super) client: TcpStream,
    pub(super) server: TcpStream,
    /// In front of the client, and (with a tunnel) in front of the server.
    pub(super) agents: Vec<Agent>,
    pub(super) pool: Pool,
    /// Cuts the tunnel's connection.
    pub(super) cable: CancellationToken,
    pub(super) drain: Drain,
}

pub(super) struct Agent {
    pub(super) ended: JoinHandle<Outcome>,
    pub(super) counts: Arc<Counts>,
    pub(super) stop: Stop,
}

impl World {
    pub(super) async fn new(between: Between) -> Self {
        let pool = Pool::new(pod("a"), ClientSettings::default());
        let (cable, drain) = (CancellationToken::new(), Drain::default());
        let (client, server, agents) = match between {
            Between::Plain => plain().await,
            Between::Tunnel => {
                let stream = tunnel(&pool, &cable, drain.clone()).await;
                through(stream, &drain.cut).await
            }
        };
        Self { client, server, agents, pool, cable, drain }
    }

    /// How it ended, from the client's agent to the server's.
    pub(super) async fn causes(self) -> Vec<Cause> {
        let mut causes = Vec::new();
        for agent in self.agents {
            causes.push(agent.ended.await.unwrap().cause);
        }
        causes
    }
}

async fn plain() -> (TcpStream, TcpStream, Vec<Agent>) {
    let (client, client_side) = tcp_pair().await;
    let (server, server_side) = tcp_pair().await;
    let agent = Agent::start(&Stop::default(), |counts, stop| async move {
        copy_tcp(client_side, server_side, &counts, &stop, None).await
    });
    (client, server, vec![agent])
}

/// A client and a server with `stream`'s two ends between them; `cut` cuts the server's agent.
pub(super) async fn through(
    (near, far): (TunnelStream, TunnelStream),
    cut: &Stop,
) -> (TcpStream, TcpStream, Vec<Agent>) {
    let (client, client_side) = tcp_pair().await;
    let (server, server_side) = tcp_pair().await;
    let outbound = Agent::start(&Stop::default(), |counts, stop| async move {
        copy(client_side, near, Direction::Outbound, &counts, &stop, None).await
    });
    let inbound = Agent::start(cut, |counts, stop| async move {
        copy(server_side, far, Direction::Inbound, &counts, &stop, None).await
    });
    (client, server, vec![outbound, inbound])
}

impl Agent {
    fn start<F>(cut: &Stop, copy: impl FnOnce(Arc<Counts>, Stop) -> F) -> Self
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let (counts, stop) = (Arc::new(Counts::default()), cut.child());
        let ended = tokio::spawn(copy(Arc::clone(&counts), stop.clone()));
        Self { ended, counts, stop }
    }
}

/// An accepted connection and the end that dialled it, Nagle off.
pub(super) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (dialled, accepted) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap().0);
    dialled.set_nodelay(true).unwrap();
    accepted.set_nodelay(true).unwrap();
    (dialled, accepted)
}

/// Both ends of one stream in a tunnel of its own.
pub(super) async fn tunnel(
    pool: &Pool,
    cable: &CancellationToken,
    drain: Drain,
) -> (TunnelStream, TunnelStream) {
    streams(pool, cable, drain, 1).await.remove(0)
}

/// Both ends of `count` streams in one tunnel.
pub(super) async fn streams(
    pool: &Pool,
    cable: &CancellationToken,
    drain: Drain,
    count: usize,
) -> Vec<(TunnelStream, TunnelStream)> {
    let (sender, mut accepted) = mpsc::unbounded_channel();
    let take = move |inbound: Inbound| {
        let _ = sender.send(inbound.respond.accept(None).unwrap());
    };
    let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
    let addr = listener.local_addr().unwrap();
    let cable = cable.clone();
    tokio::spawn(async move {
        let tls = accept_tls(listener.accept().await.unwrap().0).await;
        let settings = ServerSettings::default();
        tokio::select! {
            _ = serve(tls, &settings, drain, take) => {}
            () = cable.cancelled() => {}
        }
    });
    let mut all = Vec::new();
    for _ in 0..count {
        let near = pool.open(&key(1), &request(), || connect_tls(addr)).await.unwrap();
        all.push((near, accepted.recv().await.unwrap()));
    }
    all
}

pub(super) async fn accept_tls(tcp: TcpStream) -> server::TlsStream<TcpStream> {
    tcp.set_nodelay(true).unwrap();
    TlsAcceptor::from(Arc::clone(&tls().1)).accept(tcp).await.unwrap()
}

pub(super) async fn connect_tls(
    addr: std::net::SocketAddr,
) -> Result<Dialled<client::TlsStream<TcpStream>>, DialError> {
    let failed = |e: io::Error| DialError::new(Cause::PeerUnreachable, e);
    let tcp = TcpStream::connect(addr).await.map_err(failed)?;
    tcp.set_nodelay(true).unwrap();
    let name = addr.ip().into();
    TlsConnector::from(Arc::clone(&tls().0)).connect(name, tcp).await.map(Dialled::from).map_err(failed)
}

fn tls() -> &'static (Arc<ClientConfig>, Arc<ServerConfig>) {
    static CONFIGS: OnceLock<(Arc<ClientConfig>, Arc<ServerConfig>)> = OnceLock::new();
    CONFIGS.get_or_init(|| {
        let root = Authority::root();
        let bundles = bundles(&[("cluster.local", &root)]);
        let id = |account: &str| format!("spiffe://cluster.local/ns/default/sa/{account}");
        let (from, to) = (root.certificate(&id("client")), root.certificate(&id("server")));
        let client = client_config(&from, &bundles, &[id("server").parse().unwrap()]).unwrap();
        (client, server_config(&to, &bundles).unwrap())
    })
}

/// Closes with RST.
pub(super) fn hang_up(tcp: TcpStream) {
    tcp.set_zero_linger().unwrap();
}

/// What the application reads until the end; the error is the end's.
pub(super) async fn read_all(tcp: &mut TcpStream) -> (Vec<u8>, io::Result<()>) {
    let mut all = Vec::new();
    let end = tcp.read_to_end(&mut all).await.map(drop);
    (all, end)
}

/// One line out, the same line in.
pub(super) async fn chat(from: &mut TcpStream, to: &mut TcpStream, text: &str) {
    from.write_all(text.as_bytes()).await.unwrap();
    let mut got = vec![0; text.len()];
    to.read_exact(&mut got).await.unwrap();
    assert_eq!(got, text.as_bytes());
}

#[track_caller]
pub(super) fn assert_reset(end: &io::Result<()>, who: &str) {
    let kind = end.as_ref().map_err(io::Error::kind);
    assert_eq!(kind, Err(io::ErrorKind::ConnectionReset), "{who}");
}
