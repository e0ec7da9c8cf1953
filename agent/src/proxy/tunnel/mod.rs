//! HBONE: application connections as CONNECT streams of an HTTP/2 connection in mutual TLS, as every
//! node of an Istio ambient mesh speaks it. Both ends, generic over the established transport.
//!
//! - [`Pool`] opens streams for one pod and owns its connections; each connection is one task.
//! - [`serve`] runs the other end of one connection and hands out an [`Inbound`] for each request.
//! - [`TunnelStream`] is what both give once both sides agreed.
//!
//! A reset stays a reset. RFC 9113, 8.5 gives CONNECT_ERROR for a connection that was reset, and that is
//! what we send. ztunnel sends END_STREAM instead and takes NO_ERROR and CANCEL for an end in order; any
//! other reason, so ours too, makes it close its application's connection with an error.

mod carrier;
mod context;
mod error;
mod keepalive;
mod pool;
mod request;
mod server;
mod session;
mod settings;
mod stream;

pub use carrier::Carrier;
pub use context::{Baggage, BaggageFields, Forwarded, TraceParent, Unreadable};
pub use error::{DialError, StreamError, TunnelError};
pub use h2::Reason;
pub use pool::{Key, Pool, TunnelView};
#[doc(hidden)]
pub use request::fuzz_request;
pub use request::{Connect, Reject, Target, parse_request};
pub use server::{Accept, Drain, Ended, Inbound, Respond, serve};
pub use settings::{ClientSettings, FlowSettings, KeepaliveSettings, ServerSettings};
pub use stream::{Over, TunnelStream};

use crate::tls::Held;
use session::{Lease, Session};
use stream::Chunk;

/// What a tunnel runs over: TLS in production, a pair of in-memory pipes in tests.
pub trait Transport: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static {}

impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static> Transport for T {}

/// What a connector made.
pub struct Dialled<T> {
    pub transport: T,
    /// The tunnel ends when this is lost.
    pub peer: Option<Held>,
    /// The tunnel takes no new streams once this is ready: our own certificate is renewed, or the
    /// peer's has ended.
    pub outdated: Option<futures::future::BoxFuture<'static, ()>>,
}

impl<T: Transport> From<T> for Dialled<T> {
    fn from(transport: T) -> Self {
        Self { transport, peer: None, outdated: None }
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod wire;
