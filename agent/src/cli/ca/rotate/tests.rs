#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::SystemTime;

use clap::Parser;

use super::*;
use crate::ca::hierarchy::{ROOT_LIFETIME, make_intermediate, make_root};
use crate::ca::rotation::AgentView;

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
    let observed = Observed { controllers: vec![("one".into(), view)] };
    let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    check_names(&names(&["n1", "n2", "n3"]), &observed).unwrap();
    let refused = check_names(&names(&["n1", "n4"]), &observed).unwrap_err().to_string();
    assert!(refused.starts_with("--force-without n4: no controller expects or has seen"), "{refused}");
    assert!(refused.ends_with("there are n1, n2, n3"), "{refused}");
    let refused = check_names(&names(&["n1"]), &Observed::default()).unwrap_err().to_string();
    assert!(refused.ends_with("there is none"), "{refused}");
}
