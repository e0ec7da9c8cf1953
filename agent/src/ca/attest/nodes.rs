//! Nodes in a list, each known by its key: for machines outside of Kubernetes.
//!
//! A key and not a certificate authority: nothing to expire, nothing that a root's rotation touches, and
//! whoever takes a line out of the list has taken the node out.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::str::FromStr;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use tokio::sync::watch;

use super::{Attestor, Changes, NodeName, Papers, Refusal};
use crate::model::SpiffeId;
use crate::tls::sha256;

/// SHA-256 of a SubjectPublicKeyInfo's DER; `sha256:` and 64 hexadecimal digits as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKeyPin([u8; 32]);

impl PublicKeyPin {
    /// Of a key's DER.
    pub fn of(subject_public_key_info: &[u8]) -> Self {
        Self(sha256(subject_public_key_info))
    }
}

impl fmt::Display for PublicKeyPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicKeyPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKeyPin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || "a pin is `sha256:` and 64 hexadecimal digits, as `underpass ca node` prints it".to_owned();
        let digits =
            text.strip_prefix("sha256:").filter(|d| d.len() == 64 && d.is_ascii()).ok_or_else(wrong)?;
        let mut pin = [0; 32];
        for (byte, at) in pin.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(pin))
    }
}

/// One line of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedNode {
    pub name: String,
    pub key: PublicKeyPin,
    /// What pods on it may be.
    pub identities: BTreeSet<SpiffeId>,
}

/// The list, which may be replaced.
#[derive(Debug)]
pub struct Nodes {
    list: watch::Receiver<Vec<ListedNode>>,
}

impl Nodes {
    pub fn new(list: watch::Receiver<Vec<ListedNode>>) -> Self {
        Self { list }
    }
}

/// Whether two lines are of one node or one key, which would make it two nodes: the name.
pub fn listed_twice(list: &[ListedNode]) -> Option<&str> {
    let (mut names, mut keys) = (HashSet::new(), HashSet::new());
    list.iter().find(|node| !names.insert(&node.name) | !keys.insert(node.key)).map(|node| node.name.as_str())
}

impl Attestor for Nodes {
    fn who<'a>(&'a self, papers: &'a Papers) -> BoxFuture<'a, Result<NodeName, Refusal>> {
        let found = match papers.key {
            None => Err(Refusal::Unknown("it shows no certificate of a node".into())),
            Some(key) => match self.list.borrow().iter().find(|node| node.key == key) {
                Some(node) => Ok(NodeName::proven(&node.name)),
                None => Err(Refusal::Unknown(format!("no node in the list has the key {key}"))),
            },
        };
        std::future::ready(found).boxed()
    }

    fn runs<'a>(&'a self, node: &'a NodeName, identity: &'a SpiffeId) -> BoxFuture<'a, Result<(), Refusal>> {
        let list = self.list.borrow();
        let listed = list.iter().any(|n| n.name == node.as_str() && n.identities.contains(identity));
        let said = match listed {
            true => Ok(()),
            false => Err(Refusal::NotYours(format!(
                "{identity} is not in the list of node {node}: add it under attestation.nodes, if it runs there"
            ))),
        };
        std::future::ready(said).boxed()
    }

    fn expected(&self) -> BoxFuture<'_, Result<Vec<String>, Refusal>> {
        let names = self.list.borrow().iter().map(|node| node.name.clone()).collect();
        std::future::ready(Ok(names)).boxed()
    }

    fn changes(&self) -> Changes {
        // Ours has seen nothing of the list's changes, nor have its clones: none is missed.
        let changed = |mut list: watch::Receiver<_>| async move {
            list.changed().await.ok()?;
            Some(((), list))
        };
        stream::unfold(self.list.clone(), changed).boxed()
    }
}
