//! Who may ask the issuer next, when more want to than may at once.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;

use super::Clock;

/// A bounded number of calls. The most urgent is let in first, by what it is when a place is free; one
/// place in [`FAIR`] goes to whoever has waited longest, so nobody waits for ever.
pub(super) struct Slots {
    state: Mutex<State>,
    clock: Clock,
}

#[derive(Default)]
struct State {
    free: usize,
    next: u64,
    granted: u64,
    queue: Vec<Queued>,
}

struct Queued {
    number: u64,
    urgency: Arc<Urgency>,
    grant: oneshot::Sender<Slot>,
}

/// Held while a call lasts.
pub(super) struct Slot(Option<Arc<Slots>>);

impl Slots {
    pub(super) fn new(places: usize, clock: Clock) -> Arc<Self> {
        let state = State { free: places.max(1), ..State::default() };
        Arc::new(Self { state: Mutex::new(state), clock })
    }

    pub(super) async fn take(self: &Arc<Self>, urgency: Arc<Urgency>) -> Slot {
        let turn = {
            let mut state = self.state();
            if state.free > 0 {
                state.free -= 1;
                return Slot(Some(self.clone()));
            }
            let (grant, turn) = oneshot::channel();
            let number = state.next;
            state.next += 1;
            state.queue.push(Queued { number, urgency, grant });
            turn
        };
        match turn.await {
            Ok(slot) => slot,
            // The queue lives as long as we do. Were it gone, nobody would count places any more.
            Err(_gone) => std::future::pending().await,
        }
    }

    /// Passes a place on. Those who have left the queue meanwhile are passed over.
    fn pass_on(self: &Arc<Self>) {
        let now = self.clock.now();
        loop {
            let grant = {
                let mut state = self.state();
                let Some(at) = state.pick(now) else {
                    state.free += 1;
                    return;
                };
                state.granted += 1;
                state.queue.swap_remove(at).grant
            };
            match grant.send(Slot(Some(self.clone()))) {
                Ok(()) => return,
                // Dropped as it is, it would be passed on a second time.
                Err(mut slot) => slot.0 = None,
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is a single step: a panic elsewhere leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn pick(&mut self, now: SystemTime) -> Option<usize> {
        self.queue.retain(|queued| !queued.grant.is_closed());
        let fair = self.granted % FAIR == FAIR - 1;
        let rank =
            |queued: &Queued| (if fair { Level::Waiting } else { queued.urgency.level(now) }, queued.number);
        let queue = self.queue.iter().enumerate();
        queue.min_by_key(|(_, queued)| rank(queued)).map(|(at, _)| at)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(slots) = self.0.take() {
            slots.pass_on();
        }
    }
}

const FAIR: u64 = 4;

/// The most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// A connection waits for the certificate, or the one in use is about to end.
    Waiting,
    /// There is no certificate yet, but nobody waits.
    WarmUp,
    Renewal,
}

/// How urgent one identity's next certificate is. It may change while a call is queued.
#[derive(Default)]
pub(super) struct Urgency {
    waiting: AtomicUsize,
    /// A handshake found none since the last that came.
    missed: AtomicBool,
    /// Seconds since 1970; 0 while there is no certificate.
    urgent_from: AtomicU64,
}

/// Counts one who waits, for as long as it lives.
pub(super) struct Waiter<'a>(&'a Urgency);

impl Urgency {
    pub(super) fn wait(&self) -> Waiter<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiter(self)
    }

    /// Gives whether it is the first since the last certificate.
    pub(super) fn miss(&self) -> bool {
        !self.missed.swap(true, Ordering::Relaxed)
    }

    /// There is a certificate with this validity.
    pub(super) fn served(&self, not_before: SystemTime, not_after: SystemTime) {
        let last_fifth = not_after.duration_since(not_before).unwrap_or(Duration::ZERO) / 5;
        let from = (not_after - last_fifth).duration_since(UNIX_EPOCH).map_or(1, |t| t.as_secs().max(1));
        self.urgent_from.store(from, Ordering::Relaxed);
        self.missed.store(false, Ordering::Relaxed);
    }

    pub(super) fn level(&self, now: SystemTime) -> Level {
        if self.waiting.load(Ordering::Relaxed) > 0 || self.missed.load(Ordering::Relaxed) {
            return Level::Waiting;
        }
        match self.urgent_from.load(Ordering::Relaxed) {
            0 => Level::WarmUp,
            from if now >= UNIX_EPOCH + Duration::from_secs(from) => Level::Waiting,
            _ => Level::Renewal,
        }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
