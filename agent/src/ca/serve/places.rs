//! How many connections there are at once: of everybody, and of one address.
//!
//! Who has proven to be a node keeps its place. Who has not, has it until somebody else needs it: silent
//! connections, however many, are in nobody's way.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::ca::attest::Origin;

#[derive(Clone)]
pub(super) struct Places {
    most: Most,
    taken: Arc<Mutex<Taken>>,
}

/// How many there are at most.
#[derive(Clone, Copy)]
pub(super) struct Most {
    pub(super) all: Count,
    /// Behind one address there may be a few nodes, and a few agents of each while they are upgraded.
    pub(super) of_one: Count,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) places: usize,
    /// Of these, not proven.
    pub(super) unproven: usize,
}

impl Default for Most {
    fn default() -> Self {
        Self { all: Count { places: 4096, unproven: 1024 }, of_one: Count { places: 64, unproven: 32 } }
    }
}

#[derive(Default)]
struct Taken {
    last: u64,
    /// In the order of arrival.
    places: BTreeMap<u64, Entry>,
    all: Count,
    of: HashMap<IpAddr, Count>,
}

struct Entry {
    of: IpAddr,
    proven: bool,
    lost: CancellationToken,
}

/// Free again when it is dropped.
pub(super) struct Place {
    id: u64,
    of: IpAddr,
    places: Places,
    lost: CancellationToken,
}

impl Places {
    pub(super) fn new(most: Most) -> Self {
        Self { most, taken: Arc::default() }
    }

    /// A place, and whether somebody else has lost one for it; `None` when all are proven nodes'.
    pub(super) fn take(&self, of: IpAddr) -> Option<(Place, bool)> {
        let of = site(of);
        let mut taken = self.taken();
        let needed = if taken.of.get(&of).is_some_and(|own| own.reaches(self.most.of_one)) {
            Some(taken.oldest_unproven(|entry| entry.of == of)?)
        } else if taken.all.reaches(self.most.all) {
            Some(taken.oldest_unproven(|_| true)?)
        } else {
            None
        };
        if let Some(entry) = needed.and_then(|id| taken.remove(id)) {
            entry.lost.cancel();
        }
        taken.last += 1;
        let (id, lost) = (taken.last, CancellationToken::new());
        taken.places.insert(id, Entry { of, proven: false, lost: lost.clone() });
        taken.count(of, |count| {
            count.places += 1;
            count.unproven += 1;
        });
        Some((Place { id, of, places: self.clone(), lost }, needed.is_some()))
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn oldest_unproven(&self, is_it: impl Fn(&Entry) -> bool) -> Option<u64> {
        self.places.iter().find(|(_, entry)| !entry.proven && is_it(entry)).map(|(id, _)| *id)
    }

    fn remove(&mut self, id: u64) -> Option<Entry> {
        let entry = self.places.remove(&id)?;
        self.count(entry.of, |count| {
            count.places -= 1;
            count.unproven -= usize::from(!entry.proven);
        });
        Some(entry)
    }

    fn count(&mut self, of: IpAddr, change: impl Fn(&mut Count)) {
        change(&mut self.all);
        let own = self.of.entry(of).or_default();
        change(own);
        if *own == Count::default() {
            self.of.remove(&of);
        }
    }
}

impl Count {
    fn reaches(self, most: Self) -> bool {
        self.places >= most.places || self.unproven >= most.unproven
    }
}

impl Place {
    /// A node has proven to be there: the place is its own now.
    pub(super) fn prove(&self) {
        let mut taken = self.places.taken();
        if let Some(entry) = taken.places.get_mut(&self.id).filter(|entry| !entry.proven) {
            entry.proven = true;
            let of = entry.of;
            taken.count(of, |count| count.unproven -= 1);
        }
    }

    pub(super) fn is_proven(&self) -> bool {
        self.places.taken().places.get(&self.id).is_some_and(|entry| entry.proven)
    }

    pub(super) fn origin(&self) -> Origin {
        Origin { address: self.of, connection: self.id, proven: self.is_proven() }
    }

    /// When somebody else needs it.
    pub(super) async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken().remove(self.id);
    }
}

/// Whoever has one address of IPv6 usually has 2^64 of them.
fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => Ipv6Addr::from(u128::from(six) & !u128::from(u64::MAX)).into(),
        four => four,
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn places(all: usize, of_one: usize) -> Places {
        let count = |places| Count { places, unproven: places };
        Places::new(Most { all: count(all), of_one: count(of_one) })
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn proven(places: &Places, of: IpAddr) -> Option<Place> {
        let (place, _) = places.take(of)?;
        place.prove();
        Some(place)
    }

    #[test]
    fn one_address_does_not_take_everybodys_places() {
        let places = places(5, 3);
        let greedy: Vec<Place> = (0..10).filter_map(|_| proven(&places, address(1))).collect();
        assert_eq!(greedy.len(), 3);
        let others: Vec<Place> = (0..10).filter_map(|_| proven(&places, address(2))).collect();
        assert_eq!(others.len(), 2);
        drop(greedy);
        assert!(places.take(address(3)).is_some());
        drop(others);
        assert!(places.taken().places.is_empty() && places.taken().of.is_empty());
    }

    #[test]
    fn who_proves_nothing_loses_its_place_to_the_next_and_no_node_does() {
        let places = places(5, 3);
        let node = proven(&places, address(1)).unwrap();
        let silent: Vec<(Place, bool)> = (0..10).filter_map(|_| places.take(address(1))).collect();
        assert_eq!(silent.len(), 10, "each in place of the one before");
        assert_eq!(silent.iter().filter(|(place, _)| place.lost().now_or_never().is_none()).count(), 2);
        assert!(node.lost().now_or_never().is_none() && node.is_proven());
        // Of others too, when all places are taken.
        let others: Vec<_> = (2..8).map(|last| places.take(address(last)).unwrap()).collect();
        assert_eq!(places.taken().places.len(), 5);
        assert!(silent.iter().all(|(place, _)| place.lost().now_or_never().is_some()));
        assert!(node.lost().now_or_never().is_none());
        drop((node, silent, others));
        assert!(places.taken().places.is_empty() && places.taken().of.is_empty());
    }

    #[test]
    fn fewer_are_unproven_than_there_are_places() {
        let places = Places::new(Most {
            all: Count { places: 8, unproven: 3 },
            of_one: Count { places: 4, unproven: 2 },
        });
        let held =
            |taken: &[(Place, bool)]| taken.iter().filter(|(p, _)| p.lost().now_or_never().is_none()).count();
        let one: Vec<_> = (0..5).filter_map(|_| places.take(address(1))).collect();
        assert_eq!(held(&one), 2);
        let others: Vec<_> = (2..7).filter_map(|last| places.take(address(last))).collect();
        assert_eq!(held(&one) + held(&others), 3);
        drop((one, others));
        // Who proves itself makes room for the next, also twice.
        let nodes: Vec<_> = (0..6).filter_map(|_| proven(&places, address(1))).collect();
        nodes.iter().for_each(Place::prove);
        assert_eq!(nodes.len(), 4);
        assert!(places.take(address(1)).is_none() && places.take(address(2)).is_some());
        drop(nodes);
        assert!(places.taken().all == Count::default() && places.taken().of.is_empty());
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let places = places(100, 3);
        let of = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last]);
        let own: Vec<Place> = (0..10).filter_map(|last| proven(&places, of(last))).collect();
        assert_eq!(own.len(), 3);
        assert!(places.take("::ffff:10.0.0.1".parse().unwrap()).is_some());
        assert!(proven(&places, IpAddr::from([0x2001, 0xdb8, 0, 2, 0, 0, 0, 0])).is_some());
    }
}
