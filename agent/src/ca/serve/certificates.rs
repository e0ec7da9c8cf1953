//! `istio.v1.auth.IstioCertificateService`: one certificate for one identity that the caller's node runs.

use std::time::Duration;

use tonic::{Request, Response, Status};
use underpass_proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateService;
use underpass_proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use underpass_proto::well_known::value::Kind;

use super::Service;
use super::door::Caller;
use super::metrics::Outcome;
use crate::ca::attest::{NodeName, Refusal};
use crate::ca::{IssuedChain, RequestError, check_request};
use crate::certs::rfc3339;
use crate::model::SpiffeId;
use crate::model::spiffe::shorten;

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let asked = asked_for(request.get_ref());
        let shown = asked.as_ref().map_or_else(|_| String::new(), ToString::to_string);
        let Caller { node, .. } = Caller::of(&request)?;
        match self.decide(&node, asked, request.into_inner()).await {
            Ok(issued) => {
                self.metrics.decided(Outcome::Issued);
                tracing::info!(%node, identity = shown, serial = issued.serial,
                    not_after = rfc3339(issued.not_after), "certificate issued");
                Ok(Response::new(IstioCertificateResponse { cert_chain: issued.pem }))
            }
            Err(denied) => Err(self.refuse(&node, &shown, &denied)),
        }
    }
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
enum Denied {
    #[error(transparent)]
    Caller(Refusal),
    #[error("{0}")]
    Asked(String),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("node {0} has too many requests waiting")]
    TooMany(NodeName),
    #[error("{0}")]
    Authority(String),
}

impl Service {
    async fn decide(
        &self,
        node: &NodeName,
        asked: Result<SpiffeId, Denied>,
        message: IstioCertificateRequest,
    ) -> Result<IssuedChain, Denied> {
        let identity = asked?;
        let domain = &self.authority.config().trust_domain;
        if identity.trust_domain() != domain {
            let why =
                format!("{identity} is not of the trust domain {domain}, which is all that is issued for");
            return Err(Denied::Asked(why));
        }
        let too_many = || Denied::TooMany(node.clone());
        {
            let _turn = self.asking.wait(node).await.ok_or_else(too_many)?;
            self.attestor.runs(node, &identity).await.map_err(Denied::Caller)?;
        }
        let _turn = self.signing.wait(node).await.ok_or_else(too_many)?;
        let checked = check_request(&message.csr, &identity)?;
        let seconds = u64::try_from(message.validity_duration)
            .map_err(|_| Denied::Asked("validity_duration is negative".into()))?;
        let lifetime = (seconds > 0).then(|| Duration::from_secs(seconds));
        self.authority.issue(&checked, &identity, lifetime).map_err(|e| Denied::Authority(e.to_string()))
    }

    /// Everything is counted and a few of each go to the log, and the node learns what to look at.
    fn refuse(&self, node: &NodeName, identity: &str, denied: &Denied) -> Status {
        let (outcome, status) = match denied {
            Denied::Caller(Refusal::Unknown(why)) => (Outcome::UnknownCaller, Status::unauthenticated(why)),
            Denied::Caller(Refusal::NotYours(why)) => (Outcome::NotItsOwn, Status::permission_denied(why)),
            Denied::Caller(Refusal::Unavailable(why)) => (Outcome::Unavailable, Status::unavailable(why)),
            Denied::Asked(why) => (Outcome::BadRequest, Status::invalid_argument(why)),
            Denied::Request(why) => (Outcome::BadRequest, Status::invalid_argument(why.to_string())),
            Denied::TooMany(_) => (Outcome::TooMany, Status::resource_exhausted(denied.to_string())),
            Denied::Authority(why) => (Outcome::Authority, Status::failed_precondition(why)),
        };
        self.metrics.decided(outcome);
        let result = outcome.label();
        if self.denials.may_log(&(node.clone(), result)) {
            tracing::warn!(%node, identity, result, "no certificate issued: {denied}");
        }
        status
    }
}

/// Named apart from the signing request, as every client that asks for others does: that way a node cannot be
/// talked into asking for itself.
fn asked_for(message: &IstioCertificateRequest) -> Result<SpiffeId, Denied> {
    let field = message.metadata.as_ref().and_then(|m| m.fields.get("ImpersonatedIdentity"));
    let Some(Kind::StringValue(text)) = field.and_then(|value| value.kind.as_ref()) else {
        return Err(Denied::Asked("the metadata names no ImpersonatedIdentity".into()));
    };
    let identity = text.parse().and_then(|id: SpiffeId| id.check_account().map(|()| id));
    identity.map_err(|e| {
        Denied::Asked(format!("ImpersonatedIdentity {:?} is no SPIFFE ID of a workload: {e}", shorten(text)))
    })
}
