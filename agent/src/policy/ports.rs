//! Sets of ports, and of all ports but some.

use std::collections::BTreeSet;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PortSet {
    /// Whether ports that are not listed are in it.
    others: bool,
    /// Those for which the opposite holds.
    listed: BTreeSet<u16>,
}

impl PortSet {
    pub(super) fn none() -> Self {
        Self { others: false, listed: BTreeSet::new() }
    }

    pub(super) fn all() -> Self {
        Self { others: true, listed: BTreeSet::new() }
    }

    pub(super) fn of(ports: impl IntoIterator<Item = u16>) -> Self {
        Self { others: false, listed: ports.into_iter().collect() }
    }

    pub(super) fn contains(&self, port: u16) -> bool {
        self.listed.contains(&port) != self.others
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.others && self.listed.is_empty()
    }

    pub(super) fn not(mut self) -> Self {
        self.others = !self.others;
        self
    }

    /// Also those of the other.
    pub(super) fn add(&mut self, other: &Self) {
        match (self.others, other.others) {
            (false, false) => self.listed.extend(&other.listed),
            (true, false) => self.listed.retain(|port| !other.contains(*port)),
            (_, true) => {
                let left = other.listed.iter().copied().filter(|port| !self.contains(*port)).collect();
                *self = Self { others: true, listed: left };
            }
        }
    }

    /// Only those that are in both.
    pub(super) fn and(self, other: &Self) -> Self {
        let mut outside = self.not();
        outside.add(&other.clone().not());
        outside.not()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_what_is_in_both_or_either() {
        let sets = || {
            [
                PortSet::none(),
                PortSet::all(),
                PortSet::of([1, 2]),
                PortSet::of([2, 3]).not(),
                PortSet::of([3]),
            ]
        };
        for a in sets() {
            for b in sets() {
                let mut either = a.clone();
                either.add(&b);
                let both = a.clone().and(&b);
                for port in 0..5 {
                    assert_eq!(either.contains(port), a.contains(port) || b.contains(port), "{a:?} {b:?}");
                    assert_eq!(both.contains(port), a.contains(port) && b.contains(port), "{a:?} {b:?}");
                }
            }
        }
        assert!(PortSet::none().is_empty() && !PortSet::all().is_empty());
    }
}
