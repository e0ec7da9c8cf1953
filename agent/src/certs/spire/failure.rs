//! Why a stream failed, told so that whoever reads it knows where to look.

use tonic::{Code, Status};

use super::SpireConfig;
use crate::certs::CertError;
use crate::certs::istio::failure::said;

/// `what` was asked for.
pub(super) fn of(status: &Status, config: &SpireConfig, what: &str) -> CertError {
    let next = match status.code() {
        Code::PermissionDenied if status.message().contains("no identity issued") => {
            "make an entry in SPIRE for this agent itself, and list its SPIFFE id in authorized_delegates of the \
             SPIRE agent's configuration"
        }
        Code::PermissionDenied | Code::Unauthenticated => {
            "list this agent's SPIFFE id in authorized_delegates of the SPIRE agent's configuration"
        }
        Code::Unimplemented => {
            "it is not the admin socket of a SPIRE agent: set certificates.spire.adminSocket to its \
             admin_socket_path"
        }
        Code::Unavailable | Code::Unknown => {
            "see whether the SPIRE agent is up and has admin_socket_path set to this, and whether this agent may \
             open it"
        }
        _ => "see the SPIRE agent's own log",
    };
    CertError::Issuer(format!("{}, {}: {next}", said(status), asked(config, what)))
}

/// Whether the SPIRE agent will not have it, rather than that it is not there.
pub(super) fn is_refusal(status: &Status) -> bool {
    matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument)
}

pub(super) fn ended(config: &SpireConfig, what: &str) -> CertError {
    CertError::Issuer(format!("the stream was ended, {}: see the SPIRE agent's own log", asked(config, what)))
}

pub(super) fn late(config: &SpireConfig, what: &str) -> CertError {
    CertError::Issuer(format!(
        "nothing came within {} s, {}: see the SPIRE agent's own log what holds it up",
        config.deadline.as_secs_f32(),
        asked(config, what)
    ))
}

fn asked(config: &SpireConfig, what: &str) -> String {
    format!("asked the SPIRE agent at {} for {what}", config.admin_socket.display())
}
