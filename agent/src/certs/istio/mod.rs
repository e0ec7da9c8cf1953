//! An authority that speaks Istio's certificate service: istiod, istio-csr, and whoever else does.
//!
//! The agent proves itself by its service account's token and asks on the workloads' behalf. What comes
//! back is read here, and judged where every issuer's answers are (`certs/identity.rs`).

pub(super) mod answer;
pub(super) mod channel;
pub(super) mod failure;
pub(super) mod request;
mod verify;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;
use underpass_proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;

pub use channel::{check_address, check_host_name};
pub use failure::Caller;
pub use request::{check_cluster_id, check_headers};

use self::channel::{Channels, Followed, FollowedFiles};
use super::keeping::SecretKey;
use super::{CertError, Issued, Issuer, TrustFiles};
use crate::model::{SpiffeId, TrustDomain};

/// Where the authority is, and how the agent proves itself to it.
#[derive(Clone, Debug)]
pub struct IstioConfig {
    /// The issuer's name, and its section's under `certificates`, for messages.
    pub name: &'static str,
    /// `https://host:port`.
    pub address: String,
    /// PEM file of the roots that the authority's server certificate is judged by; read for each call.
    pub root_certificate: PathBuf,
    /// Their revocation lists count for the server's certificate too; their roots do not.
    pub trust: TrustFiles,
    /// Other names that the server's certificate may have instead of the address's.
    pub alternative_host_names: Vec<String>,
    /// The node's own certificate, shown in TLS; read for each call.
    pub client: Option<ClientFiles>,
    /// The agent's own token; read for each call, for it is replaced while the agent runs.
    pub token_file: Option<PathBuf>,
    /// The cluster that is to judge the token; not sent when empty.
    pub cluster_id: String,
    /// Which of several signers is to sign, where the authority has them.
    pub cert_signer: Option<String>,
    /// Sent with each call, beside those that the service has.
    pub headers: BTreeMap<String, String>,
    /// The only trust domain that is asked for, and the one that the answer's roots vouch for.
    pub trust_domain: TrustDomain,
    /// How long a leaf is wanted to be valid; the authority may give less.
    pub lifetime: Duration,
    /// How long one call may take: a little less than the manager allows, so that the error is ours,
    /// which says more.
    pub deadline: Duration,
    /// Who we are, for messages.
    pub caller: Caller,
}

/// PEM files of a certificate that is shown to the authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The leaf's key.
    pub key: PathBuf,
}

/// Asks an authority over gRPC, with a fresh key for each call.
pub struct IstioIssuer {
    config: IstioConfig,
    channels: Arc<Channels>,
    _files: FollowedFiles,
}

impl IstioIssuer {
    /// Reads and connects nothing yet: an authority that is down must not keep the agent from starting.
    ///
    /// # Errors
    /// The address or an alternative host name is none.
    pub fn new(config: IstioConfig) -> Result<Self, String> {
        Self::following(config, None)
    }

    /// As [`Self::new`], of an authority that brings its roots itself.
    pub(super) fn following(
        config: IstioConfig,
        followed: Option<watch::Receiver<Option<Followed>>>,
    ) -> Result<Self, String> {
        let channels = Arc::new(Channels::new(&config, followed)?);
        Ok(Self { config, _files: FollowedFiles::of(&channels), channels })
    }

    pub(super) fn config(&self) -> &IstioConfig {
        &self.config
    }

    pub(super) fn channels(&self) -> &Channels {
        &self.channels
    }

    async fn call(&self, identity: &SpiffeId) -> Result<Issued, CertError> {
        let key = SecretKey::generate().map_err(|e| CertError::Issuer(e.to_string()))?;
        let request = request::make(&self.config, &key, identity).await?;
        let (channel, unfinished, _) = self.channels.get().await?;
        let mut client =
            IstioCertificateServiceClient::new(channel).max_decoding_message_size(answer::MOST_BYTES);
        let called = tokio::time::timeout(self.config.deadline, client.create_certificate(request)).await;
        let answered = called.map_err(|_elapsed| failure::late(&self.config, identity))?;
        match answered {
            Ok(answer) => {
                unfinished.finished();
                answer::read(answer.into_inner(), &self.config.trust_domain, &key)
                    .map_err(|why| failure::unusable(&why, &self.config, identity))
            }
            Err(status) => {
                if failure::is_of_the_server(&status) {
                    unfinished.finished();
                }
                Err(failure::of(&status, &self.config, identity))
            }
        }
    }
}

impl Issuer for IstioIssuer {
    fn issue<'a>(&'a self, identity: &'a SpiffeId) -> BoxFuture<'a, Result<Issued, CertError>> {
        async move {
            if identity.trust_domain() != &self.config.trust_domain {
                return Err(CertError::Refused {
                    issuer: self.name().into(),
                    identity: identity.clone(),
                    why: format!("its trust domain is {}", self.config.trust_domain),
                });
            }
            self.call(identity).await
        }
        .boxed()
    }

    fn name(&self) -> &str {
        self.config.name
    }
}

impl fmt::Debug for IstioIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IstioIssuer").field("config", &self.config).finish_non_exhaustive()
    }
}
