//! Rotations on folders of files that name themselves: what is in them is the authority's business.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::*;
use crate::ca::kubernetes::fake::{Fake, Fault};

struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!(
            "underpass-rotation-{}-{:08x}",
            std::process::id(),
            rand::random::<u32>()
        ));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn folder(&self, name: &str, what: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir(&path).unwrap();
        for file in ["ca-cert.pem", "ca-key.pem", "cert-chain.pem"] {
            fs::write(path.join(file), format!("{what} {file}")).unwrap();
        }
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct World {
    scratch: Scratch,
    path: PathBuf,
    with: PathBuf,
    old: String,
    new: String,
}

impl World {
    fn new() -> Self {
        let scratch = Scratch::new();
        let (path, with) = (scratch.folder("ca", "old"), scratch.folder("with", "new"));
        // As where the old root signed by itself.
        fs::remove_file(path.join("cert-chain.pem")).unwrap();
        let (old, new) = (pem(), pem());
        fs::write(path.join("root-cert.pem"), &old).unwrap();
        Self { scratch, path, with, old, new }
    }

    fn new_keys(&self) -> Keys {
        let read = |name: &str| (name.to_owned(), fs::read(self.with.join(name)).unwrap().into());
        ["ca-cert.pem", "ca-key.pem", "cert-chain.pem"].map(read).into()
    }

    /// All that a controller or this command could read, but for the revision, which never goes back.
    fn files(&self) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        read_into(&self.path, "", &mut files);
        files.remove(REVISION);
        files
    }

    fn revision(&self) -> u64 {
        fs::read(self.path.join(REVISION)).map_or(0, |text| read_revision(&text).unwrap())
    }

    /// One step forward from wherever it stands.
    fn forward(&self, folder: &dyn Site) -> Result<(), FolderError> {
        let Some(record) = folder.record()? else {
            return folder.name(&self.new).map(drop);
        };
        folder.settle(&record)?;
        match record.phase {
            Phase::Named => folder.trust_both(&record).map(drop),
            Phase::BothTrusted => folder.issue_anew(&record, &self.new_keys()).map(drop),
            Phase::NewIssues => folder.withdraw_old(&record).map(drop),
            Phase::OldWithdrawn => folder.finish(),
        }
    }

    fn back(&self, folder: &dyn Site) -> Result<(), FolderError> {
        let record = folder.record()?.expect("a rotation");
        folder.settle(&record)?;
        folder.back(&record).map(drop)
    }
}

const SECRET: &str = "/api/v1/namespaces/istio-system/secrets/cacerts";

/// What a secret's keys are, as a folder's files.
fn as_files(fake: &Fake) -> BTreeMap<String, String> {
    let data = fake.get(SECRET).unwrap()["data"].clone();
    let data: BTreeMap<String, k8s_openapi::ByteString> = serde_json::from_value(data).unwrap();
    let named = |key: String| key.replace("rotation-before.", "rotation-before/");
    data.into_iter().map(|(key, text)| (named(key), String::from_utf8(text.0).unwrap())).collect()
}

fn as_secret(world: &World) -> (Fake, PathBuf) {
    let fake = Fake::start();
    let data: BTreeMap<_, _> = world
        .files()
        .into_iter()
        .map(|(name, text)| (name, k8s_openapi::ByteString(text.into_bytes())))
        .collect();
    fake.put(SECRET, serde_json::json!({ "data": data }));
    let kubeconfig = fake.kubeconfig(&world.scratch.0, None);
    (fake, kubeconfig)
}

fn open_secret(kubeconfig: &Path) -> Secret {
    Secret::open(&"istio-system/cacerts".parse().unwrap(), Some(kubeconfig)).unwrap()
}

/// One way after the other, and after each step the same in both.
#[test]
fn a_secret_is_rotated_as_a_folder_is_and_each_step_is_one_change() {
    for (forward, back) in [(1, 1), (2, 2), (3, 3), (4, 1), (4, 4), (5, 0)] {
        let world = World::new();
        let ((fake, kubeconfig), folder) = (as_secret(&world), open(&world));
        let same = |step: &str| {
            let mut files = world.files();
            if let Ok(revision) = fs::read_to_string(world.path.join(REVISION)) {
                files.insert(REVISION.into(), revision);
            }
            assert_eq!(as_files(&fake), files, "{step} of {forward} and {back}");
        };
        let mut changes = 0;
        for step in 0..forward + back {
            // Opened anew each time, as by a command that was interrupted.
            let secret = open_secret(&kubeconfig);
            let (done, there) = match step < forward {
                true => (world.forward(&folder), world.forward(&secret)),
                false => (world.back(&folder), world.back(&secret)),
            };
            done.unwrap();
            there.unwrap();
            same(&step.to_string());
            let record = secret.record().unwrap();
            assert_eq!(record, folder.record().unwrap());
            record.map_or(Ok(()), |record| secret.settle(&record)).unwrap();
            changes += 1;
            assert_eq!(fake.asked("PATCH").len(), changes, "step {step} is not one change");
        }
    }
}

#[test]
fn of_two_who_rotate_a_secret_the_second_is_told_and_loses_nothing() {
    for steps in 0..5 {
        let world = World::new();
        let (fake, kubeconfig) = as_secret(&world);
        for _ in 0..steps {
            world.forward(&open_secret(&kubeconfig)).unwrap();
        }
        let (first, second) = (open_secret(&kubeconfig), open_secret(&kubeconfig));
        world.forward(&first).unwrap();
        let after = as_files(&fake);
        let refused = world.forward(&second).unwrap_err();
        assert!(matches!(&refused, FolderError::Secret(SecretError::Changed(_))), "{refused}");
        assert!(refused.to_string().contains("changed by somebody else since it was read: nothing was done"));
        assert_eq!(as_files(&fake), after, "{steps} steps");
        // Also a change that is none of a rotation's.
        let third = open_secret(&kubeconfig);
        fake.put(SECRET, fake.get(SECRET).unwrap());
        if steps < 4 {
            assert!(world.forward(&third).is_err());
            third.look_again().unwrap();
            world.forward(&third).unwrap();
        }
    }
}

/// The answer is lost, before or after it was done: who looks again knows.
#[test]
fn a_secret_whose_api_server_breaks_off_is_as_it_was_and_the_same_command_goes_on() {
    let world = World::new();
    let (fake, kubeconfig) = as_secret(&world);
    for _ in 0..5 {
        let secret = open_secret(&kubeconfig);
        let before = as_files(&fake);
        fake.fail(Fault::new("PATCH", 503));
        let said = world.forward(&secret).unwrap_err().to_string();
        assert!(said.starts_with("patch secrets istio-system/cacerts: 503"), "{said}");
        assert_eq!(as_files(&fake), before);
        world.forward(&secret).unwrap();
    }
    assert_eq!(as_files(&fake)["root-cert.pem"], world.new);
}

fn pem() -> String {
    rcgen::KeyPair::generate().and_then(|key| params().self_signed(&key)).unwrap().pem()
}

fn params() -> rcgen::CertificateParams {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params
}

fn read_into(folder: &Path, prefix: &str, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        match entry.file_type().unwrap().is_dir() {
            true => read_into(&entry.path(), &format!("{name}/"), files),
            false => drop(files.insert(name, fs::read_to_string(entry.path()).unwrap())),
        }
    }
}

fn open(world: &World) -> Folder {
    Folder::open(&world.path).unwrap()
}

#[test]
fn five_steps_end_with_the_new_root_and_nothing_else() {
    let world = World::new();
    let folder = open(&world);
    for (roots, signer) in [
        (&world.old, "old"),
        (&both(&world), "old"),
        (&both(&world), "new"),
        (&world.new, "new"),
        (&world.new, "new"),
    ] {
        world.forward(&folder).unwrap();
        let files = world.files();
        assert_eq!(&files["root-cert.pem"], roots);
        assert_eq!(files["ca-key.pem"], format!("{signer} ca-key.pem"));
    }
    let names = ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"];
    assert_eq!(world.files().keys().collect::<Vec<_>>(), names);
}

/// A controller that runs as another user than who rotates.
#[test]
fn every_step_leaves_the_files_to_whom_they_belong() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let world = World::new();
    for (file, user, mode) in
        [("ca-key.pem", 4242, 0o640), ("ca-cert.pem", 4242, 0o644), ("root-cert.pem", 4243, 0o644)]
    {
        let path = world.path.join(file);
        chown(&path, Some(user), Some(4343)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    chown(&world.path, Some(4244), Some(4345)).unwrap();
    for forward in [true, true, true, false, true, true, true] {
        let folder = open(&world);
        if forward { world.forward(&folder) } else { world.back(&folder) }.unwrap();
        for (file, owner) in [
            ("ca-key.pem", (4242, 4343, 0o640)),
            ("ca-cert.pem", (4242, 4343, 0o644)),
            ("root-cert.pem", (4243, 4343, 0o644)),
            ("cert-chain.pem", (4244, 4345, 0o644)),
            ("revision", (4244, 4345, 0o644)),
        ] {
            let Ok(found) = fs::metadata(world.path.join(file)) else { continue };
            assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), owner, "{file}");
        }
    }
    assert_eq!(world.files()["ca-key.pem"], "new ca-key.pem");
}

#[test]
fn who_cannot_leave_the_files_to_whom_they_belong_changes_nothing() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let world = World::new();
    chown(&world.path, Some(4242), Some(4343)).unwrap();
    let (before, path) = (world.files(), world.path.clone());
    let as_another = std::thread::spawn(move || {
        // Of this thread alone.
        nix::unistd::setfsuid(4242.into());
        Folder::open(&path).map(drop)
    });
    let refused = as_another.join().unwrap().unwrap_err().to_string();
    assert!(refused.starts_with("chown ") && refused.contains("of user 0 and group 0"), "{refused}");
    assert_eq!(world.files(), before);
}

fn both(world: &World) -> String {
    format!("{}\n{}", world.old.trim_end(), world.new)
}

#[test]
fn each_step_can_be_taken_back_and_leaves_what_was_there() {
    for steps in 1..=4 {
        let world = World::new();
        let before = world.files();
        let folder = open(&world);
        for _ in 0..steps {
            world.forward(&folder).unwrap();
        }
        for _ in 0..steps {
            world.back(&folder).unwrap();
        }
        assert_eq!(world.files(), before, "{steps} steps");
    }
}

/// Every change of a file fails once; the command is then run again.
#[test]
fn what_is_interrupted_anywhere_is_completed_by_the_same_command() {
    for steps in 0..5 {
        for backwards in [false, true] {
            if backwards && steps == 0 {
                continue;
            }
            let wanted = after(steps, backwards, None);
            let mut at = 0;
            loop {
                let done = after(steps, backwards, Some(at));
                assert_eq!(done.0, wanted.0, "steps {steps}, back {backwards}, change {at}");
                if !done.1 {
                    break;
                }
                at += 1;
            }
            assert!(at > 0, "nothing was interrupted");
        }
    }
}

/// And it may as well be taken back instead.
#[test]
fn what_is_interrupted_on_its_way_forward_can_be_taken_back() {
    for steps in 1..4 {
        for at in 0.. {
            let world = World::new();
            let before = world.files();
            let mut folder = open(&world);
            for _ in 0..steps {
                world.forward(&folder).unwrap();
            }
            let left = Rc::new(Cell::new(at));
            folder = folder.failing(counted(left));
            let interrupted = world.forward(&folder).is_err();
            drop(folder);
            let folder = open(&world);
            while folder.record().unwrap().is_some() {
                world.back(&folder).unwrap();
            }
            assert_eq!(world.files(), before, "steps {steps}, change {at}");
            if !interrupted {
                break;
            }
        }
    }
}

fn counted(left: Rc<Cell<usize>>) -> impl Fn(&Path) -> io::Result<()> {
    move |_| match left.get() {
        usize::MAX => Ok(()),
        0 => {
            left.set(usize::MAX);
            Err(io::Error::other("interrupted"))
        }
        n => {
            left.set(n - 1);
            Ok(())
        }
    }
}

/// The kinds of files after so many steps and one more, interrupted at one change of a file or not; and
/// whether it was.
fn after(steps: usize, backwards: bool, at: Option<usize>) -> (Vec<(String, &'static str)>, bool) {
    let world = World::new();
    let folder = open(&world);
    for _ in 0..steps {
        world.forward(&folder).unwrap();
    }
    let folder = folder.failing(counted(Rc::new(Cell::new(at.unwrap_or(usize::MAX)))));
    let step = |folder: &Folder| if backwards { world.back(folder) } else { world.forward(folder) };
    let phase = |folder: &Folder| folder.record().unwrap().map(|r| r.phase);
    let start = phase(&folder);
    let interrupted = step(&folder).is_err();
    drop(folder);
    if interrupted {
        let folder = open(&world);
        match folder.record().unwrap() {
            // It had been noted: settling completes it.
            Some(record) if Some(record.phase) != start => folder.settle(&record).unwrap(),
            None if start.is_some() => {}
            _ => step(&folder).unwrap(),
        }
    }
    if let Some(record) = Folder::record_in(&world.path).unwrap() {
        assert_eq!(world.revision(), record.revision, "settled");
        assert!(record.revision > steps as u64);
    }
    let kind = |text: &str| match text {
        t if t == world.old => "old root",
        t if t == world.new => "new root",
        t if t == both(&world) => "both roots",
        t if t.starts_with("old") => "old",
        t if t.starts_with("new") => "new",
        _ => "record",
    };
    let files = world.files().iter().map(|(name, text)| (name.clone(), kind(text))).collect();
    let _ = &world.scratch;
    (files, interrupted)
}

#[test]
fn each_change_has_a_higher_revision_and_gets_it_last() {
    let world = World::new();
    let mut last = 0;
    let written = Rc::new(std::cell::RefCell::new(Vec::new()));
    let seen = written.clone();
    let folder = open(&world).failing(move |path| {
        seen.borrow_mut().push(path.file_name().unwrap().to_owned());
        Ok(())
    });
    for forward in [true, true, true, true, false, false, true, true, false, false, false] {
        written.borrow_mut().clear();
        if forward { world.forward(&folder) } else { world.back(&folder) }.unwrap();
        assert!(world.revision() > last, "{} after {last}", world.revision());
        last = world.revision();
        assert_eq!(written.borrow().last().unwrap(), REVISION);
    }
    // Neither the end of it changes what agents are told, nor does looking.
    folder.settle(&folder.record().unwrap().unwrap()).unwrap();
    world.back(&folder).unwrap();
    assert_eq!((world.revision(), folder.record().unwrap()), (last, None));
    world.forward(&folder).unwrap();
    assert!(world.revision() > last);
}

#[test]
fn a_revision_that_an_operator_has_raised_is_not_lowered() {
    let world = World::new();
    let folder = open(&world);
    world.forward(&folder).unwrap();
    fs::write(world.path.join(REVISION), "100").unwrap();
    folder.settle(&folder.record().unwrap().unwrap()).unwrap();
    assert_eq!(world.revision(), 100);
    world.forward(&folder).unwrap();
    assert_eq!(world.revision(), 101);
    for text in ["", "-1", "18446744073709551616", "1 2", "x"] {
        fs::write(world.path.join(REVISION), text).unwrap();
        let error = world.forward(&folder).unwrap_err();
        assert!(matches!(error, FolderError::Revision { .. }), "{text:?}: {error}");
    }
}

#[test]
fn a_second_rotation_of_the_same_folder_is_refused_while_the_first_works() {
    let world = World::new();
    let _first = open(&world);
    assert!(matches!(Folder::open(&world.path), Err(FolderError::Locked(_))));
}

#[test]
fn a_new_root_is_one_certificate_that_is_not_trusted_yet() {
    let (old, new) = (pem(), pem());
    assert!(matches!(Record::new(&old, &old), Err(RecordError::Known)));
    assert!(matches!(Record::new(&old, &format!("{new}{}", pem())), Err(RecordError::NotOne(_))));
    assert!(matches!(Record::new(&old, ""), Err(RecordError::NotOne(_))));
    assert!(matches!(Record::new("", &new), Err(RecordError::NoOld)));
}

/// One controller and two nodes, all of which have come to what the record says.
struct Scene {
    record: Record,
    observed: Observed,
    old: String,
    new: String,
}

const SIGNER: &str = "aa01";

impl Scene {
    fn new(phase: Phase) -> Self {
        let (old_pem, new_pem) = (pem(), pem());
        let record = Record::new(&old_pem, &new_pem).unwrap().at(phase);
        let record = Record { revision: 7, ..record };
        let (old, new) = (root_ids(&old_pem).unwrap().remove(0), root_ids(&new_pem).unwrap().remove(0));
        let roots = root_ids(&record.roots()).unwrap();
        let rests = if phase >= Phase::NewIssues { &new } else { &old };
        let agent = |node: &str| AgentView {
            node: node.into(),
            connected: true,
            version: "v2".into(),
            revision: 7,
            certificates: vec![HeldView {
                identity: format!("spiffe://td/ns/n/sa/{node}"),
                authority: SIGNER.into(),
                root: rests.clone(),
            }],
            tunnels: vec![RestingView { root: rests.clone(), count: 3 }],
        };
        let controller = ControllerView {
            version: "v2".into(),
            revision: 7,
            authority: SIGNER.to_uppercase(),
            root: rests.clone(),
            roots: roots.iter().map(|r| RootView { sha256: r.clone(), ..RootView::default() }).collect(),
            expected: vec!["n1".into(), "n2".into()],
            agents: vec![agent("n1"), agent("n2")],
            trouble: None,
        };
        let observed = Observed { controllers: vec![("one".into(), controller)], elsewhere: vec![] };
        Self { record, observed, old, new }
    }

    fn judge(&self) -> Standing {
        self.without(&[])
    }

    fn without(&self, nodes: &[&str]) -> Standing {
        let without: BTreeSet<String> = nodes.iter().map(|n| (*n).to_owned()).collect();
        judge(&self.record, SIGNER, &self.observed, &without).unwrap()
    }

    fn controller(&mut self) -> &mut ControllerView {
        &mut self.observed.controllers[0].1
    }

    fn agent(&mut self) -> &mut AgentView {
        &mut self.controller().agents[1]
    }
}

const WAITING: [Phase; 3] = [Phase::BothTrusted, Phase::NewIssues, Phase::OldWithdrawn];

#[test]
fn when_everything_agrees_every_step_may_be_done_and_taken_back() {
    for phase in [Phase::Named, Phase::BothTrusted, Phase::NewIssues, Phase::OldWithdrawn] {
        let standing = Scene::new(phase).judge();
        assert_eq!(standing, Standing { phase, next: vec![], back: vec![] });
    }
}

#[test]
fn nothing_goes_on_while_nobody_can_be_asked() {
    for phase in WAITING {
        let mut scene = Scene::new(phase);
        scene.observed.controllers.clear();
        assert_eq!(scene.judge().next, [Blocked::NoController]);
    }
}

#[test]
fn every_agent_must_have_acknowledged() {
    let node = || "n2".to_owned();
    for phase in WAITING {
        let mut scene = Scene::new(phase);
        scene.agent().version = "v1".into();
        assert_eq!(scene.judge().next, [Blocked::NotAcknowledged { node: node() }]);
        assert!(scene.without(&["n2"]).next.is_empty());

        scene.agent().connected = false;
        assert_eq!(scene.judge().next, [Blocked::NotConnected { node: node() }]);
        scene.controller().agents.pop();
        assert_eq!(scene.judge().next, [Blocked::NotConnected { node: node() }]);
        scene.controller().expected.pop();
        assert!(scene.judge().next.is_empty(), "a node that nobody knows of");
    }
}

#[test]
fn of_two_agents_on_a_node_both_must_have_acknowledged() {
    let mut scene = Scene::new(Phase::BothTrusted);
    let mut older = scene.agent().clone();
    older.version = "v1".into();
    scene.controller().agents.push(older);
    assert_eq!(scene.judge().next, [Blocked::NotAcknowledged { node: "n2".into() }]);
}

/// Both roots were trusted before, and the old one alone in between.
#[test]
fn an_acknowledgement_of_the_same_roots_at_an_earlier_time_does_not_count() {
    for phase in WAITING {
        let mut scene = Scene::new(phase);
        scene.agent().revision = 5;
        assert_eq!(scene.judge().next, [Blocked::NotAcknowledged { node: "n2".into() }]);
        // Nor does that of an earlier controller's.
        scene.controller().revision = 5;
        scene.controller().agents[0].revision = 5;
        assert_eq!(scene.judge().next, [Blocked::ControllerRoots { controller: "one".into() }]);
        scene.controller().revision = 8;
        scene.controller().agents.iter_mut().for_each(|a| a.revision = 8);
        assert!(scene.judge().next.is_empty(), "the operator has raised it");
    }
}

#[test]
fn a_node_that_is_ahead_of_the_folder_is_told_apart() {
    let mut scene = Scene::new(Phase::BothTrusted);
    scene.agent().revision = 9;
    scene.agent().version = "v1".into();
    assert_eq!(scene.judge().next, [Blocked::HoldsLater { node: "n2".into(), holds: 9, told: 7 }]);
}

#[test]
fn every_controller_must_have_taken_the_files() {
    for phase in WAITING {
        let mut scene = Scene::new(phase);
        let mut behind = scene.controller().clone();
        behind.roots.pop();
        behind.agents.clear();
        scene.observed.controllers.push(("two".into(), behind));
        assert_eq!(scene.judge().next, [Blocked::ControllerRoots { controller: "two".into() }]);
    }
    let mut scene = Scene::new(Phase::NewIssues);
    scene.controller().authority = "bb".into();
    assert_eq!(scene.judge().next, [Blocked::ControllerAuthority { controller: "one".into() }]);
}

#[test]
fn a_controller_that_is_behind_says_why() {
    for phase in WAITING {
        let mut scene = Scene::new(phase);
        let (controller, trouble) = ("one".to_owned(), "ca-key.pem: Permission denied".to_owned());
        scene.controller().trouble = Some(trouble.clone());
        assert!(scene.judge().next.is_empty(), "it has what counts");
        scene.controller().roots.clear();
        let behind = Blocked::ControllerRoots { controller: controller.clone() };
        let why = Blocked::ControllerTrouble { controller, trouble };
        assert!(why.to_string().ends_with("goes on with the files it had: ca-key.pem: Permission denied"));
        assert_eq!(scene.judge().next, [behind, why]);
    }
}

#[test]
fn a_node_may_follow_any_of_several_controllers() {
    let mut scene = Scene::new(Phase::NewIssues);
    let mut other = scene.controller().clone();
    other.agents.remove(0);
    scene.controller().agents.pop();
    scene.observed.controllers.push(("two".into(), other));
    assert!(scene.judge().next.is_empty());
}

#[test]
fn a_root_in_use_is_not_dropped() {
    let mut scene = Scene::new(Phase::NewIssues);
    let old = scene.old.clone();
    scene.agent().certificates[0].root = old.clone();
    let held = Blocked::Certificate { node: "n2".into(), identity: "spiffe://td/ns/n/sa/n2".into() };
    assert_eq!(scene.judge().next, std::slice::from_ref(&held));
    scene.agent().tunnels.push(RestingView { root: old, count: 5 });
    assert_eq!(scene.judge().next, [held, Blocked::Tunnels { node: "n2".into(), count: 5 }]);
}

/// Right after the fifth step was taken back, an agent may still trust the new root only.
#[test]
fn nothing_is_issued_under_the_old_root_again_before_everybody_trusts_it_again() {
    let mut scene = Scene::new(Phase::NewIssues);
    scene.agent().version = "v1".into();
    assert_eq!(scene.judge().back, [Blocked::NotAcknowledged { node: "n2".into() }]);
    scene.agent().connected = false;
    assert_eq!(scene.judge().back, [Blocked::NotConnected { node: "n2".into() }]);
}

#[test]
fn an_agent_that_has_said_nothing_yet_is_not_one_that_holds_nothing() {
    let mut scene = Scene::new(Phase::BothTrusted);
    *scene.agent() = AgentView { node: "n2".into(), connected: true, ..AgentView::default() };
    assert_eq!(scene.judge().back, [Blocked::NotAcknowledged { node: "n2".into() }]);
}

#[test]
fn the_same_key_under_another_root_is_another_authority() {
    let mut scene = Scene::new(Phase::NewIssues);
    scene.controller().root = scene.old.clone();
    assert_eq!(scene.judge().next, [Blocked::ControllerAuthority { controller: "one".into() }]);
}

#[test]
fn a_root_that_nobody_knows_blocks_too() {
    let mut scene = Scene::new(Phase::NewIssues);
    scene.agent().tunnels[0].root = String::new();
    assert_eq!(scene.judge().next, [Blocked::Tunnels { node: "n2".into(), count: 3 }]);
}

#[test]
fn the_new_root_is_not_taken_out_again_while_something_rests_on_it() {
    let mut scene = Scene::new(Phase::BothTrusted);
    let new = scene.new.clone();
    scene.agent().certificates[0].root = new;
    assert_eq!(scene.judge().back.len(), 1);
    assert!(scene.judge().next.is_empty());
    scene.agent().connected = false;
    assert_eq!(scene.judge().back, [Blocked::NotConnected { node: "n2".into() }]);
}

/// Another cluster under the same root, at the same step: another authority, another count, and nodes that are
/// called as ours are.
fn with_elsewhere(phase: Phase) -> Scene {
    let mut scene = Scene::new(phase);
    let mut there = scene.controller().clone();
    (there.version, there.authority, there.revision) = ("v9".into(), "bb".into(), 2);
    for agent in &mut there.agents {
        (agent.version, agent.revision) = ("v9".into(), 2);
    }
    scene.observed.elsewhere.push(("there".into(), there));
    scene
}

#[test]
fn of_another_cluster_only_the_roots_and_its_agents_count() {
    for phase in WAITING {
        assert_eq!(with_elsewhere(phase).judge(), Standing { phase, next: vec![], back: vec![] });
    }
    for phase in [Phase::BothTrusted, Phase::NewIssues] {
        let mut scene = with_elsewhere(phase);
        let new = scene.new.clone();
        scene.observed.elsewhere[0].1.roots.retain(|root| root.sha256 != new);
        assert_eq!(scene.judge().next, [Blocked::ElsewhereRoots { controller: "there".into() }]);
        let mut scene = with_elsewhere(phase);
        scene.observed.elsewhere[0].1.agents[1].version = "v8".into();
        assert_eq!(scene.judge().next, [Blocked::NotAcknowledged { node: "n2".into() }]);
        // Our node of the same name is none of theirs.
        scene.observed.elsewhere[0].1.agents.pop();
        assert_eq!(scene.judge().next, [Blocked::NotConnected { node: "n2".into() }]);
    }
}

#[test]
fn a_root_that_another_cluster_rests_on_is_not_dropped_and_one_that_it_dropped_is_not_waited_for() {
    let mut scene = with_elsewhere(Phase::NewIssues);
    scene.observed.elsewhere[0].1.agents[0].tunnels[0].root = scene.old.clone();
    assert_eq!(scene.judge().next, [Blocked::Tunnels { node: "n1".into(), count: 3 }]);
    // There the last step was done already.
    let mut scene = with_elsewhere(Phase::NewIssues);
    let new = scene.new.clone();
    scene.observed.elsewhere[0].1.roots.retain(|root| root.sha256 == new);
    assert!(scene.judge().next.is_empty(), "two clusters that wait for each other");
    assert_eq!(scene.judge().back, [Blocked::ElsewhereRoots { controller: "there".into() }]);
}

#[test]
fn two_other_clusters_are_two_and_two_replicas_are_one() {
    let mut scene = with_elsewhere(Phase::BothTrusted);
    let mut replica = scene.observed.elsewhere[0].1.clone();
    replica.agents.remove(0);
    scene.observed.elsewhere[0].1.agents.pop();
    scene.observed.elsewhere.push(("replica".into(), replica));
    assert!(scene.judge().next.is_empty());
    scene.observed.elsewhere[1].1.version = "v10".into();
    scene.observed.elsewhere[1].1.agents[0].version = "v10".into();
    let away = |node: &str| Blocked::NotConnected { node: node.into() };
    assert_eq!(scene.judge().next, [away("n1"), away("n2")]);
}
