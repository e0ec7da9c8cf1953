//! An authority as istiod is one, on a real socket: the generated server behind TLS.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use rcgen::{CertificateParams, CertificateSigningRequestParams, SanType};
use rustls::ServerConfig;
use rustls::version::TLS13;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Status};
use underpass_proto::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use underpass_proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use underpass_proto::well_known::value::Kind;

use super::support::Scratch;
use crate::certs::{Caller, IstioConfig};
use crate::tls::provider;
use crate::tls::testing::{Authority, leaf_params};

/// What arrived with one call.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) authorization: String,
    pub(super) cluster: String,
    pub(super) identity: String,
    pub(super) seconds: i64,
    pub(super) csr: String,
}

pub(super) type Answer = Result<Vec<String>, Status>;
type Script = dyn Fn(Asked) -> BoxFuture<'static, Answer> + Send + Sync;

/// Gone with the value.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) connections: Arc<AtomicUsize>,
    pub(super) asked: Arc<Mutex<Vec<Asked>>>,
    task: JoinHandle<()>,
}

impl Server {
    /// `root` vouches for the server's certificate, which is for `name`.
    pub(super) async fn start(
        root: &Authority,
        name: SanType,
        script: impl Fn(Asked) -> BoxFuture<'static, Answer> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shown = root.leaf("spiffe://unused/ns/a/sa/b", |leaf| leaf.subject_alt_names = vec![name]);
        let mut tls = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(shown.chain.clone(), shown.key())
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let (connections, asked) = (Arc::new(AtomicUsize::new(0)), Arc::default());
        let service = IstioCertificateServiceServer::new(Service {
            script: Arc::new(script),
            asked: Arc::clone(&asked),
        });
        let task = tokio::spawn(serve(listener, Arc::new(tls), connections.clone(), service));
        Self { address, connections, asked, task }
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
        address: format!("https://{address}"),
        root_certificate: dir.join("root-cert.pem"),
        alternative_host_name: None,
        token_file: dir.join("token"),
        cluster_id: "east".into(),
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

async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    connections: Arc<AtomicUsize>,
    service: IstioCertificateServiceServer<Service>,
) {
    let mut open = tokio::task::JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        let (tls, service) = (TlsAcceptor::from(tls.clone()), TowerToHyperService::new(service.clone()));
        let connections = connections.clone();
        open.spawn(async move {
            let Ok(tls) = tls.accept(tcp).await else { return };
            connections.fetch_add(1, Ordering::SeqCst);
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(tls), service).await;
        });
    }
}

struct Service {
    script: Arc<Script>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let header = |name| request.metadata().get(name).map_or("", |v| v.to_str().unwrap()).to_owned();
        let (authorization, cluster) = (header("authorization"), header("clusterid"));
        let message = request.into_inner();
        let fields = message.metadata.unwrap_or_default().fields;
        let identity = match fields.get("ImpersonatedIdentity").and_then(|v| v.kind.clone()) {
            Some(Kind::StringValue(identity)) => identity,
            _ => String::new(),
        };
        let asked =
            Asked { authorization, cluster, identity, seconds: message.validity_duration, csr: message.csr };
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
