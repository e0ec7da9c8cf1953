//! Chains of which an authority ends before the leaf does, or begins after it.

use std::sync::Arc;
use std::time::Duration;

use rcgen::CertificateParams;
use rustls_pki_types::CertificateDer;
use tokio::time::sleep;
use zeroize::Zeroizing;

use super::support::{CART, HOUR, Scratch, Scripted, clock, epoch, id, manager};
use crate::certs::{CertError, CertState, Clock, EmbeddedIssuer, Issued, Manager};
use crate::tls::TrustBundles;
use crate::tls::testing::Authority;

/// Good from so many hours after the epoch until so many.
fn good(from: f64, until: f64) -> impl Fn(&mut CertificateParams) {
    let at = |hours: f64| {
        let by = Duration::from_secs_f64(hours.abs() * 3600.0);
        if hours < 0.0 { epoch() - by } else { epoch() + by }
    };
    move |params| {
        params.not_before = at(from).into();
        params.not_after = at(until).into();
    }
}

fn root() -> Authority {
    Authority::root_with(good(-24.0, 24.0 * 3650.0))
}

/// A leaf for 24 hours, and `above` it.
fn under(root: &Authority, signer: &Authority, above: &[&CertificateDer<'static>], start: f64) -> Issued {
    let leaf = signer.leaf(CART, good(start, start + 24.0));
    let mut roots = TrustBundles::new();
    roots.add(id(CART).trust_domain(), [root.certificate.clone()]).unwrap();
    let chain = leaf.chain.into_iter().chain(above.iter().map(|der| (*der).clone())).collect();
    Issued { chain, key: Zeroizing::new(leaf.key), roots }
}

/// A manager whose issuer gives what `answer` makes, by the hours since the epoch.
fn giving(answer: impl Fn(f64) -> Issued + Send + 'static) -> (Manager, Arc<Scripted>, Clock, Scratch) {
    let (scratch, clock) = (Scratch::new(), clock());
    let sound = EmbeddedIssuer::with_clock(&scratch.config(), clock.clone()).unwrap();
    let since = clock.clone();
    let hours = move || since.now().duration_since(epoch()).unwrap().as_secs_f64() / 3600.0;
    let issuer = Scripted::with(sound, move |_, _| Ok(answer(hours())));
    (manager(&issuer, &clock), issuer, clock, scratch)
}

#[tokio::test(start_paused = true)]
async fn a_chain_is_renewed_by_the_first_end_in_it() {
    let root = root();
    // The authority's next one is there after four hours.
    let first = root.intermediate(good(-24.0, 8.0));
    let second = root.intermediate(good(-24.0, 4800.0));
    let (manager, issuer, clock, _scratch) = giving(move |hours| {
        let signer = if hours < 3.9 { &first } else { &second };
        under(&root, signer, &[&signer.certificate], hours)
    });
    let lease = manager.lease(&id(CART));
    let held = lease.ready().await.unwrap();
    assert_eq!(held.certificate().not_after(), epoch() + HOUR * 8);
    let view = manager.list().remove(0);
    assert_eq!(view.not_after.as_deref(), Some("2026-01-01T08:00:00Z"));
    assert!((8.0 * 3600.0 - 1.0..=8.0 * 3600.0).contains(&view.expires_in_seconds.unwrap()));
    assert!(
        view.renewal_due.as_deref().unwrap().starts_with("2026-01-01T04:00:00"),
        "{:?}",
        view.renewal_due
    );
    sleep(HOUR * 5).await;
    assert_eq!(issuer.calls(), 2);
    assert!(lease.current().unwrap().certificate().not_after() > clock.now() + HOUR * 20);
}

#[tokio::test(start_paused = true)]
async fn a_chain_of_which_an_authority_has_ended_is_not_presented() {
    let root = root();
    let short = root.intermediate(good(-24.0, 2.0));
    let (manager, issuer, _clock, _scratch) =
        giving(move |hours| under(&root, &short, &[&short.certificate], hours));
    let lease = manager.lease(&id(CART));
    lease.ready().await.unwrap();
    sleep(HOUR * 2 - Duration::from_secs(5)).await;
    assert!(lease.current().is_some());
    sleep(Duration::from_secs(6)).await;
    assert!(lease.current().is_none(), "its leaf has a day left");
    let error = lease.ready().await.unwrap_err();
    assert!(matches!(error, CertError::AuthorityEnded { .. }), "{error}");
    assert!(
        error.to_string().contains("test intermediate") && error.to_string().contains("02:00:00Z"),
        "{error}"
    );
    assert_eq!(error.cause(), "expired");
    let view = manager.list().remove(0);
    assert_eq!(view.state, CertState::Expired);
    assert!(view.expires_in_seconds.unwrap() < 0.0);
    assert!(issuer.calls() < 30, "asked {} times: sooner and sooner, but not without pause", issuer.calls());
}

#[tokio::test(start_paused = true)]
async fn a_chain_of_which_an_authority_is_yet_to_begin_waits_for_it() {
    let root = root();
    let young = root.intermediate(good(0.5, 4800.0));
    let (manager, _issuer, clock, _scratch) =
        giving(move |hours| under(&root, &young, &[&young.certificate], hours));
    let lease = manager.lease(&id(CART));
    let error = lease.ready().await.unwrap_err();
    assert!(matches!(error, CertError::NotYet { .. }), "{error}");
    assert!(lease.current().is_none());
    assert_eq!(manager.list()[0].state, CertState::NotYetValid);
    sleep(HOUR / 2 + Duration::from_secs(1)).await;
    assert!(lease.current().unwrap().certificate().is_valid_at(clock.now()));
    // Until the issuer is asked again, it is still the one that came too early.
    sleep(Duration::from_secs(200)).await;
    assert_eq!(manager.list()[0].state, CertState::Valid);
}

/// As of a root that has been replaced: the leaf does not need it, and peers are not shown it.
#[tokio::test(start_paused = true)]
async fn an_ended_authority_that_the_leaf_does_not_need_is_left_out() {
    let (root, former) = (root(), root());
    let signer = root.intermediate(good(-24.0, 4800.0));
    let ended = signer.again(&former, good(-48.0, -1.0));
    let kept = signer.certificate.clone();
    let (manager, _issuer, _clock, _scratch) =
        giving(move |hours| under(&root, &signer, &[&ended, &signer.certificate], hours));
    let held = manager.lease(&id(CART)).ready().await.unwrap();
    assert_eq!(held.certificate().chain()[1..], [kept]);
    assert!(held.certificate().not_after() >= epoch() + HOUR * 23);
}
