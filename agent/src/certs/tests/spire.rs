//! Certificates from a SPIRE agent: pushed, taken back, and from one that restarts or sends nonsense.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tonic::Status;
use underpass_proto::spire::api::agent::delegatedidentity::v1::X509svidWithKey;

use super::spire_agent::{Agent, Pushed, Svids, bundles, federated, svid, svids, within};
use super::support::{CART, Scratch, TILL, id};
use crate::certs::{CertError, Config, Issued, Issuer, Manager, Nudge, SpireConfig, SpireIssuer};
use crate::tls::testing::{self, Authority};
use crate::tls::{TlsError, TrustBundles};

#[tokio::test]
async fn a_certificate_comes_by_its_selectors_with_its_key_and_the_roots_by_trust_domain() {
    let mut world = World::new();
    let other = Authority::root();
    let manager = Manager::new(world.issuer.clone(), &Config::default());
    let lease = manager.lease(&id(CART));
    let all = [("mesh.test", &[&world.root, &other][..]), ("friends.test", &[&other][..])];
    let all = bundles(&all);
    world.agent().bundles().await.push(all);
    let opened = world.agent().svids().await;
    assert_eq!(opened.selectors, ["k8s:ns:shop", "k8s:sa:cart"]);
    // Of several, the asked one's: whatever stands first.
    let intermediate = world.root.intermediate(|_| {});
    let leaf = intermediate.leaf(CART, |_| {}).with(&intermediate);
    let stranger = svid(&id(TILL), &world.root.leaf(TILL, |_| {}));
    opened.stream.push(svids([stranger, svid(&id(CART), &leaf)]));
    let identity = within(lease.ready()).await.unwrap();
    assert_eq!(identity.certificate().identity(), &id(CART));
    assert_eq!(identity.certificate().chain(), leaf.chain);
    let trusted = world.roots.borrow().clone().unwrap();
    let count = |domain: &str| trusted.roots(&domain.parse().unwrap()).count();
    assert_eq!((count("mesh.test"), count("friends.test")), (2, 1));
    // SPIRE sends the next by itself, at about half of its life.
    let due = manager.list()[0].renewal_due.clone().unwrap();
    let due = time::OffsetDateTime::parse(&due, &time::format_description::well_known::Rfc3339).unwrap();
    assert!(SystemTime::from(due) > SystemTime::now() + Duration::from_secs(3600 * 3 / 4), "{due}");
}

#[tokio::test]
async fn an_identity_believes_the_trust_domains_that_its_entry_federates_with_and_no_others() {
    let (root, friends, others) = (Authority::root(), Authority::root(), Authority::root());
    let scratch = Scratch::new();
    let mut agent = Agent::start(scratch.path().join("admin.sock"));
    let manager = Manager::new(Arc::new(issuer(&scratch)), &Config::default());
    let leases = [CART, TILL].map(|identity| manager.lease(&id(identity)));
    let all = |friends: &Authority, own: &Authority| {
        bundles(&[("mesh.test", &[own]), ("friends.test", &[friends]), ("others.test", &[&others])])
    };
    let roots = agent.bundles().await;
    roots.push(all(&friends, &root));
    let mut streams = Vec::new();
    for _ in &leases {
        let opened = agent.svids().await;
        let (identity, with): (_, &[&str]) =
            if opened.selectors[1] == "k8s:sa:cart" { (CART, &["friends.test"]) } else { (TILL, &[]) };
        let answer = svids([svid(&id(identity), &root.leaf(identity, |_| {}))]);
        opened.stream.push(federated(answer.clone(), with));
        streams.push((identity, opened.stream, answer));
    }
    let believed = |of: usize| {
        let trusted = leases[of].current().map(|held| held.trust().now());
        let domains = trusted.iter().flat_map(|t| t.bundles.domains().map(ToString::to_string));
        domains.collect::<Vec<_>>()
    };
    for lease in &leases {
        within(lease.ready()).await.unwrap();
    }
    assert_eq!(
        (believed(0), believed(1)),
        (vec!["friends.test".into(), "mesh.test".into()], vec!["mesh.test".into()])
    );

    // Another root of a domain that is believed, and the same entry with other friends.
    let next = Authority::root();
    roots.push(all(&next, &root));
    let has = |root: &Authority| {
        let trusted = leases[0].current().unwrap().trust().now();
        trusted.bundles.roots(&"friends.test".parse().unwrap()).any(|held| *held == root.certificate)
    };
    until(|| has(&next) && !has(&friends)).await;
    let (_, stream, answer) = streams.iter().find(|(identity, ..)| *identity == TILL).unwrap();
    stream.push(federated(answer.clone(), &["others.test", "Not.A.Domain"]));
    until(|| believed(1) == ["mesh.test", "others.test"]).await;
    stream.push(answer.clone());
    until(|| believed(1) == ["mesh.test"]).await;
    assert_eq!(believed(0), ["friends.test", "mesh.test"]);
}

fn issuer(scratch: &Scratch) -> SpireIssuer {
    SpireIssuer::new(SpireConfig {
        admin_socket: scratch.path().join("admin.sock"),
        trust_domain: "mesh.test".parse().unwrap(),
        deadline: Duration::from_secs(2),
    })
}

async fn until(mut happened: impl FnMut() -> bool) {
    within(async {
        while !happened() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_spire_pushes_is_told_once_and_is_the_next_answer() {
    let mut world = World::new();
    let first = world.first().await;
    let renewed = world.root.leaf(CART, |_| {});
    let stream = world.stream.take().unwrap();
    stream.push(svids([svid(&id(CART), &renewed)]));
    assert_eq!(world.nudge().await, Nudge::Identity(id(CART)));
    let second = world.issue(CART).await.unwrap();
    assert_ne!(first.chain, second.chain);
    assert_eq!(second.chain, renewed.chain);
    assert_eq!(second.key.secret_der(), renewed.key().secret_der());
    // The same again is no news, and neither is a bundle for the certificate.
    stream.push(svids([svid(&id(CART), &renewed)]));
    let next = world.root.leaf(CART, |_| {});
    stream.push(svids([svid(&id(CART), &next)]));
    assert_eq!(world.nudge().await, Nudge::Identity(id(CART)));
    assert!(world.nudges.try_recv().is_err());
}

#[tokio::test]
async fn roots_come_as_they_change_and_never_leave_ones_own_domain_without() {
    let mut world = World::new();
    let own: &[&Authority] = &[&world.root];
    let (next, friends) = (Authority::root(), Authority::root());
    let stream = world.agent.as_mut().unwrap().bundles().await;
    stream.push(bundles(&[("mesh.test", own)]));
    let mut last = testing::bundles(&[("mesh.test", &world.root)]);
    assert_eq!(roots(&mut world.roots).await, last);

    let mut garbage = bundles(&[("mesh.test", own), ("friends.test", &[&friends])]);
    garbage.ca_certificates.insert("spiffe://Mesh.Test".into(), next.certificate.to_vec());
    garbage.ca_certificates.insert("spiffe://a.test".into(), vec![0x30, 0x82, 1]);
    let cut = next.certificate[..next.certificate.len() - 5].to_vec();
    let mut bad_own = bundles(&[("friends.test", &[&next])]);
    bad_own.ca_certificates.insert("spiffe://mesh.test".into(), cut);
    let both = [("mesh.test", &world.root), ("mesh.test", &next)];
    let friendly = |friend| [("mesh.test", &world.root), ("friends.test", friend)];
    for (what, sent, expected) in [
        ("a domain more", garbage, testing::bundles(&friendly(&friends))),
        ("none of our own", bundles(&[("friends.test", &[&next])]), testing::bundles(&friendly(&next))),
        ("ours empty", bundles(&[("mesh.test", &[])]), testing::bundles(&[("mesh.test", &world.root)])),
        ("ours cut off", bad_own, testing::bundles(&friendly(&next))),
        ("both", bundles(&[("mesh.test", &[&world.root, &next])]), testing::bundles(&both)),
        ("only the new", bundles(&[("mesh.test", &[&next])]), testing::bundles(&[("mesh.test", &next)])),
    ] {
        stream.push(sent);
        let got = roots(&mut world.roots).await;
        assert_eq!(got, expected, "{what}");
        last = got;
    }
    // Nothing at all changes nothing, and a stream that ends neither.
    stream.push(bundles(&[]));
    drop(stream);
    let stream = world.agent().bundles().await;
    assert_eq!(world.roots.borrow().clone().unwrap(), last);
    stream.push(bundles(&[("mesh.test", &[&world.root])]));
    roots(&mut world.roots).await;
}

#[tokio::test]
async fn an_entry_that_is_removed_is_an_error_while_the_certificate_stays() {
    let mut world = World::new();
    let manager = Manager::new(world.issuer.clone(), &Config::default());
    let lease = manager.lease(&id(CART));
    let stream = world.answer(CART).await;
    let held = within(lease.ready()).await.unwrap();
    stream.push(svids([]));
    assert_eq!(world.nudge().await, Nudge::Identity(id(CART)));
    let error = world.issue(CART).await.unwrap_err();
    assert!(matches!(error, CertError::Refused { .. }), "{error:?}");
    let error = error.to_string();
    assert!(error.contains("k8s:ns:shop") && error.contains("k8s:sa:cart"), "{error}");
    assert_eq!(lease.current().unwrap().number(), held.number());
    // It comes back, and whoever was refused hears of it.
    stream.push(svids([svid(&id(CART), &world.root.leaf(CART, |_| {}))]));
    assert_eq!(world.nudge().await, Nudge::Identity(id(CART)));
    world.issue(CART).await.unwrap();
}

#[tokio::test]
async fn a_spire_agent_that_restarts_is_asked_again_for_everything() {
    let mut world = World::new();
    let first = world.first().await;
    world.agent = None;
    // What is held is given while it is fresh: a pod may come in the meantime.
    let stream = world.stream.take().unwrap();
    within(stream.closed()).await;
    assert_eq!(world.issue(CART).await.unwrap().chain, first.chain);
    let error = world.issue(TILL).await.unwrap_err().to_string();
    for part in ["admin.sock", TILL, "is up and has admin_socket_path"] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    world.agent = Some(Agent::start(world.scratch.path().join("admin.sock")));
    world.agent().bundles().await.push(bundles(&[("mesh.test", &[&world.root])]));
    let leaf = |identity| svids([svid(&id(identity), &world.root.leaf(identity, |_| {}))]);
    let (cart, till) = (leaf(CART), leaf(TILL));
    let mut kept = Vec::new();
    for _ in 0..2 {
        let opened = world.agent.as_mut().unwrap().svids().await;
        let answer = if opened.selectors[1].ends_with("cart") { &cart } else { &till };
        opened.stream.push(answer.clone());
        kept.push(opened);
    }
    // One has a newer certificate, the other was refused before.
    let mut nudged = [world.nudge().await, world.nudge().await];
    nudged.sort_by_key(|nudge| format!("{nudge:?}"));
    assert_eq!(nudged, [Nudge::Identity(id(CART)), Nudge::Identity(id(TILL))]);
    assert_ne!(world.issue(CART).await.unwrap().chain, first.chain);
    world.issue(TILL).await.unwrap();
}

#[tokio::test]
async fn who_is_no_delegate_is_told_what_to_do() {
    for (said, next) in [
        (
            "caller not configured as an authorized delegate",
            "list this agent's SPIFFE id in authorized_delegates",
        ),
        ("no identity issued", "make an entry in SPIRE for this agent itself"),
    ] {
        let mut world = World::new();
        let issuer = world.issuer.clone();
        let asked = tokio::spawn(async move { issuer.issue(&id(CART)).await });
        world.agent().svids().await.stream.fail(Status::permission_denied(said));
        let error = within(asked).await.unwrap().unwrap_err().to_string();
        for part in ["PermissionDenied", said, next, CART, "admin.sock"] {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
    }
}

#[tokio::test]
async fn roots_that_do_not_come_are_told() {
    let mut world = World::new();
    let issuer = world.issuer.clone();
    let asked = tokio::spawn(async move { issuer.issue(&id(CART)).await });
    let opened = world.agent().svids().await;
    opened.stream.push(svids([svid(&id(CART), &world.root.leaf(CART, |_| {}))]));
    world.agent().bundles().await.fail(Status::internal("no bundles"));
    let error = within(asked).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("no bundles") && error.contains("for roots"), "{error}");
}

type Expected = fn(&CertError) -> bool;

#[tokio::test]
async fn answers_that_are_none_are_refused() {
    let (root, foreign) = (Authority::root(), Authority::root());
    let sound = || svid(&id(CART), &root.leaf(CART, |_| {}));
    let with = |change: &dyn Fn(&mut X509svidWithKey)| {
        let mut changed = sound();
        change(&mut changed);
        svids([changed])
    };
    let chain =
        |chain: Vec<Vec<u8>>| with(&|svid| svid.x509_svid.as_mut().unwrap().cert_chain = chain.clone());
    let is_answer: Expected = |e| matches!(e, CertError::Answer(_));
    let is_chain: Expected = |e| matches!(e, CertError::NotVouched { .. });
    let refused: Expected = |e| matches!(e, CertError::Refused { .. });
    let over = SystemTime::now() - Duration::from_secs(30);
    let hostile: Vec<(&str, Svids, Expected)> = vec![
        ("nothing", svids([]), refused),
        ("no certificate", with(&|svid| svid.x509_svid = None), refused),
        ("no identity", with(&|svid| svid.x509_svid.as_mut().unwrap().id = None), refused),
        ("somebody else's", svids([svid(&id(TILL), &root.leaf(TILL, |_| {}))]), refused),
        ("somebody else's under the asked name", svids([svid(&id(CART), &root.leaf(TILL, |_| {}))]), |e| {
            matches!(e, CertError::OtherIdentity { .. })
        }),
        ("of a foreign root", svids([svid(&id(CART), &foreign.leaf(CART, |_| {}))]), is_chain),
        ("no key", with(&|svid| svid.x509_svid_key.clear()), is_answer),
        ("garbage as key", with(&|svid| svid.x509_svid_key = vec![7; 100]), |e| {
            matches!(e, CertError::Certificate(TlsError::Key { .. }))
        }),
        (
            "another's key",
            with(&|svid| svid.x509_svid_key = foreign.leaf(CART, |_| {}).key().secret_der().to_vec()),
            |e| matches!(e, CertError::Certificate(TlsError::Key { .. })),
        ),
        ("an empty chain", chain(vec![]), is_answer),
        ("an empty leaf", chain(vec![vec![]]), is_answer),
        ("garbage as leaf", chain(vec![vec![0x30, 0x82, 0xff, 0xff]]), is_answer),
        ("a long chain", chain(vec![root.certificate.to_vec(); 17]), is_answer),
        ("expired", svids([svid(&id(CART), &root.leaf(CART, |leaf| leaf.not_after = over.into()))]), |e| {
            matches!(e, CertError::Issuer(_)) && e.to_string().contains("has not replaced")
        }),
        ("more than is read", with(&|svid| svid.x509_svid_key = vec![7; 2 << 20]), |e| {
            e.to_string().contains("message length too large")
        }),
    ];
    for (what, hostile, expected) in hostile {
        let mut world = World::new();
        let manager = Manager::new(world.issuer.clone(), &Config::default());
        let lease = manager.lease(&id(CART));
        world.agent().bundles().await.push(bundles(&[("mesh.test", &[&root])]));
        let opened = world.agent().svids().await;
        opened.stream.push(hostile);
        let error = within(lease.ready()).await.unwrap_err();
        assert!(expected(&error), "{what} gave {error:?}");
    }
}

#[tokio::test]
async fn another_trust_domain_is_not_asked_for_and_silence_costs_a_deadline() {
    let mut world = World::new();
    let error = world.issue("spiffe://other.test/ns/shop/sa/cart").await.unwrap_err();
    assert!(matches!(error, CertError::Refused { .. }), "{error}");
    let issuer = world.issuer.clone();
    let asked = tokio::spawn(async move { issuer.issue(&id(CART)).await });
    let opened = world.agent().svids().await;
    assert_eq!(opened.selectors[1], "k8s:sa:cart");
    let error = within(asked).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("nothing came within 2 s") && error.contains(CART), "{error}");
    // Whoever gave up hears of it when it comes after all.
    opened.stream.push(svids([svid(&id(CART), &world.root.leaf(CART, |_| {}))]));
    assert_eq!(world.nudge().await, Nudge::Identity(id(CART)));
}

#[tokio::test]
async fn no_key_is_shown() {
    let mut world = World::new();
    let issued = world.first().await;
    let answer = svids([svid(&id(CART), &world.root.leaf(CART, |_| {}))]);
    let text = format!("{:?} {issued:?} {answer:?}", world.issuer);
    let key = format!("{:?}", issued.key.secret_der());
    let other = format!("{:?}", answer.x509_svids[0].x509_svid_key);
    assert!(!text.contains(&key[1..key.len() - 1]) && !text.contains(&other[1..other.len() - 1]), "{text}");
}

struct World {
    scratch: Scratch,
    agent: Option<Agent>,
    root: Authority,
    issuer: Arc<SpireIssuer>,
    roots: watch::Receiver<Option<TrustBundles>>,
    nudges: mpsc::UnboundedReceiver<Nudge>,
    stream: Option<Pushed<Svids>>,
}

impl World {
    fn new() -> Self {
        let scratch = Scratch::new();
        let agent = Some(Agent::start(scratch.path().join("admin.sock")));
        let issuer = Arc::new(issuer(&scratch));
        let (roots, nudges) = (issuer.roots().unwrap(), issuer.nudges().unwrap());
        Self { scratch, agent, root: Authority::root(), issuer, roots, nudges, stream: None }
    }

    fn agent(&mut self) -> &mut Agent {
        self.agent.as_mut().unwrap()
    }

    /// Roots, and a certificate for whoever asked.
    async fn answer(&mut self, identity: &str) -> Pushed<Svids> {
        let roots = bundles(&[("mesh.test", &[&self.root])]);
        let leaf = svids([svid(&id(identity), &self.root.leaf(identity, |_| {}))]);
        let stream = self.agent().bundles().await;
        stream.push(roots);
        // It goes on as long as the test.
        tokio::spawn(async move { stream.closed().await });
        let opened = self.agent().svids().await;
        opened.stream.push(leaf);
        opened.stream
    }

    async fn first(&mut self) -> Issued {
        let issuer = self.issuer.clone();
        let asked = tokio::spawn(async move { issuer.issue(&id(CART)).await });
        self.stream = Some(self.answer(CART).await);
        within(asked).await.unwrap().unwrap()
    }

    async fn issue(&self, identity: &str) -> Result<Issued, CertError> {
        within(self.issuer.issue(&id(identity))).await
    }

    async fn nudge(&mut self) -> Nudge {
        within(self.nudges.recv()).await.unwrap()
    }
}

async fn roots(roots: &mut watch::Receiver<Option<TrustBundles>>) -> TrustBundles {
    within(roots.changed()).await.unwrap();
    roots.borrow_and_update().clone().unwrap()
}
