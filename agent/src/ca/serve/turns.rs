//! Whose request is worked on next: a node with ten thousand requests has a few under way, and another
//! node's one request waits for these few at most.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ca::attest::NodeName;

/// Clones share it.
#[derive(Clone)]
pub(super) struct Turns {
    /// First come, first served, between nodes.
    all: Arc<Semaphore>,
    nodes: Arc<Mutex<HashMap<NodeName, Node>>>,
}

struct Node {
    own: Arc<Semaphore>,
    asking: usize,
}

/// A request's turn, until it is dropped.
pub(super) struct Turn {
    _asking: Asking,
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// Requests of one node that are worked on at once.
const OF_A_NODE: usize = 2;
/// And those that may wait; an agent has eight under way.
const WAITING: usize = 512;

impl Turns {
    /// `at_once`: requests that are worked on, of all nodes.
    pub(super) fn new(at_once: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(at_once)), nodes: Arc::default() }
    }

    /// Waits for the node's turn; `None` when too many of its requests wait already.
    pub(super) async fn wait(&self, node: &NodeName) -> Option<Turn> {
        let (own, asking) = self.ask(node)?;
        let own = own.acquire_owned().await.ok()?;
        let all = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(Turn { _asking: asking, _own: own, _all: all })
    }

    fn ask(&self, node: &NodeName) -> Option<(Arc<Semaphore>, Asking)> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = nodes
            .entry(node.clone())
            .or_insert_with(|| Node { own: Arc::new(Semaphore::new(OF_A_NODE)), asking: 0 });
        if entry.asking >= WAITING + OF_A_NODE {
            return None;
        }
        entry.asking += 1;
        Some((Arc::clone(&entry.own), Asking { turns: self.clone(), node: node.clone() }))
    }
}

/// Takes the node out of the table with its last request.
struct Asking {
    turns: Turns,
    node: NodeName,
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut nodes = self.turns.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = nodes.get_mut(&self.node) {
            entry.asking -= 1;
            if entry.asking == 0 {
                nodes.remove(&self.node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn one_request_beside_a_burst_waits_for_a_few_of_it_only() {
        let turns = Turns::new(1);
        let served = Arc::new(AtomicUsize::new(0));
        let greedy = NodeName::proven("greedy");
        let burst: Vec<_> = (0..10_000)
            .map(|_| {
                let (turns, served, greedy) = (turns.clone(), served.clone(), greedy.clone());
                tokio::spawn(async move {
                    let turn = turns.wait(&greedy).await?;
                    tokio::task::yield_now().await;
                    served.fetch_add(1, Ordering::SeqCst);
                    drop(turn);
                    Some(())
                })
            })
            .collect();
        while served.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let before = served.load(Ordering::SeqCst);
        drop(turns.wait(&NodeName::proven("modest")).await.unwrap());
        let meanwhile = served.load(Ordering::SeqCst) - before;
        assert!(meanwhile <= OF_A_NODE + 1, "{meanwhile} of the burst came first");
        let mut refused = 0;
        for task in burst {
            refused += usize::from(task.await.unwrap().is_none());
        }
        assert_eq!(refused, 10_000 - WAITING - OF_A_NODE);
        assert!(turns.nodes.lock().unwrap().is_empty());
    }
}
