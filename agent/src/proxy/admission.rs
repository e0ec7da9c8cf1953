//! What callers may have of the agent at once. All pods of the node live on one process's descriptors, so
//! no pod gets all of them, and nobody who has proved nothing gets more than a few.
//!
//! Nothing here waits: a connection that has to wait to be accepted would hold back the honest ones behind
//! it. When there are too many handshakes, the oldest gives way. An honest one is over in milliseconds;
//! those that are old are of somebody who only opens connections.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::model::NetnsCookie;

/// TLS handshakes of clients that have not proved anything yet, of all pods.
pub struct Handshakes {
    limits: Limits,
    under_way: Mutex<UnderWay>,
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub node: usize,
    pub pod: usize,
    /// Of one address with one pod.
    pub source: usize,
}

impl Limits {
    /// For a process that may have this many descriptors.
    pub fn of(descriptors: usize) -> Self {
        let node = (descriptors / 8).clamp(16, 2048);
        Self { node, pod: (node / 4).clamp(8, 256), source: (node / 16).clamp(4, 64) }
    }
}

#[derive(Default)]
struct UnderWay {
    last: u64,
    /// Oldest first.
    all: BTreeMap<u64, Entry>,
}

struct Entry {
    pod: NetnsCookie,
    source: IpAddr,
    gives_way: CancellationToken,
}

impl Handshakes {
    pub fn new(limits: Limits) -> Self {
        Self { limits, under_way: Mutex::default() }
    }

    /// Counts one more, and makes the oldest give way where there are too many.
    pub fn enter(self: &Arc<Self>, pod: NetnsCookie, source: IpAddr) -> Handshake {
        let Limits { node, pod: of_pod, source: of_source } = self.limits;
        let mut under_way = self.under_way();
        under_way.make_room(of_source, |e| e.pod == pod && e.source == source);
        under_way.make_room(of_pod, |e| e.pod == pod);
        under_way.make_room(node, |_| true);
        under_way.last += 1;
        let (number, gives_way) = (under_way.last, CancellationToken::new());
        under_way.all.insert(number, Entry { pod, source, gives_way: gives_way.clone() });
        Handshake { all: Arc::clone(self), number, gives_way }
    }

    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnderWay {
    /// Room for one more of those that `counts` picks.
    fn make_room(&mut self, limit: usize, counts: impl Fn(&Entry) -> bool) {
        let same = || self.all.iter().filter(|(_, entry)| counts(entry));
        if same().count() < limit {
            return;
        }
        let oldest = same().next().map(|(number, _)| *number);
        if let Some(entry) = oldest.and_then(|number| self.all.remove(&number)) {
            entry.gives_way.cancel();
        }
    }
}

/// One handshake, counted until this is dropped.
pub struct Handshake {
    all: Arc<Handshakes>,
    number: u64,
    gives_way: CancellationToken,
}

impl Handshake {
    /// Ready when it has to end, for the sake of a newer one.
    pub async fn gives_way(&self) {
        self.gives_way.cancelled().await;
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.all.under_way().all.remove(&self.number);
    }
}

/// Lets so many through in a second: for what anybody can make us say.
pub struct Rate {
    per_second: u32,
    second: Mutex<Option<(Instant, u32)>>,
}

impl Rate {
    pub const fn new(per_second: u32) -> Self {
        Self { per_second, second: Mutex::new(None) }
    }

    pub fn allows(&self) -> bool {
        self.allows_at(Instant::now())
    }

    fn allows_at(&self, now: Instant) -> bool {
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *second {
            Some((began, used)) if now.duration_since(*began) < Duration::from_secs(1) => {
                *used = used.saturating_add(1);
                *used <= self.per_second
            }
            _ => {
                *second = Some((now, 1));
                self.per_second > 0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const ATTACKED: NetnsCookie = NetnsCookie(1);
    const OTHER: NetnsCookie = NetnsCookie(2);

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    fn gave_way(handshakes: &[Handshake]) -> Vec<usize> {
        let over = |h: &Handshake| h.gives_way().now_or_never().is_some();
        (0..handshakes.len()).filter(|n| over(&handshakes[*n])).collect()
    }

    fn handshakes(node: usize, pod: usize, source: usize) -> Arc<Handshakes> {
        Arc::new(Handshakes::new(Limits { node, pod, source }))
    }

    #[test]
    fn a_flood_ends_its_own_oldest_and_never_an_honest_clients() {
        let all = handshakes(100, 10, 3);
        let honest = all.enter(ATTACKED, ip(1));
        let flood: Vec<_> = (0..50).map(|_| all.enter(ATTACKED, ip(66))).collect();
        assert_eq!(gave_way(&flood), (0..47).collect::<Vec<_>>(), "three of one source are left");
        assert!(honest.gives_way().now_or_never().is_none());
    }

    #[test]
    fn a_flood_from_everywhere_never_keeps_a_new_one_out_nor_touches_another_pod() {
        let all = handshakes(100, 10, 3);
        let elsewhere = all.enter(OTHER, ip(1));
        let flood: Vec<_> = (0..50).map(|n| all.enter(ATTACKED, ip(n))).collect();
        let honest = all.enter(ATTACKED, ip(200));
        assert_eq!(gave_way(&flood), (0..41).collect::<Vec<_>>(), "nine and the honest one are left");
        assert!(honest.gives_way().now_or_never().is_none());
        assert!(elsewhere.gives_way().now_or_never().is_none());
    }

    #[test]
    fn what_is_over_does_not_count() {
        let all = handshakes(4, 3, 3);
        let first = all.enter(ATTACKED, ip(1));
        for _ in 0..100 {
            drop(all.enter(ATTACKED, ip(1)));
        }
        assert!(first.gives_way().now_or_never().is_none());
        drop(first);
        assert!(all.under_way().all.is_empty());
    }

    #[test]
    fn all_pods_together_have_a_limit() {
        let all = handshakes(4, 3, 3);
        let spread: Vec<_> = (0..6).map(|n| all.enter(NetnsCookie(n), ip(1))).collect();
        assert_eq!(gave_way(&spread), [0, 1]);
    }

    #[test]
    fn a_rate_begins_anew_each_second() {
        let (rate, now) = (Rate::new(2), Instant::now());
        let at = |ms| rate.allows_at(now + Duration::from_millis(ms));
        assert_eq!([at(0), at(1), at(2), at(999)], [true, true, false, false]);
        assert_eq!([at(1000), at(1500), at(1999)], [true, true, false]);
    }
}
