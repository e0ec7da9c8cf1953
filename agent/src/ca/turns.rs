//! Whose question is worked on next: whoever has ten thousand has a few under way, and another's one waits for
//! these few at most.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Clones share it.
#[derive(Clone)]
pub(super) struct Turns<K> {
    share: Share,
    /// First come, first served, between all.
    all: Arc<Semaphore>,
    of: Arc<Mutex<HashMap<K, Own>>>,
}

/// How much is worked on.
#[derive(Clone, Copy)]
pub(super) struct Share {
    /// At once, of all.
    pub(super) at_once: usize,
    /// At once, of one.
    pub(super) of_one: usize,
    /// Of one, beside those; what comes then is refused.
    pub(super) waiting: usize,
}

struct Own {
    turns: Arc<Semaphore>,
    asking: usize,
}

/// Somebody's turn, until it is dropped.
pub(super) struct Turn<K: Clone + Eq + Hash> {
    _asking: Asking<K>,
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl<K: Clone + Eq + Hash> Turns<K> {
    pub(super) fn new(share: Share) -> Self {
        Self { share, all: Arc::new(Semaphore::new(share.at_once)), of: Arc::default() }
    }

    /// Waits for the turn; `None` when too many of the same wait already.
    pub(super) async fn wait(&self, of: &K) -> Option<Turn<K>> {
        let (own, asking) = self.ask(of)?;
        let own = own.acquire_owned().await.ok()?;
        let all = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(Turn { _asking: asking, _own: own, _all: all })
    }

    fn ask(&self, of: &K) -> Option<(Arc<Semaphore>, Asking<K>)> {
        let mut all = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let own = all
            .entry(of.clone())
            .or_insert_with(|| Own { turns: Arc::new(Semaphore::new(self.share.of_one)), asking: 0 });
        if own.asking >= self.share.waiting + self.share.of_one {
            return None;
        }
        own.asking += 1;
        Some((Arc::clone(&own.turns), Asking { turns: self.clone(), of: of.clone() }))
    }
}

/// Takes whoever asks out of the table with the last question.
struct Asking<K: Clone + Eq + Hash> {
    turns: Turns<K>,
    of: K,
}

impl<K: Clone + Eq + Hash> Drop for Asking<K> {
    fn drop(&mut self) {
        let mut all = self.turns.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = all.get_mut(&self.of) {
            own.asking -= 1;
            if own.asking == 0 {
                all.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const SHARE: Share = Share { at_once: 1, of_one: 2, waiting: 512 };

    #[tokio::test]
    async fn one_request_beside_a_burst_waits_for_a_few_of_it_only() {
        let turns = Turns::new(SHARE);
        let served = Arc::new(AtomicUsize::new(0));
        let greedy = "greedy";
        let burst: Vec<_> = (0..10_000)
            .map(|_| {
                let (turns, served) = (turns.clone(), served.clone());
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
        drop(turns.wait(&"modest").await.unwrap());
        let meanwhile = served.load(Ordering::SeqCst) - before;
        assert!(meanwhile <= SHARE.of_one + 1, "{meanwhile} of the burst came first");
        let mut refused = 0;
        for task in burst {
            refused += usize::from(task.await.unwrap().is_none());
        }
        assert_eq!(refused, 10_000 - SHARE.waiting - SHARE.of_one);
        assert!(turns.of.lock().unwrap().is_empty());
    }
}
