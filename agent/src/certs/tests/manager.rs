//! The manager over hours and years of paused time.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use super::support::{CART, HOUR, Scratch, Scripted, TILL, clock, epoch, id, manager};
use crate::certs::{
    CertError, CertState, Clock, Config, EmbeddedConfig, EmbeddedIssuer, Issued, Manager, backoff, rfc3339,
};
use crate::tls::{TlsError, hex};

#[tokio::test(start_paused = true)]
async fn one_fetch_serves_however_many_wait() {
    let (scratch, clock) = (Scratch::new(), clock());
    let issuer = Scripted::new(EmbeddedIssuer::with_clock(&scratch.config(), clock.clone()).unwrap());
    let manager = manager(&issuer, &clock);
    let leases: Vec<_> = (0..100).map(|_| manager.lease(&id(CART))).collect();
    assert!(leases.iter().all(|l| l.current().is_none()), "nothing is there before it was issued");
    assert_eq!(state(&manager), [CertState::Fetching]);

    let ready = futures::future::join_all(leases.iter().map(|l| l.ready())).await;
    let first = ready[0].clone().unwrap();
    assert!(ready.iter().all(|r| Arc::ptr_eq(r.as_ref().unwrap(), &first)));
    assert_eq!(first.certificate().identity(), &id(CART));
    assert_eq!(issuer.calls(), 1);

    let till = manager.lease(&id(TILL)).ready().await.unwrap();
    assert_ne!(till.certificate().serial(), first.certificate().serial());
    assert_eq!(issuer.calls(), 2, "another identity is another certificate");
}

#[tokio::test(start_paused = true)]
async fn a_certificate_goes_with_its_last_lease() {
    let (scratch, clock) = (Scratch::new(), clock());
    let issuer = Scripted::new(EmbeddedIssuer::with_clock(&scratch.config(), clock.clone()).unwrap());
    let manager = manager(&issuer, &clock);
    let one = manager.lease(&id(CART));
    let two = one.clone();
    let held = Arc::downgrade(&one.ready().await.unwrap());
    assert_eq!(manager.list()[0].leases, 2);

    drop(one);
    sleep(HOUR * 20).await;
    assert_eq!(issuer.calls(), 2, "the other lease keeps it fresh");
    assert!(two.current().is_some());
    assert!(held.upgrade().is_none(), "a replaced certificate that nobody uses is gone");

    let held = Arc::downgrade(&two.current().unwrap());
    drop(two);
    assert!(manager.list().is_empty());
    sleep(HOUR * 100).await;
    assert!(held.upgrade().is_none());
    assert_eq!(issuer.calls(), 2, "nobody renews what nobody holds");

    // Somebody comes back: a new key, not the old one.
    manager.lease(&id(CART)).ready().await.unwrap();
    assert_eq!(issuer.calls(), 3);

    // The last lease goes while the first certificate is on its way: the call is given up.
    *issuer.latency.lock().unwrap() = Duration::from_secs(20);
    let hasty = manager.lease(&id(TILL));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(issuer.busy.load(Ordering::SeqCst), 1);
    drop(hasty);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(issuer.busy.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_year_of_rotations_leaves_no_moment_without_a_certificate() {
    let (scratch, clock) = (Scratch::new(), clock());
    let config = EmbeddedConfig { lifetime: HOUR * 24, backdate: Duration::ZERO, ..scratch.config() };
    let issuer = Scripted::new(EmbeddedIssuer::with_clock(&config, clock.clone()).unwrap());
    let manager = manager(&issuer, &clock);
    let lease = manager.lease(&id(CART));
    let mut last = lease.ready().await.unwrap();
    let mut rotations = 0;
    // Look between renewals, not in the instant of one.
    sleep(HOUR).await;
    for _ in 0..365 * 4 {
        sleep(HOUR * 6).await;
        let current = lease.current().expect("a certificate");
        let left = current.certificate().not_after().duration_since(clock.now()).unwrap();
        assert!(left >= HOUR * 11, "{left:?} left");
        if !Arc::ptr_eq(&current, &last) {
            rotations += 1;
            // Whoever still works with the old one can go on doing so.
            assert!(last.certificate().is_valid_at(clock.now()));
            assert!(last.client_config(&[id(TILL)]).is_ok());
            last = current;
        }
    }
    assert_eq!(issuer.calls(), rotations + 1);
    assert!((728..=730).contains(&rotations), "{rotations} rotations");
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_is_down_costs_nothing_until_the_certificate_ends() {
    let (scratch, clock) = (Scratch::new(), clock());
    let config = EmbeddedConfig { lifetime: HOUR * 2, backdate: Duration::ZERO, ..scratch.config() };
    let inner = EmbeddedIssuer::with_clock(&config, clock.clone()).unwrap();
    let (down, since) = (epoch() + HOUR / 2, clock.clone());
    let issuer = Scripted::with(inner, move |_, answer| {
        let outage = (down..down + HOUR * 4).contains(&since.now());
        if outage { Err(CertError::Issuer("no route to host".into())) } else { answer }
    });
    let manager = manager(&issuer, &clock);
    let lease = manager.lease(&id(CART));
    let first = lease.ready().await.unwrap();

    // Renewal is due after an hour and fails; the first certificate serves to its end.
    sleep(HOUR + HOUR / 2).await;
    assert!(Arc::ptr_eq(&lease.current().unwrap(), &first));
    assert!(
        Arc::ptr_eq(&lease.ready().await.unwrap(), &first),
        "who asks does not wait for the failing renewal"
    );
    assert_eq!(state(&manager), [CertState::RenewalFailing]);
    assert!(manager.list()[0].last_error.as_ref().unwrap().contains("no route to host"));
    let before = issuer.calls();
    assert!((10..40).contains(&before), "tried {before} times in half an hour");

    // It ends, and is presented no more, although there is no other.
    sleep(HOUR).await;
    assert!(lease.current().is_none());
    assert_eq!(state(&manager), [CertState::Expired]);
    assert!(matches!(lease.ready().await, Err(CertError::Issuer(why)) if why == "no route to host"));

    // The issuer is back: so are we, without being told.
    sleep(HOUR * 2).await;
    let second = lease.ready().await.unwrap();
    assert_ne!(second.certificate().serial(), first.certificate().serial());
    assert_eq!(state(&manager), [CertState::Valid]);
    assert_eq!(manager.list()[0].last_error, None);
}

/// Its certificates are past half of their life when they come, so that each is due at once.
#[tokio::test(start_paused = true)]
async fn an_issuer_that_gives_what_is_half_used_up_is_not_asked_without_pause() {
    let (scratch, clock) = (Scratch::new(), clock());
    let config = EmbeddedConfig { lifetime: HOUR * 21, ..scratch.config() };
    let behind = clock.clone();
    let behind = Clock::from_fn(move || behind.now() - HOUR * 20);
    let issuer = Scripted::new(EmbeddedIssuer::with_clock(&config, behind).unwrap());
    let lease = manager(&issuer, &clock).lease(&id(CART));
    lease.ready().await.unwrap();
    sleep(HOUR * 10).await;
    assert!((15..25).contains(&issuer.calls()), "asked {} times in ten hours", issuer.calls());
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_hears_of_each_failure_once_and_of_success_at_last() {
    let (scratch, clock) = (Scratch::new(), clock());
    let inner = EmbeddedIssuer::with_clock(&scratch.config(), clock.clone()).unwrap();
    let issuer = Scripted::with(inner, |call, answer| match call {
        1 => Err(CertError::Issuer("first".into())),
        2 => panic!("an issuer with a defect"),
        3 => Err(CertError::Issuer("third".into())),
        _ => answer,
    });
    let manager = manager(&issuer, &clock);
    let lease = manager.lease(&id(CART));
    let mut heard = Vec::new();
    while let Err(error) = lease.ready().await {
        heard.push(error.to_string());
    }
    assert_eq!(heard.len(), 3, "{heard:?}");
    for (message, said) in heard.iter().zip(["first", "panicked", "third"]) {
        assert!(message.contains(said), "{message}");
    }
    // 1 + 2 + 4 s of waiting between four calls of 10 ms.
    assert_eq!(clock.now().duration_since(epoch()).unwrap().as_secs(), 7);
}

#[tokio::test(start_paused = true)]
async fn what_a_hostile_issuer_answers_is_never_presented() {
    let (scratch, other, clock) = (Scratch::new(), Scratch::new(), clock());
    let sound = EmbeddedIssuer::with_clock(&scratch.config(), clock.clone()).unwrap();
    let foreign = Arc::new(EmbeddedIssuer::with_clock(&other.config(), clock.clone()).unwrap());
    let yesterday = EmbeddedConfig { lifetime: HOUR, ..scratch.config() };
    let yesterday = EmbeddedIssuer::with_clock(&yesterday, Clock::from_fn(|| epoch() - HOUR * 24)).unwrap();

    type Check = fn(&CertError) -> bool;
    type Answer = Box<dyn Fn(Issued) -> Issued + Send>;
    let (f1, f2) = (foreign.clone(), foreign.clone());
    let table: Vec<(&str, Answer, Check)> = vec![
        (
            "a certificate of somebody else",
            Box::new({
                let issuer = EmbeddedIssuer::with_clock(&scratch.config(), clock.clone()).unwrap();
                move |_| issuer.sign(&id(TILL)).unwrap()
            }),
            |e| matches!(e, CertError::OtherIdentity { .. }),
        ),
        (
            "one of a root that it does not vouch for",
            Box::new(move |ours| Issued { roots: ours.roots, ..f1.sign(&id(CART)).unwrap() }),
            |e| matches!(e, CertError::Certificate(TlsError::Chain { .. })),
        ),
        ("no roots", Box::new(|ours| Issued { roots: Default::default(), ..ours }), |e| {
            matches!(e, CertError::Certificate(TlsError::UnknownTrustDomain { .. }))
        }),
        (
            "the key of another certificate",
            Box::new(move |ours| Issued { key: f2.sign(&id(CART)).unwrap().key, ..ours }),
            |e| matches!(e, CertError::Certificate(TlsError::Key { .. })),
        ),
        ("one that has expired", Box::new(move |_| yesterday.sign(&id(CART)).unwrap()), |e| {
            matches!(e, CertError::ExpiredOnArrival { .. })
        }),
        ("nothing", Box::new(|ours| Issued { chain: vec![], ..ours }), |e| {
            matches!(e, CertError::Certificate(TlsError::NoCertificate))
        }),
        (
            "garbage",
            Box::new(|ours| Issued { chain: vec![CertificateDer::from(vec![0x30; 100_000])], ..ours }),
            |e| matches!(e, CertError::Answer(_)),
        ),
        (
            "garbage that is no larger than a certificate",
            Box::new(|ours| Issued { chain: vec![CertificateDer::from(vec![0x30; 1000])], ..ours }),
            |e| matches!(e, CertError::Certificate(TlsError::Malformed(_))),
        ),
        (
            "a chain without end",
            Box::new(|ours| Issued { chain: vec![ours.chain[0].clone(); 100], ..ours }),
            |e| matches!(e, CertError::Answer(_)),
        ),
        (
            "garbage for a key",
            Box::new(|ours| {
                let key = rustls_pki_types::PrivatePkcs8KeyDer::from(vec![0x30; 1000]);
                Issued { key: Zeroizing::new(key.into()), ..ours }
            }),
            |e| matches!(e, CertError::Certificate(TlsError::Key { .. })),
        ),
    ];
    let names: Vec<&str> = table.iter().map(|row| row.0).collect();
    let checks: Vec<Check> = table.iter().map(|row| row.2).collect();
    let answers: Vec<Answer> = table.into_iter().map(|row| row.1).collect();
    let issuer = Scripted::with(sound, move |call, answer| match answers.get(call - 1) {
        Some(hostile) => Ok(hostile(answer.unwrap())),
        None => answer,
    });
    let manager = manager(&issuer, &clock);
    let lease = manager.lease(&id(CART));
    for (name, check) in names.iter().zip(checks) {
        let error = lease.ready().await.expect_err(name);
        assert!(check(&error), "{name}: {error:?}");
        assert!(lease.current().is_none(), "{name}");
        assert_eq!(state(&manager), [CertState::Failed], "{name}");
    }
    lease.ready().await.expect("a sound answer is taken even then");
}

#[tokio::test(start_paused = true)]
async fn who_vouches_is_told_as_the_list_tells_it_and_of_certificates_only() {
    let (scratch, clock) = (Scratch::new(), clock());
    let issuer = Scripted::new(EmbeddedIssuer::with_clock(&scratch.config(), clock.clone()).unwrap());
    let manager = manager(&issuer, &clock);
    let lease = manager.lease(&id(CART));
    assert!(manager.vouched_by().is_empty(), "there is no certificate yet");
    let first = lease.ready().await.unwrap();
    let (told, listed) = (manager.vouched_by(), manager.list());
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].identity, id(CART));
    assert_eq!(Some(hex(&told[0].authority)), listed[0].authority_key_id);
    assert_eq!(told[0].root.map(|root| hex(&root)), listed[0].root_sha256);
    assert!(told[0].root.is_some());
    assert_eq!(manager.vouched_by(), told);

    // Trust without its root: nothing vouches for it any more, and that is not remembered otherwise.
    first.trust().set(Default::default());
    assert_eq!(manager.vouched_by()[0].root, None);
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_is_told_for_a_while_after_nobody_holds_it() {
    let (scratch, clock) = (Scratch::new(), clock());
    let sound = EmbeddedIssuer::with_clock(&scratch.config(), clock.clone()).unwrap();
    let refused = |call, answer| if call == 1 { Err(CertError::Issuer("not yours".into())) } else { answer };
    let issuer = Scripted::with(sound, refused);
    let manager = manager(&issuer, &clock);
    let lease = manager.lease(&id(CART));
    lease.ready().await.unwrap_err();
    drop(lease);
    let told = manager.list();
    assert_eq!((told.len(), told[0].state, told[0].leases), (1, CertState::Failed, 0));
    assert!(told[0].last_error.as_ref().unwrap().contains("not yours"));
    // Somebody holds it again: it is told once, as it is now.
    let lease = manager.lease(&id(CART));
    assert_eq!(state(&manager), [CertState::Failed]);
    assert_eq!(manager.list()[0].renewal_due, told[0].renewal_due);
    lease.ready().await.unwrap();
    drop(lease);
    assert!(manager.list().is_empty(), "it was let go in good order");

    let lease = manager.lease(&id(TILL));
    drop(lease);
    assert!(manager.list().is_empty(), "nothing had failed");
}

/// As the pod manager does: it lets the lease go between its tries.
#[tokio::test(start_paused = true)]
async fn a_back_off_outlives_the_lease() {
    let (scratch, clock) = (Scratch::new(), clock());
    let sound = EmbeddedIssuer::with_clock(&scratch.config(), clock.clone()).unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (told, since) = (asked.clone(), clock.clone());
    let well = epoch() + Duration::from_secs(1800);
    let issuer = Scripted::with(sound, move |_, answer| {
        told.lock().unwrap().push(since.now().duration_since(epoch()).unwrap().as_secs());
        if since.now() < well { Err(CertError::Issuer("not yours".into())) } else { answer }
    });
    let manager = manager(&issuer, &clock);
    loop {
        let lease = manager.lease(&id(CART));
        match timeout(Duration::from_secs(10), lease.warm_up()).await {
            Ok(Ok(_)) => break,
            Ok(Err(error)) => assert!(error.to_string().contains("not yours"), "{error}"),
            Err(_late) => assert!(lease.last_error().unwrap().to_string().contains("not yours")),
        }
        drop(lease);
        let view = manager.list().remove(0);
        assert_eq!((view.state, view.leases), (CertState::Failed, 0));
        assert!(view.renewal_due.unwrap() >= rfc3339(clock.now()), "it says when the issuer is asked next");
        sleep(Duration::from_secs(5)).await;
    }
    let asked = std::mem::take(&mut *asked.lock().unwrap());
    let pauses: Vec<u64> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // Each as long as its back-off, and up to 5 s more when nobody holds it as that ends.
    for (nth, pause) in pauses.iter().enumerate() {
        let least = backoff(nth as u32 + 1, 0.5).as_secs();
        assert!((least..=least + 6).contains(pause), "pause {nth}: {pause} s of {pauses:?}");
    }
    assert!(pauses.len() > 10, "{pauses:?}");

    // Success has ended it: the next failure is a first one.
    drop(manager.lease(&id(CART)));
    assert!(manager.list().is_empty());
    let lease = manager.lease(&id(CART));
    assert_eq!(state(&manager), [CertState::Fetching]);
    lease.ready().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_back_off_that_nobody_asks_for_is_forgotten_at_last() {
    let (scratch, clock) = (Scratch::new(), clock());
    let sound = EmbeddedIssuer::with_clock(&scratch.config(), clock.clone()).unwrap();
    let issuer = Scripted::with(sound, |_, _| Err(CertError::Issuer("not yours".into())));
    let manager = manager(&issuer, &clock);
    manager.lease(&id(CART)).ready().await.unwrap_err();
    sleep(Duration::from_secs(29)).await;
    assert_eq!(state(&manager), [CertState::Failed]);
    sleep(Duration::from_secs(2)).await;
    assert!(manager.list().is_empty(), "told no more, though it is remembered");
    let lease = manager.lease(&id(CART));
    assert_eq!(state(&manager), [CertState::Failed]);
    drop(lease);
    sleep(Duration::from_secs(599)).await;
    drop(manager.lease(&id(CART)));
    assert_eq!(state(&manager), [CertState::Failed]);
    sleep(Duration::from_secs(600)).await;
    let _lease = manager.lease(&id(CART));
    assert_eq!(state(&manager), [CertState::Fetching]);

    // However many there are, it is for a bounded number, and the youngest are kept.
    let name = |n| id(&format!("spiffe://mesh.test/ns/shop/sa/till-{n}"));
    for n in 0..1100 {
        manager.lease(&name(n)).ready().await.unwrap_err();
    }
    let states: Vec<_> =
        manager.list().iter().filter(|v| v.leases == 0).map(|v| v.identity.clone()).collect();
    assert_eq!(states.len(), 1024);
    assert!(states.contains(&name(1099)) && !states.contains(&name(75)) && states.contains(&name(76)));
}

/// Nobody waits for the deadline, so there is no failure that the manager itself has seen.
#[tokio::test(start_paused = true)]
async fn an_issuer_that_hangs_is_a_failure_also_for_whoever_gives_up_on_it() {
    let (scratch, clock) = (Scratch::new(), clock());
    let issuer = Scripted::new(EmbeddedIssuer::with_clock(&scratch.config(), clock.clone()).unwrap());
    *issuer.latency.lock().unwrap() = HOUR;
    let manager = manager(&issuer, &clock);
    let give_up = async |after| {
        let lease = manager.lease(&id(CART));
        timeout(Duration::from_secs(after), lease.warm_up()).await.unwrap_err();
    };
    give_up(2).await;
    assert!(manager.list().is_empty(), "a pod came and went");
    for _ in 0..20 {
        give_up(20).await;
        let view = manager.list().remove(0);
        assert_eq!(view.state, CertState::Failed);
        assert!(view.last_error.unwrap().contains("did not answer within"));
        sleep(Duration::from_secs(1)).await;
    }
    assert!((8..14).contains(&issuer.calls()), "{} calls in twenty tries", issuer.calls());
}

#[tokio::test(start_paused = true)]
async fn a_slow_issuer_is_given_up_on_and_never_overrun() {
    let (scratch, clock) = (Scratch::new(), clock());
    let issuer = Scripted::new(EmbeddedIssuer::with_clock(&scratch.config(), clock.clone()).unwrap());
    *issuer.latency.lock().unwrap() = Duration::from_secs(60);
    let config = Config { deadline: Duration::from_secs(5), concurrency: 4 };
    let manager = Manager::with_clock(issuer.clone(), &config, clock.clone(), || 0.5);
    let leases: Vec<_> =
        (0..20).map(|n| manager.lease(&id(&format!("spiffe://mesh.test/ns/shop/sa/till-{n}")))).collect();
    let error = leases[0].ready().await.unwrap_err();
    assert!(matches!(error, CertError::Deadline(d) if d == Duration::from_secs(5)), "{error}");

    *issuer.latency.lock().unwrap() = Duration::from_secs(1);
    for lease in &leases {
        let ready = async { while lease.ready().await.is_err() {} };
        timeout(Duration::from_secs(300), ready).await.expect("served in the end");
    }
    assert_eq!(issuer.most_busy.load(Ordering::SeqCst), 4);
}

#[tokio::test(start_paused = true)]
async fn the_list_tells_an_operator_what_is_held() {
    let (scratch, clock) = (Scratch::new(), clock());
    let config = EmbeddedConfig { backdate: Duration::from_secs(120), ..scratch.config() };
    let issuer = Scripted::new(EmbeddedIssuer::with_clock(&config, clock.clone()).unwrap());
    let manager = manager(&issuer, &clock);
    let (till, cart) = (manager.lease(&id(TILL)), manager.lease(&id(CART)));
    till.ready().await.unwrap();
    let identity = cart.ready().await.unwrap();
    let views = manager.list();
    assert_eq!(views.iter().map(|v| v.identity.clone()).collect::<Vec<_>>(), [id(CART), id(TILL)]);
    let view = &views[0];
    assert_eq!(view.state, CertState::Valid);
    assert_eq!(view.trust_domain.as_str(), "mesh.test");
    assert_eq!(view.serial.as_deref(), Some(identity.certificate().serial()));
    assert_eq!(view.not_before.as_deref(), Some("2025-12-31T23:58:00Z"));
    assert_eq!(view.not_after.as_deref(), Some("2026-01-02T00:00:00Z"));
    assert_eq!(view.renewal_due.as_deref(), Some("2026-01-01T11:59:00Z"));
    assert_eq!((view.chain_length, view.leases), (1, 1));
    assert_eq!(view.issuer, "scripted");
    assert!(view.authority.as_ref().unwrap().contains("Underpass embedded root"));
    let json = serde_json::to_value(view).unwrap();
    assert_eq!(json["identity"], CART);
    assert_eq!(json["state"], "valid");
}

fn state(manager: &Manager) -> Vec<CertState> {
    manager.list().iter().map(|view| view.state).collect()
}
