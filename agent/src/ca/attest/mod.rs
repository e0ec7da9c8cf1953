//! Who calls, and what that node may have: behind one seam, so that machines in a list and pods of
//! Kubernetes are asked for the same things.

mod both;
mod kubernetes;
mod nodes;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::model::SpiffeId;

pub use both::Both;
pub use kubernetes::{
    ApiError, Kubernetes, KubernetesApi, KubernetesConfig, Phase, Pod, ServiceAccount, TokenReview,
};
pub use nodes::{ListedNode, Nodes, PublicKeyPin, listed_twice};

/// What a caller has shown.
#[derive(Clone, Default)]
pub struct Papers {
    /// SHA-256 of the public key in the client certificate, which TLS has seen it to hold.
    pub key: Option<PublicKeyPin>,
    /// The bearer token.
    pub token: Option<String>,
    /// Proves nothing.
    pub from: Origin,
}

/// Where a caller is, so that nobody's questions are in the way of others'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    pub address: IpAddr,
    pub connection: u64,
    /// Whether the connection was a node's before.
    pub proven: bool,
}

impl Default for Origin {
    fn default() -> Self {
        Self { address: Ipv4Addr::UNSPECIFIED.into(), connection: 0, proven: false }
    }
}

/// A node that was proven to call: only an [`Attestor`] makes one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

impl NodeName {
    /// For attestors, and for tests of what stands behind them.
    pub(super) fn proven(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a caller gets nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is not known who calls. The caller learns no more than that.
    #[error("unknown caller: {0}")]
    Unknown(String),
    /// The node is known, and does not run what it asks for.
    #[error("{0}")]
    NotYours(String),
    /// Nobody could be asked.
    #[error("{0}")]
    Unavailable(String),
}

/// Knows nodes and what runs on them.
pub trait Attestor: Send + Sync + 'static {
    /// Which node it is that shows these.
    fn who<'a>(&'a self, papers: &'a Papers) -> BoxFuture<'a, Result<NodeName, Refusal>>;

    /// Whether a pod with this identity runs on the node.
    fn runs<'a>(&'a self, node: &'a NodeName, identity: &'a SpiffeId) -> BoxFuture<'a, Result<(), Refusal>>;

    /// Every node that should come, whether it ever did or not.
    fn expected(&self) -> BoxFuture<'_, Result<Vec<String>, Refusal>>;

    /// An item each time that [`Self::who`] may say something else than before this was called.
    fn changes(&self) -> Changes;
}

/// Ends when nothing will change any more.
pub type Changes = BoxStream<'static, ()>;

impl fmt::Debug for Papers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Papers").field("key", &self.key).field("token", &self.token.is_some()).finish()
    }
}
