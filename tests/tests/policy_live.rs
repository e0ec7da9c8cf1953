//! Policy while connections live: an edit cuts what it forbids and nothing else, and no mistake of an
//! operator widens who may talk to whom.

use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use underpass_tests::access_log::Line;
use underpass_tests::cluster::{Cluster, revision};
use underpass_tests::mesh::identity;
use underpass_tests::stories::{self, World};
use underpass_tests::work::server;
use underpass_tests::work::talk::{self, Refusal};
use underpass_tests::{Mesh, Server, wait};

fn main() -> ExitCode {
    stories::run(&[
        ("an_edit_cuts_the_connection_that_it_forbids_and_no_other", revoked),
        ("the_same_for_plaintext_that_a_policy_has_seen", revoked_in_plaintext),
        ("an_allow_policy_for_others_cuts_who_is_not_named", not_named),
        ("deny_wins", deny_wins),
        ("a_policy_that_runs_dry_decides_nothing_and_is_told_of", dry_run),
        ("a_policy_that_is_named_and_missing_denies", missing),
        ("a_bad_edit_is_refused_with_line_and_field_while_traffic_goes_on", bad_edits),
    ])
}

const APP: u16 = 8080;

struct Office {
    cluster: Cluster,
    app: Server,
    /// Without any policy.
    mesh: Mesh,
}

impl World for Office {
    fn build() -> Result<Self> {
        let mesh = Mesh::of_four();
        let cluster = Cluster::start(&Mesh::FOUR, mesh.clone())?;
        let app = Server::start(cluster.ns("server"), APP, server::echo)?;
        Ok(Self { cluster, app, mesh })
    }

    fn diagnose(&self) -> String {
        self.cluster.diagnose()
    }
}

const NO_BOB: &str = "principals: [\"cluster.local/ns/default/sa/bob\"]";
const ONLY_ALICE: &str = "principals: [\"cluster.local/ns/default/sa/alice\"]";

fn revoked(w: &mut Office) -> Result<()> {
    w.cluster.apply(w.mesh.clone())?;
    for v6 in [false, true] {
        let (mut alice, mut bob) = (w.dial("alice", v6)?, w.dial("bob", v6)?);
        let seen = w.lines()?;
        w.cluster.apply(w.mesh.clone().rule("no-bob", "DENY", NO_BOB))?;

        w.cut(&mut bob)?;
        let line = w.line_of("bob", seen, "policy_revoked")?;
        ensure!(line.is("verdict", "deny"), "{line}");
        ensure!(line.number("bytes_recv") >= Some(5), "what went before is counted: {line}");
        w.denied("bob", "default/no-bob", v6)?;
        talk::echo(&mut alice, b"still here").context("alice's connection went as well")?;
        drop(talk::finish(alice)?);
        w.line_of("alice", seen, "closed")?;

        w.cluster.apply(w.mesh.clone())?;
        drop(w.dial("bob", v6).context("the policy is gone, its effect is not")?);
    }
    Ok(())
}

fn revoked_in_plaintext(w: &mut Office) -> Result<()> {
    let guest = w.cluster.ip("guest", false);
    // It matches guest, but not always, so that the agent has to see guest's connections.
    let elsewhere = w.mesh.clone().rule("elsewhere", "DENY", "sourceIps: [\"192.0.2.0/24\"]");
    w.cluster.apply(elsewhere.clone())?;
    let (mut plain, mut alice) = (w.dial("guest", false)?, w.dial("alice", false)?);
    let seen = w.lines()?;
    w.cluster.apply(elsewhere.rule("no-guest", "DENY", &format!("sourceIps: [\"{guest}\"]")))?;
    w.cut(&mut plain)?;
    let line = w.cluster.n2.wait_access_after(seen, "guest's end", |l| l.source_ip() == Some(guest))?;
    ensure!(line.cause() == "policy_revoked" && line.get("src.identity").is_none(), "{line}");
    talk::echo(&mut alice, b"still here")?;
    w.cluster.apply(w.mesh.clone())
}

fn not_named(w: &mut Office) -> Result<()> {
    w.cluster.apply(w.mesh.clone())?;
    let (mut alice, mut bob) = (w.dial("alice", false)?, w.dial("bob", false)?);
    let seen = w.lines()?;
    w.cluster.apply(w.mesh.clone().rule("only-alice", "ALLOW", ONLY_ALICE))?;
    w.cut(&mut bob)?;
    w.line_of("bob", seen, "policy_revoked")?;
    talk::echo(&mut alice, b"still here")?;
    drop(w.dial("alice", false)?);
    // Plaintext has no name at all.
    let to = w.cluster.addr("server", APP, false);
    w.app.forget();
    let refusal = talk::try_echo(w.cluster.ns("guest"), to, Duration::from_secs(2));
    ensure!(refusal.is_err() && w.app.peers().is_empty(), "guest: {refusal:?}");
    w.cluster.apply(w.mesh.clone())
}

fn deny_wins(w: &mut Office) -> Result<()> {
    let both = |mesh: &Mesh, first: (&str, &str), second: (&str, &str)| {
        mesh.clone().rule(first.0, first.1, NO_BOB).rule(second.0, second.1, NO_BOB)
    };
    // In either order in the file, and of either name.
    for mesh in [
        both(&w.mesh, ("a-yes", "ALLOW"), ("b-no", "DENY")),
        both(&w.mesh, ("a-no", "DENY"), ("b-yes", "ALLOW")),
    ] {
        let name = if mesh.policies[0].contains("DENY") { "default/a-no" } else { "default/b-no" };
        w.cluster.apply(mesh)?;
        w.denied("bob", name, false)?;
    }
    // Deny by the port alone, in the narrowest policy, beats allow to everybody in the widest.
    let mut mesh = w
        .mesh
        .clone()
        .policy("name: all\nnamespace: default\nscope: GLOBAL\naction: ALLOW\ngroups: [{}]")
        .policy(&format!(
            "name: shut\nnamespace: default\nscope: WORKLOAD_SELECTOR\naction: DENY\n\
             groups: [{{rules: [{{matches: [{{destinationPorts: [{APP}]}}]}}]}}]"
        ));
    w.cluster.apply(mesh.clone())?;
    drop(w.dial("bob", false).context("the policy is attached to nobody yet")?);
    mesh.workload("server").policies = vec!["default/shut".into()];
    w.cluster.apply(mesh)?;
    w.denied("bob", "default/shut", false)?;
    w.denied("alice", "default/shut", true)?;
    w.cluster.apply(w.mesh.clone())
}

fn dry_run(w: &mut Office) -> Result<()> {
    let guest = w.cluster.ip("guest", false);
    w.cluster.apply(w.mesh.clone().policy(&format!(
        "name: dry\nnamespace: default\nscope: NAMESPACE\naction: DENY\ndryRun: true\n\
         groups: [{{rules: [{{matches: [{{{NO_BOB}}}, {{sourceIps: [\"{guest}\"]}}]}}]}}]"
    )))?;
    for (who, would) in [("alice", "allowed"), ("bob", "denied by policy default/dry")] {
        let (here, there) = (w.lines()?, w.cluster.n1.access()?.len());
        drop(talk::finish(w.dial(who, false)?)?);
        let line = w.line_of(who, here, "closed")?;
        ensure!(line.is("verdict", "allow"), "{line}");
        ensure!(line.get("dry_run").unwrap_or_default().starts_with(would), "not {would:?}: {line}");
        let theirs = |l: &Line| l.is("src.workload", who);
        let other = w.cluster.n1.wait_access_after(there, "the client's line", theirs)?;
        let trace = line.get("trace_id");
        ensure!(trace.is_some() && trace == other.get("trace_id"), "{line} and {other}");
    }
    // The kernel alone would have let it pass unseen.
    let here = w.lines()?;
    drop(talk::finish(w.dial("guest", false)?)?);
    let line = w.cluster.n2.wait_access_after(here, "guest's line", |l| l.source_ip() == Some(guest))?;
    ensure!(
        line.cause() == "closed" && line.get("dry_run").is_some_and(|d| d.contains("default/dry")),
        "{line}"
    );
    w.cluster.apply(w.mesh.clone())
}

fn missing(w: &mut Office) -> Result<()> {
    w.cluster.apply(w.mesh.clone())?;
    let mut alice = w.dial("alice", false)?;
    let seen = w.lines()?;
    let mut mesh = w.mesh.clone().rule("only-alice", "ALLOW", ONLY_ALICE);
    mesh.workload("server").policies = vec!["default/not-yet".into()];
    w.cluster.apply(mesh.clone())?;
    w.cut(&mut alice)?;
    w.line_of("alice", seen, "policy_revoked")?;
    for v6 in [false, true] {
        w.denied("alice", "default/not-yet", v6)?;
    }
    // Plaintext neither.
    let to = w.cluster.addr("server", APP, false);
    ensure!(talk::try_echo(w.cluster.ns("guest"), to, Duration::from_secs(2)).is_err());
    ensure!(w.app.peers().is_empty());

    // It arrives, and says no more than it says.
    let arrived = mesh.policy(
        "name: not-yet\nnamespace: default\nscope: WORKLOAD_SELECTOR\naction: DENY\n\
         groups: [{rules: [{matches: [{destinationPorts: [9]}]}]}]",
    );
    w.cluster.apply(arrived)?;
    drop(w.dial("alice", false)?);
    w.cluster.apply(w.mesh.clone())
}

fn bad_edits(w: &mut Office) -> Result<()> {
    w.cluster.apply(w.mesh.clone().rule("no-bob", "DENY", NO_BOB))?;
    let good = std::fs::read_to_string(w.cluster.n2.mesh_file())?;
    let mut alice = w.dial("alice", false)?;
    // Each edit would let bob in, if any of it were taken.
    let edits = [
        ("an unknown field", good.replace("principals:", "principalz:"), "principalz"),
        ("an action that is none", good.replace("action: DENY", "action: DENIED"), "action"),
        (
            "a port that is none",
            good.replace("principals:", "destinationPorts: [70000], principals:"),
            "destinationPorts",
        ),
        (
            "an address that is none",
            good.replace("principals:", "sourceIps: [10.0.0.256], principals:"),
            "sourceIps",
        ),
        ("broken YAML", good.replace("action: DENY", "action: [DENY"), ""),
        ("an empty file", String::new(), "mesh"),
    ];
    for (what, text, field) in edits {
        ensure!(text != good, "{what} edits nothing");
        let line = first_difference(&good, &text);
        let (before, log) = (revision(&w.cluster.n2)?, w.cluster.n2.log().len());
        w.cluster.n2.write_mesh(&text)?;
        let refused = wait::until(wait::PATIENCE, &format!("status names {what}"), || {
            let said = refusal(&w.cluster)?;
            // The former edit's refusal may still stand.
            said.contains(field).then_some(said).filter(|_| w.cluster.n2.log().len() > log)
        })?;
        let place = format!("{}:{line}", w.cluster.n2.mesh_file().display());
        // Broken YAML shows only where the parser is lost.
        if !field.is_empty() && !text.is_empty() {
            ensure!(refused.contains(&format!("{place}:")), "{what}: not at {place}: {refused}");
        }
        let logged = w.cluster.n2.log()[log..].to_owned();
        ensure!(logged.contains(w.cluster.n2.mesh_file().to_string_lossy().as_ref()), "{what}: {logged}");
        ensure!(logged.contains(field), "{what} is not in the log: {logged}");
        ensure!(revision(&w.cluster.n2)? == before, "{what} made a new revision");
        talk::echo(&mut alice, b"still here").context(what)?;
        drop(w.dial("alice", true).context(what)?);
        w.denied("bob", "default/no-bob", false).context(what)?;

        w.cluster.n2.write_mesh(&good)?;
        wait::until_true(wait::PATIENCE, "the refusal is withdrawn", || refusal(&w.cluster).is_none())?;
    }
    // The agent has not lost the ability to take a good one.
    w.cluster.apply(w.mesh.clone())?;
    drop(w.dial("bob", false)?);
    Ok(())
}

/// The line, from 1, in which an edited text first differs.
fn first_difference(good: &str, edited: &str) -> usize {
    good.lines().zip(edited.lines()).take_while(|(a, b)| a == b).count() + 1
}

/// What `/status` says of the latest edit.
fn refusal(cluster: &Cluster) -> Option<String> {
    let status: Value = cluster.n2.admin("/status").ok()?;
    status["source"]["refused"].as_str().map(str::to_owned)
}

impl Office {
    /// A connection to the application over which something went already.
    fn dial(&self, from: &str, v6: bool) -> Result<TcpStream> {
        let mut stream = talk::dial(self.cluster.ns(from), self.cluster.addr("server", APP, v6))?;
        talk::echo(&mut stream, b"hello").with_context(|| format!("{from} to the server"))?;
        Ok(stream)
    }

    /// The connection ends as one that was cut, not as one that is over.
    fn cut(&self, stream: &mut TcpStream) -> Result<()> {
        use std::io::Read;
        let ended = stream.read(&mut [0; 16]);
        let reset = ended.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset);
        ensure!(reset, "the forbidden connection: {ended:?}");
        Ok(())
    }

    fn lines(&self) -> Result<usize> {
        Ok(self.cluster.n2.access()?.len())
    }

    /// Whatever else ended in the meantime.
    fn line_of(&self, who: &str, seen: usize, cause: &str) -> Result<Line> {
        let identity = identity(who);
        let theirs = |l: &Line| l.is("src.identity", &identity) && l.cause() == cause;
        self.cluster.n2.wait_access_after(seen, &format!("{who}'s connection"), theirs)
    }

    /// A new connection is refused at the server's node, by this policy, and both logs say so.
    fn denied(&self, who: &str, policy: &str, v6: bool) -> Result<()> {
        self.app.forget();
        let seen = [self.cluster.n1.access()?.len(), self.lines()?];
        let to = self.cluster.addr("server", APP, v6);
        let refusal = talk::try_echo(self.cluster.ns(who), to, Duration::from_secs(5));
        ensure!(refusal == Err(Refusal::Reset), "{who} under {policy}: {refusal:?}");
        ensure!(self.app.peers().is_empty(), "{who} reached the application");
        let line = self.line_of(who, seen[1], "policy_denied")?;
        let told = line.get("policy").unwrap_or_default() + &line.get("error").unwrap_or_default();
        ensure!(told.contains(policy), "not by {policy}: {line}");
        self.cluster.n1.wait_access_after(seen[0], "the refusal", |l| {
            l.is("src.workload", who) && l.cause() == "denied_by_peer"
        })?;
        Ok(())
    }
}
