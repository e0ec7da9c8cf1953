//! How often and in which order the issuer is asked.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::support::{CART, HOUR, Scratch, Scripted, TILL, clock, epoch, id, manager};
use crate::certs::{
    CertError, CertState, Clock, Config, EmbeddedConfig, EmbeddedIssuer, Issued, Issuer, Lease, Manager,
    Nudge,
};
use crate::model::SpiffeId;

/// A scripted issuer that sends nudges.
struct Nudging {
    inner: Arc<Scripted>,
    heard: Mutex<Option<mpsc::UnboundedReceiver<Nudge>>>,
}

impl Issuer for Nudging {
    fn issue<'a>(&'a self, identity: &'a SpiffeId) -> BoxFuture<'a, Result<Issued, CertError>> {
        self.inner.issue(identity)
    }

    fn name(&self) -> &str {
        "nudging"
    }

    fn nudges(&self) -> Option<mpsc::UnboundedReceiver<Nudge>> {
        self.heard.lock().unwrap().take()
    }
}

fn nudging(inner: &Arc<Scripted>, clock: &Clock) -> (Manager, mpsc::UnboundedSender<Nudge>) {
    let (nudge, heard) = mpsc::unbounded_channel();
    let issuer = Nudging { inner: inner.clone(), heard: Mutex::new(Some(heard)) };
    (Manager::with_clock(Arc::new(issuer), &Config::default(), clock.clone(), || 0.5), nudge)
}

fn serial(lease: &Lease) -> String {
    lease.current().unwrap().certificate().serial().to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_nudge_ends_the_back_off_of_an_identity_that_nobody_holds() {
    let (scratch, clock) = (Scratch::new(), clock());
    let sound = EmbeddedIssuer::with_clock(&scratch.config(), clock.clone()).unwrap();
    let issuer = Scripted::with(
        sound,
        |call, answer| if call < 5 { Err(CertError::Issuer("no".into())) } else { answer },
    );
    let (manager, nudge) = nudging(&issuer, &clock);
    let lease = manager.lease(&id(CART));
    for _ in 0..4 {
        lease.ready().await.unwrap_err();
    }
    drop(lease);
    nudge.send(Nudge::Identity(id(CART))).unwrap();
    sleep(Duration::from_millis(1)).await;
    let soon = timeout(Duration::from_secs(1), async { manager.lease(&id(CART)).ready().await });
    soon.await.expect("asked at once").unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_nudge_is_obeyed_once() {
    let (scratch, clock) = (Scratch::new(), clock());
    let issuer = Scripted::new(EmbeddedIssuer::with_clock(&scratch.config(), clock.clone()).unwrap());
    let (manager, nudge) = nudging(&issuer, &clock);
    let lease = manager.lease(&id(CART));
    lease.ready().await.unwrap();
    nudge.send(Nudge::Identity(id(CART))).unwrap();
    sleep(HOUR * 2).await;
    assert_eq!(issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_back_off_begins_anew_after_success_and_no_word_on_who_signs_ends_it() {
    let (scratch, clock) = (Scratch::new(), clock());
    let sound = EmbeddedIssuer::with_clock(&scratch.config(), clock.clone()).unwrap();
    let issuer = Scripted::with(sound, |call, answer| match call {
        1..=6 | 8.. => Err(CertError::Issuer("no".into())),
        _ => answer,
    });
    let (manager, nudge) = nudging(&issuer, &clock);
    let lease = manager.lease(&id(CART));
    while lease.ready().await.is_err() {}
    // The renewal fails: at once, and 1, 3, 7, 15 and 31 s later.
    sleep(HOUR * 12 - clock.now().duration_since(epoch()).unwrap()).await;
    while issuer.calls() < 8 {
        sleep(Duration::from_secs(1)).await;
    }
    sleep(Duration::from_secs(40)).await;
    assert_eq!(issuer.calls(), 13);
    let due = manager.list()[0].renewal_due.clone();
    assert_eq!(manager.list()[0].state, CertState::RenewalFailing);
    nudge.send(Nudge::SignedByOthers { authority: vec![1], within: Duration::ZERO }).unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!((issuer.calls(), manager.list()[0].renewal_due.clone()), (13, due));
}

#[tokio::test(start_paused = true)]
async fn certificates_of_a_second_are_not_asked_for_more_than_once_in_one() {
    let (scratch, clock) = (Scratch::new(), clock());
    let config = EmbeddedConfig { lifetime: Duration::from_secs(1), ..scratch.config() };
    let issuer = Scripted::new(EmbeddedIssuer::with_clock(&config, clock.clone()).unwrap());
    let _lease = manager(&issuer, &clock).lease(&id(CART));
    sleep(Duration::from_secs(100)).await;
    assert!((50..=101).contains(&issuer.calls()), "asked {} times in 100 s", issuer.calls());
}

#[tokio::test(start_paused = true)]
async fn a_first_certificate_goes_before_a_renewal_that_has_waited_longer() {
    let (scratch, clock) = (Scratch::new(), clock());
    let issuer = Scripted::new(EmbeddedIssuer::with_clock(&scratch.config(), clock.clone()).unwrap());
    let config = Config { deadline: HOUR, concurrency: 1 };
    let manager = Manager::with_clock(issuer.clone(), &config, clock.clone(), || 0.5);
    let cart = manager.lease(&id(CART));
    cart.ready().await.unwrap();
    let first = serial(&cart);
    // Another has the only place from before the renewal is due until after it.
    sleep(HOUR * 12 - HOUR / 6).await;
    *issuer.latency.lock().unwrap() = HOUR / 2;
    let _busy = manager.lease(&id("spiffe://mesh.test/ns/shop/sa/busy"));
    sleep(HOUR / 4).await;
    *issuer.latency.lock().unwrap() = Duration::from_secs(1);
    let till = manager.lease(&id(TILL));
    till.warm_up().await.unwrap();
    assert_eq!(serial(&cart), first, "the renewal was due first");
    sleep(Duration::from_secs(2)).await;
    assert_ne!(serial(&cart), first);
}
