//! The binary as a user meets it: what it prints where, and how it ends.

#![allow(clippy::unwrap_used, reason = "a test; the lint knows only functions marked as such")]

use std::path::PathBuf;
use std::process::{Command, Output};

fn underpass(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_underpass")).args(arguments).env_remove("NODE_NAME").output().unwrap()
}

/// Exit code, standard output and standard error.
fn run(arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = underpass(arguments);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// A file with this text, removed when dropped.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("up{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn version_and_help() {
    assert_eq!(run(&["version"]), (0, format!("underpass {}\n", env!("CARGO_PKG_VERSION")), String::new()));
    let (code, help, _) = run(&["--help"]);
    assert_eq!(code, 0);
    for promised in ["agent", "status", "connections", "Exit codes:", "  3  no agent answers at the socket"] {
        assert!(help.contains(promised), "{promised} is not in:\n{help}");
    }
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    for line in [&["agent"][..], &["frobnicate"], &["pods", "-o", "xml"], &[]] {
        assert_eq!(run(line).0, 2, "{line:?}");
    }
}

#[test]
fn no_agent_ends_with_3() {
    for command in ["status", "pods", "workloads", "services", "policies", "certs", "connections", "log"] {
        let (code, out, error) = run(&[command, "--socket", "/nonexistent/underpass.sock"]);
        assert_eq!((code, out.as_str()), (3, ""), "{command}");
        assert!(error.starts_with("error: no agent answers at /nonexistent/underpass.sock: "), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn the_socket_is_found_by_the_configuration() {
    let config = File::new("socket.yaml", "admin: {socket: /nonexistent/by-config.sock}\n");
    let (code, _, error) = run(&["pods", "--config", config.path()]);
    assert_eq!(code, 3);
    assert!(error.contains("/nonexistent/by-config.sock"), "{error}");
}

#[test]
fn the_printed_example_is_a_good_configuration() {
    let (code, example, _) = run(&["config", "example"]);
    assert_eq!(code, 0);
    let file = File::new("example.yaml", &example);
    assert_eq!(
        run(&["config", "check", file.path()]),
        (0, format!("{}: good\n", file.path()), String::new())
    );
}

#[test]
fn a_bad_configuration_ends_with_4_and_names_line_and_field() {
    let file = File::new("bad.yaml", "tunnel:\n  maxStreams: 0\n  pingInterval: 0s\n");
    let (code, out, error) = run(&["config", "check", file.path()]);
    assert_eq!((code, error.as_str()), (4, ""));
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines.len(), 2, "{out}");
    assert!(
        lines.iter().any(|l| l.starts_with(&format!("{}:2:15: tunnel.maxStreams: ", file.path()))),
        "{out}"
    );
    assert!(
        lines.iter().any(|l| l.starts_with(&format!("{}:3:17: tunnel.pingInterval: ", file.path()))),
        "{out}"
    );
}

#[test]
fn mesh_files_are_judged() {
    let good = File::new("good-mesh.yaml", "mesh: {trustDomain: cluster.local}\n");
    let (code, out, error) = run(&["mesh", "check", good.path()]);
    assert_eq!(code, 0, "{out}{error}");
    assert!(out.ends_with("good: 0 workloads, 0 services, 0 policies, 0 local pods\n"), "{out}");

    let bad = File::new("bad-mesh.yaml", "mesh: {trustDomain: cluster.local}\nfrobnicate: 1\n");
    let (code, out, _) = run(&["mesh", "check", bad.path()]);
    assert_eq!(code, 4);
    assert!(out.starts_with(&format!("{}:2:1: frobnicate: ", bad.path())), "{out}");
}

#[test]
fn a_file_that_is_not_there_is_a_failure_and_named() {
    for line in [["config", "check", "/nonexistent/x.yaml"], ["mesh", "check", "/nonexistent/x.yaml"]] {
        let (code, out, error) = run(&line);
        assert_eq!((code, out.as_str()), (1, ""), "{line:?}");
        assert!(
            error.starts_with("error: cannot read the ") && error.contains("/nonexistent/x.yaml"),
            "{error}"
        );
    }
    let (code, _, error) = run(&["agent", "--config", "/nonexistent/x.yaml"]);
    assert_eq!(code, 1);
    assert!(error.contains("/nonexistent/x.yaml") && error.contains("--config"), "{error}");
}

const NO_PINS: &str = "/nonexistent/underpass";

#[test]
fn uninstall_of_what_is_not_there_is_done() {
    // Not in bpffs, which only root may look into.
    let (code, out, error) = run(&["uninstall", "--pin-root", NO_PINS, "--instance", "none"]);
    assert_eq!((code, out.as_str(), error.as_str()), (0, "nothing was installed\n", ""));
}

#[test]
fn uninstall_clears_a_dead_agents_socket_and_refuses_under_a_live_one() {
    let socket = std::env::temp_dir().join(format!("up{}-uninstall.sock", std::process::id()));
    let config = File::new(
        "uninstall.yaml",
        &format!("bpf: {{pinRoot: {NO_PINS}, instance: none}}\nadmin: {{socket: {}}}\n", socket.display()),
    );
    let live = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let (code, out, error) = run(&["uninstall", "--config", config.path()]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(error.contains("an agent answers at") && error.contains(&*socket.to_string_lossy()), "{error}");
    drop(live);
    assert_eq!(run(&["uninstall", "--config", config.path()]).0, 0);
    assert!(!socket.exists());
}

#[test]
fn check_lists_what_it_looked_at_and_agrees_with_its_exit_code() {
    let (code, json, error) = run(&["check", "-o", "json"]);
    assert_eq!(error, "");
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let requirements = report["requirements"].as_array().unwrap();
    assert!(requirements.len() > 5, "{json}");
    let missing = requirements.iter().any(|r| r["fatal"] == true && r["met"] == false);
    assert_eq!(code, if missing { 4 } else { 0 }, "{json}");
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    use std::process::Stdio;
    let mut child = Command::new(env!("CARGO_BIN_EXE_underpass"))
        .args(["config", "example"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

/// A folder that is not there yet, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("up{}-{name}", std::process::id())))
    }

    fn join(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn an_authority_is_made_step_by_step() {
    let folder = Folder::new("ca");
    let (root, ca, node) = (folder.join("root"), folder.join("ca"), folder.join("node"));
    let (code, out, error) = run(&["ca", "init", "--root", "--out", &root, "--trust-domain", "mesh.test"]);
    assert_eq!((code, error.as_str()), (0, ""), "{out}");
    let next = out.lines().last().unwrap();
    assert_eq!(
        next,
        format!("next: underpass ca intermediate --root {root} --out FOLDER --trust-domain mesh.test")
    );
    // The printed command, as it is.
    let line = next.strip_prefix("next: underpass ").unwrap().replace("FOLDER", &ca);
    let words: Vec<&str> = line.split(' ').chain(["-o", "json"]).collect();
    let (code, out, error) = run(&words);
    assert_eq!((code, error.as_str()), (0, ""));
    let made: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(made["root"]["sha256"].as_str().unwrap().len(), 64);
    for name in ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"] {
        assert!(std::path::Path::new(&ca).join(name).exists(), "{name}");
    }

    let (code, pin, error) = run(&["ca", "node", "node-1", "--out", &node]);
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(pin.starts_with("sha256:") && pin.trim().len() == 71, "{pin}");

    for again in [&["ca", "init", "--root", "--out", &root][..], &["ca", "node", "node-1", "--out", &node]] {
        let (code, out, error) = run(again);
        assert_eq!((code, out.as_str()), (1, ""), "{again:?}");
        assert!(error.contains("never overwritten") && error.contains(&folder.join("")), "{error}");
    }
    for wrong in ["0d", "x", "101y", "-1d"] {
        let line = ["ca", "init", "--out", &ca, &format!("--lifetime={wrong}")];
        assert_eq!(run(&line).0, 2, "{wrong}");
    }
}

#[test]
fn the_impatient_are_warned_and_told_the_way_out() {
    let folder = Folder::new("impatient");
    let (code, out, error) = run(&["ca", "init", "--out", &folder.join("")]);
    assert_eq!(code, 0, "{error}");
    assert!(out.starts_with("made the issuing certificate "), "{out}");
    assert!(error.starts_with("warning: ") && error.contains("underpass ca rotate run --ca "), "{error}");
}
