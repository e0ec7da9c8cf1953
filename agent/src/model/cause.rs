//! Why a connection ended, or was never made. One word for logs and metrics, one flag for Istio's
//! `response_flags` label.

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Both directions ended in order.
    Closed,
    /// The application that dialled reset the connection.
    ClientReset,
    /// The application that was dialled reset the connection.
    ServerReset,
    /// The application (or the address beyond the mesh) refused, or could not be reached.
    ConnectRefused,
    /// The tunnel's TCP connection could not be made.
    PeerUnreachable,
    /// The TLS handshake failed for another reason than identity.
    TlsFailed,
    /// The peer did not prove the identity that was expected of it.
    WrongIdentity,
    /// The peer's certificate is revoked, or does not chain to a trusted root any more: a new connection was
    /// refused, or a live one ended.
    TrustRevoked,
    /// HTTP/2 could not be set up, or broke underneath the stream.
    TunnelFailed,
    /// The peer answered CONNECT with 401: its policy refused us.
    DeniedByPeer,
    /// The peer answered CONNECT with another status than 200 and 401.
    RejectedByPeer,
    /// The peer took CONNECT and gave no answer in time.
    NoAnswer,
    /// Our own policy refused.
    PolicyDenied,
    /// A policy changed and this live connection is no longer permitted.
    PolicyRevoked,
    /// A policy judges requests on this port, and the connection carries none.
    NotHttp,
    /// The CONNECT request named a destination that is not this pod's, or is not allowed as a target.
    BadTarget,
    /// The CONNECT request does not parse.
    BadRequest,
    /// There is no workload or service to take the connection.
    NoEndpoint,
    /// The destination is one of the agent's own ports, or the connection came from the agent itself.
    Loop,
    /// The source address is not one of the pod's own.
    SpoofedSource,
    /// The pod has as many connections, or unfinished handshakes, in the agent as it may.
    Overloaded,
    /// No valid certificate for the pod's service account.
    NoCertificate,
    /// The agent is stopping and the drain deadline passed.
    Drained,
    /// The pod left the mesh and the drain deadline passed, or its sandbox ended.
    PodGone,
    /// Something that should not happen; the log line says what.
    Internal,
}

impl Cause {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::ClientReset => "client_reset",
            Self::ServerReset => "server_reset",
            Self::ConnectRefused => "connect_refused",
            Self::PeerUnreachable => "peer_unreachable",
            Self::TlsFailed => "tls_failed",
            Self::WrongIdentity => "wrong_identity",
            Self::TrustRevoked => "trust_revoked",
            Self::TunnelFailed => "tunnel_failed",
            Self::DeniedByPeer => "denied_by_peer",
            Self::RejectedByPeer => "rejected_by_peer",
            Self::NoAnswer => "no_answer",
            Self::PolicyDenied => "policy_denied",
            Self::PolicyRevoked => "policy_revoked",
            Self::NotHttp => "not_http",
            Self::BadTarget => "bad_target",
            Self::BadRequest => "bad_request",
            Self::NoEndpoint => "no_endpoint",
            Self::Loop => "loop",
            Self::SpoofedSource => "spoofed_source",
            Self::Overloaded => "overloaded",
            Self::NoCertificate => "no_certificate",
            Self::Drained => "drained",
            Self::PodGone => "pod_gone",
            Self::Internal => "internal",
        }
    }

    /// Istio's `response_flags`, as ztunnel writes them.
    pub fn response_flags(self) -> &'static str {
        match self {
            Self::Closed | Self::ClientReset | Self::ServerReset | Self::Drained => "-",
            Self::PolicyDenied
            | Self::PolicyRevoked
            | Self::NotHttp
            | Self::DeniedByPeer
            | Self::SpoofedSource => "DENY",
            Self::TlsFailed => "TLS_FAILURE",
            Self::WrongIdentity | Self::TrustRevoked | Self::NoCertificate => "IDENTITY_ERROR",
            Self::TunnelFailed => "H2_HANDSHAKE_FAILURE",
            _ => "CONNECT",
        }
    }

    /// Whether the connection did what the applications wanted of it.
    pub fn is_success(self) -> bool {
        matches!(self, Self::Closed | Self::ClientReset | Self::ServerReset)
    }
}
