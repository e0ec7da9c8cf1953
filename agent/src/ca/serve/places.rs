//! How many connections there are at once: of everybody, and of one address.
//!
//! Who has proven to be a node keeps its place. Who has not, has it until somebody else needs it: silent
//! connections, however many, are in nobody's way.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

#[derive(Clone)]
pub(super) struct Places {
    most: usize,
    of_one: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Taken {
    last: u64,
    /// In the order of arrival.
    places: BTreeMap<u64, Entry>,
    of: HashMap<IpAddr, usize>,
}

struct Entry {
    of: IpAddr,
    proven: bool,
    lost: CancellationToken,
}

/// Free again when it is dropped.
pub(super) struct Place {
    id: u64,
    places: Places,
    lost: CancellationToken,
}

impl Places {
    pub(super) fn new(most: usize, of_one: usize) -> Self {
        Self { most, of_one, taken: Arc::default() }
    }

    /// A place, and whether somebody else has lost one for it; `None` when all are proven nodes'.
    pub(super) fn take(&self, of: IpAddr) -> Option<(Place, bool)> {
        let of = site(of);
        let mut taken = self.taken();
        let needed = if taken.of.get(&of).is_some_and(|own| *own >= self.of_one) {
            Some(taken.oldest_unproven(|entry| entry.of == of)?)
        } else if taken.places.len() >= self.most {
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
        *taken.of.entry(of).or_default() += 1;
        Some((Place { id, places: self.clone(), lost }, needed.is_some()))
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
        if let Some(own) = self.of.get_mut(&entry.of) {
            *own -= 1;
            if *own == 0 {
                self.of.remove(&entry.of);
            }
        }
        Some(entry)
    }
}

impl Place {
    /// A node has proven to be there: the place is its own now.
    pub(super) fn prove(&self) {
        if let Some(entry) = self.places.taken().places.get_mut(&self.id) {
            entry.proven = true;
        }
    }

    pub(super) fn is_proven(&self) -> bool {
        self.places.taken().places.get(&self.id).is_some_and(|entry| entry.proven)
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
        let places = Places::new(5, 3);
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
        let places = Places::new(5, 3);
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
    fn a_network_of_ipv6_is_one_address() {
        let places = Places::new(100, 3);
        let of = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last]);
        let own: Vec<Place> = (0..10).filter_map(|last| proven(&places, of(last))).collect();
        assert_eq!(own.len(), 3);
        assert!(places.take("::ffff:10.0.0.1".parse().unwrap()).is_some());
        assert!(proven(&places, IpAddr::from([0x2001, 0xdb8, 0, 2, 0, 0, 0, 0])).is_some());
    }
}
