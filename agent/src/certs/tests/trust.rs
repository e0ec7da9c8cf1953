//! Composed trust: the issuer's roots, configured files, and what becomes of handshakes when they change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};

use super::support::{CART, Scratch, TILL, id};
use crate::certs::{
    CertError, CertState, Config, Issued, Issuer, Manager, Nudge, Surroundings, TrustConfig, TrustFiles,
};
use crate::model::SpiffeId;
use crate::tls::testing::{Authority, bundles, domain, handshake};
use crate::tls::{self, Trust, TrustBundles};

/// Signs under whichever authority it holds at the time; keeps roots and gives nudges if it is told to.
struct Changing {
    authority: std::sync::Mutex<Arc<Authority>>,
    roots: Option<watch::Sender<Option<TrustBundles>>>,
    nudges: std::sync::Mutex<Option<mpsc::UnboundedReceiver<Nudge>>>,
    calls: std::sync::atomic::AtomicUsize,
}

impl Changing {
    fn new(authority: &Arc<Authority>, roots: Option<Option<TrustBundles>>) -> Arc<Self> {
        Arc::new(Self {
            authority: std::sync::Mutex::new(authority.clone()),
            roots: roots.map(watch::Sender::new),
            nudges: std::sync::Mutex::default(),
            calls: Default::default(),
        })
    }

    fn sign_under(&self, authority: &Arc<Authority>) {
        *self.authority.lock().unwrap() = authority.clone();
    }

    fn keep(&self, roots: TrustBundles) {
        self.roots.as_ref().unwrap().send_replace(Some(roots));
    }

    fn calls(&self) -> usize {
        self.calls.load(std::sync::atomic::Ordering::SeqCst)
    }
}

impl Issuer for Changing {
    fn issue<'a>(&'a self, identity: &'a SpiffeId) -> BoxFuture<'a, Result<Issued, CertError>> {
        async move {
            self.calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let authority = self.authority.lock().unwrap().clone();
            tokio::time::sleep(Duration::from_millis(10)).await;
            let shown = authority.leaf(&identity.to_string(), |_| {});
            let roots = bundles(&[(identity.trust_domain().as_str(), &authority)]);
            Ok(Issued { key: zeroize::Zeroizing::new(shown.key()), chain: shown.chain, roots })
        }
        .boxed()
    }

    fn name(&self) -> &str {
        "changing"
    }

    fn roots(&self) -> Option<watch::Receiver<Option<TrustBundles>>> {
        self.roots.as_ref().map(watch::Sender::subscribe)
    }

    fn nudges(&self) -> Option<mpsc::UnboundedReceiver<Nudge>> {
        self.nudges.lock().unwrap().take()
    }
}

fn write(scratch: &Scratch, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = scratch.path().join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn files(bundles: &[(&str, &Path)], lists: &[&Path]) -> TrustConfig {
    TrustConfig {
        bundles: bundles.iter().map(|(d, path)| (domain(d), path.to_path_buf())).collect(),
        revocation_lists: lists.iter().map(|path| path.to_path_buf()).collect(),
        poll: Duration::from_millis(50),
    }
}

fn manager(issuer: &Arc<Changing>, trust: TrustFiles) -> Manager {
    let around = Surroundings { trust, die: Box::new(|| 0.5), ..Surroundings::default() };
    Manager::within(issuer.clone(), &Config::default(), around)
}

/// Whether a server with our identity lets `peer` in, who is signed by `authority`.
fn lets_in(ours: &crate::certs::Identity, authority: &Authority, peer: &str) -> bool {
    let trust = Trust::from(ours.trust().now().bundles.clone());
    let peer = authority.certificate(peer);
    let expected = ours.certificate().identity().clone();
    let Ok(client) = tls::client_config(&peer, &trust, &[expected]) else { return false };
    let done = handshake(client, ours.server_config());
    done.client_end.is_ok() && done.server_end.is_ok()
}

/// Until it holds; a test that hangs here is ended by the runner.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let holds = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), holds).await.unwrap_or_else(|_| panic!("never: {what}"));
}

const FRIEND: &str = "spiffe://friend.test/ns/shop/sa/till";

#[tokio::test]
async fn a_federated_bundle_lets_its_own_domain_in_and_nobody_of_ours() {
    let (ours, friend, scratch) = (Arc::new(Authority::root()), Authority::root(), Scratch::new());
    let path = write(&scratch, "friend.pem", &friend.pem);
    let trust = TrustFiles::open(&files(&[("friend.test", &path)], &[])).unwrap();
    let lease = manager(&Changing::new(&ours, None), trust).lease(&id(CART));
    let identity = lease.ready().await.unwrap();
    assert!(lets_in(&identity, &ours, TILL));
    assert!(lets_in(&identity, &friend, FRIEND));
    assert!(!lets_in(&identity, &friend, TILL), "a friend's authority makes no certificates for us");
    assert!(!lets_in(&identity, &ours, FRIEND), "nor ours for friends");
    assert!(!lets_in(&identity, &ours, "spiffe://stranger.test/ns/shop/sa/till"));
}

#[tokio::test]
async fn the_issuers_roots_stand_in_place_of_those_that_come_with_certificates() {
    let (one, two) = (Arc::new(Authority::root()), Arc::new(Authority::root()));
    let issuer = Changing::new(&one, Some(None));
    let manager = manager(&issuer, TrustFiles::default());
    let lease = manager.lease(&id(CART));
    let identity = lease.ready().await.unwrap();
    assert!(lets_in(&identity, &one, TILL) && !lets_in(&identity, &two, TILL));

    // Both: handshakes of the very same identity take the new one at once, and nothing is fetched.
    issuer.keep(bundles(&[("mesh.test", &one), ("mesh.test", &two)]));
    until("both roots", || lets_in(&identity, &two, TILL)).await;
    assert!(lets_in(&identity, &one, TILL));
    assert_eq!(issuer.calls(), 1);

    // The old one goes before the issuer signs by the new: it is asked, and told what is wrong.
    issuer.keep(bundles(&[("mesh.test", &two)]));
    until("a complaint", || manager.list()[0].last_error.is_some()).await;
    let error = manager.list()[0].last_error.clone().unwrap();
    assert!(error.contains("changing") && error.contains("do not vouch"), "{error}");
    assert!(!lets_in(&identity, &one, TILL));
    assert_eq!(manager.list()[0].state, CertState::RenewalFailing, "what is held stays in use");

    issuer.sign_under(&two);
    until("the new authority's", || manager.list()[0].last_error.is_none()).await;
    let renewed = lease.current().unwrap();
    assert_ne!(renewed.certificate().serial(), identity.certificate().serial());
    assert!(lets_in(&renewed, &two, TILL));
    let digest = tls::hex(&tls::sha256(&two.certificate));
    assert_eq!(manager.list()[0].root_sha256.as_deref(), Some(&*digest));
}

#[tokio::test]
async fn files_are_followed_however_they_are_replaced_and_a_broken_one_changes_nothing() {
    let (ours, scratch) = (Arc::new(Authority::root()), Scratch::new());
    let (first, second, third) = (Authority::root(), Authority::root(), Authority::root());
    // As kubelet mounts a ConfigMap.
    let version = |name: &str, pem: &str| {
        let folder = scratch.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("friend.pem"), pem).unwrap();
        let fresh = scratch.path().join("..data_tmp");
        std::os::unix::fs::symlink(name, &fresh).unwrap();
        std::fs::rename(&fresh, scratch.path().join("..data")).unwrap();
    };
    version("..1", &first.pem);
    let path = scratch.path().join("friend.pem");
    std::os::unix::fs::symlink("..data/friend.pem", &path).unwrap();

    let trust = TrustFiles::open(&files(&[("friend.test", &path)], &[])).unwrap();
    let manager = manager(&Changing::new(&ours, None), trust);
    let lease = manager.lease(&id(CART));
    let identity = lease.ready().await.unwrap();
    let mut heard = identity.trust().subscribe();
    assert!(lets_in(&identity, &first, FRIEND));

    version("..2", &format!("{}{}", first.pem, second.pem));
    heard.changed().await.unwrap();
    assert!(lets_in(&identity, &first, FRIEND) && lets_in(&identity, &second, FRIEND));

    let problem = || manager.trust().files[0].problem.clone();
    let half = &third.pem[..third.pem.len() / 2];
    let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    for (name, broken) in [("..3", String::new()), ("..4", second.pem.clone() + half), ("..5", key.into())] {
        version(name, &broken);
        until(name, || problem().is_some()).await;
        assert!(lets_in(&identity, &first, FRIEND) && lets_in(&identity, &second, FRIEND), "{name}");
        assert!(!lets_in(&identity, &third, FRIEND), "{name}");
        version(&format!("{name}-good"), &format!("{}{}", first.pem, second.pem));
        until("it is well again", || problem().is_none()).await;
    }
    std::fs::remove_file(&path).unwrap();
    until("it is gone", || problem().is_some_and(|p| p.contains("friend.pem"))).await;
    assert!(lets_in(&identity, &first, FRIEND));

    std::fs::write(&path, &third.pem).unwrap();
    until("another", || lets_in(&identity, &third, FRIEND)).await;
    assert!(!lets_in(&identity, &first, FRIEND), "a root that was removed counts no more");
}

#[tokio::test]
async fn a_file_that_is_broken_at_the_start_is_an_error_that_names_it() {
    let scratch = Scratch::new();
    let (empty, garbage) = (write(&scratch, "empty", ""), write(&scratch, "garbage", [0x30, 0x82, 1, 2]));
    let absent = scratch.path().join("absent");
    for (path, name) in [(&empty, "empty"), (&garbage, "garbage"), (&absent, "absent")] {
        for config in [files(&[("friend.test", path)], &[]), files(&[], &[path])] {
            let Err(error) = TrustFiles::open(&config) else { panic!("{name} is taken") };
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}

#[tokio::test]
async fn a_revocation_list_counts_as_soon_as_it_is_there() {
    let (ours, scratch) = (Arc::new(Authority::root()), Scratch::new());
    let peer = ours.certificate(TILL);
    let leaf = |identity: &crate::certs::Identity| identity.certificate().chain()[0].clone();
    let path = write(&scratch, "list.crl", ours.list(&[], 30));
    let trust = TrustFiles::open(&files(&[], &[&path])).unwrap();
    let manager = manager(&Changing::new(&ours, None), trust);
    let lease = manager.lease(&id(CART));
    let identity = lease.ready().await.unwrap();
    let enters = || {
        let client = tls::client_config(&peer, bundles(&[("mesh.test", &ours)]), &[id(CART)]).unwrap();
        handshake(client, identity.server_config()).server_end.is_ok()
    };
    assert!(enters());
    write(&scratch, "list.crl", ours.list(&[&peer.chain()[0]], 20));
    until("it is revoked", || !enters()).await;
    assert_eq!(manager.trust().revocation_lists[0].revoked, 1);
    assert_eq!(manager.list()[0].state, CertState::Valid, "ours is not on the list");

    // Ours is taken back: another is asked for.
    let before = lease.current().unwrap();
    write(&scratch, "list.crl", ours.list(&[&peer.chain()[0], &leaf(&before)], 10));
    until("another", || lease.current().unwrap().certificate().serial() != before.certificate().serial())
        .await;
}

#[tokio::test]
async fn a_nudge_fetches_anew_and_one_about_the_authority_only_what_others_have_signed() {
    let (old, new) = (Arc::new(Authority::root()), Arc::new(Authority::root()));
    let issuer = Changing::new(&old, Some(Some(bundles(&[("mesh.test", &old), ("mesh.test", &new)]))));
    let (nudge, heard) = mpsc::unbounded_channel();
    *issuer.nudges.lock().unwrap() = Some(heard);
    let manager = manager(&issuer, TrustFiles::default());
    let (cart, till) = (manager.lease(&id(CART)), manager.lease(&id(TILL)));
    let (first, other) = (cart.ready().await.unwrap(), till.ready().await.unwrap());
    nudge.send(Nudge::Identity(id(CART))).unwrap();
    let serial = |lease: &crate::certs::Lease| lease.current().unwrap().certificate().serial().to_owned();
    until("another for the cart", || serial(&cart) != first.certificate().serial()).await;
    assert_eq!(serial(&till), other.certificate().serial());
    assert_eq!(issuer.calls(), 3);

    // The cart's next is signed by the new authority already; the till's by the old.
    issuer.sign_under(&new);
    nudge.send(Nudge::Identity(id(CART))).unwrap();
    let key_of = |lease: &crate::certs::Lease| {
        lease.current().unwrap().certificate().authority_key_id().map(<[u8]>::to_vec)
    };
    let before = key_of(&till);
    until("the new authority's for the cart", || key_of(&cart) != before).await;
    let (authority, kept) = (key_of(&cart).unwrap(), serial(&cart));
    nudge
        .send(Nudge::SignedByOthers { authority: authority.clone(), within: Duration::from_millis(50) })
        .unwrap();
    until("the new authority's for the till", || key_of(&till).as_ref() == Some(&authority)).await;
    assert_eq!(serial(&cart), kept, "the new authority's own stay");
    assert_eq!(issuer.calls(), 5);
    assert_eq!(manager.list()[0].authority_key_id, Some(tls::hex(&authority)));

    // A replica that is behind answers with the old: asked again soon, and not without pause.
    issuer.sign_under(&old);
    nudge.send(Nudge::Identity(id(CART))).unwrap();
    until("the old authority's", || key_of(&cart) == before).await;
    issuer.sign_under(&new);
    until("the new authority's again", || key_of(&cart).as_ref() == Some(&authority)).await;
    assert_eq!(issuer.calls(), 7);
}

/// A controller whose word is stale names an authority that signs no more, again and again.
#[tokio::test(start_paused = true)]
async fn repeated_word_of_an_authority_that_does_not_sign_has_nobody_renew_without_pause() {
    let (old, new) = (Arc::new(Authority::root()), Arc::new(Authority::root()));
    let issuer = Changing::new(&old, Some(Some(bundles(&[("mesh.test", &old), ("mesh.test", &new)]))));
    let (nudge, heard) = mpsc::unbounded_channel();
    *issuer.nudges.lock().unwrap() = Some(heard);
    let manager = manager(&issuer, TrustFiles::default());
    let lease = manager.lease(&id(CART));
    let authority = |of: &crate::certs::Identity| of.certificate().authority_key_id().unwrap().to_vec();
    let before = authority(&lease.ready().await.unwrap());
    let of = |authority: Vec<u8>| Nudge::SignedByOthers { authority, within: Duration::from_millis(50) };
    for _ in 0..100 {
        nudge.send(of(vec![1])).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // The first, and then after 2, 4, 8, 16, 32 and 64 seconds at the soonest.
    assert!((2..=8).contains(&issuer.calls()), "{} calls", issuer.calls());

    // Of another authority nothing is known against it.
    issuer.sign_under(&new);
    let calls = issuer.calls();
    nudge.send(of(new.certificate(CART).authority_key_id().unwrap().to_vec())).unwrap();
    until("the new authority's", || authority(&lease.current().unwrap()) != before).await;
    assert_eq!(issuer.calls(), calls + 1);
}

#[tokio::test]
async fn no_key_shows_in_anything_that_is_printed() {
    let authority = Arc::new(Authority::root());
    let shown = authority.leaf(CART, |_| {});
    let key = shown.key();
    let issued = Issued {
        roots: bundles(&[("mesh.test", &authority)]),
        chain: shown.chain.clone(),
        key: zeroize::Zeroizing::new(shown.key()),
    };
    let manager = manager(&Changing::new(&authority, None), TrustFiles::default());
    let lease = manager.lease(&id(CART));
    lease.ready().await.unwrap();
    let certificate = tls::Certificate::new(shown.chain.clone(), shown.key()).unwrap();
    let identity = crate::certs::Identity::new(certificate, bundles(&[("mesh.test", &authority)])).unwrap();
    let printed = [
        format!("{issued:?} {identity:?} {lease:?} {manager:?} {:?} {:?}", manager.list(), manager.trust()),
        serde_json::to_string(&(manager.list(), manager.trust())).unwrap(),
    ];
    // The private scalar of a P-256 key in PKCS#8 follows this header.
    let der = key.secret_der();
    let at = der.windows(4).position(|w| w == [0x02, 0x01, 0x01, 0x04]).unwrap() + 5;
    let scalar = &der[at..at + 32];
    let base64 = rcgen::KeyPair::try_from(der).unwrap().serialize_pem();
    for text in printed {
        for part in scalar.windows(6) {
            let list = format!("{part:?}");
            assert!(
                !text.contains(&tls::hex(part)) && !text.contains(list.trim_matches(['[', ']'])),
                "{text}"
            );
        }
        assert!(!base64.lines().skip(1).any(|line| text.contains(line)), "{text}");
    }
}
