//! Who is let in next: by how urgent it is at that moment, now and then by how long it has waited, and each place
//! once.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::FutureExt;

use crate::certs::Clock;
use crate::certs::slots::{Level, Slot, Slots, Urgency};

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// One that asks, and what it is called.
struct Asking(&'static str, Pin<Box<dyn Future<Output = Slot>>>);

impl Asking {
    /// In the queue, unless a place is free.
    fn new(name: &'static str, slots: &Arc<Slots>, urgency: &Arc<Urgency>) -> Self {
        let (slots, urgency) = (slots.clone(), urgency.clone());
        let mut asking = Self(name, Box::pin(async move { slots.take(urgency).await }));
        assert!(asking.let_in().is_none(), "{name} did not have to wait");
        asking
    }

    fn let_in(&mut self) -> Option<Slot> {
        self.1.as_mut().now_or_never()
    }
}

fn slots(places: usize) -> Arc<Slots> {
    Slots::new(places, Clock::from_fn(|| at(1000)))
}

fn free(slots: &Arc<Slots>) -> Option<Slot> {
    slots.take(Arc::default()).now_or_never()
}

/// Has a certificate that is good for long.
fn renewal() -> Arc<Urgency> {
    let urgency = Arc::<Urgency>::default();
    urgency.served(at(900), at(10_000));
    assert_eq!(urgency.level(at(1000)), Level::Renewal);
    urgency
}

fn missed() -> Arc<Urgency> {
    let urgency = renewal();
    urgency.miss();
    urgency
}

/// Gives the place on, again and again, and lists who had it.
fn order(mut place: Slot, mut queue: Vec<Asking>) -> Vec<&'static str> {
    let mut had = Vec::new();
    while !queue.is_empty() {
        drop(place);
        let mut got: Vec<(usize, Slot)> =
            queue.iter_mut().enumerate().filter_map(|(i, one)| Some((i, one.let_in()?))).collect();
        assert_eq!(got.len(), 1, "one place is for one, after {had:?}");
        let (i, slot) = got.remove(0);
        had.push(queue.remove(i).0);
        place = slot;
    }
    had
}

#[test]
fn there_are_as_many_places_as_were_asked_for_and_one_at_least() {
    for (asked, places) in [(0, 1), (1, 1), (3, 3)] {
        let slots = slots(asked);
        let mut held: Vec<Slot> = std::iter::from_fn(|| free(&slots)).take(10).collect();
        assert_eq!(held.len(), places, "of {asked}");
        // A place that is given back while nobody waits is free again, once.
        held.pop();
        let again = free(&slots);
        assert!(again.is_some() && free(&slots).is_none());
        drop((again, held));
        assert_eq!(std::iter::from_fn(|| free(&slots)).take(10).collect::<Vec<_>>().len(), places);
    }
}

#[test]
fn the_most_urgent_is_first_and_among_equals_whoever_came_first() {
    let slots = slots(1);
    let place = free(&slots).unwrap();
    let queue = vec![
        Asking::new("renewal", &slots, &renewal()),
        Asking::new("warm-up", &slots, &Arc::default()),
        Asking::new("waiting", &slots, &missed()),
    ];
    assert_eq!(order(place, queue), ["waiting", "warm-up", "renewal"]);

    let slots = self::slots(1);
    let place = free(&slots).unwrap();
    let queue = ["1", "2", "3", "4", "5", "6"].map(|name| Asking::new(name, &slots, &renewal()));
    assert_eq!(order(place, queue.into()), ["1", "2", "3", "4", "5", "6"]);
}

#[test]
fn one_place_in_four_is_for_whoever_has_waited_longest() {
    let slots = slots(1);
    let place = free(&slots).unwrap();
    let mut queue = vec![
        Asking::new("old", &slots, &renewal()),
        Asking::new("older than the others", &slots, &renewal()),
    ];
    queue.extend(["1", "2", "3", "4", "5", "6", "7"].map(|name| Asking::new(name, &slots, &missed())));
    let expected = ["1", "2", "3", "old", "4", "5", "6", "older than the others", "7"];
    assert_eq!(order(place, queue), expected);
}

#[test]
fn what_counts_is_how_urgent_it_is_when_a_place_is_free() {
    let slots = slots(1);
    let place = free(&slots).unwrap();
    let (early, late) = (renewal(), renewal());
    let queue = vec![Asking::new("early", &slots, &early), Asking::new("late", &slots, &late)];
    let waiter = late.wait();
    assert_eq!(order(place, queue), ["late", "early"]);
    drop(waiter);

    // Nor does it count that somebody waited for it once.
    let place = free(&slots).unwrap();
    let waiter = late.wait();
    let queue = vec![Asking::new("early", &slots, &early), Asking::new("late", &slots, &late)];
    drop(waiter);
    assert_eq!(order(place, queue), ["early", "late"]);
}

#[test]
fn who_has_left_is_passed_over_and_takes_no_place_along() {
    let slots = slots(1);
    let place = free(&slots).unwrap();
    let left = Asking::new("left", &slots, &missed());
    let mut stays = Asking::new("stays", &slots, &renewal());
    drop(left);
    drop(place);
    let place = stays.let_in().unwrap();
    assert!(free(&slots).is_none());

    // It was given the place, and left before it heard of it.
    let left = Asking::new("left", &slots, &missed());
    let mut stays = Asking::new("stays", &slots, &renewal());
    drop(place);
    assert!(stays.let_in().is_none());
    drop(left);
    let place = stays.let_in().unwrap();
    assert!(free(&slots).is_none());
    drop(place);

    // With nobody behind it, the place is free again, once.
    let place = free(&slots).unwrap();
    let left = Asking::new("left", &slots, &missed());
    drop(left);
    drop(place);
    let place = free(&slots);
    assert!(place.is_some() && free(&slots).is_none());
}

/// Else a crowd that gives up would take the turns of those who have waited longest.
#[test]
fn who_has_left_counts_for_no_turn() {
    let slots = slots(1);
    let place = free(&slots).unwrap();
    let left = ["1", "2", "3"].map(|name| Asking::new(name, &slots, &missed()));
    let mut queue = vec![Asking::new("old", &slots, &renewal())];
    queue.extend(["4", "5", "6", "7"].map(|name| Asking::new(name, &slots, &missed())));
    drop(left);
    assert_eq!(order(place, queue), ["4", "5", "6", "old", "7"]);
}

/// Whoever is given a place may be leaving at that very moment, on another thread.
#[test]
fn places_are_neither_lost_nor_made_when_many_come_and_leave_at_once() {
    const PLACES: usize = 2;
    let slots = slots(PLACES);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100_000 {
                    let mut asking = Box::pin(slots.take(Arc::default()));
                    let place = asking.as_mut().now_or_never();
                    drop(asking);
                    drop(place);
                }
            });
        }
    });
    let held: Vec<Slot> = std::iter::from_fn(|| free(&slots)).take(100).collect();
    assert_eq!(held.len(), PLACES);
}

#[test]
fn how_urgent_a_certificate_is() {
    let now = at(1000);
    let one = Urgency::default();
    assert_eq!(one.level(now), Level::WarmUp);
    let waiters = (one.wait(), one.wait());
    assert_eq!(one.level(now), Level::Waiting);
    drop(waiters.0);
    assert_eq!(one.level(now), Level::Waiting, "somebody still waits");
    drop(waiters.1);
    assert_eq!(one.level(now), Level::WarmUp);

    assert!(one.miss(), "the first");
    assert!(!one.miss(), "not the first any more");
    assert_eq!(one.level(now), Level::Waiting);
    // The last fifth begins at 1400.
    one.served(at(1000), at(1500));
    assert_eq!(one.level(at(1399)), Level::Renewal);
    assert_eq!(one.level(at(1400) - Duration::from_nanos(1)), Level::Renewal);
    assert_eq!(one.level(at(1400)), Level::Waiting);
    assert_eq!(one.level(at(9999)), Level::Waiting);
    assert!(one.miss(), "the first since that certificate");
    one.served(at(1500), at(2000));
    assert_eq!(one.level(at(1500)), Level::Renewal);

    // However odd its times are, there is a certificate.
    for (from, until) in [(at(0), at(0)), (at(10), at(0)), (at(0) - Duration::from_secs(9), at(0))] {
        let one = Urgency::default();
        one.served(from, until);
        assert_eq!(one.level(now), Level::Waiting, "{from:?} {until:?}");
    }
    let one = Urgency::default();
    one.served(at(0) - Duration::from_secs(9), at(0) - Duration::from_secs(5));
    assert_eq!((one.level(at(0)), one.level(at(1))), (Level::Renewal, Level::Waiting));
    assert!(Level::Waiting < Level::WarmUp && Level::WarmUp < Level::Renewal);
}
