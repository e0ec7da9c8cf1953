//! A year of rotations with everything going wrong in turn: the issuer fails, is slow, gives wrong answers
//! and clocks that jump. What must hold is checked at every step.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep, timeout};

use super::support::{CART, HOUR, Scratch, TILL, epoch, id};
use crate::certs::{
    CertError, CertState, Clock, Config, EmbeddedConfig, EmbeddedIssuer, Issued, Issuer, Lease, Manager,
};
use crate::model::SpiffeId;

/// The true time, and what a node takes for it.
#[derive(Clone)]
struct World {
    start: Instant,
    off: Arc<AtomicI64>,
}

impl World {
    fn new() -> Self {
        Self { start: Instant::now(), off: Arc::default() }
    }

    fn truth(&self) -> Clock {
        let start = self.start;
        Clock::from_fn(move || epoch() + start.elapsed())
    }

    fn node(&self) -> Clock {
        let (truth, off) = (self.truth(), self.off.clone());
        Clock::from_fn(move || shifted(truth.now(), off.load(Ordering::SeqCst)))
    }

    /// The node's clock is so many seconds ahead from now on.
    fn set_node(&self, ahead: i64) {
        self.off.store(ahead, Ordering::SeqCst);
    }
}

fn shifted(t: SystemTime, seconds: i64) -> SystemTime {
    let by = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { t - by } else { t + by }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Well,
    Down,
    /// It never answers.
    Hangs,
    /// Certificates of somebody else.
    Wrong,
    /// Certificates that have ended.
    Stale,
    /// Certificates of an unknown root.
    Foreign,
}

struct Troubled {
    sound: EmbeddedIssuer,
    stale: EmbeddedIssuer,
    foreign: EmbeddedIssuer,
    phase: Mutex<Phase>,
    calls: AtomicUsize,
    under_way: Mutex<BTreeSet<SpiffeId>>,
    twice: AtomicUsize,
    keys: Mutex<BTreeMap<SpiffeId, BTreeSet<Vec<u8>>>>,
    issued: AtomicUsize,
}

impl Troubled {
    fn new(scratch: &Scratch, other: &Scratch, world: &World, lifetime: Duration) -> Arc<Self> {
        let config = EmbeddedConfig { lifetime, ..scratch.config() };
        let truth = world.truth();
        let past = Clock::from_fn(move || truth.now() - Duration::from_secs(400 * 86_400));
        let open = |config: &EmbeddedConfig, clock| EmbeddedIssuer::with_clock(config, clock).unwrap();
        Arc::new(Self {
            sound: open(&config, world.truth()),
            stale: open(&config, past),
            foreign: open(&other.config(), world.truth()),
            phase: Mutex::new(Phase::Well),
            calls: AtomicUsize::new(0),
            under_way: Mutex::default(),
            twice: AtomicUsize::new(0),
            keys: Mutex::default(),
            issued: AtomicUsize::new(0),
        })
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

struct UnderWay<'a>(&'a Troubled, &'a SpiffeId);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.lock().unwrap().remove(self.1);
    }
}

impl Issuer for Troubled {
    fn issue<'a>(&'a self, identity: &'a SpiffeId) -> BoxFuture<'a, Result<Issued, CertError>> {
        async move {
            self.calls.fetch_add(1, Ordering::SeqCst);
            if !self.under_way.lock().unwrap().insert(identity.clone()) {
                self.twice.fetch_add(1, Ordering::SeqCst);
            }
            let _under_way = UnderWay(self, identity);
            sleep(Duration::from_millis(200)).await;
            let phase = *self.phase.lock().unwrap();
            match phase {
                Phase::Well => {
                    let issued = self.sound.sign(identity)?;
                    let new = self
                        .keys
                        .lock()
                        .unwrap()
                        .entry(identity.clone())
                        .or_default()
                        .insert(issued.key.secret_der().to_vec());
                    assert!(new, "a key comes again");
                    self.issued.fetch_add(1, Ordering::SeqCst);
                    Ok(issued)
                }
                Phase::Down => Err(CertError::Issuer("no route to host".into())),
                Phase::Hangs => std::future::pending().await,
                Phase::Wrong => self.sound.sign(&id("spiffe://mesh.test/ns/other/sa/other")),
                Phase::Stale => self.stale.sign(identity),
                Phase::Foreign => {
                    let roots = self.sound.bundles().clone();
                    Ok(Issued { roots, ..self.foreign.sign(identity)? })
                }
            }
        }
        .boxed()
    }

    fn name(&self) -> &str {
        "troubled"
    }
}

/// A die that is thrown the same way in every run.
fn die() -> impl Fn() -> f64 + Send + Sync + 'static {
    let state = Mutex::new(0x9e37_79b9_7f4a_7c15_u64);
    move || {
        let mut state = state.lock().unwrap();
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn identities(count: usize) -> Vec<SpiffeId> {
    (0..count).map(|n| id(&format!("spiffe://mesh.test/ns/shop/sa/till-{n}"))).collect()
}

fn presented_is_valid(lease: &Lease, clock: &Clock) -> bool {
    let current = lease.current();
    if let Some(current) = &current {
        assert!(current.certificate().is_valid_at(clock.now()), "presented outside of its validity");
    }
    current.is_some()
}

#[tokio::test(start_paused = true)]
async fn a_year_of_trouble_leaves_nobody_without_a_certificate() {
    let (scratch, other, world) = (Scratch::new(), Scratch::new(), World::new());
    let issuer = Troubled::new(&scratch, &other, &world, HOUR * 24);
    let config = Config { deadline: Duration::from_secs(10), concurrency: 4 };
    let manager = Manager::with_clock(issuer.clone(), &config, world.node(), die());
    let leases: Vec<_> = identities(5).iter().map(|identity| manager.lease(identity)).collect();
    for lease in &leases {
        lease.ready().await.unwrap();
    }
    let troubles = [Phase::Down, Phase::Hangs, Phase::Wrong, Phase::Stale, Phase::Foreign];
    let mut steps = 0;
    for day in 0..365 {
        // Less trouble at a time than is left at half of life.
        let trouble = troubles[day % troubles.len()];
        for hour in 0..24 {
            *issuer.phase.lock().unwrap() = if hour == 5 { trouble } else { Phase::Well };
            // A step of NTP, forth and back, within what a certificate's margins allow.
            world.set_node(match hour {
                10 => 60,
                11 => -60,
                _ => 0,
            });
            for _ in 0..2 {
                sleep(HOUR / 2).await;
                for lease in &leases {
                    assert!(
                        presented_is_valid(lease, &world.node()),
                        "day {day}, hour {hour}: {:?}",
                        manager.list()
                    );
                    steps += 1;
                }
            }
        }
    }
    assert_eq!(steps, 365 * 48 * 5);
    assert_eq!(issuer.twice.load(Ordering::SeqCst), 0, "two fetches of one identity at once");
    let issued = issuer.issued.load(Ordering::SeqCst);
    // Two a day for each, and failing ones at most every two minutes while there is trouble.
    assert!((700 * 5..900 * 5).contains(&issued), "{issued} certificates");
    let most = issued + 365 * 5 * 30;
    assert!(issuer.calls() <= most, "{} calls", issuer.calls());
}

#[tokio::test(start_paused = true)]
async fn clocks_that_jump_never_make_us_present_what_is_not_valid_and_cost_no_more_than_they_must() {
    let (scratch, other, world) = (Scratch::new(), Scratch::new(), World::new());
    let issuer = Troubled::new(&scratch, &other, &world, HOUR * 2);
    let manager = Manager::with_clock(issuer.clone(), &Config::default(), world.node(), || 0.5);
    let lease = manager.lease(&id(CART));
    lease.ready().await.unwrap();

    // Set back by a day: what the issuer makes is not valid here for a day. It is kept, not presented.
    world.set_node(-86_400);
    sleep(Duration::from_secs(1)).await;
    assert!(!presented_is_valid(&lease, &world.node()));
    let error = lease.ready().await.unwrap_err();
    assert!(matches!(error, CertError::NotYet { .. }), "{error}");
    for said in ["2025-12-31T23:58", "2025-12-31T00:00", "ahead"] {
        assert!(error.to_string().contains(said), "{error}");
    }
    let view = &manager.list()[0];
    assert_eq!(view.state, CertState::NotYetValid);
    assert!(view.issuer_ahead_seconds.unwrap() > 86_000.0, "{view:?}");
    let before = issuer.calls();
    sleep(HOUR).await;
    assert!((20..60).contains(&(issuer.calls() - before)), "{} calls in an hour", issuer.calls() - before);

    // Set right: what is there is used at once, without a call.
    world.set_node(0);
    assert!(presented_is_valid(&lease, &world.node()));

    // Set forward by a day: everything the issuer makes has ended here, and says so with both times.
    world.set_node(86_400);
    assert!(!presented_is_valid(&lease, &world.node()));
    let error = lease.ready().await.unwrap_err();
    assert!(matches!(error, CertError::ExpiredOnArrival { .. }), "{error}");
    assert!(error.to_string().contains("clock is ahead"), "{error}");
    // Back before the retries have slowed down to their cap: within that cap all is well.
    world.set_node(0);
    assert!(presented_is_valid(&lease, &world.node()));

    // A retry that was planned while the clock was a year ahead does not wait for a year.
    *issuer.phase.lock().unwrap() = Phase::Down;
    world.set_node(365 * 86_400);
    sleep(HOUR).await;
    world.set_node(0);
    *issuer.phase.lock().unwrap() = Phase::Well;
    sleep(Duration::from_secs(181)).await;
    assert!(presented_is_valid(&lease, &world.node()));
    assert_eq!(manager.list()[0].state, CertState::Valid);

    // Wild jumps, a look at every step.
    let mut calls = issuer.calls();
    for (step, ahead) in
        [0i64, -7200, 3600, -90_000, 90_000, 0, 10_000_000, -10_000_000, 59, -59, 0].into_iter().enumerate()
    {
        world.set_node(ahead);
        for _ in 0..90 {
            presented_is_valid(&lease, &world.node());
            sleep(Duration::from_secs(20)).await;
        }
        let made = issuer.calls() - calls;
        assert!(made <= 40, "step {step}: {made} calls in half an hour");
        calls = issuer.calls();
    }
    assert!(presented_is_valid(&lease, &world.node()));
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_is_not_valid_yet_leaves_the_older_in_use_until_it_is() {
    let (scratch, world) = (Scratch::new(), World::new());
    // The issuer's clock is ten minutes ahead, and it does not backdate.
    let truth = world.truth();
    let ahead = Clock::from_fn(move || truth.now() + Duration::from_secs(600));
    let config = EmbeddedConfig { lifetime: HOUR * 4, backdate: Duration::ZERO, ..scratch.config() };
    let issuer = super::support::Scripted::new(EmbeddedIssuer::with_clock(&config, ahead).unwrap());
    let manager = Manager::with_clock(issuer.clone(), &Config::default(), world.node(), || 0.5);
    let lease = manager.lease(&id(CART));
    let started = world.node().now();
    let ready = async { while lease.ready().await.is_err() {} };
    timeout(HOUR, ready).await.expect("in the end");
    let waited = world.node().now().duration_since(started).unwrap();
    assert!((599..=601).contains(&waited.as_secs()), "{waited:?}: as soon as it is valid");
    sleep(Duration::from_secs(1)).await;
    let first = lease.current().unwrap();

    let mut last = first.clone();
    let mut seen_older = false;
    for _ in 0..24 * 60 {
        sleep(Duration::from_secs(60)).await;
        assert!(presented_is_valid(&lease, &world.node()));
        let current = lease.current().unwrap();
        let calls = issuer.calls();
        seen_older |= Arc::ptr_eq(&current, &last) && calls > 0;
        last = current;
    }
    assert!(seen_older && !Arc::ptr_eq(&last, &first));
    assert!(manager.list()[0].issuer_ahead_seconds.unwrap() > 590.0);
}

/// Two identities fill the issuer; the rest queue, and who is let in next is what this is about.
struct Queue {
    order: Arc<Mutex<Vec<String>>>,
    most: Arc<AtomicUsize>,
    busy: Arc<AtomicUsize>,
    sound: EmbeddedIssuer,
    calls: AtomicUsize,
}

impl Issuer for Queue {
    fn issue<'a>(&'a self, identity: &'a SpiffeId) -> BoxFuture<'a, Result<Issued, CertError>> {
        async move {
            self.calls.fetch_add(1, Ordering::SeqCst);
            self.order.lock().unwrap().push(identity.service_account().unwrap().to_owned());
            let busy = self.busy.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(busy, Ordering::SeqCst);
            sleep(Duration::from_secs(1)).await;
            self.busy.fetch_sub(1, Ordering::SeqCst);
            self.sound.sign(identity)
        }
        .boxed()
    }

    fn name(&self) -> &str {
        "queue"
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_thousand_identities_those_that_are_waited_for_come_first_and_none_starves() {
    let (scratch, world) = (Scratch::new(), World::new());
    let issuer = Arc::new(Queue {
        order: Arc::default(),
        most: Arc::default(),
        busy: Arc::default(),
        sound: EmbeddedIssuer::with_clock(&scratch.config(), world.truth()).unwrap(),
        calls: AtomicUsize::new(0),
    });
    let config = Config { deadline: Duration::from_secs(10), concurrency: 8 };
    let manager = Manager::with_clock(issuer.clone(), &config, world.node(), || 0.5);
    let ids = identities(1000);
    let leases: Vec<_> = ids.iter().map(|identity| manager.lease(identity)).collect();
    let many: Vec<_> = leases
        .iter()
        .map(|lease| {
            tokio::spawn({
                let lease = lease.clone();
                async move { lease.warm_up().await.is_ok() }
            })
        })
        .collect();
    sleep(Duration::from_millis(500)).await;
    // All are queued. The last three are waited for now: one by a task, one by many, one by a handshake.
    let last = |back: usize| leases[1000 - back].clone();
    let one = tokio::spawn({
        let lease = last(1);
        async move { lease.ready().await.is_ok() }
    });
    let two: Vec<_> = (0..50)
        .map(|_| {
            tokio::spawn({
                let lease = last(2);
                async move { lease.ready().await.is_ok() }
            })
        })
        .collect();
    assert!(last(3).current().is_none());
    timeout(Duration::from_secs(3), async { assert!(one.await.unwrap()) }).await.expect("at the next turn");
    for waiter in two {
        assert!(timeout(Duration::from_secs(3), waiter).await.expect("with it").unwrap());
    }
    let order = issuer.order.lock().unwrap().clone();
    for back in 1..=3 {
        let name = ids[1000 - back].service_account().unwrap();
        let place = order.iter().position(|o| o == name).unwrap();
        assert!(place < 8 + 6, "{name} came as number {place}");
    }
    for waiter in many {
        assert!(waiter.await.unwrap());
    }
    assert_eq!(issuer.calls.load(Ordering::SeqCst), 1000, "one for each");
    assert_eq!(issuer.most.load(Ordering::SeqCst), 8);
    // 1000 calls of a second, eight at once.
    assert!(world.truth().now() < epoch() + Duration::from_secs(130));
}

#[tokio::test(start_paused = true)]
async fn who_has_waited_longest_is_served_though_more_urgent_ones_keep_coming() {
    let (scratch, world) = (Scratch::new(), World::new());
    let issuer = Arc::new(Queue {
        order: Arc::default(),
        most: Arc::default(),
        busy: Arc::default(),
        sound: EmbeddedIssuer::with_clock(&scratch.config(), world.truth()).unwrap(),
        calls: AtomicUsize::new(0),
    });
    let config = Config { deadline: Duration::from_secs(10), concurrency: 1 };
    let manager = Manager::with_clock(issuer.clone(), &config, world.node(), || 0.5);
    let (_busy, patient) = (manager.lease(&id(CART)), manager.lease(&id(TILL)));
    sleep(Duration::from_millis(100)).await;
    let mut urgent = Vec::new();
    for identity in identities(60) {
        let lease = manager.lease(&identity);
        urgent.push(tokio::spawn(async move { lease.ready().await.is_ok() }));
    }
    timeout(Duration::from_secs(6), patient.warm_up()).await.expect("within a few turns").unwrap();
    for task in urgent {
        assert!(task.await.unwrap());
    }
}
