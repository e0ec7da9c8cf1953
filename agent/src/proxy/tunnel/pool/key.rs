//! What must be equal for two connections to share a tunnel.

use std::sync::Arc;

use crate::model::{NextHop, PodUid, SpiffeId};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub(super) source: PodUid,
    pub(super) next_hop: NextHop,
    /// Sorted, each once.
    pub(super) identities: Arc<[SpiffeId]>,
}

impl Key {
    /// `identities` are those that the peer may prove, in any order.
    pub fn new(source: PodUid, next_hop: NextHop, identities: &[SpiffeId]) -> Self {
        let identities = match identities {
            [one] => Arc::from([one.clone()]),
            many => {
                let mut sorted = many.to_vec();
                sorted.sort();
                sorted.dedup();
                sorted.into()
            }
        };
        Self { source, next_hop, identities }
    }

    pub fn next_hop(&self) -> NextHop {
        self.next_hop
    }

    pub fn identities(&self) -> &[SpiffeId] {
        &self.identities
    }
}
