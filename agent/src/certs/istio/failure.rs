//! Why a call failed, told so that whoever reads it knows where to look.

use std::error::Error;
use std::fmt;

use tonic::{Code, Status};

use super::IstioConfig;
use crate::certs::CertError;
use crate::model::SpiffeId;
use crate::model::spiffe::shorten;

/// Who asks: the authority looks this pod up. Parts that are not known are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    pub node: String,
    /// `namespace/name`.
    pub pod: String,
    pub service_account: String,
}

pub(super) fn of(status: &Status, config: &IstioConfig, identity: &SpiffeId) -> CertError {
    if is_unreadable(status) {
        return CertError::Answer(status.message().to_owned());
    }
    let said = format!("{:?} {:?}", status.code(), shorten(status.message()));
    let asked = asked(config, identity);
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument => CertError::Refused {
            issuer: "istio".into(),
            identity: identity.clone(),
            why: format!(
                "{said}, {asked}: the authority's log has the reason (is this agent's service account \
                 trusted there, the token of the right audience and cluster, and does a pod of the identity \
                 run on this node? a pod that just started may not be known yet)"
            ),
        },
        code => {
            let next = match code {
                Code::Unimplemented => "something else listens there: correct certificates.istio.address",
                _ if !is_of_the_server(status) => {
                    "see whether the authority is up and reachable, and its certificate as configured"
                }
                _ => "see the authority's own log",
            };
            CertError::Issuer(format!("{said}{}, {asked}: {next}", causes(status)))
        }
    }
}

pub(super) fn late(config: &IstioConfig, identity: &SpiffeId) -> CertError {
    CertError::Issuer(format!(
        "no answer within {} s, {}: see whether the authority is overloaded, or its log what holds it up",
        config.deadline.as_secs_f32(),
        asked(config, identity)
    ))
}

/// Whether the server itself answered; otherwise the connection may be dead.
pub(super) fn is_of_the_server(status: &Status) -> bool {
    // tonic keeps the error of the transport when it makes a status of one.
    status.source().is_none()
}

/// tonic tells its own refusal to read an answer only by the text, which a test holds.
fn is_unreadable(status: &Status) -> bool {
    let (code, text) = (status.code(), status.message());
    (code == Code::OutOfRange && text.starts_with("Error, decoded message length too large"))
        || (code == Code::Internal && text.starts_with("failed to decode Protobuf message"))
}

fn asked(config: &IstioConfig, identity: &SpiffeId) -> String {
    format!("asked {} for {identity} as {}", config.address, config.caller)
}

/// The sources of a transport's error, which says little itself.
fn causes(status: &Status) -> String {
    let mut text = String::new();
    let mut last = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        let said = error.to_string();
        if said != last {
            text.push_str(": ");
            text.push_str(&shorten(&said));
        }
        last = said;
        source = error.source();
    }
    text
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = |part: &'_ str| if part.is_empty() { "(unknown)".to_owned() } else { part.to_owned() };
        let (node, pod, account) = (known(&self.node), known(&self.pod), known(&self.service_account));
        write!(f, "pod {pod} of service account {account} on node {node}")
    }
}
