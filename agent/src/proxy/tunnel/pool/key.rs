//! What must be equal for two connections to share a tunnel.

use std::sync::Arc;

use crate::model::{NextHop, PodUid, SpiffeId};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub(super) source: PodUid,
    pub(super) next_hop: NextHop,
    /// Sorted, each once.
    pub(super) identities: Arc<[SpiffeId]>,
    /// The number of our own certificate: once it is renewed, new streams get new tunnels.
    pub(super) certificate: u64,
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
        Self { source, next_hop, identities, certificate: 0 }
    }

    /// For a tunnel that rests on this certificate of ours ([`crate::certs::Identity::number`]).
    pub fn with_certificate(self, number: u64) -> Self {
        Self { certificate: number, ..self }
    }

    pub fn next_hop(&self) -> NextHop {
        self.next_hop
    }

    pub fn identities(&self) -> &[SpiffeId] {
        &self.identities
    }
}
