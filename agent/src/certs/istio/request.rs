//! What is asked: a signing request on a workload's behalf, with the agent's own token.

use rcgen::{CertificateParams, DistinguishedName, SanType};
use tonic::Request;
use tonic::metadata::AsciiMetadataValue;
use underpass_proto::istio::v1::auth::IstioCertificateRequest;
use underpass_proto::well_known::{Struct, Value, value::Kind};
use zeroize::Zeroizing;

use super::IstioConfig;
use crate::certs::CertError;
use crate::certs::root_files::SecretKey;
use crate::model::SpiffeId;

/// The header under which istiod finds the cluster that is to judge the token.
const CLUSTER_ID: &str = "clusterid";
const ASKED_IDENTITY: &str = "ImpersonatedIdentity";

pub(in crate::certs) async fn make(
    config: &IstioConfig,
    key: &SecretKey,
    identity: &SpiffeId,
) -> Result<Request<IstioCertificateRequest>, CertError> {
    let asked = Value { kind: Some(Kind::StringValue(identity.to_string())) };
    let mut request = Request::new(IstioCertificateRequest {
        csr: signing_request(key, identity).map_err(|e| CertError::Issuer(e.to_string()))?,
        validity_duration: i64::try_from(config.lifetime.as_secs()).unwrap_or(i64::MAX),
        metadata: Some(Struct { fields: [(ASKED_IDENTITY.into(), asked)].into() }),
    });
    let headers = request.metadata_mut();
    headers.insert("authorization", bearer(config).await?);
    headers.insert(CLUSTER_ID, cluster_id(&config.cluster_id).map_err(CertError::Issuer)?);
    Ok(request)
}

/// No subject, which makes the SAN critical, and nothing but the SPIFFE id in it.
fn signing_request(key: &SecretKey, identity: &SpiffeId) -> Result<String, rcgen::Error> {
    let mut asked = CertificateParams::default();
    asked.distinguished_name = DistinguishedName::new();
    asked.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    asked.serialize_request(key)?.pem()
}

async fn bearer(config: &IstioConfig) -> Result<AsciiMetadataValue, CertError> {
    let path = config.token_file.display();
    let failed = |why: String| {
        CertError::Issuer(format!(
            "{why}: mount a token of the agent's service account with the audience that the authority wants \
             (istio-ca) there"
        ))
    };
    let token = tokio::fs::read_to_string(&config.token_file)
        .await
        .map_err(|e| failed(format!("cannot read the token file {path}: {e}")))?;
    let token = Zeroizing::new(token);
    let header = Zeroizing::new(format!("Bearer {}", token.trim()));
    match AsciiMetadataValue::try_from(header.as_str()) {
        Ok(mut value) if !token.trim().is_empty() => {
            value.set_sensitive(true);
            Ok(value)
        }
        _ => Err(failed(format!("the token file {path} is empty, or holds what no token has"))),
    }
}

/// # Errors
/// Why it cannot be sent as a header.
pub fn check_cluster_id(id: &str) -> Result<(), String> {
    cluster_id(id).map(drop)
}

fn cluster_id(id: &str) -> Result<AsciiMetadataValue, String> {
    let value = AsciiMetadataValue::try_from(id).ok().filter(|_| !id.trim().is_empty());
    value.ok_or_else(|| "must be a cluster's name, as the control plane knows it".into())
}
