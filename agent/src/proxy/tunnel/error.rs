//! What can go wrong with a tunnel, sorted by whose fault it is.

use std::error::Error as StdError;
use std::sync::Arc;

use h2::Reason;
use http::StatusCode;

use crate::model::{Cause, PodUid};

/// Why a stream could not be opened. Cheap to clone: everybody who waited for one handshake gets the
/// same one.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TunnelError {
    /// The connector failed: no TCP connection, no TLS session, or the wrong peer.
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(
        "connecting took longer than {0:?}; check that the peer's node is up and its port 15008 reachable"
    )]
    ConnectTimeout(std::time::Duration),
    #[error("setting up HTTP/2: {0}; check that the peer speaks HBONE")]
    Handshake(#[source] Arc<h2::Error>),
    /// The peer's policy refused us.
    #[error("the peer answered CONNECT with 401: its policy refuses us; see its access log")]
    Denied,
    #[error("the peer answered CONNECT with {0}; see its access log")]
    Rejected(StatusCode),
    #[error("the stream was reset before an answer came ({0}); see the peer's log")]
    Reset(Reason),
    #[error("the tunnel broke before an answer came: {0}; see the peer's log")]
    Lost(Arc<str>),
    #[error(
        "the peer did not answer CONNECT within {0:?}; does the application accept connections? See the peer's log"
    )]
    NoAnswer(std::time::Duration),
    #[error("the peer refused the stream on {0} connections in a row; it is overloaded or stopping")]
    RefusedRepeatedly(usize),
    #[error("this agent ended the tunnel ({})", .0.as_str())]
    Closed(Cause),
    /// A defect of the caller's, refused because it would lend one pod's tunnels to another.
    #[error("a request of pod {asked} came to the pool of pod {own}; report this")]
    ForeignPod { own: PodUid, asked: PodUid },
    #[error("the request cannot be encoded: {0}; report this")]
    Encoding(Arc<str>),
    #[error("the task that ran the handshake ended without an answer; report this")]
    HandshakeVanished,
}

impl TunnelError {
    pub fn cause(&self) -> Cause {
        match self {
            Self::Dial(e) => e.cause,
            Self::ConnectTimeout(_) => Cause::PeerUnreachable,
            Self::NoAnswer(_) => Cause::NoAnswer,
            Self::Denied => Cause::DeniedByPeer,
            Self::Rejected(_) => Cause::RejectedByPeer,
            Self::Handshake(_) | Self::Reset(_) | Self::Lost(_) | Self::RefusedRepeatedly(_) => {
                Cause::TunnelFailed
            }
            Self::Closed(cause) => *cause,
            Self::ForeignPod { .. } | Self::Encoding(_) | Self::HandshakeVanished => Cause::Internal,
        }
    }

    /// The peer's answer, when it gave one.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Denied => Some(StatusCode::UNAUTHORIZED),
            Self::Rejected(status) => Some(*status),
            _ => None,
        }
    }
}

/// What a connector answers when there is no TLS session in the end.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{source}")]
pub struct DialError {
    pub cause: Cause,
    pub source: Arc<dyn StdError + Send + Sync>,
}

impl DialError {
    pub fn new(cause: Cause, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { cause, source: Arc::from(source.into()) }
    }
}

/// Why an open stream ended early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer reset this stream; the tunnel lives on.
    #[error("the peer reset the stream: {0}")]
    Reset(Reason),
    /// The tunnel ended under the stream, by us (then with our cause) or by the peer or the network.
    #[error("the tunnel ended: {detail}")]
    Lost { cause: Cause, detail: String },
}

impl StreamError {
    /// For a request that has no answer yet: we ended the tunnel, or the client went away.
    pub fn cause(&self) -> Cause {
        match self {
            Self::Reset(_) | Self::Lost { cause: Cause::TunnelFailed, .. } => Cause::ClientReset,
            Self::Lost { cause, .. } => *cause,
        }
    }
}
