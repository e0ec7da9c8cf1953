#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use tokio::sync::Semaphore;

use super::*;
use crate::ca::attest::kubernetes::ServiceAccount;

fn claimed() -> Claimed {
    let account = ServiceAccount { namespace: "underpass-system".into(), name: "underpass".into() };
    Claimed { account, pod: "agent-x".into(), uid: "u1".into(), node: None }
}

/// A token that ends that many seconds after 1970.
fn token(exp: u64) -> String {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = String::from("eyJhbGciOiJSUzI1NiJ9.");
    for three in format!(r#"{{"iss":"k", "exp":{exp}}}"#).into_bytes().chunks(3) {
        let held = three.iter().chain(&[0; 2]).take(3).fold(0u32, |held, byte| held << 8 | u32::from(*byte));
        let chars = (0..=three.len()).map(|at| char::from(digits[(held >> (18 - 6 * at) & 63) as usize]));
        out.extend(chars);
    }
    out + ".c2ln"
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn from(address: u8, connection: u64) -> Origin {
    Origin { address: [10, 0, 0, address].into(), connection, proven: false }
}

/// Asks the same reviews as often as wanted, and counts what comes through to Kubernetes.
struct Asking {
    reviews: Reviews,
    asked: AtomicUsize,
}

impl Asking {
    fn new() -> Self {
        Self { reviews: Reviews::new(Clock::system()), asked: AtomicUsize::new(0) }
    }

    async fn about(&self, token: &str, from: Origin, said: &Result<Claimed, Refusal>) -> bool {
        let ask = async {
            self.asked.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            said.clone()
        };
        self.reviews.answer(token, from, ask).await.is_ok()
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[test]
fn the_end_of_a_token_is_read_and_garbage_has_none() {
    let end =
        |token: &str| end_of(token).map(|end| end.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs());
    for exp in [0, 1, 12, 123, 1_790_000_000] {
        assert_eq!(end(&token(exp)), Some(exp));
    }
    for garbage in ["", "a.b.c", "..", "a.!.c", "a.e30.c", "opaque", &token(u64::MAX)] {
        assert_eq!(end_of(garbage), None, "{garbage}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_remembered_for_ten_seconds_and_silence_is_not() {
    let silence = Err(Refusal::Unavailable("no answer".into()));
    let refused = Err(Refusal::Unknown("bad".into()));
    let good = token(now() + 3600);
    for (token, said, least) in [
        (&*good, Ok(claimed()), 1),
        ("garbage", refused, 1),
        (&*good, silence, 3),
        ("opaque", Ok(claimed()), 3),
    ] {
        let asking = Asking::new();
        for _ in 0..3 {
            assert_eq!(asking.about(token, from(1, 1), &said).await, said.is_ok());
        }
        assert_eq!(asking.asked(), least, "{said:?}");
        tokio::time::advance(REMEMBERED - Duration::from_millis(1)).await;
        asking.about(token, from(1, 1), &said).await;
        assert_eq!(asking.asked(), if least == 1 { 1 } else { 4 }, "{said:?}");
        tokio::time::advance(Duration::from_millis(1)).await;
        asking.about(token, from(1, 1), &said).await;
        assert_eq!(asking.asked(), if least == 1 { 2 } else { 5 }, "{said:?}");
        asking.about("another", from(1, 1), &said).await;
        assert_eq!(asking.asked(), if least == 1 { 3 } else { 6 }, "of another token nothing is known");
    }
}

#[tokio::test]
async fn nothing_is_remembered_beyond_a_tokens_own_end() {
    let asking = Asking::new();
    let ended = token(now());
    for _ in 0..2 {
        asking.about(&ended, from(1, 1), &Ok(claimed())).await;
    }
    assert_eq!(asking.asked(), 2);
    let ahead = Arc::new(AtomicUsize::new(0));
    let clock = {
        let ahead = Arc::clone(&ahead);
        Clock::from_fn(move || SystemTime::now() + Duration::from_secs(ahead.load(Ordering::SeqCst) as u64))
    };
    let asking = Asking { reviews: Reviews::new(clock), ..asking };
    let token = token(now() + 3600);
    asking.about(&token, from(1, 1), &Ok(claimed())).await;
    asking.about(&token, from(1, 1), &Ok(claimed())).await;
    assert_eq!(asking.asked(), 3);
    ahead.store(3600, Ordering::SeqCst);
    asking.about(&token, from(1, 1), &Ok(claimed())).await;
    assert_eq!(asking.asked(), 4);
}

#[tokio::test]
async fn those_with_the_same_token_wait_for_one_answer() {
    let asking = Asking::new();
    let (token, good) = (token(now() + 3600), Ok(claimed()));
    let all = (0..100).map(|at| asking.about(&token, from(1, at), &good));
    assert!(futures::future::join_all(all).await.into_iter().all(|good| good));
    assert_eq!(asking.asked(), 1);
    // And whoever was about to ask and went away is in nobody's way.
    let asking = Asking::new();
    {
        let gone = asking.reviews.answer(&token, from(1, 1), std::future::pending());
        assert!(gone.now_or_never().is_none());
    }
    assert!(asking.about(&token, from(1, 1), &good).await);
}

/// Ten thousand tokens of nobody, by as many connections as there are places, while one more comes that is
/// good: from elsewhere, from the same address, or by a connection that was a node's before.
#[tokio::test]
async fn a_flood_of_tokens_is_in_nobodys_way_for_long() {
    let refused = Err(Refusal::Unknown("bad".into()));
    let proven = Origin { proven: true, ..from(1, 98) };
    let table = [
        ("elsewhere", from(2, 99), ADDRESS.of_one),
        ("beside it", from(1, 99), ADDRESS.waiting + ADDRESS.of_one),
        ("proven", proven, ADDRESS.of_one),
    ];
    for (what, honest, most) in table {
        let asking = Arc::new(Asking::new());
        let flood: Vec<_> = (0..10_000)
            .map(|at| {
                let (asking, refused) = (Arc::clone(&asking), refused.clone());
                tokio::spawn(async move { asking.about(&format!("t{at}"), from(1, at % 31), &refused).await })
            })
            .collect();
        while asking.asked() == 0 {
            tokio::task::yield_now().await;
        }
        let before = asking.asked();
        assert!(asking.about(&token(now() + 3600), honest, &Ok(claimed())).await, "{what}");
        let meanwhile = asking.asked() - before - 1;
        assert!(meanwhile <= most, "{what}: {meanwhile} of the flood came first, and {most} are its share");
        for task in flood {
            assert!(!task.await.unwrap());
        }
        let most = 31 * (CONNECTION.waiting + CONNECTION.of_one);
        assert!(asking.asked() <= most + 1, "{what}: {} of the flood were asked about", asking.asked());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_of_a_flood_is_bounded_and_goes_away() {
    let asking = Asking::new();
    let refused = Err(Refusal::Unknown("bad".into()));
    for at in 0..3 * MOST {
        asking.about(&format!("t{at}"), from(1, 1), &refused).await;
    }
    assert!(asking.reviews.slots().all.len() <= 2 * MOST + 2);
    tokio::time::advance(REMEMBERED).await;
    asking.reviews.slots().sweep(SystemTime::now());
    assert_eq!(asking.reviews.slots().all.len(), 0);
}

#[tokio::test]
async fn an_address_asks_a_few_things_at_once_and_all_together_no_more_than_their_share() {
    let reviews = Arc::new(Reviews::new(Clock::system()));
    let (under_way, may) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let ask = |address: u8, connection: u64| {
        let (reviews, under_way, may) = (Arc::clone(&reviews), Arc::clone(&under_way), Arc::clone(&may));
        tokio::spawn(async move {
            let ask = async {
                under_way.fetch_add(1, Ordering::SeqCst);
                may.acquire().await.unwrap().forget();
                Err(Refusal::Unknown("bad".into()))
            };
            reviews.answer(&format!("t{connection}"), from(address, connection), ask).await.is_ok()
        })
    };
    let settled = async || {
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        under_way.load(Ordering::SeqCst)
    };
    let mut all: Vec<_> = (0..30).map(|at| ask(1, at)).collect();
    assert_eq!(settled().await, ADDRESS.of_one);
    all.extend(
        (2..100)
            .flat_map(|address| (0..4).map(move |at| (address, u64::from(address) * 4 + at)))
            .map(|(address, at)| ask(address, at + 100)),
    );
    assert_eq!(settled().await, ADDRESS.at_once);
    may.add_permits(10_000);
    for asked in all {
        assert!(!asked.await.unwrap());
    }
}
