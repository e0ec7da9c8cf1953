//! A SPIRE agent's Delegated Identity API on a unix socket: the generated server, whose streams the test holds
//! in its hand.

use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};
use underpass_proto::spire::api::agent::delegatedidentity::v1::delegated_identity_server::{
    DelegatedIdentity, DelegatedIdentityServer,
};
use underpass_proto::spire::api::agent::delegatedidentity::v1::{
    SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse, SubscribeToX509sviDsRequest,
    SubscribeToX509sviDsResponse, X509svidWithKey,
};
use underpass_proto::spire::api::types::{Spiffeid, X509svid};

use crate::model::SpiffeId;
use crate::tls::testing::{Authority, Shown};

pub(super) type Svids = SubscribeToX509sviDsResponse;
pub(super) type Bundles = SubscribeToX509BundlesResponse;

/// One open stream; its end ends it.
pub(super) struct Pushed<T>(mpsc::UnboundedSender<Result<T, Status>>);

impl<T> Pushed<T> {
    pub(super) fn push(&self, answer: T) {
        self.0.send(Ok(answer)).unwrap();
    }

    pub(super) fn fail(self, status: Status) {
        self.0.send(Err(status)).unwrap();
    }

    pub(super) async fn closed(&self) {
        within(self.0.closed()).await;
    }
}

pub(super) struct Opened {
    /// `type:value`, as they were asked for.
    pub(super) selectors: Vec<String>,
    pub(super) stream: Pushed<Svids>,
}

/// Gone with the value.
pub(super) struct Agent {
    svids: mpsc::UnboundedReceiver<Opened>,
    bundles: mpsc::UnboundedReceiver<Pushed<Bundles>>,
    socket: PathBuf,
    task: JoinHandle<()>,
}

impl Agent {
    pub(super) fn start(socket: PathBuf) -> Self {
        let listener = UnixListener::bind(&socket).unwrap();
        let ((svids, asked), (bundles, wanted)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let task = tokio::spawn(serve(listener, Service { svids, bundles }));
        Self { svids: asked, bundles: wanted, socket, task }
    }

    pub(super) async fn svids(&mut self) -> Opened {
        within(self.svids.recv()).await.unwrap()
    }

    pub(super) async fn bundles(&mut self) -> Pushed<Bundles> {
        within(self.bundles.recv()).await.unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
        std::fs::remove_file(&self.socket).ok();
    }
}

pub(super) async fn within<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), wait).await.expect("it does not come")
}

async fn serve(listener: UnixListener, service: Service) {
    let mut open = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let service = TowerToHyperService::new(DelegatedIdentityServer::new(service.clone()));
        open.spawn(async move {
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

#[derive(Clone)]
struct Service {
    svids: mpsc::UnboundedSender<Opened>,
    bundles: mpsc::UnboundedSender<Pushed<Bundles>>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl DelegatedIdentity for Service {
    type SubscribeToX509SVIDsStream = Answers<Svids>;
    type SubscribeToX509BundlesStream = Answers<Bundles>;

    async fn subscribe_to_x509svi_ds(
        &self,
        request: Request<SubscribeToX509sviDsRequest>,
    ) -> Result<Response<Self::SubscribeToX509SVIDsStream>, Status> {
        let (stream, answers) = pushed();
        let selectors = request.into_inner().selectors;
        let selectors = selectors.into_iter().map(|s| format!("{}:{}", s.r#type, s.value)).collect();
        self.svids.send(Opened { selectors, stream }).ok();
        Ok(Response::new(answers))
    }

    async fn subscribe_to_x509_bundles(
        &self,
        _: Request<SubscribeToX509BundlesRequest>,
    ) -> Result<Response<Self::SubscribeToX509BundlesStream>, Status> {
        let (stream, answers) = pushed();
        self.bundles.send(stream).ok();
        Ok(Response::new(answers))
    }
}

fn pushed<T: Send + 'static>() -> (Pushed<T>, Answers<T>) {
    let (sender, mut sent) = mpsc::unbounded_channel();
    (Pushed(sender), Box::pin(futures::stream::poll_fn(move |context| sent.poll_recv(context))))
}

/// As SPIRE writes one.
pub(super) fn svid(identity: &SpiffeId, shown: &Shown) -> X509svidWithKey {
    X509svidWithKey {
        x509_svid: Some(X509svid {
            cert_chain: shown.chain.iter().map(|c| c.to_vec()).collect(),
            id: Some(Spiffeid {
                trust_domain: identity.trust_domain().to_string(),
                path: identity.path().to_owned(),
            }),
            expires_at: 0,
            hint: String::new(),
        }),
        x509_svid_key: shown.key().secret_der().to_vec(),
    }
}

pub(super) fn svids(svids: impl IntoIterator<Item = X509svidWithKey>) -> Svids {
    Svids { x509_svids: svids.into_iter().collect(), federates_with: Vec::new() }
}

/// Of an entry that federates with these.
pub(super) fn federated(answer: Svids, domains: &[&str]) -> Svids {
    Svids { federates_with: domains.iter().map(|domain| format!("spiffe://{domain}")).collect(), ..answer }
}

/// Several roots of one domain stand one after the other.
pub(super) fn bundles(roots: &[(&str, &[&Authority])]) -> Bundles {
    let der = |roots: &[&Authority]| roots.iter().flat_map(|root| root.certificate.to_vec()).collect();
    let domains = roots.iter().map(|(domain, roots)| (format!("spiffe://{domain}"), der(roots)));
    Bundles { ca_certificates: domains.collect() }
}
