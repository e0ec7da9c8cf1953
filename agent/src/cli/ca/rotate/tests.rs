#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io::{Read, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::SystemTime;

use clap::Parser;

use super::*;
use crate::ca::hierarchy::{ROOT_LIFETIME, make_intermediate, make_root};
use crate::ca::kubernetes::fake::Fake;
use crate::ca::kubernetes::{Cluster, Held};
use crate::ca::rotation::{AgentView, RootView, Secret};

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    rotation: Rotation,
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("underpass-rotate-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn root(&self, name: &str) -> PathBuf {
        let folder = self.0.join(name);
        make_root(&folder, None, ROOT_LIFETIME, SystemTime::now()).unwrap();
        folder
    }

    fn authority(&self, root: &Path, name: &str, domain: &str) -> PathBuf {
        let folder = self.0.join(name);
        let domain = domain.parse().unwrap();
        make_intermediate(root, &folder, &domain, INTERMEDIATE_LIFETIME, SystemTime::now()).unwrap();
        folder
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn rotation(ca: &Path, more: &[&str]) -> Rotation {
    let ca = ca.display().to_string();
    Line::try_parse_from([&["x", "--ca", &ca], more].concat()).unwrap().rotation
}

fn authority_of(folder: &Path) -> Option<String> {
    let pem = fs::read(folder.join("ca-cert.pem")).unwrap();
    hierarchy::stated_domain(&pem).unwrap().map(|domain| domain.to_string())
}

#[test]
fn the_trust_domain_is_what_the_folder_says_and_nothing_contradicts_it() {
    let scratch = Scratch::new("domain");
    let old = scratch.root("old");
    let ca = scratch.authority(&old, "ca", "mesh.test");
    let new = scratch.root("new").display().to_string();

    let refused = next(&rotation(&ca, &["--new-root", &new, "--trust-domain", "cluster.local"])).unwrap_err();
    let said = format!("{refused:#}");
    assert!(said.contains("--trust-domain says the trust domain cluster.local, and "), "{said}");
    assert!(said.ends_with("says mesh.test: one is the wrong one"), "{said}");
    assert!(Folder::record_in(&ca).unwrap().is_none(), "it has begun nevertheless");

    assert_eq!(next(&rotation(&ca, &["--new-root", &new])).unwrap(), Answer::Yes);
    let record = Folder::record_in(&ca).unwrap().unwrap();
    let folder = Folder::open(&ca).unwrap();
    let record = folder.trust_both(&record).unwrap();

    let elsewhere = scratch.authority(Path::new(&new), "elsewhere", "other.test").display().to_string();
    let wrong = rotation(&ca, &["--intermediate", &elsewhere]).issue_anew(&folder, &record).unwrap_err();
    assert!(format!("{wrong:#}").contains("says other.test: one is the wrong one"), "{wrong:#}");
    rotation(&ca, &["--new-root", &new]).issue_anew(&folder, &record).unwrap();
    assert_eq!(authority_of(&ca).as_deref(), Some("mesh.test"));
}

#[test]
fn certificates_that_say_no_trust_domain_contradict_none() {
    let saying = |domain: Option<&str>| ("it".to_owned(), domain.map(|d| d.parse().unwrap()));
    let table = [
        (vec![None, None], Some("cluster.local")),
        (vec![None, Some("a.test")], Some("a.test")),
        (vec![Some("a.test"), None], Some("a.test")),
        (vec![Some("a.test"), None, Some("a.test")], Some("a.test")),
        (vec![None, Some("a.test"), Some("b.test")], None),
    ];
    for (said, expected) in table {
        let found = one_domain(&said.iter().copied().map(saying).collect::<Vec<_>>()).ok();
        assert_eq!(found.map(|d| d.to_string()).as_deref(), expected, "{said:?}");
    }
}

#[test]
fn only_a_node_that_somebody_knows_can_be_left_out() {
    let agent = |node: &str, connected| AgentView { node: node.into(), connected, ..AgentView::default() };
    let view = ControllerView {
        expected: vec!["n1".into()],
        agents: vec![agent("n2", true), agent("n3", false)],
        ..ControllerView::default()
    };
    let observed = Observed { controllers: vec![("one".into(), view)], ..Observed::default() };
    let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    check_names(&names(&["n1", "n2", "n3"]), &observed).unwrap();
    let refused = check_names(&names(&["n1", "n4"]), &observed).unwrap_err().to_string();
    assert!(refused.starts_with("--force-without n4: no controller expects or has seen"), "{refused}");
    assert!(refused.ends_with("there are n1, n2, n3"), "{refused}");
    let refused = check_names(&names(&["n1"]), &Observed::default()).unwrap_err().to_string();
    assert!(refused.ends_with("there is none"), "{refused}");
}

const SECRET: &str = "/api/v1/namespaces/istio-system/secrets/cacerts";

/// A secret with an authority, and a controller without agents that follows it.
struct InCluster {
    fake: Fake,
    kubeconfig: PathBuf,
    socket: PathBuf,
    new: PathBuf,
    // Last: the others are in it.
    scratch: Scratch,
}

impl InCluster {
    fn start(name: &str) -> Self {
        let (scratch, fake) = (Scratch::new(name), Fake::start());
        let (old, new) = (scratch.root("old"), scratch.root("new"));
        let ca = scratch.authority(&old, "ca", "mesh.test");
        let data: BTreeMap<_, _> = Folder::look(&ca)
            .keys()
            .unwrap()
            .into_iter()
            .map(|(name, content)| (name, k8s_openapi::ByteString(content.to_vec())))
            .collect();
        fake.put(SECRET, json!({ "data": data }));
        let (kubeconfig, socket) = (fake.kubeconfig(&scratch.0, None), scratch.0.join("socket"));
        let (listener, from) = (UnixListener::bind(&socket).unwrap(), kubeconfig.clone());
        // Ends with the test's process: it waits for nothing but the next question.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 1024]).unwrap();
                let Ok(view) = view_of(&from) else { return };
                let body = serde_json::to_string(&view).unwrap();
                let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                stream.write_all((head + &body).as_bytes()).unwrap();
            }
        });
        Self { fake, kubeconfig, socket, new, scratch }
    }

    fn rotation(&self, more: &[&str]) -> Rotation {
        let [kubeconfig, socket, new] =
            [&self.kubeconfig, &self.socket, &self.new].map(|path| path.display().to_string());
        let own =
            ["x", "--secret", "istio-system/cacerts", "--kubeconfig", &kubeconfig, "--controller", &socket];
        Line::try_parse_from([&own[..], &["--new-root", &new, "--every", "10ms"], more].concat())
            .unwrap()
            .rotation
    }

    fn held(&self) -> Held {
        held(&self.kubeconfig).unwrap()
    }
}

fn held(kubeconfig: &Path) -> anyhow::Result<Held> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cluster = runtime.block_on(Cluster::connect(Some(kubeconfig)))?;
    Ok(runtime.block_on(cluster.secret(&"istio-system/cacerts".parse().unwrap()))?)
}

fn view_of(kubeconfig: &Path) -> anyhow::Result<ControllerView> {
    let source = Source::Secret("istio-system/cacerts".parse().unwrap());
    let state = open(source, "mesh.test".parse().unwrap(), &held(kubeconfig)?.keys)?.state();
    let signing = state.borrow();
    let root = |sha256: &String| RootView { sha256: sha256.clone(), ..RootView::default() };
    Ok(ControllerView {
        version: "v".into(),
        revision: signing.revision,
        authority: signing.authority.clone(),
        root: signing.root.clone(),
        roots: signing.roots.iter().map(|held| root(&held.sha256)).collect(),
        ..ControllerView::default()
    })
}

const FILES: [&str; 5] = ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "revision", "root-cert.pem"];

#[test]
fn a_secret_is_rotated_by_the_command_to_the_end_and_nothing_is_left_in_it() {
    let w = InCluster::start("secret-run");
    let before = w.held();
    assert_eq!(next(&w.rotation(&[])).unwrap(), Answer::Yes);
    assert_eq!(status(&w.rotation(&[])).unwrap(), Answer::Yes);
    assert_eq!(all(&w.rotation(&[])).unwrap(), Answer::Yes);
    let after = w.held();
    assert_eq!(after.keys.keys().collect::<Vec<_>>(), FILES);
    assert_eq!(*after.keys["root-cert.pem"], fs::read(w.new.join("root-cert.pem")).unwrap());
    assert_ne!(after.keys["ca-key.pem"], before.keys["ca-key.pem"]);
    assert_eq!(
        hierarchy::stated_domain(&after.keys["ca-cert.pem"]).unwrap(),
        Some("mesh.test".parse().unwrap())
    );
    // Each of the five, and the forgetting.
    assert_eq!(w.fake.asked("PATCH").len(), 5);
}

#[test]
fn a_secret_is_taken_back_by_the_command_to_what_it_was() {
    let w = InCluster::start("secret-back");
    let before = w.held().keys;
    for _ in 0..3 {
        assert_eq!(next(&w.rotation(&[])).unwrap(), Answer::Yes);
    }
    assert!(w.held().keys.contains_key("rotation-before.ca-key.pem"));
    for _ in 0..3 {
        assert_eq!(back(&w.rotation(&[])).unwrap(), Answer::Yes);
    }
    let mut after = w.held().keys;
    after.remove("revision");
    assert!(after == before, "{:?}", after.keys());
    let nothing = back(&w.rotation(&[])).unwrap_err().to_string();
    assert!(nothing.contains("no rotation is under way in the secret istio-system/cacerts"), "{nothing}");
    drop(w.scratch);
}

/// The revision above all: agents that have heard of it take no step back.
#[test]
fn an_intermediate_is_renewed_in_a_secret_and_nothing_else_is_touched() {
    let w = InCluster::start("secret-renew");
    for _ in 0..5 {
        assert_eq!(next(&w.rotation(&[])).unwrap(), Answer::Yes);
    }
    let (before, patches) = (w.held().keys, w.fake.asked("PATCH").len());
    assert!(before.contains_key("revision"));
    let make = |root: &Path| {
        let secret = Secret::open(&"istio-system/cacerts".parse().unwrap(), Some(&w.kubeconfig)).unwrap();
        let domain = "mesh.test".parse().ok();
        hierarchy::make_intermediate_in(
            root,
            &secret,
            domain.as_ref(),
            INTERMEDIATE_LIFETIME,
            SystemTime::now(),
        )
    };
    make(&w.new).unwrap();
    let after = w.held().keys;
    assert_eq!(w.fake.asked("PATCH").len(), patches + 1, "one change");
    let renewed = ["ca-cert.pem", "ca-key.pem", "cert-chain.pem"];
    assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    for (key, content) in &before {
        assert_eq!(after[key] != *content, renewed.contains(&key.as_str()), "{key}");
    }
    view_of(&w.kubeconfig).unwrap();
    let withdrawn = make(&w.scratch.0.join("old")).unwrap_err().to_string();
    assert!(withdrawn.contains("does not hold the root"), "{withdrawn}");
    assert!(w.held().keys == after);
}

#[test]
fn an_intermediate_is_renewed_for_the_trust_domain_that_its_secret_says() {
    let w = InCluster::start("secret-domain");
    let make = |domain: Option<&str>| {
        let secret = Secret::open(&"istio-system/cacerts".parse().unwrap(), Some(&w.kubeconfig)).unwrap();
        let domain = domain.map(|text| text.parse().unwrap());
        let (root, now) = (w.scratch.0.join("old"), SystemTime::now());
        hierarchy::make_intermediate_in(&root, &secret, domain.as_ref(), INTERMEDIATE_LIFETIME, now)
    };
    let domain = || hierarchy::stated_domain(&w.held().keys["ca-cert.pem"]).unwrap().unwrap().to_string();
    let serial = || w.held().keys["ca-cert.pem"].clone();
    let before = serial();
    make(None).unwrap();
    assert_eq!(domain(), "mesh.test");
    assert!(serial() != before);

    let before = serial();
    let other = make(Some("other.test")).unwrap_err().to_string();
    assert!(other.contains("mesh.test") && other.contains("other.test"), "{other}");
    assert!(serial() == before, "it was changed all the same");

    // Istio's own certificates may name none; a secret may be broken.
    for (pem, told) in [
        (Some(nameless()), "names no trust domain"),
        (Some(b"no PEM".to_vec()), "is unusable"),
        (None, "is not there"),
    ] {
        let mut data: BTreeMap<_, _> = w.held().keys.into_iter().map(|(k, v)| (k, v.to_vec())).collect();
        match pem {
            Some(pem) => drop(data.insert("ca-cert.pem".into(), pem)),
            None => drop(data.remove("ca-cert.pem")),
        }
        let data: BTreeMap<_, _> = data.into_iter().map(|(k, v)| (k, k8s_openapi::ByteString(v))).collect();
        w.fake.put(SECRET, json!({ "data": data }));
        let why = make(None).unwrap_err().to_string();
        assert!(why.contains(told) && why.contains("--trust-domain"), "{why}");
        make(Some("mesh.test")).unwrap();
        assert_eq!(domain(), "mesh.test");
    }
}

/// A certificate as of another authority.
fn nameless() -> Vec<u8> {
    let key = rcgen::KeyPair::generate().unwrap();
    rcgen::CertificateParams::default().self_signed(&key).unwrap().pem().into_bytes()
}

#[test]
fn a_place_is_a_folder_or_a_secret() {
    for (line, good) in [
        ("x --ca f", true),
        ("x --secret a/b", true),
        ("x --secret a/b --kubeconfig k", true),
        ("x", false),
        ("x --ca f --secret a/b", false),
        ("x --ca f --kubeconfig k", false),
        ("x --secret b", false),
    ] {
        assert_eq!(Line::try_parse_from(line.split(' ')).is_ok(), good, "{line}");
    }
}
