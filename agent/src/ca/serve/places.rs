//! How many connections there are at once: of everybody, and of one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Clone)]
pub(super) struct Places {
    most: usize,
    of_one: usize,
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// Free again when it is dropped.
pub(super) struct Place {
    of: IpAddr,
    places: Places,
}

impl Places {
    pub(super) fn new(most: usize, of_one: usize) -> Self {
        Self { most, of_one, taken: Arc::default() }
    }

    pub(super) fn take(&self, of: IpAddr) -> Option<Place> {
        let mut taken = self.taken();
        if taken.values().sum::<usize>() >= self.most {
            return None;
        }
        let own = taken.entry(of).or_default();
        if *own >= self.of_one {
            return None;
        }
        *own += 1;
        Some(Place { of, places: self.clone() })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if let Some(own) = taken.get_mut(&self.of) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_take_everybodys_places() {
        let places = Places::new(5, 3);
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        let greedy: Vec<Place> = (0..10).filter_map(|_| places.take(address(1))).collect();
        assert_eq!(greedy.len(), 3);
        let others: Vec<Place> = (0..10).filter_map(|_| places.take(address(2))).collect();
        assert_eq!(others.len(), 2);
        drop(greedy);
        assert!(places.take(address(3)).is_some());
        drop(others);
        assert!(places.taken().is_empty());
    }
}
