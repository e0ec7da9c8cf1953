#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::SystemTime;

use futures::FutureExt;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::*;
use crate::ca::hierarchy::{self, ROOT_LIFETIME};
use crate::ca::tests::support::{Scratch, domain, open, world};

/// An API server that is as a test wants it.
#[derive(Default)]
struct Fake {
    held: Mutex<BTreeMap<Place, Published>>,
    writes: Mutex<usize>,
    reads: Mutex<usize>,
    /// This many of the next writes come too late.
    conflicts: Mutex<usize>,
    /// This many of the next questions fail.
    failures: Mutex<usize>,
    /// Places of which nothing is ever heard.
    silent: Mutex<BTreeSet<Place>>,
    namespaces: watch::Sender<BTreeSet<String>>,
}

fn one_less(left: &Mutex<usize>) -> bool {
    let mut left = left.lock().unwrap();
    let some = *left > 0;
    *left = left.saturating_sub(1);
    some
}

impl Fake {
    async fn ask(&self, place: &Place) -> Result<(), PlaceError> {
        if self.silent.lock().unwrap().contains(place) {
            std::future::pending::<()>().await;
        }
        tokio::task::yield_now().await;
        if one_less(&self.failures) { Err(PlaceError::Failed("503".into())) } else { Ok(()) }
    }

    fn put(&self, place: &Place, pem: &str) {
        let mut held = self.held.lock().unwrap();
        let version = held.get(place).map_or(1, |p| p.version.parse::<u64>().unwrap() + 1).to_string();
        held.insert(place.clone(), Published { pem: pem.into(), version });
    }

    fn texts(&self) -> BTreeMap<Place, String> {
        self.held.lock().unwrap().iter().map(|(place, held)| (place.clone(), held.pem.clone())).collect()
    }
}

impl Places for Fake {
    fn read<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Result<Option<Published>, PlaceError>> {
        async move {
            *self.reads.lock().unwrap() += 1;
            self.ask(place).await?;
            Ok(self.held.lock().unwrap().get(place).cloned())
        }
        .boxed()
    }

    fn write<'a>(
        &'a self,
        place: &'a Place,
        pem: &'a str,
        version: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), PlaceError>> {
        async move {
            self.ask(place).await?;
            if one_less(&self.conflicts) {
                self.put(place, "somebody else's");
            }
            let held = self.held.lock().unwrap().get(place).map(|held| held.version.clone());
            if held.as_deref() != version {
                return Err(PlaceError::Conflict);
            }
            self.put(place, pem);
            *self.writes.lock().unwrap() += 1;
            Ok(())
        }
        .boxed()
    }

    fn namespaces(&self) -> watch::Receiver<BTreeSet<String>> {
        self.namespaces.subscribe()
    }
}

fn bundle() -> Place {
    Place::ClusterTrustBundle { name: "underpass.dev:ca:roots".into(), signer: "underpass.dev/ca".into() }
}

fn map(namespace: &str) -> Place {
    Place::ConfigMap { namespace: namespace.into(), name: "mesh-roots".into() }
}

fn config() -> PublishConfig {
    PublishConfig {
        signer: Some("underpass.dev/ca".into()),
        config_map: Some("mesh-roots".into()),
        ..PublishConfig::new(domain())
    }
}

struct World {
    scratch: Scratch,
    authority: crate::ca::Authority,
    fake: Arc<Fake>,
    task: tokio::task::JoinHandle<()>,
}

impl World {
    fn start(prepare: impl FnOnce(&Fake)) -> Self {
        let (scratch, fake) = (world(), Arc::new(Fake::default()));
        fake.namespaces.send_replace(["shop".to_owned(), "bank".to_owned()].into());
        prepare(&fake);
        let authority = open(&scratch);
        let task = tokio::spawn(publish(fake.clone(), config(), authority.state(), CancellationToken::new()));
        Self { scratch, authority, fake, task }
    }

    fn text(&self) -> String {
        text(&self.authority.state().borrow(), &domain())
    }

    /// Until all these places have what the authority has; time is paused, so this takes none.
    async fn settled(&self, places: &[Place]) {
        let wanted: BTreeMap<_, _> = places.iter().map(|place| (place.clone(), self.text())).collect();
        let until = async {
            while self.fake.texts() != wanted {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let patient = tokio::time::timeout(Duration::from_secs(3600), until).await;
        assert!(patient.is_ok(), "{:?} and not {wanted:?}", self.fake.texts());
    }

    /// A second root beside the first.
    fn another_root(&self) {
        let other = self.scratch.join(&format!("root-{:x}", rand::random::<u32>()));
        hierarchy::make_root(&other, Some(&domain()), ROOT_LIFETIME, SystemTime::now()).unwrap();
        let path = self.scratch.join("ca").join("root-cert.pem");
        let both = std::fs::read_to_string(&path).unwrap()
            + &std::fs::read_to_string(other.join("root-cert.pem")).unwrap();
        std::fs::write(&path, both).unwrap();
        assert!(self.authority.reload().unwrap());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn roots_are_in_every_place_and_follow_the_authority() {
    let w = World::start(|_| ());
    let all = [bundle(), map("shop"), map("bank")];
    w.settled(&all).await;
    w.another_root();
    assert_eq!(CertificateDer::pem_slice_iter(w.text().as_bytes()).count(), 2);
    w.settled(&all).await;
    w.fake.namespaces.send_modify(|n| {
        n.insert("later".into());
    });
    w.settled(&[bundle(), map("shop"), map("bank"), map("later")]).await;
    assert_eq!(*w.fake.writes.lock().unwrap(), 7, "each was written when it had to be and not again");
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_comes_first_is_overwritten_knowingly() {
    let w = World::start(|fake| *fake.conflicts.lock().unwrap() = 3);
    w.settled(&[bundle(), map("shop"), map("bank")]).await;
    // More often than is tried at once.
    *w.fake.conflicts.lock().unwrap() = 40;
    w.another_root();
    w.settled(&[bundle(), map("shop"), map("bank")]).await;
}

#[tokio::test(start_paused = true)]
async fn it_is_tried_again_with_pauses_until_it_works() {
    let w = World::start(|fake| *fake.failures.lock().unwrap() = 30);
    w.settled(&[bundle(), map("shop"), map("bank")]).await;
    assert!(*w.fake.reads.lock().unwrap() < 40, "only what had failed was asked for again");
}

#[tokio::test(start_paused = true)]
async fn a_place_that_does_not_answer_holds_up_no_other_and_no_later_roots() {
    let w = World::start(|fake| {
        fake.silent.lock().unwrap().insert(map("bank"));
    });
    w.settled(&[bundle(), map("shop")]).await;
    w.another_root();
    w.settled(&[bundle(), map("shop")]).await;
    w.fake.silent.lock().unwrap().clear();
    w.settled(&[bundle(), map("shop"), map("bank")]).await;
}

#[tokio::test(start_paused = true)]
async fn what_somebody_has_changed_is_put_right() {
    let w = World::start(|_| ());
    let all = [bundle(), map("shop"), map("bank")];
    w.settled(&all).await;
    w.fake.put(&bundle(), "no roots of ours");
    w.fake.held.lock().unwrap().remove(&map("shop"));
    w.settled(&all).await;
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_is_gone_is_not_written_to() {
    let w = World::start(|fake| {
        fake.silent.lock().unwrap().insert(map("bank"));
    });
    w.settled(&[bundle(), map("shop")]).await;
    w.fake.namespaces.send_replace(["shop".to_owned()].into());
    w.fake.silent.lock().unwrap().clear();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    w.settled(&[bundle(), map("shop")]).await;
}

/// Somebody's script may put key and certificate into one file.
#[tokio::test(start_paused = true)]
async fn a_private_key_among_the_roots_is_not_published() {
    let w = World::start(|_| ());
    let path = w.scratch.join("ca").join("root-cert.pem");
    let key = std::fs::read_to_string(w.scratch.join("root").join("root-key.pem")).unwrap();
    let certificate = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("# a comment\n{key}{certificate}{certificate}")).unwrap();
    w.authority.reload().unwrap();
    w.settled(&[bundle(), map("shop"), map("bank")]).await;
    for text in w.fake.texts().values() {
        assert!(
            text.contains("BEGIN CERTIFICATE") && !text.contains("PRIVATE") && !text.contains('#'),
            "{text}"
        );
    }
    assert!(
        !w.authority.state().borrow().roots_pem.contains("PRIVATE"),
        "agents get it with each certificate"
    );
}

#[test]
fn replicas_write_the_same_whatever_the_order_in_their_files() {
    let scratch = world();
    let ca = scratch.join("ca").join("root-cert.pem");
    let other = scratch.join("other");
    hierarchy::make_root(&other, Some(&domain()), ROOT_LIFETIME, SystemTime::now()).unwrap();
    let [a, b] = [ca.clone(), other.join("root-cert.pem")].map(|p| std::fs::read_to_string(p).unwrap());
    let of = |text: String| {
        std::fs::write(&ca, text).unwrap();
        text_of(&open(&scratch))
    };
    let (one, two) = (of(format!("{a}{b}")), of(format!("{b}\n\n{a}{b}")));
    assert_eq!(one, two);
}

fn text_of(authority: &crate::ca::Authority) -> String {
    text(&authority.state().borrow(), &domain())
}

#[tokio::test(start_paused = true)]
async fn what_is_there_already_is_not_written_again() {
    let w = World::start(|_| ());
    w.settled(&[bundle(), map("shop"), map("bank")]).await;
    let replica = publish(w.fake.clone(), config(), w.authority.state(), CancellationToken::new());
    assert!(tokio::time::timeout(Duration::from_secs(3600), replica).await.is_err());
    assert_eq!(*w.fake.writes.lock().unwrap(), 3, "nor by another replica, nor when it is looked again");
}
