#![allow(clippy::unwrap_used, reason = "tests")]

mod bodies;
mod following;
mod requests;
mod strangers;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::SystemTime;

use futures::FutureExt;
use futures::future::BoxFuture;
use rcgen::{KeyPair, PublicKeyData};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpSocket;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};
use underpass_proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use underpass_proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use underpass_proto::well_known::value::Kind;
use underpass_proto::well_known::{Struct, Value};

use super::*;
use crate::ca::attest::{ListedNode, Nodes, PublicKeyPin};
use crate::ca::tests::support::{Scratch, config, id, request, uri, world};
use crate::certs::Clock;
use crate::tls::provider;
use crate::tls::testing::Shown as Shows;

const CART: &str = "spiffe://mesh.test/ns/shop/sa/cart";
const TILL: &str = "spiffe://mesh.test/ns/shop/sa/till";
const NAME: &str = "controller.test";

/// A controller's port on loopback, and the keys of two nodes: n1 runs the cart, n2 the till.
struct World {
    scratch: Scratch,
    authority: Authority,
    /// Seconds that the authority's clock is ahead.
    ahead: Arc<AtomicI64>,
    agents: Agents,
    metrics: Metrics,
    list: watch::Sender<Vec<ListedNode>>,
    n1: Papered,
    n2: Papered,
    address: SocketAddr,
    stop: CancellationToken,
}

/// A node's papers.
struct Papered {
    key: KeyPair,
    certificate: CertificateDer<'static>,
}

impl Papered {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::default();
        Self { certificate: params.self_signed(&key).unwrap().into(), key }
    }

    fn listed(&self, name: &str, identity: &str) -> ListedNode {
        let key = PublicKeyPin::of(&self.key.subject_public_key_info());
        ListedNode { name: name.into(), key, identities: [id(identity)].into() }
    }

    fn shows(&self) -> Shows {
        let key = PrivateKeyDer::Pkcs8(self.key.serialize_der().into());
        Shows { chain: vec![self.certificate.clone()], key }
    }
}

impl World {
    async fn start() -> Self {
        Self::limited(|_| ()).await
    }

    async fn limited(limit: impl FnOnce(&mut Limits)) -> Self {
        Self::with(|service| limit(&mut service.limits)).await
    }

    async fn with(change: impl FnOnce(&mut Service)) -> Self {
        let (scratch, n1, n2) = (world(), Papered::new(), Papered::new());
        let ahead = Arc::new(AtomicI64::new(0));
        let clock = {
            let ahead = Arc::clone(&ahead);
            Clock::from_fn(move || {
                let seconds = ahead.load(Ordering::SeqCst);
                let by = Duration::from_secs(seconds.unsigned_abs());
                if seconds < 0 { SystemTime::now() - by } else { SystemTime::now() + by }
            })
        };
        let authority = Authority::open(&config(&scratch), clock).unwrap();
        let (list, nodes) = watch::channel(vec![n1.listed("n1", CART), n2.listed("n2", TILL)]);
        let (agents, metrics) = (Agents::default(), Metrics::new().unwrap());
        let attestor = Arc::new(Nodes::new(nodes));
        let mut service =
            Service::new(authority.clone(), attestor, agents.clone(), metrics.clone(), Duration::ZERO);
        change(&mut service);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let (certificate, fresh) =
            ServerCertificate::new(&authority, vec![NAME.into()], stop.clone()).unwrap();
        tokio::spawn(fresh);
        tokio::spawn(service.serve(listener, certificate, stop.clone()));
        Self { scratch, authority, ahead, agents, metrics, list, n1, n2, address, stop }
    }

    fn roots(&self) -> String {
        self.authority.state().borrow().roots_pem.clone()
    }

    fn dial(&self, shows: Option<&Shows>) -> Dial {
        Dial {
            from: Ipv4Addr::LOCALHOST.into(),
            to: self.address,
            tls: Arc::new(client(&self.roots(), shows)),
        }
    }

    fn channel(&self, shows: Option<&Shows>) -> Channel {
        self.dial(shows).channel()
    }

    /// What a node gets that asks as an agent does.
    async fn ask(&self, node: &Papered, identity: &str) -> Answer {
        ask(self.channel(Some(&node.shows())), message(identity, csr(identity))).await
    }

    async fn send(&self, message: IstioCertificateRequest) -> Answer {
        ask(self.channel(Some(&self.n1.shows())), message).await
    }

    fn counted(&self, metric: &str) -> u64 {
        let text = self.metrics.text(0, 0).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
        line.map_or(0, |n| n.parse().unwrap())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

type Answer = Result<IstioCertificateResponse, Status>;

async fn ask(channel: Channel, message: IstioCertificateRequest) -> Answer {
    let mut client = IstioCertificateServiceClient::new(channel);
    in_time(client.create_certificate(message)).await.map(Response::into_inner)
}

async fn in_time<T>(it: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), it).await.expect("no end in sight")
}

fn csr(identity: &str) -> String {
    request(&KeyPair::generate().unwrap(), |p| p.subject_alt_names = vec![uri(identity)])
}

fn message(identity: &str, csr: String) -> IstioCertificateRequest {
    let value = Value { kind: Some(Kind::StringValue(identity.into())) };
    let metadata = Struct { fields: [("ImpersonatedIdentity".to_owned(), value)].into() };
    IstioCertificateRequest { csr, validity_duration: 3600, metadata: Some(metadata) }
}

/// Judges the server as an agent does.
fn client(roots: &str, shows: Option<&Shows>) -> ClientConfig {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(root.unwrap()).unwrap();
    }
    let tls = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(store);
    let mut tls = match shows {
        Some(shows) => tls.with_client_cert_resolver(shows.resolver()),
        None => tls.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![b"h2".to_vec()];
    tls
}

#[derive(Clone)]
struct Dial {
    from: IpAddr,
    to: SocketAddr,
    tls: Arc<ClientConfig>,
}

impl Dial {
    fn channel(self) -> Channel {
        Endpoint::from_static("http://controller.test").connect_with_connector_lazy(self)
    }

    async fn tcp(&self) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((self.from, 0).into())?;
        socket.connect(self.to).await
    }

    async fn tls(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(NAME).unwrap();
        TlsConnector::from(Arc::clone(&self.tls)).connect(name, self.tcp().await?).await
    }
}

impl tonic::codegen::Service<http::Uri> for Dial {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, std::io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let this = self.clone();
        async move { Ok(TokioIo::new(this.tls().await?)) }.boxed()
    }
}
