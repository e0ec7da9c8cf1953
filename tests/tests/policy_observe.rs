//! A mesh that moves in, phase by phase: nothing is refused while it is observed, and it is told what would be;
//! a turn to Enforce ends what it forbids and nothing else, and a phase can be taken back.

use std::io::Read;
use std::net::TcpStream;
use std::process::{ExitCode, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use underpass_tests::cluster::Cluster;
use underpass_tests::stories::{self, World};
use underpass_tests::work::server;
use underpass_tests::work::talk;
use underpass_tests::{Mesh, Server, wait};

fn main() -> ExitCode {
    stories::run(&[
        ("observe_refuses_nothing_and_tells_what_would_be_refused", observe),
        ("permissive_lifts_strict_alone", permissive),
        ("a_turn_to_enforce_ends_what_it_forbids_and_nothing_else", enforce),
        ("a_broken_enforcement_opens_nothing", broken),
        ("a_rollback_says_what_it_opens_and_reopens_it", rollback),
    ])
}

const APP: u16 = 8080;

struct Move {
    cluster: Cluster,
    _app: Server,
    /// Without any resource.
    mesh: Mesh,
}

impl World for Move {
    fn build() -> Result<Self> {
        let mut mesh = Mesh::of_four();
        mesh.workload("server").labels = vec!["app: server".into()];
        let cluster = Cluster::start(&Mesh::FOUR, mesh.clone())?;
        let app = Server::start(cluster.ns("server"), APP, server::echo)?;
        Ok(Self { cluster, _app: app, mesh })
    }

    fn diagnose(&self) -> String {
        self.cluster.diagnose()
    }
}

const STRICT: &str = "PeerAuthentication.security.istio.io/default/strict";
const NO_BOB: &str = "AuthorizationPolicy.security.istio.io/default/no-bob";
const MOVING: &str = "Enforcement.underpass.io/default/moving";

fn observe(w: &mut Move) -> Result<()> {
    w.turn("Observe")?;
    for (who, would) in [
        ("alice", "allowed".to_owned()),
        ("bob", format!("denied by policy {NO_BOB}")),
        ("guest", format!("denied by policy {STRICT}")),
    ] {
        let seen = w.cluster.n2.access()?.len();
        let before = w.would_deny()?;
        w.until_open(who, true)?;
        let ip = w.cluster.ip(who, false);
        let theirs =
            |l: &underpass_tests::access_log::Line| l.source_ip() == Some(ip) && l.is("phase", "observe");
        let line = w.cluster.n2.wait_access_after(seen, &format!("{who}'s connection"), theirs)?;
        ensure!(line.is("verdict", "allow"), "{line}");
        ensure!(line.get("dry_run").unwrap_or_default().starts_with(&would), "not {would:?}: {line}");
        ensure!((w.would_deny()? > before) == (who != "alice"), "{who} is not counted as it is told");
        let told = w.why(who)?;
        ensure!(told["verdict"] == "allow" && told["phase"]["resource"] == MOVING, "{told}");
        let (enforced, cause) =
            if who == "alice" { ("allow", "no_policy") } else { ("deny", "not_enforced") };
        ensure!(told["enforced"]["verdict"] == enforced && told["cause"] == cause, "{told}");
    }
    w.cluster.apply(w.mesh.clone())
}

fn permissive(w: &mut Move) -> Result<()> {
    w.turn("Permissive")?;
    w.until_open("guest", true)?;
    w.until_open("alice", true)?;
    w.until_open("bob", false)?;
    let told = w.why("guest")?;
    ensure!(told["enforced"]["cause"] == "strict_mtls", "{told}");
    w.cluster.apply(w.mesh.clone())
}

fn enforce(w: &mut Move) -> Result<()> {
    w.cluster.apply(w.mesh.clone())?;
    w.until_open("guest", true)?;
    let mut unseen = w.dial("guest")?;
    let carried = w.cluster.n2.admin("/connections")?;
    ensure!(
        carried.as_array().is_some_and(Vec::is_empty),
        "the kernel does not pass it by itself: {carried}"
    );
    w.turn("Observe")?;
    talk::echo(&mut unseen, b"still here").context("in Observe nothing is ended")?;
    let mut alice = w.dial("alice")?;
    let mut forbidden = vec![("bob", w.dial("bob")?), ("guest", w.dial("guest")?), ("guest", unseen)];

    let seen = w.cluster.n2.access()?.len();
    w.turn("Enforce")?;
    for (who, stream) in &mut forbidden {
        let ended = stream.read(&mut [0; 16]);
        let reset = ended.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset);
        ensure!(reset, "{who}'s connection: {ended:?}");
        let client = stream.local_addr()?.port();
        let theirs = |l: &underpass_tests::access_log::Line| {
            l.cause() == "policy_revoked"
                && (*who == "bob"
                    || l.get("src.addr").is_some_and(|addr| addr.ends_with(&format!(":{client}"))))
        };
        let line = w.cluster.n2.wait_access_after(seen, &format!("the end of {who}'s"), theirs)?;
        ensure!(line.is("verdict", "deny"), "{line}");
    }
    talk::echo(&mut alice, b"still here").context("alice's connection went as well")?;
    w.until_open("bob", false)?;
    w.until_open("guest", false)?;
    drop(alice);
    w.cluster.apply(w.mesh.clone())
}

fn broken(w: &mut Move) -> Result<()> {
    for phase in ["observe", "Observe, until: tomorrow"] {
        w.turn(phase)?;
        for who in ["bob", "guest"] {
            w.until_open(who, false)?;
        }
        let told = w.why("guest")?;
        ensure!(told["verdict"] == "deny" && told["phase"]["phase"] == "Enforce", "{told}");
    }
    w.cluster.apply(w.mesh.clone())
}

fn rollback(w: &mut Move) -> Result<()> {
    w.turn("Enforce")?;
    w.until_open("guest", false)?;
    w.until_open("bob", false)?;
    let to = format!("/sa/bob gets in to default/server port {APP}: refused");
    wait::until_true(wait::PATIENCE, "the rollback names bob, whom the agent has seen refused", || {
        let asked = w.rollback(&["default", "--to", "Observe"]);
        asked.is_ok_and(|asked| String::from_utf8_lossy(&asked.stderr).contains(&to))
    })?;
    let asked = w.rollback(&["default"])?;
    let told = String::from_utf8_lossy(&asked.stderr).into_owned();
    ensure!(
        asked.status.code() == Some(1) && asked.stdout.is_empty(),
        "nobody was asked, and it went on: {told}"
    );
    ensure!(
        told.contains("plaintext is let in") && told.contains("default/server"),
        "not said first: {told}"
    );
    ensure!(told.contains("--yes"), "no next step: {told}");
    ensure!(!told.contains("/sa/bob gets in"), "the policy that keeps bob out stays: {told}");

    for (arguments, open) in
        [(&["default", "--yes"][..], [true, false]), (&["default", "--to", "Observe", "--yes"], [true, true])]
    {
        let done = w.rollback(arguments)?;
        let told = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(done.status.success(), "{told}");
        ensure!(told.contains(NO_BOB) == open[1], "what is enforced no longer: {told}");
        let yaml = String::from_utf8(done.stdout)?;
        w.cluster.apply(w.policies().resource(&yaml))?;
        w.until_open("guest", open[0])?;
        w.until_open("bob", open[1])?;
        w.until_open("alice", true)?;
        let status = w.cluster.n2.cli(&["migrate", "status"])?;
        let table = String::from_utf8_lossy(&status.stdout).into_owned();
        ensure!(status.status.code() == Some(4) && table.contains(MOVING), "{table}");
        w.turn("Enforce")?;
    }
    w.cluster.apply(w.mesh.clone())
}

impl Move {
    /// STRICT, and bob is kept out.
    fn policies(&self) -> Mesh {
        self.mesh
            .clone()
            .resource(
                "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                 metadata: {name: strict, namespace: default}\nspec: {mtls: {mode: STRICT}}",
            )
            .resource(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                 metadata: {name: no-bob, namespace: default}\n\
                 spec: {action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/bob]}}]}]}",
            )
    }

    fn turn(&mut self, phase: &str) -> Result<()> {
        let moving = format!(
            "apiVersion: underpass.io/v1alpha1\nkind: Enforcement\n\
             metadata: {{name: moving, namespace: default}}\nspec: {{phase: {phase}}}"
        );
        self.cluster.apply(self.policies().resource(&moving))
    }

    /// A connection to the application over which something went already.
    fn dial(&self, from: &str) -> Result<TcpStream> {
        let mut stream = talk::dial(self.cluster.ns(from), self.cluster.addr("server", APP, false))?;
        talk::echo(&mut stream, b"hello").with_context(|| format!("{from} to the server"))?;
        Ok(stream)
    }

    /// New connections are served, or not. The kernel hears of a change just after the agent has said that it
    /// holds it.
    fn until_open(&self, who: &str, open: bool) -> Result<()> {
        let to = self.cluster.addr("server", APP, false);
        let is_open = || talk::try_echo(self.cluster.ns(who), to, Duration::from_secs(2)).is_ok();
        wait::until_true(wait::PATIENCE, &format!("the server is open to {who}: {open}"), || {
            is_open() == open
        })
    }

    fn would_deny(&self) -> Result<f64> {
        self.cluster.n2.metric("underpass_policy_dry_run_connections_total", &["result=\"would_deny\""])
    }

    fn why(&self, who: &str) -> Result<Value> {
        let ip = self.cluster.ip(who, false).to_string();
        let from = if who == "guest" { "plaintext".into() } else { format!("default/{who}") };
        let port = APP.to_string();
        let asked = ["why", &from, "default/server", "--port", &port, "--from-ip", &ip, "-o", "json"];
        let output = self.cluster.n2.cli(&asked)?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("why: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// With the YAML of what is applied now.
    fn rollback(&self, arguments: &[&str]) -> Result<Output> {
        let file = self.cluster.topology.dir().join("kubernetes.yaml");
        std::fs::write(&file, self.cluster.mesh.kubernetes(&self.cluster.topology))?;
        let file = file.to_string_lossy();
        self.cluster.n2.cli(&[&["migrate", "rollback"], arguments, &["-f", &file]].concat())
    }
}
