//! What is asked: a signing request on a workload's behalf, with the agent's own token.

use std::collections::BTreeMap;
use std::path::Path;

use rcgen::{CertificateParams, DistinguishedName, SanType};
use tonic::Request;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};
use underpass_proto::istio::v1::auth::IstioCertificateRequest;
use underpass_proto::well_known::{Struct, Value, value::Kind};
use zeroize::Zeroizing;

use super::IstioConfig;
use crate::certs::CertError;
use crate::certs::keeping::SecretKey;
use crate::model::SpiffeId;

/// The header under which istiod finds the cluster that is to judge the token.
const CLUSTER_ID: &str = "clusterid";
const ASKED_IDENTITY: &str = "ImpersonatedIdentity";
const CERT_SIGNER: &str = "CertSigner";

pub(in crate::certs) async fn make(
    config: &IstioConfig,
    key: &SecretKey,
    identity: &SpiffeId,
) -> Result<Request<IstioCertificateRequest>, CertError> {
    let text = |s: String| Value { kind: Some(Kind::StringValue(s)) };
    let asked = (ASKED_IDENTITY.to_owned(), text(identity.to_string()));
    let signer = config.cert_signer.clone().map(|signer| (CERT_SIGNER.to_owned(), text(signer)));
    let mut request = Request::new(IstioCertificateRequest {
        csr: signing_request(key, identity).map_err(|e| CertError::Issuer(e.to_string()))?,
        validity_duration: i64::try_from(config.lifetime.as_secs()).unwrap_or(i64::MAX),
        metadata: Some(Struct { fields: [asked].into_iter().chain(signer).collect() }),
    });
    credentials(config, request.metadata_mut()).await?;
    Ok(request)
}

/// The headers by which the agent proves itself, and those that the operator wants.
pub(in crate::certs) async fn credentials(
    config: &IstioConfig,
    headers: &mut MetadataMap,
) -> Result<(), CertError> {
    for (name, value) in &config.headers {
        let (name, value) = header(name, value).map_err(CertError::Issuer)?;
        headers.insert(name, value);
    }
    if let Some(file) = &config.token_file {
        headers.insert("authorization", bearer(file).await?);
    }
    if !config.cluster_id.is_empty() {
        headers.insert(CLUSTER_ID, cluster_id(&config.cluster_id).map_err(CertError::Issuer)?);
    }
    Ok(())
}

/// No subject, which makes the SAN critical, and nothing but the SPIFFE id in it.
fn signing_request(key: &SecretKey, identity: &SpiffeId) -> Result<String, rcgen::Error> {
    let mut asked = CertificateParams::default();
    asked.distinguished_name = DistinguishedName::new();
    asked.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    asked.serialize_request(key)?.pem()
}

async fn bearer(file: &Path) -> Result<AsciiMetadataValue, CertError> {
    let path = file.display();
    let failed = |why: String| {
        CertError::Issuer(format!(
            "{why}: mount a token of the agent's service account with the audience that the authority wants \
             (istio-ca) there"
        ))
    };
    let token = tokio::fs::read_to_string(file)
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

/// # Errors
/// Which of them cannot be sent as a header, or is the service's own.
pub fn check_headers(headers: &BTreeMap<String, String>) -> Result<(), String> {
    headers.iter().try_for_each(|(name, value)| header(name, value).map(drop))
}

fn header(name: &str, value: &str) -> Result<(AsciiMetadataKey, AsciiMetadataValue), String> {
    let ours = ["authorization", CLUSTER_ID, "content-type", "te", "user-agent"];
    let key = AsciiMetadataKey::from_bytes(name.as_bytes()).ok();
    let key = key.filter(|key| !ours.contains(&key.as_str()) && !key.as_str().starts_with("grpc-"));
    match (key, AsciiMetadataValue::try_from(value)) {
        (Some(key), Ok(mut value)) if value.to_str().is_ok() => {
            // It may be a secret of the operator's.
            value.set_sensitive(true);
            Ok((key, value))
        }
        _ => Err(format!(
            "{name:?} must be a header in lower case that the service does not have itself, in ASCII"
        )),
    }
}
