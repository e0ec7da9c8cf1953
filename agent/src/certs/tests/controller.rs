//! The controller's issuer: the node's own papers, and a stream of roots from controllers that are down, slow,
//! restarted, or hostile.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::ServerConfig;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tonic::{Code, Status};
use underpass_proto::underpass::v1::{Bundle, HeldCertificate, RestingTunnels, TrustUpdate};

use super::istio_server::{Answer, Asked, Hierarchy, Server, config};
use super::support::{CART, Scratch, Scripted, clock, id, manager};
use crate::certs::{
    ClientFiles, ControllerIssuer, EmbeddedIssuer, Issuer, IstioConfig, Nudge, ReportSource, TrustConfig,
    TrustFiles,
};
use crate::tls::TrustBundles;
use crate::tls::testing::{Authority, bundles, gullible_server};

const TOKEN: &str = "eyJ.node.token";

#[tokio::test]
async fn the_node_s_own_certificate_proves_it() {
    let place = Place::new();
    let server = place.server().await;
    let config = IstioConfig { token_file: None, cluster_id: String::new(), ..place.config(server.address) };
    let issuer = ControllerIssuer::new(config, place.state()).unwrap();
    issuer.issue(&id(CART)).await.unwrap();
    issuer.issue(&id(CART)).await.unwrap();
    assert_eq!(server.connections(), 1);
    // Replaced papers count from the next call on.
    let first = fs::read(place.scratch.path().join("node.der")).unwrap();
    place.write_papers();
    issuer.issue(&id(CART)).await.unwrap();
    assert_eq!(server.connections(), 2);
    let asked = server.asked.lock().unwrap().clone();
    assert_eq!((&asked[0].shown, &asked[1].shown), (&first, &first));
    assert_eq!(asked[2].shown, fs::read(place.scratch.path().join("node.der")).unwrap());
    assert_ne!(asked[2].shown, first);
    assert_eq!((&*asked[0].authorization, &*asked[0].cluster, &*asked[0].identity), ("", "", CART));

    for (file, text) in [("node.key", ""), ("node.pem", "nothing"), ("node.key", "-----BEGIN")] {
        place.write_papers();
        fs::write(place.scratch.path().join(file), text).unwrap();
        let error = issuer.issue(&id(CART)).await.unwrap_err().to_string();
        assert!(error.contains("underpass ca node") && error.contains("/node."), "{error}");
    }
    assert_eq!(server.asked.lock().unwrap().len(), 3);
}

#[test]
fn a_node_without_papers_is_told_at_once() {
    let place = Place::new();
    let bare =
        IstioConfig { token_file: None, client: None, ..place.config((Ipv4Addr::LOCALHOST, 1).into()) };
    let error = ControllerIssuer::new(bare, place.state()).unwrap_err();
    assert!(error.contains("clientCertificate") && error.contains("tokenFile"), "{error}");
}

#[tokio::test]
async fn roots_come_at_once_and_count_as_in_force_when_every_handshake_is_judged_by_them() {
    let place = Place::new();
    let mut server = place.server().await;
    let mut follower = place.follow(server.address);
    let mut session = server.session().await;
    assert_eq!(session.authorization, format!("Bearer {TOKEN}"));
    assert_eq!(session.shown, fs::read(place.scratch.path().join("node.der")).unwrap());
    let report = session.report().await.unwrap();
    assert_eq!((&*report.node, &*report.version), ("node-1", ""));
    assert_eq!(report.certificates, follower.source.held.lock().unwrap().clone());
    assert_eq!(*follower.roots.borrow(), None);

    let root = Authority::root();
    session.send(update("one", &[("mesh.test", &root)]));
    assert_eq!(follower.next_roots().await, bundles(&[("mesh.test", &root)]));

    // Something else changes meanwhile, and is reported without the version.
    *follower.source.tunnels.lock().unwrap() = vec![RestingTunnels { root: vec![7], count: 3 }];
    let report = session.report().await.unwrap();
    assert_eq!((&*report.version, report.tunnels[0].count), ("", 3));
    assert_eq!(*follower.source.judged.lock().unwrap(), bundles(&[("mesh.test", &root)]));
    follower.source.in_force.store(true, Ordering::SeqCst);
    assert_eq!(session.report().await.unwrap().version, "one");

    // The next is reported again only when it is in force, and until then the one before is.
    follower.source.in_force.store(false, Ordering::SeqCst);
    session.send(update("two", &[("mesh.test", &root), ("mesh.test", &Authority::root())]));
    assert_eq!(follower.next_roots().await.roots(&"mesh.test".parse().unwrap()).count(), 2);
    *follower.source.tunnels.lock().unwrap() = Vec::new();
    assert_eq!(session.report().await.unwrap().version, "one");
    follower.source.in_force.store(true, Ordering::SeqCst);
    assert_eq!(session.report().await.unwrap().version, "two");
}

#[tokio::test]
async fn a_new_authority_has_certificates_of_the_others_renewed_once() {
    let place = Place::new();
    let mut server = place.server().await;
    let mut follower = place.follow(server.address);
    let mut wanted = update("one", &[("mesh.test", &place.root)]);
    wanted.authority = vec![1; 20];
    let session = server.session().await;
    session.send(wanted.clone());
    wanted.version = "two".into();
    wanted.renew_within_seconds = 30;
    session.send(wanted.clone());
    let nudge = |authority: u8, seconds| Nudge::SignedByOthers {
        authority: vec![authority; 20],
        within: Duration::from_secs(seconds),
    };
    assert_eq!(follower.nudges.recv().await, Some(nudge(1, 30)));
    // The same again, and from another replica, says nothing new.
    session.send(wanted.clone());
    drop(session);
    let session = server.session().await;
    session.send(wanted.clone());
    wanted.version = "three".into();
    session.send(wanted.clone());
    wanted.authority = vec![2; 20];
    session.send(wanted);
    assert_eq!(follower.nudges.recv().await, Some(nudge(2, 30)));
}

#[tokio::test]
async fn updates_that_would_leave_the_mesh_without_roots_or_with_strange_ones_are_refused() {
    let place = Place::new();
    let mut server = place.server().await;
    let mut follower = place.follow(server.address);
    follower.source.in_force.store(true, Ordering::SeqCst);
    let root = Authority::root();
    let mut session = server.session().await;
    session.send(update("good", &[("mesh.test", &root)]));
    follower.next_roots().await;

    let with = |roots: Vec<Vec<u8>>| TrustUpdate {
        bundles: vec![Bundle { trust_domain: "mesh.test".into(), roots }],
        ..update("bad", &[])
    };
    let sound = root.certificate.to_vec();
    let over = Authority::root_with(|root| {
        root.not_before = std::time::UNIX_EPOCH.into();
        root.not_after = (std::time::UNIX_EPOCH + Duration::from_secs(86_400)).into();
    });
    let leaf = root.leaf(CART, |_| {}).chain[0].to_vec();
    let hostile = [
        ("nothing", update("bad", &[])),
        ("an empty bundle", with(vec![])),
        ("garbage", with(vec![vec![0; 40]])),
        ("garbage beside a sound root", with(vec![sound.clone(), vec![0x30, 0x82]])),
        ("an empty root", with(vec![Vec::new()])),
        ("a leaf", with(vec![leaf])),
        ("a root that is over", update("bad", &[("mesh.test", &over)])),
        ("roots of somebody else alone", update("bad", &[("other.test", &root)])),
        ("too many", with((0..70).map(|_| sound.clone()).collect())),
        ("no version", update("", &[("mesh.test", &Authority::root())])),
        ("a long version", update(&"v".repeat(200), &[("mesh.test", &Authority::root())])),
        ("a version with a line", update("a\nb", &[("mesh.test", &Authority::root())])),
        (
            "a long authority",
            TrustUpdate { authority: vec![1; 100], ..update("bad", &[("mesh.test", &Authority::root())]) },
        ),
    ];
    for (what, hostile) in hostile {
        session.send(hostile);
        // Updates are taken in their order: when the next sound one is there, this one has been judged.
        let next = Authority::root();
        session.send(update("next", &[("mesh.test", &next), ("other.test", &root)]));
        let got = follower.next_roots().await;
        assert_eq!(got, bundles(&[("mesh.test", &next)]), "after {what}");
    }
    loop {
        let report = session.report().await.unwrap();
        assert!(["", "good", "next"].contains(&&*report.version), "{report:?}");
        if report.version == "next" {
            break;
        }
    }
}

#[tokio::test]
async fn an_oversized_update_costs_the_stream_and_not_the_roots() {
    let place = Place::new();
    let mut server = place.server().await;
    let mut follower = place.follow(server.address);
    let root = Authority::root();
    let session = server.session().await;
    session.send(update("one", &[("mesh.test", &place.root), ("mesh.test", &root)]));
    follower.next_roots().await;
    session.send(update(&"x".repeat(2 << 20), &[("mesh.test", &Authority::root())]));
    let session = server.session().await;
    let next = Authority::root();
    session.send(update("two", &[("mesh.test", &next)]));
    assert_eq!(follower.next_roots().await, bundles(&[("mesh.test", &next)]));
}

#[tokio::test]
async fn a_controller_that_is_gone_leaves_the_roots_and_its_replica_is_followed() {
    let place = Place::new();
    let mut server = place.server().await;
    let mut follower = place.follow(server.address);
    follower.source.in_force.store(true, Ordering::SeqCst);
    let mut session = server.session().await;
    session.send(update("one", &[("mesh.test", &place.root)]));
    let roots = follower.next_roots().await;
    while session.report().await.unwrap().version != "one" {}

    let address = server.address;
    drop(session);
    server.stop().await;
    assert_eq!(*follower.roots.borrow(), Some(roots));
    let mut replica = place.server_at(address, &place.root).await;
    let mut session = replica.session().await;
    assert_eq!(session.report().await.unwrap().version, "one", "what is in force stays so");
    session.send(update("one", &[("mesh.test", &place.root)]));
    session.updates.send(Err(Status::unavailable("going away"))).unwrap();
    let mut session = replica.session().await;
    assert_eq!(session.report().await.unwrap().version, "one");
    assert!(!follower.roots.has_changed().unwrap(), "the same roots are no news");
}

/// After a rotation the file on the node may be the old one; what the stream brought is enough.
#[tokio::test]
async fn the_server_may_rest_on_a_root_that_the_stream_brought() {
    let place = Place::new();
    let mut server = place.server().await;
    let mut follower = place.follow(server.address);
    let next = Authority::root();
    let session = server.session().await;
    session.send(update("both", &[("mesh.test", &place.root), ("mesh.test", &next)]));
    follower.next_roots().await;
    let address = server.address;
    drop(session);
    server.stop().await;
    let mut server = place.server_at(address, &next).await;
    let _session = server.session().await;
    follower.issuer.issue(&id(CART)).await.unwrap();

    // Roots of another domain would not do, nor does a stranger's.
    let foreign = Authority::root();
    server.stop().await;
    let stranger = place.server_at(address, &foreign).await;
    // The first may still have the connection that has ended.
    follower.issuer.issue(&id(CART)).await.unwrap_err();
    let error = follower.issuer.issue(&id(CART)).await.unwrap_err().to_string();
    assert!(error.contains("invalid peer certificate"), "{error}");
    assert!(stranger.asked.lock().unwrap().is_empty());
}

/// In the middle of a rotation, with the file of before.
#[tokio::test]
async fn a_restarted_agent_knows_the_controller_by_what_it_brought_and_by_nothing_else() {
    let place = Place::new();
    let mut server = place.server().await;
    let follower = place.follow(server.address);
    follower.source.in_force.store(true, Ordering::SeqCst);
    let next = Authority::root();
    let mut session = server.session().await;
    session.send(update("both", &[("mesh.test", &place.root), ("mesh.test", &next)]));
    while session.report().await.unwrap().version != "both" {}
    let address = server.address;
    drop((follower, session));
    server.stop().await;

    let mut server = place.server_at(address, &next).await;
    let follower = place.follow(address);
    follower.source.in_force.store(true, Ordering::SeqCst);
    let both = bundles(&[("mesh.test", &place.root), ("mesh.test", &next)]);
    assert_eq!(*follower.roots.borrow(), Some(both), "peers are judged by them from the beginning");
    let mut session = server.session().await;
    assert_eq!(session.report().await.unwrap().version, "", "what has not been heard is not acknowledged");
    session.send(update("new", &[("mesh.test", &next)]));
    while session.report().await.unwrap().version != "new" {}
    drop((follower, session));
    server.stop().await;

    let thief = place.server_at(address, &place.root).await;
    let follower = place.follow(address);
    let error = follower.issuer.issue(&id(CART)).await.unwrap_err().to_string();
    assert!(error.contains("invalid peer certificate"), "{error}");
    assert!(thief.asked.lock().unwrap().is_empty());
}

/// The operator's way to a node that was away for a whole rotation, or that a thief had.
#[tokio::test]
async fn a_root_file_that_is_replaced_counts_again_also_for_the_stream_that_is_open() {
    let place = Place::new();
    let mut server = place.server().await;
    let mut follower = place.follow(server.address);
    follower.source.in_force.store(true, Ordering::SeqCst);
    let (theirs, right) = (Authority::root(), Authority::root());
    let mut session = server.session().await;
    session.send(update("theirs", &[("mesh.test", &place.root), ("mesh.test", &theirs)]));
    while session.report().await.unwrap().version != "theirs" {}
    follower.next_roots().await;

    // Half a file is nobody's word.
    place.write("root-cert.pem", &right.pem[..right.pem.len() / 2]);
    follower.issuer.issue(&id(CART)).await.unwrap();
    place.write("root-cert.pem", &right.pem);
    while session.report().await.is_some() {}
    let address = server.address;
    follower.issuer.issue(&id(CART)).await.unwrap_err();
    server.stop().await;
    let mut server = place.server_at(address, &right).await;
    let mut session = server.session().await;
    session.send(update("right", &[("mesh.test", &right)]));
    while session.report().await.unwrap().version != "right" {}
    assert_eq!(follower.next_roots().await, bundles(&[("mesh.test", &right)]));
    drop((follower, session));

    // And before the first contact of an agent that starts: the operator wants the former one back.
    place.write("root-cert.pem", &place.root.pem);
    server.stop().await;
    let mut server = place.server().await;
    let follower = place.follow(server.address);
    assert_eq!(*follower.roots.borrow(), None);
    server.session().await;
}

/// Replicas read their files at different times, and a folder may be an old copy.
#[tokio::test]
async fn a_controller_whose_intermediate_is_revoked_is_followed_no_more_and_its_successor_is() {
    let place = Place::new();
    let (stolen, sound) = (place.root.intermediate(|_| {}), place.root.intermediate(|_| {}));
    let list = place.scratch.path().join("ours.crl");
    fs::write(&list, place.root.list(&[], 60)).unwrap();
    let lists = TrustConfig { revocation_lists: vec![list.clone()], ..TrustConfig::default() };
    let trust = TrustFiles::open(&lists).unwrap();
    tokio::spawn(trust.clone().follow());
    let mut server = place.server_at((Ipv4Addr::LOCALHOST, 0).into(), &stolen).await;
    let address = server.address;
    let mut follower = place.follow_by(IstioConfig { trust, ..place.config(address) });
    follower.source.in_force.store(true, Ordering::SeqCst);
    let mut session = server.session().await;
    session.send(update("before", &[("mesh.test", &place.root)]));
    while session.report().await.unwrap().version != "before" {}
    follower.next_roots().await;

    fs::write(&list, place.root.list(&[&stolen.certificate], 30)).unwrap();
    while session.report().await.is_some() {}
    let connections = server.connections();
    let error = follower.issuer.issue(&id(CART)).await.unwrap_err().to_string();
    assert!(error.contains("is revoked by its issuer"), "{error}");
    assert_eq!(server.connections(), connections, "the impostor is not spoken to");
    server.stop().await;

    let mut server = place.server_at(address, &sound).await;
    let mut session = server.session().await;
    session.send(update("after", &[("mesh.test", &place.root), ("mesh.test", &Authority::root())]));
    while session.report().await.unwrap().version != "after" {}
}

#[tokio::test]
async fn an_update_of_an_earlier_revision_is_not_taken_also_not_after_a_restart() {
    let place = Place::new();
    let mut server = place.server().await;
    let follower = place.follow(server.address);
    follower.source.in_force.store(true, Ordering::SeqCst);
    let next = Authority::root();
    let old = || update("old", &[("mesh.test", &place.root)]);
    let both = || update("both", &[("mesh.test", &place.root), ("mesh.test", &next)]);
    let at = |revision, update| TrustUpdate { revision, ..update };
    let mut session = server.session().await;
    session.send(at(5, both()));
    while session.report().await.unwrap().version != "both" {}
    drop(session);
    let address = server.address;
    server.stop().await;

    let refuses = async |follower: &Follower, session: &mut super::istio_server::Session| {
        let held = follower.roots.borrow().clone().unwrap();
        for earlier in [at(4, old()), at(0, old())] {
            session.send(earlier);
            // Updates are taken in their order.
            session.send(at(5, TrustUpdate { version: "again".into(), ..both() }));
            while session.report().await.unwrap().version != "again" {}
            assert_eq!(follower.roots.borrow().clone().unwrap(), held);
            session.send(at(5, both()));
            loop {
                let report = session.report().await.unwrap();
                assert!(["again", "both"].contains(&&*report.version), "{report:?}");
                assert_eq!(report.revision, 5);
                if report.version == "both" {
                    break;
                }
            }
        }
    };
    let mut server = place.server_at(address, &next).await;
    let mut session = server.session().await;
    assert_eq!(session.report().await.unwrap().revision, 5);
    refuses(&follower, &mut session).await;
    drop((follower, session));

    let mut follower = place.follow(address);
    follower.source.in_force.store(true, Ordering::SeqCst);
    let mut session = server.session().await;
    let report = session.report().await.unwrap();
    assert_eq!((&*report.version, report.revision), ("", 5));
    refuses(&follower, &mut session).await;
    session.send(at(6, update("new", &[("mesh.test", &next)])));
    assert_eq!(follower.next_roots().await, bundles(&[("mesh.test", &next)]));
    while session.report().await.unwrap().version != "new" {}
    drop(session);
    server.stop().await;

    // Of whom the operator names, any is taken: the number may have been somebody else's.
    let mut server = place.server_at(address, &place.root).await;
    place.write("root-cert.pem", &format!("{}\n", place.root.pem));
    let mut session = server.session().await;
    session.send(at(1, old()));
    assert_eq!(follower.next_roots().await, bundles(&[("mesh.test", &place.root)]));
    while session.report().await.unwrap().revision != 1 {}
}

#[tokio::test]
async fn what_is_kept_and_cannot_be_used_leaves_the_root_file() {
    let place = Place::new();
    fs::create_dir(place.state().parent().unwrap()).unwrap();
    fs::write(place.state(), "{").unwrap();
    let mut server = place.server().await;
    let follower = place.follow(server.address);
    assert_eq!(*follower.roots.borrow(), None);
    server.session().await;
}

/// The rotation goes on when a node acknowledges, and the node must find the controller after a restart.
#[tokio::test]
async fn what_cannot_be_kept_is_not_acknowledged() {
    let place = Place::new();
    place.write("state", "in the way of the folder");
    let mut server = place.server().await;
    let mut follower = place.follow(server.address);
    follower.source.in_force.store(true, Ordering::SeqCst);
    let mut session = server.session().await;
    session.send(update("one", &[("mesh.test", &place.root)]));
    follower.next_roots().await;
    session.report().await.unwrap();
    *follower.source.tunnels.lock().unwrap() = vec![RestingTunnels { root: vec![7], count: 3 }];
    let report = session.report().await.unwrap();
    assert_eq!((&*report.version, report.tunnels.len()), ("", 1));
    fs::remove_file(place.scratch.path().join("state")).unwrap();
    while session.report().await.unwrap().version != "one" {}
}

#[tokio::test]
async fn a_controller_that_is_down_or_silent_is_told_and_tried_again() {
    let place = Place::new();
    let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let mut follower = place.follow(free);
    let error = follower.issuer.issue(&id(CART)).await.unwrap_err().to_string();
    for part in ["Unavailable", "refused", &free.to_string(), "node-1", "up and reachable"] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    let mut server = place.server_at(free, &place.root).await;
    // The first stream says nothing, which costs its deadline.
    let mut silent = server.session().await;
    while silent.report().await.is_some() {}
    let session = server.session().await;
    session.send(update("one", &[("mesh.test", &place.root)]));
    follower.next_roots().await;
    assert!(server.connections() <= 3, "{}", server.connections());
}

#[tokio::test]
async fn a_refusal_says_what_to_do_for_a_node_with_a_certificate() {
    let place = Place::new();
    let tls = place.tls(&place.root);
    let address = (Ipv4Addr::LOCALHOST, 0).into();
    let refuse = |_| answer(Err(Status::new(Code::PermissionDenied, "node-1 does not run it")));
    let server = Server::with_tls(address, tls, refuse).await;
    let config = IstioConfig { token_file: None, ..place.config(server.address) };
    let error =
        ControllerIssuer::new(config, place.state()).unwrap().issue(&id(CART)).await.unwrap_err().to_string();
    for part in ["controller does not issue", "node-1 does not run it", "list this node with the key"] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
}

/// The controller takes it as the node's word that a root may be dropped.
#[tokio::test(start_paused = true)]
async fn it_is_known_by_which_roots_every_handshake_is_judged() {
    let (scratch, other, clock) = (Scratch::new(), Authority::root(), clock());
    let issuer = Scripted::new(EmbeddedIssuer::with_clock(&scratch.config(), clock.clone()).unwrap());
    let theirs = issuer.inner.bundles().clone();
    let foreign = bundles(&[("mesh.test", &other)]);
    let mut both = theirs.clone();
    both.add(&"mesh.test".parse().unwrap(), [other.certificate.clone()]).unwrap();
    let manager = manager(&issuer, &clock);
    assert!(manager.judges_by(&foreign), "nobody judges by anything yet");
    manager.lease(&id(CART)).ready().await.unwrap();
    let lease = manager.lease(&id(CART));
    lease.ready().await.unwrap();
    assert!(manager.judges_by(&theirs));
    for other in [&foreign, &both] {
        assert!(!manager.judges_by(other), "{other:?}");
    }
    // A root that is still trusted must not count as dropped.
    lease.current().unwrap().trust().set(both.clone().into());
    assert!(manager.judges_by(&both) && !manager.judges_by(&theirs));
}

/// The files that the issuer reads, and the root of the server's certificate.
struct Place {
    scratch: Scratch,
    root: Authority,
}

impl Place {
    fn new() -> Self {
        let place = Self { scratch: Scratch::new(), root: Authority::root() };
        place.write("token", TOKEN);
        place.write("root-cert.pem", &place.root.pem);
        place.write_papers();
        place
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.scratch.path().join(name), text).unwrap();
    }

    /// As `underpass ca node` makes them: signed by themselves.
    fn write_papers(&self) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::default().self_signed(&key).unwrap();
        self.write("node.key", &key.serialize_pem());
        self.write("node.pem", &certificate.pem());
        fs::write(self.scratch.path().join("node.der"), certificate.der()).unwrap();
    }

    fn config(&self, address: SocketAddr) -> IstioConfig {
        let file = |name| self.scratch.path().join(name);
        IstioConfig {
            name: "controller",
            client: Some(ClientFiles { certificate: file("node.pem"), key: file("node.key") }),
            deadline: Duration::from_secs(2),
            ..config(address, self.scratch.path())
        }
    }

    fn state(&self) -> PathBuf {
        self.scratch.path().join("state/roots.json")
    }

    async fn server(&self) -> Server {
        self.server_at((Ipv4Addr::LOCALHOST, 0).into(), &self.root).await
    }

    async fn server_at(&self, address: SocketAddr, root: &Authority) -> Server {
        let hierarchy = Hierarchy::new();
        Server::with_tls(address, self.tls(root), move |asked: Asked| answer(Ok(hierarchy.issue(&asked))))
            .await
    }

    /// Wants a client certificate, whosever it is.
    fn tls(&self, root: &Authority) -> Arc<ServerConfig> {
        let leaf = root.leaf("spiffe://unused/ns/a/sa/b", |leaf| {
            leaf.subject_alt_names = vec![SanType::IpAddress(Ipv4Addr::LOCALHOST.into())];
        });
        gullible_server(&leaf.with(root))
    }

    fn follow(&self, address: SocketAddr) -> Follower {
        self.follow_by(self.config(address))
    }

    fn follow_by(&self, config: IstioConfig) -> Follower {
        let issuer = Arc::new(ControllerIssuer::new(config, self.state()).unwrap());
        let source = Arc::new(Source::default());
        *source.held.lock().unwrap() =
            vec![HeldCertificate { identity: CART.into(), authority: vec![1], root: vec![2] }];
        Follower {
            roots: issuer.roots().unwrap(),
            nudges: issuer.nudges().unwrap(),
            task: tokio::spawn(issuer.clone().follow(source.clone())),
            issuer,
            source,
        }
    }
}

struct Follower {
    issuer: Arc<ControllerIssuer>,
    source: Arc<Source>,
    roots: watch::Receiver<Option<TrustBundles>>,
    nudges: mpsc::UnboundedReceiver<Nudge>,
    task: JoinHandle<()>,
}

impl Follower {
    async fn next_roots(&mut self) -> TrustBundles {
        tokio::time::timeout(Duration::from_secs(30), self.roots.changed()).await.expect("no roots").unwrap();
        self.roots.borrow_and_update().clone().unwrap()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Default)]
struct Source {
    held: Mutex<Vec<HeldCertificate>>,
    tunnels: Mutex<Vec<RestingTunnels>>,
    in_force: AtomicBool,
    judged: Mutex<TrustBundles>,
}

impl ReportSource for Source {
    fn certificates(&self) -> Vec<HeldCertificate> {
        self.held.lock().unwrap().clone()
    }

    fn tunnels(&self) -> Vec<RestingTunnels> {
        self.tunnels.lock().unwrap().clone()
    }

    fn in_force(&self, roots: &TrustBundles) -> bool {
        *self.judged.lock().unwrap() = roots.clone();
        self.in_force.load(Ordering::SeqCst)
    }
}

fn update(version: &str, roots: &[(&str, &Authority)]) -> TrustUpdate {
    let bundle = |(domain, root): &(&str, &Authority)| Bundle {
        trust_domain: (*domain).into(),
        roots: vec![root.certificate.to_vec()],
    };
    TrustUpdate { version: version.into(), bundles: roots.iter().map(bundle).collect(), ..Default::default() }
}

fn answer(answer: Answer) -> BoxFuture<'static, Answer> {
    futures::future::ready(answer).boxed()
}
