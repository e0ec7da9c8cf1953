//! The connection to the authority: one at a time, made anew when the roots or the revocation lists
//! change, or a call on it fails.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint};
use zeroize::Zeroizing;

use super::verify::AuthorityVerifier;
use super::{ClientFiles, IstioConfig};
use crate::certs::keeping::private_key;
use crate::certs::{CertError, TrustFiles};
use crate::model::TrustDomain;
use crate::sys::watch::Watch;
use crate::tls::{Crls, TrustBundles, provider, reason_of, sha256};

/// TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Files are looked at this often even if no change was noticed.
const POLL: Duration = Duration::from_secs(30);
/// How long after a change they have to be quiet: one may be half written, or one of two.
const QUIET: Duration = Duration::from_millis(100);

/// Roots that an authority brought itself: they take the place of the file, which is for the first contact.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::certs) struct Followed {
    pub(in crate::certs) roots: TrustBundles,
    /// By the authority's own count. None of an earlier one is taken from whoever is known by these.
    pub(in crate::certs) revision: u64,
    /// SHA-256 of the file as it was then. Another file is the operator's word, and newer.
    pub(in crate::certs) file: [u8; 32],
}

/// What an authority is judged by.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::certs) struct Known {
    roots: Vec<CertificateDer<'static>>,
    /// SHA-256 of the file that counts, or that counted when the roots came.
    pub(in crate::certs) file: [u8; 32],
    /// What is revoked among those that vouch for it.
    pub(in crate::certs) revoked: Crls,
}

pub(in crate::certs) struct Channels {
    endpoint: Endpoint,
    name: ServerName<'static>,
    alternatives: Vec<ServerName<'static>>,
    roots: PathBuf,
    client: Option<ClientFiles>,
    followed: Option<watch::Receiver<Option<Followed>>>,
    domain: TrustDomain,
    /// For the revocation lists.
    trust: TrustFiles,
    current: Current,
    /// A file that is not used in place of roots that were brought, so that it is said once.
    unusable: Mutex<Option<[u8; 32]>>,
}

type Current = Arc<Mutex<Option<Open>>>;

struct Open {
    parts: Parts,
    channel: Channel,
    number: u64,
}

/// What a connection is made with, as it was read. When any of it changes, another one is made.
#[derive(PartialEq)]
struct Parts {
    known: Known,
    /// Certificate and key.
    client: Option<(Vec<u8>, Zeroizing<Vec<u8>>)>,
}

/// Ends with the value.
pub(super) struct FollowedFiles(Option<AbortHandle>);

impl FollowedFiles {
    /// Outside of a runtime, changes are noticed by the next call.
    pub(super) fn of(channels: &Arc<Channels>) -> Self {
        let channels = channels.clone();
        let runtime = Handle::try_current().ok();
        Self(runtime.map(|r| r.spawn(async move { channels.follow_files().await }).abort_handle()))
    }
}

impl Drop for FollowedFiles {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

impl Channels {
    pub(in crate::certs) fn new(
        config: &IstioConfig,
        followed: Option<watch::Receiver<Option<Followed>>>,
    ) -> Result<Self, String> {
        let (uri, name) = parse_address(&config.address)?;
        let endpoint = Endpoint::from(uri)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10));
        let alternatives = config.alternative_host_names.iter().map(|name| host_name(name));
        let alternatives = alternatives.collect::<Result<_, _>>()?;
        Ok(Self {
            endpoint,
            name,
            alternatives,
            roots: config.root_certificate.clone(),
            client: config.client.clone(),
            followed,
            domain: config.trust_domain.clone(),
            trust: config.trust.clone(),
            current: Current::default(),
            unusable: Mutex::default(),
        })
    }

    /// The channel for the next call, and what the authority is judged by on it. It connects when it is used,
    /// and again when the connection ends.
    pub(in crate::certs) async fn get(&self) -> Result<(Channel, Unfinished, Known), CertError> {
        let parts = self.read().await?;
        let mut current = lock(&self.current);
        if current.as_ref().is_none_or(|open| open.parts != parts) {
            let connector = self.connector(&parts)?;
            let channel = self.endpoint.connect_with_connector_lazy(connector);
            *current = Some(Open { parts, channel, number: rand::random() });
        }
        let open = current.as_ref().ok_or_else(|| CertError::Issuer("no channel".into()))?;
        let unfinished = Unfinished { current: Some(self.current.clone()), number: open.number };
        Ok((open.channel.clone(), unfinished, open.parts.known.clone()))
    }

    /// For ever: makes another channel as soon as the files say so. Otherwise a connection to a server whose
    /// root is gone, or who was revoked, would stay until the next call, and a file that cannot be used would be noticed only then.
    async fn follow_files(&self) {
        let mut watch = Watch::new(&self.roots);
        let mut lists = self.trust.subscribe();
        loop {
            if let Err(e) = watch.ensure() {
                tracing::debug!(file = %self.roots.display(), error = %e, "changes are noticed by polling only");
            }
            tokio::select! {
                _ = tokio::time::timeout(POLL, watch.changed()) => watch.settle(QUIET).await,
                // Whole when they are told of.
                Ok(()) = lists.changed() => {}
            }
            let used = lock(&self.current).is_some();
            if !used {
                continue;
            }
            match self.get().await {
                // No call was made on it.
                Ok((_, unfinished, _)) => unfinished.finished(),
                Err(error) => {
                    *lock(&self.current) = None;
                    tracing::warn!(%error, "no certificates can be asked for");
                }
            }
        }
    }

    async fn read(&self) -> Result<Parts, CertError> {
        let known = self.known().await?;
        let client = match &self.client {
            Some(ClientFiles { certificate, key }) => {
                let read =
                    async |path: &Path| tokio::fs::read(path).await.map_err(|e| unusable_papers(path, e));
                Some((read(certificate).await?, Zeroizing::new(read(key).await?)))
            }
            None => None,
        };
        Ok(Parts { known, client })
    }

    /// What the authority is judged by on the next connection.
    pub(in crate::certs) async fn known(&self) -> Result<Known, CertError> {
        self.choose(tokio::fs::read(&self.roots).await)
    }

    /// The same, of a file that was read.
    pub(in crate::certs) fn choose(&self, file: io::Result<impl AsRef<[u8]>>) -> Result<Known, CertError> {
        let followed = self.followed.as_ref().and_then(|followed| followed.borrow().clone());
        let brought = |f: Followed| Known {
            roots: f.roots.roots(&self.domain).cloned().collect(),
            file: f.file,
            revoked: self.revoked(),
        };
        let bytes = match (file, followed) {
            (Err(_), Some(followed)) => return Ok(brought(followed)),
            (Err(e), None) => return Err(self.unusable(e)),
            (Ok(bytes), None) => bytes,
            (Ok(bytes), Some(followed)) => {
                let digest = sha256(bytes.as_ref());
                if digest == followed.file {
                    return Ok(brought(followed));
                }
                // One that is half copied must not cost the node its controller.
                if let Err(error) = self.parse(bytes.as_ref()).and_then(|known| self.store(&known)) {
                    if lock(&self.unusable).replace(digest) != Some(digest) {
                        tracing::warn!(%error, "the roots that the controller brought stay in use");
                    }
                    return Ok(brought(followed));
                }
                bytes
            }
        };
        self.parse(bytes.as_ref())
    }

    fn parse(&self, file: &[u8]) -> Result<Known, CertError> {
        let roots = CertificateDer::pem_slice_iter(file).collect::<Result<_, _>>();
        let roots = roots.map_err(|e| self.unusable(e))?;
        Ok(Known { roots, file: sha256(file), revoked: self.revoked() })
    }

    fn revoked(&self) -> Crls {
        self.trust.now().revoked.clone()
    }

    fn store(&self, known: &Known) -> Result<RootCertStore, CertError> {
        let mut store = RootCertStore::empty();
        for root in &known.roots {
            store.add(root.clone()).map_err(|e| self.unusable(e))?;
        }
        if store.is_empty() {
            return Err(self.unusable("no CERTIFICATE section"));
        }
        Ok(store)
    }

    fn connector(&self, parts: &Parts) -> Result<Connector, CertError> {
        let store = self.store(&parts.known)?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider())
            .build()
            .map_err(|e| self.unusable(e))?;
        let verifier = AuthorityVerifier {
            verifier,
            alternatives: self.alternatives.clone(),
            roots: parts.known.roots.clone(),
            revoked: parts.known.revoked.clone(),
        };
        let tls = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| CertError::Issuer(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut tls = match (&parts.client, &self.client) {
            (Some((certificate, key)), Some(files)) => {
                let unusable = |e: &dyn std::fmt::Display| unusable_papers(&files.certificate, e);
                let chain = CertificateDer::pem_slice_iter(certificate)
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|e| unusable(&e))?;
                let key = private_key(key).map_err(|e| unusable_papers(&files.key, e))?;
                // rustls wipes its copy.
                tls.with_client_auth_cert(chain, key.clone_key()).map_err(|e| unusable(&e))?
            }
            _ => tls.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![H2.to_vec()];
        Ok(Connector { tcp: tcp(), tls: TlsConnector::from(Arc::new(tls)), name: self.name.clone() })
    }

    fn unusable(&self, why: impl std::fmt::Display) -> CertError {
        CertError::Issuer(format!(
            "the authority's roots in {} cannot be used ({why}): put the PEM of the control plane's roots there",
            self.roots.display()
        ))
    }
}

fn unusable_papers(path: &Path, why: impl std::fmt::Display) -> CertError {
    CertError::Issuer(format!(
        "the node's certificate or its key in {} cannot be used ({why}): put both there in PEM, as \
         `underpass ca node` makes them",
        path.display()
    ))
}

const H2: &[u8] = b"h2";

/// Lets go of the channel unless the call on it was answered, also when the call is given up: its
/// connection may be dead, and a dead one is not noticed while nobody uses it.
pub(in crate::certs) struct Unfinished {
    current: Option<Current>,
    number: u64,
}

impl Unfinished {
    pub(in crate::certs) fn finished(mut self) {
        self.current = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(current) = &self.current {
            let mut current = lock(current);
            if current.as_ref().is_some_and(|open| open.number == self.number) {
                *current = None;
            }
        }
    }
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    // It is replaced as a whole, so a panic elsewhere leaves it usable.
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    // Otherwise a request's second half waits in Nagle's algorithm for the peer's delayed acknowledgement.
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(Duration::from_secs(300)));
    tcp.set_keepalive_interval(Some(Duration::from_secs(75)));
    tcp.set_keepalive_retries(Some(9));
    tcp
}

/// TCP, then TLS with the project's own cryptography; tonic's TLS would choose for itself.
#[derive(Clone)]
struct Connector {
    tcp: HttpConnector,
    tls: TlsConnector,
    name: ServerName<'static>,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let tcp = self.tcp.call(uri);
        let (tls, name) = (self.tls.clone(), self.name.clone());
        Box::pin(async move {
            let tcp = tcp.await?.into_inner();
            let tls = tls.connect(name, tcp).await.map_err(|e| reason_of(&e))?;
            // A server that knows no ALPN would get HTTP/2 all the same, and answer it with anything.
            match tls.get_ref().1.alpn_protocol() {
                Some(H2) => Ok(TokioIo::new(tls)),
                other => {
                    let other = other.map(String::from_utf8_lossy);
                    Err(format!("the server does not agree to HTTP/2 (ALPN h2) but to {other:?}").into())
                }
            }
        })
    }
}

/// # Errors
/// Why it is no address of an authority.
pub fn check_address(address: &str) -> Result<(), String> {
    parse_address(address).map(drop)
}

/// # Errors
/// Why it is no name that a certificate could be for.
pub fn check_host_name(name: &str) -> Result<(), String> {
    host_name(name).map(drop)
}

fn parse_address(address: &str) -> Result<(Uri, ServerName<'static>), String> {
    let wrong = || "must be written like https://istiod.istio-system.svc:15012".to_owned();
    let uri: Uri = address.parse().map_err(|_| wrong())?;
    let whole = matches!(uri.path_and_query().map(|p| p.as_str()), None | Some("/"));
    let anonymous = uri.authority().is_some_and(|a| !a.as_str().contains('@'));
    let host = uri.host().map(|host| host.trim_start_matches('[').trim_end_matches(']'));
    match host {
        Some(host) if whole && anonymous && uri.scheme_str() == Some("https") => {
            let name = host_name(host).map_err(|_| wrong())?;
            Ok((uri, name))
        }
        _ => Err(wrong()),
    }
}

fn host_name(name: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(name.to_owned()).map_err(|_| "must be a DNS name or an address".into())
}
