//! Who is connected while trust changes.

use std::time::Duration;

use futures::FutureExt;
use rcgen::{CertificateParams, DnType};

use super::*;
use crate::tls::testing::{Authority, Shown, bundles, domain};
use crate::tls::{Crls, Trust, TrustBundles};

const A: &str = "spiffe://mesh.test/ns/shop/sa/cart";
const B: &str = "spiffe://mesh.test/ns/shop/sa/till";

fn roots(roots: &[&Authority]) -> Trusted {
    let named: Vec<_> = roots.iter().map(|root| ("mesh.test", *root)).collect();
    bundles(&named).into()
}

fn revoking(root: &Authority, list: &[u8]) -> Trusted {
    let mut revoked = Crls::default();
    revoked.add(list).unwrap();
    Trusted { revoked, ..roots(&[root]) }
}

fn counts(in_use: &InUse) -> Vec<usize> {
    in_use.by_root().into_values().collect()
}

fn of(in_use: &InUse, root: &Authority) -> usize {
    in_use.by_root().get(&sha256(&root.certificate)).copied().unwrap_or(0)
}

#[test]
fn tunnels_are_counted_by_root_over_all_identities() {
    let (old, new) = (Authority::root(), Authority::root());
    let in_use = InUse::default();
    let both = || roots(&[&old, &new]);
    let (mine, yours) = (Trust::counted(both(), &in_use), Trust::counted(both(), &in_use));
    let (a, b) = (old.leaf(A, |_| {}), new.leaf(B, |_| {}));
    let first = mine.hold(&a.chain).unwrap();
    let held = [mine.hold(&a.chain).unwrap(), yours.hold(&a.chain).unwrap(), yours.hold(&b.chain).unwrap()];
    assert_eq!((of(&in_use, &old), of(&in_use, &new)), (3, 1));
    assert_eq!(lock(&first.state.peers).len(), 1, "a chain is kept once");
    drop(first);
    assert_eq!((of(&in_use, &old), of(&in_use, &new)), (2, 1));
    let state = Arc::clone(&held[0].state);
    drop(held);
    assert!(counts(&in_use).is_empty() && lock(&state.peers).is_empty());
}

#[tokio::test]
async fn a_root_that_goes_ends_the_tunnels_that_rest_on_it_and_no_others() {
    let (old, new) = (Authority::root(), Authority::root());
    let trust = Trust::new(roots(&[&old, &new]));
    let (leaving, staying) =
        (trust.hold(&old.leaf(A, |_| {}).chain).unwrap(), trust.hold(&new.leaf(B, |_| {}).chain).unwrap());
    trust.set(roots(&[&new]));
    let why = leaving.lost().await;
    assert!(matches!(why, TlsError::Chain { .. }), "{why}");
    assert!(staying.lost().now_or_never().is_none());
    assert_eq!(counts(trust.in_use()), [1]);
    // Nobody vouches for the domain at all.
    trust.set(TrustBundles::new().into());
    assert!(matches!(staying.lost().await, TlsError::UnknownTrustDomain { .. }));
}

#[tokio::test]
async fn a_revoked_leaf_or_authority_ends_its_tunnels() {
    let root = Authority::root();
    let middle = root.intermediate(|_| {});
    let shown = |who| middle.leaf(who, |_| {}).with(&middle);
    let trust = Trust::new(roots(&[&root]));
    let (a, b) = (shown(A), shown(B));
    let (held_a, held_b) = (trust.hold(&a.chain).unwrap(), trust.hold(&b.chain).unwrap());
    trust.set(revoking(&root, &middle.list(&[a.leaf()], 60)));
    assert!(matches!(held_a.lost().await, TlsError::Revoked { above: None, .. }));
    assert!(held_b.lost().now_or_never().is_none());
    trust.set(revoking(&root, &root.list(&[&middle.certificate], 60)));
    assert!(matches!(held_b.lost().await, TlsError::Revoked { above: Some(_), .. }));
    // Who is trusted again connects again, while the old tunnel is still on its way out.
    trust.set(roots(&[&root]));
    let again = trust.hold(&a.chain).unwrap();
    drop(held_a);
    assert_eq!(counts(trust.in_use()), [1]);
    assert!(again.lost().now_or_never().is_none());
}

/// The handshake was verified by the state before; the tunnel is entered after the change.
#[test]
fn a_handshake_across_the_change_is_refused() {
    let (root, other) = (Authority::root(), Authority::root());
    let trust = Trust::new(roots(&[&root]));
    let shown = root.leaf(A, |_| {});
    trust.set(roots(&[&other]));
    assert!(trust.hold(&shown.chain).is_err());
    // Also where a tunnel of the same peer was there already.
    trust.set(roots(&[&root]));
    let _held = trust.hold(&shown.chain).unwrap();
    trust.set(roots(&[&other]));
    assert!(trust.hold(&shown.chain).is_err());
    assert!(counts(trust.in_use()).is_empty());
}

#[tokio::test]
async fn time_alone_ends_nobody() {
    let now = SystemTime::now();
    let (past, ahead) = (now - Duration::from_secs(10), now + Duration::from_secs(1000));
    let root = Authority::root_with(|p| p.not_after = past.into());
    let shown = root.leaf(A, |p: &mut CertificateParams| p.not_after = past.into());
    let then = now - Duration::from_secs(20);
    let stands = |trusted: &Trusted| rests_on(&shown.chain, trusted, then).is_ok();
    assert!(stands(&roots(&[&root])), "the leaf and the root have expired since");
    // Its successor, of the same key and younger than the tunnel.
    let renewed = root.again(&root, |p| {
        p.distinguished_name.push(DnType::CommonName, "test root");
        p.not_before = (now - Duration::from_secs(5)).into();
        p.not_after = ahead.into();
    });
    let mut only_renewed = TrustBundles::new();
    only_renewed.add(&domain("mesh.test"), [renewed]).unwrap();
    assert!(stands(&only_renewed.clone().into()), "the root was renewed");
    assert!(!stands(&roots(&[&Authority::root()])));
    // The list that was in force then is due by now.
    let list = root.list(&[], 3605);
    assert!(stands(&revoking(&root, &list)));
    assert!(!stands(&revoking(&root, &root.list(&[shown.leaf()], 3605))));
    // So it is with whoever is connected.
    let trust = Trust::new(roots(&[&root]));
    let held = trust.hold(&root.leaf(B, |_| {}).chain);
    assert!(held.is_err(), "a new tunnel needs roots that are valid");
    let peer = Peer { since: then, ..Peer::new(&shown.chain) };
    let any = Trust::new(only_renewed.into()).hold(&root.leaf(B, |_| {}).chain).unwrap();
    peer.look_at(&any.state).unwrap();
}

/// The same leaf by way of two certificates of its authority, one of which is revoked.
#[tokio::test]
async fn a_chain_is_not_taken_for_another_of_the_same_leaf() {
    let root = Authority::root();
    let middle = root.intermediate(|_| {});
    let second = middle.again(&root, |p| p.serial_number = Some(rcgen::SerialNumber::from(4711u64)));
    let leaf = middle.leaf(A, |_| {}).chain.remove(0);
    let trust = Trust::new(roots(&[&root]));
    let first = trust.hold(&[leaf.clone(), middle.certificate.clone()]).unwrap();
    let other = trust.hold(&[leaf, second]).unwrap();
    trust.set(revoking(&root, &root.list(&[&middle.certificate], 60)));
    first.lost().await;
    first.state.review();
    assert!(other.lost().now_or_never().is_none());
}

/// So that nobody is kept from dropping the old root by tunnels that do not need it.
#[tokio::test]
async fn who_stands_by_two_roots_counts_for_the_one_that_lasts() {
    let old = Authority::root();
    let new = Authority::root_with(|p| {
        p.not_after = (SystemTime::now() + Duration::from_secs(200_000)).into();
        p.distinguished_name.push(DnType::CommonName, "new root");
    });
    let middle = old.intermediate(|_| {});
    let crossed = middle.again(&new, |_| {});
    let in_use = InUse::default();
    let trust = Trust::counted(roots(&[&old]), &in_use);
    let mut chain = middle.leaf(A, |_| {}).with(&middle).chain;
    chain.push(crossed);
    let held = trust.hold(&chain).unwrap();
    assert_eq!((of(&in_use, &old), of(&in_use, &new)), (1, 0));
    trust.set(roots(&[&old, &new]));
    held.state.review();
    assert_eq!((of(&in_use, &old), of(&in_use, &new)), (0, 1));
    trust.set(roots(&[&old]));
    held.state.review();
    assert_eq!((of(&in_use, &old), of(&in_use, &new)), (1, 0));
    assert!(held.lost().now_or_never().is_none());
}

/// A change returns at once, however many have to be verified again.
#[tokio::test]
async fn a_change_does_not_wait_for_the_review() {
    let (root, other) = (Authority::root(), Authority::root());
    let in_use = InUse::default();
    let trusts: Vec<_> = (0..3).map(|_| Trust::counted(roots(&[&root]), &in_use)).collect();
    let middle = root.intermediate(|_| {});
    let held: Vec<Held> = (0..300)
        .map(|n| {
            let shown: Shown = middle.leaf(&format!("spiffe://mesh.test/ns/n/sa/s{n}"), |_| {}).with(&middle);
            trusts[n % 3].hold(&shown.chain).unwrap()
        })
        .collect();
    assert_eq!(counts(&in_use), [300]);
    {
        let _busy: Vec<_> = held.iter().map(|h| lock(&h.peer.verdict)).collect();
        for trust in &trusts {
            trust.set(roots(&[&other]));
        }
    }
    for held in &held {
        held.lost().await;
    }
    assert!(counts(&in_use).is_empty());
}

/// Tunnels come and go while roots do: in the end nobody is left who is not trusted.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_change_is_missed_by_whoever_comes_meanwhile() {
    let (x, y) = (Authority::root(), Authority::root());
    let shown = [x.leaf(A, |_| {}), y.leaf(B, |_| {})];
    let trust = Trust::new(roots(&[&x, &y]));
    for round in 0..200 {
        let comers: Vec<_> = (0..8)
            .map(|n| {
                let (trust, chain) = (trust.clone(), shown[n % 2].chain.clone());
                tokio::spawn(async move { trust.hold(&chain).ok() })
            })
            .collect();
        let last = if round % 2 == 0 { &x } else { &y };
        trust.set(roots(&[last]));
        for (n, comer) in comers.into_iter().enumerate() {
            let held = comer.await.unwrap();
            if (n % 2 == 0) == (round % 2 == 0) {
                // May have come while the other root was the only one.
                continue;
            }
            if let Some(held) = held {
                held.lost().await;
            }
        }
        assert!(trust.hold(&shown[round % 2].chain).is_ok());
        assert!(trust.hold(&shown[1 - round % 2].chain).is_err());
        trust.set(roots(&[&x, &y]));
    }
}
