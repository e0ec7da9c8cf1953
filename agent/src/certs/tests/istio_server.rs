//! An authority as istiod is one, on a real socket: the generated server behind TLS. It is a controller as
//! well, whose streams the test holds in its hand.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::Stream;
use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, CertificateSigningRequestParams, SanType};
use rustls::ServerConfig;
use rustls::version::TLS13;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tonic::codegen::Service as _;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};
use underpass_proto::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use underpass_proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use underpass_proto::underpass::v1::trust_service_server::{TrustService, TrustServiceServer};
use underpass_proto::underpass::v1::{AgentReport, TrustUpdate};
use underpass_proto::well_known::value::Kind;

use super::support::Scratch;
use crate::certs::{Caller, IstioConfig, TrustFiles};
use crate::tls::provider;
use crate::tls::testing::{Authority, Shown, leaf_params};

/// What arrived with one call.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) authorization: String,
    pub(super) cluster: String,
    pub(super) tenant: String,
    /// The certificate of TLS.
    pub(super) shown: Vec<u8>,
    pub(super) identity: String,
    pub(super) signer: String,
    pub(super) seconds: i64,
    pub(super) csr: String,
}

pub(super) type Answer = Result<Vec<String>, Status>;
type Script = dyn Fn(Asked) -> BoxFuture<'static, Answer> + Send + Sync;

/// Gone with the value.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) connections: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    pub(super) asked: Arc<Mutex<Vec<Asked>>>,
    sessions: mpsc::UnboundedReceiver<Session>,
    task: JoinHandle<()>,
}

impl Server {
    /// `root` vouches for the server's certificate, which is for `name`.
    pub(super) async fn start(
        root: &Authority,
        name: SanType,
        script: impl Fn(Asked) -> BoxFuture<'static, Answer> + Send + Sync + 'static,
    ) -> Self {
        let tls = tls(root, &[b"h2"], |leaf| leaf.subject_alt_names = vec![name]);
        Self::with_tls((Ipv4Addr::LOCALHOST, 0).into(), tls, script).await
    }

    pub(super) async fn with_tls(
        address: SocketAddr,
        tls: Arc<ServerConfig>,
        script: impl Fn(Asked) -> BoxFuture<'static, Answer> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, asked) = (Arc::new(AtomicUsize::new(0)), Arc::default());
        let open = Arc::new(AtomicUsize::new(0));
        let (opened, sessions) = mpsc::unbounded_channel();
        let service = Service { script: Arc::new(script), asked: Arc::clone(&asked), opened };
        let task = tokio::spawn(serve(listener, tls, [connections.clone(), open.clone()], service));
        Self { address, connections, open, asked, sessions, task }
    }

    /// The next stream that a follower opens.
    pub(super) async fn session(&mut self) -> Session {
        let opened = tokio::time::timeout(Duration::from_secs(30), self.sessions.recv()).await;
        opened.expect("nobody follows").unwrap()
    }

    /// The address is free for another one afterwards.
    pub(super) async fn stop(mut self) {
        self.task.abort();
        (&mut self.task).await.ok();
    }

    /// Of the connections, those that have not ended.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(super) fn config(&self, scratch: &Scratch) -> IstioConfig {
        config(self.address, scratch.path())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) fn config(address: SocketAddr, dir: &Path) -> IstioConfig {
    IstioConfig {
        name: "istio",
        address: format!("https://{address}"),
        root_certificate: dir.join("root-cert.pem"),
        trust: TrustFiles::default(),
        alternative_host_names: Vec::new(),
        client: None,
        token_file: Some(dir.join("token")),
        cluster_id: "east".into(),
        cert_signer: None,
        headers: Default::default(),
        trust_domain: "mesh.test".parse().unwrap(),
        lifetime: Duration::from_secs(7200),
        deadline: Duration::from_secs(20),
        caller: Caller {
            node: "node-1".into(),
            pod: "istio-system/underpass-x7".into(),
            service_account: "underpass".into(),
        },
    }
}

/// A server whose certificate is under `root`, changed.
pub(super) fn tls(
    root: &Authority,
    alpn: &[&[u8]],
    change: impl FnOnce(&mut CertificateParams),
) -> Arc<ServerConfig> {
    showing(&root.leaf("spiffe://unused/ns/a/sa/b", change), alpn)
}

pub(super) fn showing(shown: &Shown, alpn: &[&[u8]]) -> Arc<ServerConfig> {
    let mut tls = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(shown.chain.clone(), shown.key())
        .unwrap();
    tls.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(tls)
}

async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    [connections, now]: [Arc<AtomicUsize>; 2],
    service: Service,
) {
    let mut open = tokio::task::JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        let (tls, service) = (TlsAcceptor::from(tls.clone()), service.clone());
        let (connections, now) = (connections.clone(), now.clone());
        open.spawn(async move {
            let Ok(tls) = tls.accept(tcp).await else { return };
            connections.fetch_add(1, Ordering::SeqCst);
            now.fetch_add(1, Ordering::SeqCst);
            let shown =
                ShownByClient(tls.get_ref().1.peer_certificates().map(|c| c[0].to_vec()).unwrap_or_default());
            let service = service_fn(move |mut request: http::Request<Incoming>| {
                request.extensions_mut().insert(shown.clone());
                let service = service.clone();
                async move {
                    if request.uri().path().starts_with("/underpass.v1.TrustService/") {
                        TrustServiceServer::new(service).call(request).await
                    } else {
                        IstioCertificateServiceServer::new(service).call(request).await
                    }
                }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(tls), service).await;
            now.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// The certificate that the caller has shown in TLS.
#[derive(Clone)]
struct ShownByClient(Vec<u8>);

#[derive(Clone)]
struct Service {
    script: Arc<Script>,
    asked: Arc<Mutex<Vec<Asked>>>,
    opened: mpsc::UnboundedSender<Session>,
}

/// One follower's stream.
pub(super) struct Session {
    pub(super) authorization: String,
    pub(super) shown: Vec<u8>,
    pub(super) updates: mpsc::UnboundedSender<Result<TrustUpdate, Status>>,
    reports: Streaming<AgentReport>,
}

impl Session {
    pub(super) fn send(&self, update: TrustUpdate) {
        self.updates.send(Ok(update)).unwrap();
    }

    /// The next report; `None` if the follower has ended the stream.
    pub(super) async fn report(&mut self) -> Option<AgentReport> {
        let report = tokio::time::timeout(Duration::from_secs(30), self.reports.message()).await;
        report.expect("no report").ok().flatten()
    }
}

#[tonic::async_trait]
impl TrustService for Service {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<TrustUpdate, Status>> + Send>>;

    async fn follow(
        &self,
        request: Request<Streaming<AgentReport>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let (updates, mut sent) = mpsc::unbounded_channel();
        let authorization = header(request.metadata(), "authorization");
        let shown = request.extensions().get::<ShownByClient>().unwrap().0.clone();
        let session = Session { authorization, shown, updates, reports: request.into_inner() };
        self.opened.send(session).ok();
        Ok(Response::new(Box::pin(futures::stream::poll_fn(move |context| sent.poll_recv(context)))))
    }
}

fn header(headers: &MetadataMap, name: &str) -> String {
    headers.get(name).map_or("", |v| v.to_str().unwrap()).to_owned()
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let header = |name| header(request.metadata(), name);
        let (authorization, cluster, tenant) =
            (header("authorization"), header("clusterid"), header("x-tenant"));
        let shown = request.extensions().get::<ShownByClient>().unwrap().0.clone();
        let message = request.into_inner();
        let fields = message.metadata.unwrap_or_default().fields;
        let field = |name| match fields.get(name).and_then(|v| v.kind.clone()) {
            Some(Kind::StringValue(value)) => value,
            _ => String::new(),
        };
        let asked = Asked {
            authorization,
            cluster,
            tenant,
            shown,
            identity: field("ImpersonatedIdentity"),
            signer: field("CertSigner"),
            seconds: message.validity_duration,
            csr: message.csr,
        };
        self.asked.lock().unwrap().push(asked.clone());
        let cert_chain = (self.script)(asked).await?;
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

/// Two roots, and an intermediate under the first.
pub(super) struct Hierarchy {
    pub(super) intermediate: Authority,
    pub(super) roots: String,
}

impl Hierarchy {
    pub(super) fn new() -> Self {
        let (root, other) = (Authority::root(), Authority::root());
        Self { intermediate: root.intermediate(|_| {}), roots: format!("{}{}", root.pem, other.pem) }
    }

    /// As istiod answers.
    pub(super) fn issue(&self, asked: &Asked) -> Vec<String> {
        self.issue_with(asked, |_| {})
    }

    pub(super) fn issue_with(
        &self,
        asked: &Asked,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Vec<String> {
        let csr = CertificateSigningRequestParams::from_pem(&asked.csr).unwrap();
        let mut leaf = leaf_params(&asked.identity);
        change(&mut leaf);
        vec![
            self.intermediate.sign(&leaf, &csr.public_key),
            self.intermediate.pem.clone(),
            self.roots.clone(),
        ]
    }
}
