//! Plaintext that an exception admits where mutual TLS is STRICT, and its end.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use underpass::telemetry::rfc3339;
use underpass_tests::access_log::Line;
use underpass_tests::cluster::Cluster;
use underpass_tests::stories::{self, World};
use underpass_tests::work::server;
use underpass_tests::work::talk;
use underpass_tests::{Mesh, Server, wait};

fn main() -> ExitCode {
    stories::run(&[
        ("an_exception_admits_its_clients_to_its_ports_and_nobody_else", admits),
        ("a_policy_denies_whom_an_exception_admits", denied),
        ("an_exception_that_lapses_ends_what_rests_on_it", lapses),
        ("one_that_is_not_understood_admits_nobody", broken),
    ])
}

const APP: u16 = 8080;
const SIDE: u16 = 9090;
const NAME: &str = "PlaintextException.underpass.io/default/guest";
const STRICT: &str = "PeerAuthentication.security.istio.io/istio-system/strict";
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

struct Office {
    cluster: Cluster,
    /// STRICT, without exceptions.
    mesh: Mesh,
    _apps: [Server; 2],
}

impl World for Office {
    fn build() -> Result<Self> {
        let pods = [("alice", "n1"), ("guest", "n1"), ("stranger", "n1"), ("server", "n2")];
        let mut mesh = Mesh::default()
            .meshed("alice", "alice")
            .meshed("server", "server")
            .plain("guest")
            .plain("stranger");
        mesh.workload("server").labels = vec!["app: server".into()];
        mesh.workload("guest").service_account = "guest".into();
        let mesh = mesh.resource(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {name: strict, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}",
        );
        let cluster = Cluster::start(&pods, mesh.clone())?;
        let app = |port| Server::start(cluster.ns("server"), port, server::echo);
        let apps = [app(APP)?, app(SIDE)?];
        Ok(Self { _apps: apps, cluster, mesh })
    }

    fn diagnose(&self) -> String {
        self.cluster.diagnose()
    }
}

fn admits(w: &mut Office) -> Result<()> {
    let guest = [false, true].map(|v6| format!("\"{}\"", w.cluster.ip("guest", v6))).join(", ");
    for from in [format!("ipBlocks: [{guest}]"), "serviceAccounts: [guest]".into()] {
        w.cluster.apply(w.mesh.clone().resource(&exception(&from, YEAR)))?;
        w.settled("guest", APP, true)?;
        let counted = || w.cluster.n2.metric(EXCEPTED, &[&format!("exception=\"{NAME}\"")]);
        let (before, seen) = (counted().unwrap_or_default(), w.lines()?);
        for v6 in [false, true] {
            let mut stream = talk::dial(w.cluster.ns("guest"), w.cluster.addr("server", APP, v6))?;
            talk::echo(&mut stream, b"hello").with_context(|| format!("guest, {from}, IPv6 {v6}"))?;
            drop(talk::finish(stream)?);
        }
        let line = w.line_of("guest", seen, "closed")?;
        ensure!(line.is("exception", NAME) && line.is("verdict", "allow"), "{line}");
        ensure!(counted()? == before + 2.0, "not counted");
        w.settled("guest", SIDE, false)?;
        for port in [APP, SIDE] {
            w.settled("stranger", port, false)?;
            let mut alice = talk::dial(w.cluster.ns("alice"), w.cluster.addr("server", port, false))?;
            talk::echo(&mut alice, b"hello")?;
        }
        let why = w.why("guest", APP)?;
        ensure!(why["cause"] == "plaintext_exception" && why["decidedBy"][0] == format!("{NAME}#0"), "{why}");
        ensure!(w.why("guest", SIDE)?["decidedBy"][0] == STRICT);
        ensure!(w.why("stranger", APP)?["cause"] == "strict_mtls");
    }
    let left = w.cluster.n2.metric("underpass_exception_lapses_seconds", &[])?;
    ensure!(left > YEAR.as_secs_f64() - 3600.0 && left <= YEAR.as_secs_f64(), "{left} seconds left");
    let listed = w.cluster.n2.cli(&["migrate", "exceptions", "-o", "json"])?;
    let listed: Value = serde_json::from_slice(&listed.stdout)?;
    ensure!(listed[0]["name"] == "guest" && listed[0]["state"] == "in-force", "{listed}");
    ensure!(listed.as_array().is_some_and(|all| all.len() == 1), "{listed}");
    w.cluster.apply(w.mesh.clone())
}

fn denied(w: &mut Office) -> Result<()> {
    let mesh = w.mesh.clone().resource(&exception("serviceAccounts: [guest]", YEAR));
    w.cluster.apply(mesh.clone())?;
    w.settled("guest", APP, true)?;
    let mut live = w.dial()?;
    let seen = w.lines()?;
    w.cluster.apply(mesh.resource(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: known, namespace: default}\n\
         spec: {rules: [{from: [{source: {principals: [\"*\"]}}]}]}",
    ))?;
    cut(&mut live)?;
    let line = w.line_of("guest", seen, "policy_revoked")?;
    ensure!(line.is("reason", "no_allow_matched"), "{line}");
    w.settled("guest", APP, false)?;
    ensure!(w.why("guest", APP)?["cause"] == "no_allow_matched");
    w.cluster.apply(w.mesh.clone())
}

fn lapses(w: &mut Office) -> Result<()> {
    w.cluster.apply(w.mesh.clone().resource(&exception("serviceAccounts: [guest]", YEAR)))?;
    w.settled("guest", APP, true)?;
    let (mut live, seen) = (w.dial()?, w.lines()?);
    let left = Duration::from_secs(10);
    let end = SystemTime::now() + left;
    w.cluster.apply(w.mesh.clone().resource(&exception("serviceAccounts: [guest]", left)))?;
    while SystemTime::now() + Duration::from_secs(2) < end {
        talk::echo(&mut live, b"not yet").context("it ended before its time")?;
        std::thread::sleep(Duration::from_millis(100));
    }
    cut(&mut live)?;
    ensure!(SystemTime::now() + Duration::from_secs(1) >= end, "it ended before its time");
    let line = w.line_of("guest", seen, "policy_revoked")?;
    ensure!(line.is("reason", "strict_mtls"), "{line}");
    ensure!(line.is("policy", STRICT) && line.is("exception", NAME), "{line}");
    w.settled("guest", APP, false)?;
    let why = w.why("guest", APP)?;
    ensure!(why["cause"] == "strict_mtls" && why["policies"].to_string().contains("it lapsed at"), "{why}");
    let log = w.cluster.n2.log();
    ensure!(
        log.contains("an exception lapses in") && log.contains("an exception has lapsed"),
        "not warned of"
    );
    w.cluster.apply(w.mesh.clone())
}

fn broken(w: &mut Office) -> Result<()> {
    let good = exception("serviceAccounts: [guest]", YEAR);
    w.cluster.apply(w.mesh.clone().resource(&good))?;
    w.settled("guest", APP, true)?;
    let (mut live, seen) = (w.dial()?, w.lines()?);
    let bad = good.replace("serviceAccounts: [guest]", "serviceAccounts: [guest, \"*\"]");
    w.cluster.apply(w.mesh.clone().resource(&bad))?;
    cut(&mut live)?;
    let line = w.line_of("guest", seen, "policy_revoked")?;
    ensure!(line.is("reason", "strict_mtls"), "{line}");
    w.settled("guest", APP, false)?;
    let defects = w.why("guest", APP)?["defects"].to_string();
    ensure!(defects.contains("spec.from[0].serviceAccounts[1]"), "not told: {defects}");
    w.cluster.apply(w.mesh.clone())
}

const EXCEPTED: &str = "underpass_plaintext_excepted_total";

/// For the server's first port, from these clients, for so long from now on.
fn exception(from: &str, left: Duration) -> String {
    format!(
        "apiVersion: underpass.io/v1alpha1\nkind: PlaintextException\nmetadata: {{name: guest, namespace: default}}\n\
         spec: {{selector: {{matchLabels: {{app: server}}}}, from: [{{{from}}}], ports: [{APP}], reason: a story, \
         until: \"{}\"}}",
        rfc3339(SystemTime::now() + left)
    )
}

impl Office {
    fn dial(&self) -> Result<TcpStream> {
        let mut stream = talk::dial(self.cluster.ns("guest"), self.cluster.addr("server", APP, false))?;
        talk::echo(&mut stream, b"hello")?;
        Ok(stream)
    }

    fn lines(&self) -> Result<usize> {
        Ok(self.cluster.n2.access()?.len())
    }

    fn line_of(&self, who: &str, seen: usize, cause: &str) -> Result<Line> {
        let ips = [false, true].map(|v6| Some(self.cluster.ip(who, v6)));
        let theirs = |l: &Line| ips.contains(&l.source_ip()) && l.cause() == cause;
        self.cluster.n2.wait_access_after(seen, &format!("{who}'s connection"), theirs)
    }

    /// Until plaintext of either family gets through, or none does.
    fn settled(&self, who: &str, port: u16, open: bool) -> Result<()> {
        for v6 in [false, true] {
            let to = self.cluster.addr("server", port, v6);
            let is_open = || talk::try_echo(self.cluster.ns(who), to, Duration::from_secs(2)).is_ok();
            let what = format!("port {port} is open to {who} (IPv6 {v6}): {open}");
            wait::until_true(wait::PATIENCE, &what, || is_open() == open)?;
        }
        Ok(())
    }

    fn why(&self, who: &str, port: u16) -> Result<Value> {
        let (ip, port) = (self.cluster.ip(who, false).to_string(), port.to_string());
        let asked = ["why", "plaintext", "default/server", "--port", &port, "--from-ip", &ip, "-o", "json"];
        let output = self.cluster.n2.cli(&asked)?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("why: {}", String::from_utf8_lossy(&output.stderr)))
    }
}

/// The connection ends as one that was cut, not as one that is over.
fn cut(stream: &mut TcpStream) -> Result<()> {
    let ended = stream.read(&mut [0; 16]);
    let reset = ended.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset);
    ensure!(reset, "the connection: {ended:?}");
    Ok(())
}
