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
    let asked = asked(config, identity);
    if is_of_no_authority(status) {
        return CertError::Issuer(format!(
            "{}, {asked}: something else answers there, or before it: correct certificates.{}.address, or see \
             the proxy's log",
            said(status),
            config.name
        ));
    }
    if is_unreadable(status) {
        return unusable(&shorten(status.message()), config, identity);
    }
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument => CertError::Refused {
            issuer: config.name.into(),
            identity: identity.clone(),
            why: format!("{}, {asked}: {}", said(status), next_step(status, config)),
        },
        _ => CertError::Issuer(format!("{}, {asked}: {}", said(status), next_step(status, config))),
    }
}

/// An answer that came, and cannot be used.
pub(super) fn unusable(why: &str, config: &IstioConfig, identity: &SpiffeId) -> CertError {
    CertError::Answer(format!("{why}, {}", asked(config, identity)))
}

pub(super) fn late(config: &IstioConfig, identity: &SpiffeId) -> CertError {
    CertError::Issuer(format!(
        "no answer within {} s, {}: see whether the authority is overloaded, or its log what holds it up",
        config.deadline.as_secs_f32(),
        asked(config, identity)
    ))
}

/// What the server said, or what became of the connection.
pub(in crate::certs) fn said(status: &Status) -> String {
    format!("{:?} {:?}{}", status.code(), shorten(status.message()), causes(status))
}

pub(in crate::certs) fn next_step(status: &Status, config: &IstioConfig) -> String {
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument if config.token_file.is_some() => {
            "the authority's log has the reason (is this agent's service account trusted there, the token of \
             the right audience and cluster, and does a pod of the identity run on this node? a pod that just \
             started may not be known yet)"
                .into()
        }
        Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument => {
            "the authority's log has the reason (does it list this node with the key of its certificate, and \
             the identity among the node's?)"
                .into()
        }
        Code::Unimplemented => {
            format!("something else listens there: correct certificates.{}.address", config.name)
        }
        _ if !is_of_the_server(status) => {
            "see whether the authority is up and reachable, and its certificate as configured".into()
        }
        _ => "see the authority's own log".into(),
    }
}

/// Whether the server itself answered; otherwise the connection may be dead.
pub(in crate::certs) fn is_of_the_server(status: &Status) -> bool {
    // tonic keeps the error of the transport when it makes a status of one.
    status.source().is_none()
}

/// An HTTP error with a page as its body, which tonic took for messages.
fn is_of_no_authority(status: &Status) -> bool {
    let told = status.message().split_once("while receiving response with status: ");
    told.is_some_and(|(_, http)| !http.starts_with("200"))
}

/// tonic tells its own refusal to read an answer only by the text, which a test holds.
fn is_unreadable(status: &Status) -> bool {
    let begins = match status.code() {
        Code::OutOfRange => "Error, decoded message length too large",
        Code::Unimplemented => "Content is compressed with",
        Code::Internal if status.message().starts_with("protocol error: received message with") => {
            return true;
        }
        Code::Internal => "failed to decode Protobuf message",
        _ => return false,
    };
    status.message().starts_with(begins)
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
