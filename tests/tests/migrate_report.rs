//! What two nodes' agents have observed: whom STRICT would refuse, and policies that admit what was seen.

use std::process::{ExitCode, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use underpass_tests::cluster::Cluster;
use underpass_tests::mesh::identity;
use underpass_tests::stories::{self, World};
use underpass_tests::work::server;
use underpass_tests::work::talk::{self, Refusal};
use underpass_tests::{Mesh, Server, wait};

fn main() -> ExitCode {
    stories::run(&[
        ("the_report_names_whom_strict_would_refuse_and_it_does", report),
        ("a_live_connection_is_observed_before_it_ends", live),
        ("the_suggestion_admits_what_was_observed_and_nobody_else", suggestion),
    ])
}

const APP: u16 = 8080;
const SIDE: u16 = 9090;

struct Office {
    cluster: Cluster,
    _apps: Vec<Server>,
    /// One policy, which refuses bob.
    mesh: Mesh,
}

impl World for Office {
    fn build() -> Result<Self> {
        let pods = [("alice", "n1"), ("bob", "n1"), ("guest", "n1"), ("store", "n1"), ("server", "n2")];
        let mut mesh = Mesh::default()
            .meshed("alice", "alice")
            .meshed("bob", "bob")
            .meshed("store", "store")
            .meshed("server", "server")
            .plain("guest")
            .resource(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                 metadata: {name: no-bob, namespace: default}\n\
                 spec: {action: DENY, rules: [{from: [{source: {principals: [\"*/sa/bob\"]}}]}]}",
            );
        mesh.workload("server").labels = vec!["app: server".into()];
        mesh.workload("store").labels = vec!["app: store".into()];
        let cluster = Cluster::start(&pods, mesh.clone())?;
        let mut apps = Vec::new();
        for (pod, port) in [("server", APP), ("server", SIDE), ("store", APP)] {
            apps.push(Server::start(cluster.ns(pod), port, server::echo)?);
        }
        Ok(Self { cluster, _apps: apps, mesh })
    }

    fn diagnose(&self) -> String {
        self.cluster.diagnose()
    }
}

fn report(w: &mut Office) -> Result<()> {
    w.cluster.apply(w.mesh.clone())?;
    w.traffic()?;
    let expected = ["default/guest to default/server 8080", "default/guest to default/store 8080"];
    let n1 = w.cluster.n1.socket();
    let both = w.report(&["--socket", &n1.to_string_lossy()], 3)?;
    ensure!(w.refused(&both) == expected, "{both}");
    // What n1 has saved says the same.
    let saved = w.cluster.topology.dir().join("n1.json");
    let output = w.cluster.n1.cli(&["migrate", "report", "-o", "json"])?;
    std::fs::write(&saved, &output.stdout)?;
    let merged = w.report(&["--observed", &saved.to_string_lossy()], 3)?;
    ensure!(w.refused(&merged) == expected, "{merged}");
    let alone = w.report(&[], 3)?;
    ensure!(w.refused(&alone) == expected[..1], "{alone}");
    let table = w.cluster.n2.cli(&["migrate", "report"])?;
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    ensure!(table.contains("default/guest") && table.contains("STRICT"), "{table}");

    // Policies that let guest be.
    let open = w.cluster.topology.dir().join("open.yaml");
    std::fs::write(
        &open,
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {name: open, namespace: default}\nspec: {mtls: {mode: PERMISSIVE}}\n",
    )?;
    let open = open.to_string_lossy();
    w.report(&["--socket", &n1.to_string_lossy(), "-f", &open, "--strict"], 0)?;
    let nobody = w.cluster.n2.cli(&["migrate", "report", "--namespace", "nowhere"])?;
    let words = String::from_utf8_lossy(&nobody.stderr).into_owned();
    ensure!(nobody.status.code() == Some(1) && words.contains("--observed FILE"), "{words}");

    let (bob, refused) = (identity("bob"), "underpass_unauthorized_connections_total");
    let labels = [format!("source_principal=\"{bob}\""), "destination_workload=\"server\"".into()];
    let count = w.cluster.n2.metric(refused, &labels.each_ref().map(|label| &**label))?;
    ensure!(count >= 1.0, "bob was refused {count} times");

    w.cluster.apply(w.mesh.clone().strict())?;
    for pod in ["server", "store"] {
        w.closed("guest", pod, APP)?;
        w.open("alice", pod, APP)?;
    }
    w.cluster.apply(w.mesh.clone())
}

fn live(w: &mut Office) -> Result<()> {
    w.cluster.apply(w.mesh.clone())?;
    let mut stream = talk::dial(w.cluster.ns("alice"), w.cluster.addr("server", SIDE, false))?;
    talk::echo(&mut stream, b"hello")?;
    let seen = w.seen(&w.cluster.n2.admin("/observed")?, "server", &|seen| {
        seen["port"] == SIDE && seen["client"]["identity"] == identity("alice")
    });
    ensure!(seen.len() == 1 && seen[0]["connections"]["open"] == 1, "{seen:?}");
    drop(stream);
    Ok(())
}

fn suggestion(w: &mut Office) -> Result<()> {
    w.cluster.apply(w.mesh.clone())?;
    w.traffic()?;
    let n1 = w.cluster.n1.socket();
    let output = w.cluster.n2.cli(&["migrate", "suggest", "default", "--socket", &n1.to_string_lossy()])?;
    let yaml = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (what, comment) in [
        ("default/guest to port 8080: plaintext", true),
        ("sa/bob to port 8080: policy refused", true),
        ("sa/alice to port 8080", false),
    ] {
        let found = yaml.lines().any(|line| line.starts_with("# not admitted") && line.contains(what));
        ensure!(found == comment, "{what}: {yaml}");
    }
    // Without the policy that refused bob: what is suggested does by itself.
    let mut mesh = w.mesh.clone();
    mesh.resources.clear();
    let policies: Vec<&str> = yaml.split("---\n").skip(1).collect();
    ensure!(policies.len() == 2, "{yaml}");
    for policy in policies {
        mesh = mesh.resource(policy);
    }
    w.cluster.apply(mesh)?;
    for pod in ["server", "store"] {
        w.open("alice", pod, APP)?;
        w.closed("bob", pod, APP)?;
        w.closed("guest", pod, APP)?;
    }
    w.cluster.apply(w.mesh.clone())
}

impl Office {
    /// Alice and guest are served at both, bob is refused by policy, and both agents have seen it.
    fn traffic(&self) -> Result<()> {
        for pod in ["server", "store"] {
            self.open("alice", pod, APP)?;
            self.open("guest", pod, APP)?;
            self.closed("bob", pod, APP)?;
            let agent = self.cluster.agent_of(pod);
            // What the kernel has passed is seen once it has closed.
            wait::until_true(wait::PATIENCE, &format!("what came to {pod} is observed"), || {
                let Ok(observed) = agent.admin("/observed") else { return false };
                let seen = |outcome: &str, is: &dyn Fn(&Value) -> bool| {
                    let rows = self.seen(&observed, pod, &|row| row["port"] == APP && is(&row["client"]));
                    rows.iter().any(|row| row["connections"][outcome].as_u64() > Some(0))
                };
                seen("allowed", &|client| client["identity"] == identity("alice"))
                    && seen("denied", &|client| client["identity"] == identity("bob"))
                    && seen("allowed", &|client| client["workload"] == "guest")
            })?;
        }
        Ok(())
    }

    /// The rows of one server.
    fn seen(&self, observed: &Value, server: &str, is: &dyn Fn(&Value) -> bool) -> Vec<Value> {
        let agents = observed["agents"].as_array().into_iter().flatten();
        let servers = agents.flat_map(|agent| agent["servers"].as_array().into_iter().flatten());
        let rows = servers.filter(|one| one["name"] == server).flat_map(|one| one["clients"].as_array());
        rows.flatten().filter(|row| is(row)).cloned().collect()
    }

    /// Of n2's agent and others, as JSON.
    fn report(&self, others: &[&str], code: i32) -> Result<Value> {
        let output = self.cluster.n2.cli(&[&["migrate", "report", "-o", "json"], others].concat())?;
        let Output { status, stdout, stderr } = &output;
        let report = serde_json::from_slice(stdout)
            .with_context(|| format!("report: {}", String::from_utf8_lossy(stderr)))?;
        ensure!(status.code() == Some(code), "exit code {:?} with {report}", status.code());
        Ok(report)
    }

    fn refused(&self, report: &Value) -> Vec<String> {
        let pairs = report["pairs"].as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let refused = pairs.filter(|pair| pair["verdict"] == "refuse");
        refused
            .map(|pair| format!("{} to {} {}", text(&pair["from"]), text(&pair["to"]), pair["port"]))
            .collect()
    }

    fn attempt(&self, who: &str, pod: &str, port: u16) -> Result<(), Refusal> {
        talk::try_echo(self.cluster.ns(who), self.cluster.addr(pod, port, false), Duration::from_secs(2))
    }

    /// The kernel is told what becomes of plaintext just after the agent has said that it holds the mesh.
    fn open(&self, who: &str, pod: &str, port: u16) -> Result<()> {
        let what = format!("{pod} port {port} is open to {who}");
        wait::until_true(wait::PATIENCE, &what, || self.attempt(who, pod, port).is_ok())
    }

    fn closed(&self, who: &str, pod: &str, port: u16) -> Result<()> {
        let what = format!("{pod} port {port} is closed to {who}");
        wait::until_true(wait::PATIENCE, &what, || self.attempt(who, pod, port).is_err())
    }
}
