//! Istio's and Linkerd's resources as they stand in a cluster, on live connections: what they say is what
//! connections meet, and what `underpass why` says.

use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use underpass_tests::access_log::Line;
use underpass_tests::cluster::Cluster;
use underpass_tests::mesh::identity;
use underpass_tests::stories::{self, World};
use underpass_tests::work::server;
use underpass_tests::work::talk::{self, Refusal};
use underpass_tests::{Mesh, Server, wait};

fn main() -> ExitCode {
    stories::run(&[
        ("strict_on_one_port_refuses_plaintext_there_and_nowhere_else", strict_by_port),
        ("strict_ends_plaintext_that_only_the_kernel_had_seen", strict_ends_unseen),
        ("so_does_a_policy_that_forbids_its_sender", deny_ends_unseen),
        ("deny_wins_over_allow", deny_wins),
        ("an_edit_cuts_the_one_of_two_connections_that_it_forbids", revoked),
        ("a_dry_run_decides_nothing_and_is_told", dry_run),
        ("an_audit_decides_nothing_and_is_told", audited),
        ("a_server_admits_whom_its_authorization_names", linkerd_server),
        ("both_dialects_have_to_admit", both),
        ("a_label_that_brings_a_policy_ends_what_it_forbids", label_added),
        ("a_policy_that_goes_forbids_nothing_any_more", removed),
        ("a_policy_that_breaks_never_admits_more", broken),
    ])
}

const APP: u16 = 8080;
const SIDE: u16 = 9090;
const LAST: u16 = 9191;
const OUT: u16 = 9292;

struct Office {
    cluster: Cluster,
    apps: [Server; 2],
    /// Without any resource.
    mesh: Mesh,
}

impl World for Office {
    fn build() -> Result<Self> {
        let mut mesh = Mesh::of_four();
        mesh.workload("server").labels = vec!["app: server".into()];
        let cluster = Cluster::start(&Mesh::FOUR, mesh.clone())?;
        let app = |port| Server::start(cluster.ns("server"), port, server::echo);
        let apps = [app(APP)?, app(SIDE)?];
        Ok(Self { cluster, apps, mesh })
    }

    fn diagnose(&self) -> String {
        self.cluster.diagnose()
    }
}

fn strict_by_port(w: &mut Office) -> Result<()> {
    w.cluster.apply(w.mesh.clone().resource(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {name: side, namespace: default}\n\
         spec: {selector: {matchLabels: {app: server}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {9090: {mode: STRICT}}}",
    ))?;
    let admitted = |by: &str| w.counted("underpass_plaintext_admitted_total", &[format!("by=\"{by}\"")]);
    let (before, dropped) = (admitted("kernel")?, w.counted(DROPPED, &[])?);
    w.admitted("guest", APP, "no_policy")?;
    w.refused("guest", SIDE, "strict_mtls", "PeerAuthentication.security.istio.io/default/side")?;
    ensure!(w.counted(DROPPED, &[])? >= dropped + 2.0, "what the kernel dropped is not counted");
    wait::until(wait::PATIENCE, "what the kernel passed is counted", || {
        admitted("kernel").is_ok_and(|now| now >= before + 2.0).then_some(())
    })?;
    for port in [APP, SIDE] {
        w.admitted("alice", port, "no_policy")?;
    }
    w.cluster.apply(w.mesh.clone())?;
    w.admitted("guest", SIDE, "no_policy")
}

fn strict_ends_unseen(w: &mut Office) -> Result<()> {
    w.cluster.apply(w.mesh.clone())?;
    let (guest, server) = (w.cluster.ns("guest"), w.cluster.ns("server"));
    let dial = |from: &_, to| -> Result<TcpStream> {
        let mut stream = talk::dial(from, to)?;
        talk::echo(&mut stream, b"hello")?;
        Ok(stream)
    };
    let at = |pod, port, v6| w.cluster.addr(pod, port, v6);
    w.settled("guest", SIDE, true)?;

    let mut forbidden = vec![dial(guest, at("server", SIDE, false))?, dial(guest, at("server", SIDE, true))?];
    // The application has closed its listener since.
    let last = server.run(|| TcpListener::bind(("0.0.0.0", LAST)))?;
    forbidden.push(talk::dial(guest, at("server", LAST, false))?);
    let (accepted, _) = last.accept()?;
    drop(last);
    let unseen = w.cluster.n2.admin("/connections")?;
    ensure!(unseen.as_array().is_some_and(Vec::is_empty), "the kernel does not pass it by itself: {unseen}");

    let elsewhere = Server::start(guest, SIDE, server::echo)?;
    let from_listening = |port| -> Result<TcpStream> {
        let socket = server.run(|| Socket::new(Domain::IPV4, Type::STREAM, None))?;
        socket.set_reuse_address(true)?;
        socket.bind(&at("server", port, false).into())?;
        socket.connect(&at("guest", SIDE, false).into())?;
        let mut stream = socket.into();
        talk::prepare(&stream, talk::DEADLINE)?;
        talk::echo(&mut stream, b"hello")?;
        Ok(stream)
    };
    let mut allowed = vec![
        ("to a port that stays open", dial(guest, at("server", APP, false))?),
        ("by a tunnel", dial(w.cluster.ns("alice"), at("server", SIDE, false))?),
        ("by a tunnel, IPv6", dial(w.cluster.ns("alice"), at("server", SIDE, true))?),
        ("on loopback", dial(server, ([127, 0, 0, 1], SIDE).into())?),
        ("to itself", dial(server, at("server", SIDE, false))?),
        ("to itself, IPv6", dial(server, at("server", SIDE, true))?),
        ("going out", dial(server, at("guest", SIDE, false))?),
        ("going out from a port that listens and is now STRICT", from_listening(OUT)?),
    ];
    let listening = Server::start(server, OUT, server::echo)?;
    let seen = w.lines()?;
    let ports = [SIDE, LAST, OUT].map(|port| format!("{port}: {{mode: STRICT}}")).join(", ");
    w.cluster.apply(w.mesh.clone().resource(&format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{name: side, namespace: default}}\n\
         spec: {{selector: {{matchLabels: {{app: server}}}}, portLevelMtls: {{{ports}}}}}",
    )))?;
    for stream in &mut forbidden {
        cut(stream)?;
        let client = stream.local_addr()?.to_string();
        let line = w.cluster.n2.wait_access_after(seen, "its end", |l| l.is("src.addr", &client))?;
        ensure!(line.cause() == "policy_revoked" && line.is("verdict", "deny"), "{line}");
        ensure!(line.get("error").is_some_and(|e| e.contains("STRICT")), "{line}");
    }
    drop(accepted);
    for (what, stream) in &mut allowed {
        talk::echo(stream, b"still here").with_context(|| format!("a connection {what} went as well"))?;
    }
    drop((allowed, elsewhere, listening));
    w.cluster.apply(w.mesh.clone())
}

fn deny_ends_unseen(w: &mut Office) -> Result<()> {
    w.cluster.apply(w.mesh.clone())?;
    w.settled("guest", APP, true)?;
    let mut plain = w.dial("guest")?;
    let (seen, ip) = (w.lines()?, w.cluster.ip("guest", false));
    let rules = format!("action: DENY, rules: [{{from: [{{source: {{ipBlocks: [{ip}]}}}}]}}]");
    w.cluster.apply(w.mesh.clone().resource(&istio("no-guest", &rules)))?;
    cut(&mut plain)?;
    let line = w.cluster.n2.wait_access_after(seen, "guest's end", |l| l.source_ip() == Some(ip))?;
    let policy = "AuthorizationPolicy.security.istio.io/default/no-guest";
    ensure!(line.cause() == "policy_revoked" && line.is("policy", policy), "{line}");
    w.cluster.apply(w.mesh.clone())
}

fn deny_wins(w: &mut Office) -> Result<()> {
    let no_bob = istio("no-bob", &format!("action: DENY, rules: [{{from: [{{source: {{{BOB}}}}}]}}]"));
    let anybody = istio("anybody", "rules: [{from: [{source: {principals: [\"*\"]}}]}]");
    for mesh in [
        w.mesh.clone().resource(&no_bob).resource(&anybody),
        w.mesh.clone().resource(&anybody).resource(&no_bob),
    ] {
        w.cluster.apply(mesh)?;
        w.refused("bob", APP, "deny_matched", "AuthorizationPolicy.security.istio.io/default/no-bob#0")?;
        w.admitted("alice", APP, "allow_matched")?;
        w.refused("guest", APP, "no_allow_matched", "")?;
    }
    w.cluster.apply(w.mesh.clone())
}

fn revoked(w: &mut Office) -> Result<()> {
    w.cluster.apply(w.mesh.clone())?;
    let (mut alice, mut bob) = (w.dial("alice")?, w.dial("bob")?);
    let seen = w.lines()?;
    w.cluster.apply(
        w.mesh
            .clone()
            .resource(&istio("only-alice", &format!("rules: [{{from: [{{source: {{{ALICE}}}}}]}}]"))),
    )?;
    cut(&mut bob)?;
    let line = w.line_of("bob", seen, "policy_revoked")?;
    ensure!(line.is("verdict", "deny") && line.is("reason", "no_allow_matched"), "{line}");
    talk::echo(&mut alice, b"still here").context("alice's connection went as well")?;
    w.refused("bob", APP, "no_allow_matched", "")?;
    w.cluster.apply(w.mesh.clone())
}

fn dry_run(w: &mut Office) -> Result<()> {
    let rules = format!("action: DENY, rules: [{{from: [{{source: {{{BOB}}}}}]}}]");
    let dry = istio("dry", &rules)
        .replace("namespace: default", "namespace: default, annotations: {istio.io/dry-run: \"true\"}");
    w.cluster.apply(w.mesh.clone().resource(&dry))?;
    let counted = |result: &str| w.counted(DRY_RUN, &[format!("result=\"{result}\"")]);
    let before = [counted("would_deny")?, counted("would_allow")?];
    for (who, would) in
        [("bob", "denied by policy AuthorizationPolicy.security.istio.io/default/dry"), ("alice", "allowed")]
    {
        let seen = w.lines()?;
        w.admitted(who, APP, "no_policy")?;
        let line = w.line_of(who, seen, "closed")?;
        ensure!(line.is("verdict", "allow"), "{line}");
        ensure!(line.get("dry_run").unwrap_or_default().starts_with(would), "not {would:?}: {line}");
    }
    // Each was admitted once by IPv4 and once by IPv6.
    let now = [counted("would_deny")?, counted("would_allow")?];
    ensure!(now == before.map(|count| count + 2.0), "{before:?} became {now:?}");
    let told = w.why("bob", APP)?;
    ensure!(told["dryRun"]["verdict"] == "deny" && told["dryRun"]["cause"] == "deny_matched", "{told}");
    w.cluster.apply(w.mesh.clone())
}

fn audited(w: &mut Office) -> Result<()> {
    let rules = format!("action: AUDIT, rules: [{{from: [{{source: {{{BOB}}}}}]}}]");
    w.cluster.apply(w.mesh.clone().resource(&istio("seen", &rules)))?;
    let seen = w.lines()?;
    w.admitted("bob", APP, "no_policy")?;
    w.admitted("alice", APP, "no_policy")?;
    let policy = "AuthorizationPolicy.security.istio.io/default/seen";
    let line = w.line_of("bob", seen, "closed")?;
    ensure!(line.is("audit", &format!("{policy}#0")) && line.is("verdict", "allow"), "{line}");
    let line = w.line_of("alice", seen, "closed")?;
    ensure!(line.get("audit").is_none(), "{line}");
    let counted =
        w.counted("underpass_policy_audited_connections_total", &[format!("policy=\"{policy}\"")])?;
    ensure!(counted == 2.0, "counted {counted} times");
    w.cluster.apply(w.mesh.clone())
}

fn linkerd_server(w: &mut Office) -> Result<()> {
    w.cluster.apply(served(&w.mesh, &["alice"]))?;
    w.admitted("alice", APP, "allow_matched")?;
    w.refused("bob", APP, "unauthorized", "Server.policy.linkerd.io/default/app")?;
    w.refused("guest", APP, "unauthorized", "Server.policy.linkerd.io/default/app")?;
    // The Server is of one port.
    for who in ["bob", "guest"] {
        w.admitted(who, SIDE, "no_policy")?;
    }
    w.cluster.apply(w.mesh.clone())
}

fn both(w: &mut Office) -> Result<()> {
    let only = |who| istio("only", &format!("rules: [{{from: [{{source: {{{who}}}}}]}}]"));
    let istio_says = "AuthorizationPolicy.security.istio.io/default/no-bob#0";
    let no_bob = istio("no-bob", &format!("action: DENY, rules: [{{from: [{{source: {{{BOB}}}}}]}}]"));

    w.cluster.apply(served(&w.mesh, &["alice", "bob"]).resource(&no_bob))?;
    w.refused("bob", APP, "deny_matched", istio_says)?;
    w.admitted("alice", APP, "allow_matched")?;

    w.cluster.apply(served(&w.mesh, &["alice"]).resource(&only(BOB)))?;
    w.refused("alice", APP, "no_allow_matched", "")?;
    w.refused("bob", APP, "unauthorized", "Server.policy.linkerd.io/default/app")?;

    w.cluster.apply(served(&w.mesh, &["alice"]).resource(&only(ALICE)))?;
    w.admitted("alice", APP, "allow_matched")?;
    let told = w.why("alice", APP)?;
    let by: Vec<&str> =
        told["decidedBy"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    ensure!(by.len() == 2 && by[0].contains("istio.io") && by[1].contains("linkerd.io"), "{told}");
    w.cluster.apply(w.mesh.clone())
}

fn label_added(w: &mut Office) -> Result<()> {
    let rules = format!(
        "selector: {{matchLabels: {{tier: inner}}}}, action: DENY, rules: [{{from: [{{source: {{{BOB}}}}}]}}]"
    );
    let mut mesh = w.mesh.clone().resource(&istio("inner", &rules));
    w.cluster.apply(mesh.clone())?;
    let (mut alice, mut bob) = (w.dial("alice")?, w.dial("bob").context("it is of nobody yet")?);
    let seen = w.lines()?;
    mesh.workload("server").labels.push("tier: inner".into());
    w.cluster.apply(mesh)?;
    cut(&mut bob)?;
    w.line_of("bob", seen, "policy_revoked")?;
    talk::echo(&mut alice, b"still here").context("alice's connection went as well")?;
    w.refused("bob", APP, "deny_matched", "AuthorizationPolicy.security.istio.io/default/inner#0")?;
    w.cluster.apply(w.mesh.clone())
}

fn removed(w: &mut Office) -> Result<()> {
    let nobody = istio("nobody", "");
    w.cluster.apply(w.mesh.clone().resource(&nobody))?;
    w.refused("alice", APP, "no_allow_matched", "")?;
    w.refused("guest", APP, "no_allow_matched", "")?;
    let only_alice = istio("only-alice", &format!("rules: [{{from: [{{source: {{{ALICE}}}}}]}}]"));
    w.cluster.apply(w.mesh.clone().resource(&nobody).resource(&only_alice))?;
    let mut alice = w.dial("alice")?;
    // The one that admits her is no longer needed when there is none at all.
    w.cluster.apply(w.mesh.clone())?;
    for who in ["bob", "guest"] {
        w.admitted(who, APP, "no_policy")?;
    }
    talk::echo(&mut alice, b"still here")?;
    drop(alice);
    w.cluster.apply(w.mesh.clone())
}

fn broken(w: &mut Office) -> Result<()> {
    // Where it denies, it denies more than before.
    let deny = |ips: &str| {
        istio(
            "far-bob",
            &format!("action: DENY, rules: [{{from: [{{source: {{{BOB}, ipBlocks: [{ips}]}}}}]}}]"),
        )
    };
    w.cluster.apply(w.mesh.clone().resource(&deny("192.0.2.0/24")))?;
    let (mut alice, mut bob) = (w.dial("alice")?, w.dial("bob")?);
    let seen = w.lines()?;
    w.cluster.apply(w.mesh.clone().resource(&deny("192.0.2.0/33")))?;
    cut(&mut bob)?;
    w.line_of("bob", seen, "policy_revoked")?;
    w.refused("bob", APP, "deny_matched", "AuthorizationPolicy.security.istio.io/default/far-bob#0")?;
    talk::echo(&mut alice, b"still here").context("alice's connection went as well")?;
    let defects = w.why("bob", APP)?["defects"].to_string();
    ensure!(w.counted("underpass_policy_defects", &["kind=\"invalid\"".into()])? == 1.0, "not counted");
    ensure!(defects.contains("192.0.2.0/33") && defects.contains("ipBlocks"), "not told: {defects}");
    let status = w.cluster.n2.cli(&["status"])?;
    let told = String::from_utf8_lossy(&status.stdout).into_owned();
    let line = told.lines().find(|line| line.starts_with("Policy:")).unwrap_or_default();
    ensure!(line.contains("security.istio.io/default/far-bob") && line.contains("192.0.2.0/33"), "{told}");

    // Where it allows, it admits nobody: not those either whom another value names.
    let ip = w.cluster.ip("guest", false);
    let allow =
        |blocks: &str| istio("near", &format!("rules: [{{from: [{{source: {{ipBlocks: [{blocks}]}}}}]}}]"));
    let anybody = "\"0.0.0.0/0\", \"::/0\"";
    w.cluster.apply(w.mesh.clone().resource(&allow(&format!("{ip}, {anybody}"))))?;
    w.admitted("guest", APP, "allow_matched")?;
    let mut bob = w.dial("bob")?;
    w.cluster.apply(w.mesh.clone().resource(&allow(&format!("{ip}, {anybody}, 10.0.0.256"))))?;
    for stream in [&mut alice, &mut bob] {
        cut(stream)?;
    }
    for who in ["alice", "bob", "guest"] {
        w.refused(who, APP, "no_allow_matched", "")?;
    }
    w.cluster.apply(w.mesh.clone())
}

const DENIED: &str = "underpass_policy_denied_connections_total";
const DRY_RUN: &str = "underpass_policy_dry_run_connections_total";
const DROPPED: &str = "underpass_plaintext_dropped_total";

const ALICE: &str = "principals: [cluster.local/ns/default/sa/alice]";
const BOB: &str = "principals: [cluster.local/ns/default/sa/bob]";

/// An AuthorizationPolicy of Istio's.
fn istio(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: default}}\nspec: {{{spec}}}"
    )
}

/// With a Server of Linkerd's on [`APP`] that admits these accounts, by their names in Linkerd's DNS.
fn served(mesh: &Mesh, accounts: &[&str]) -> Mesh {
    let names: Vec<String> = accounts
        .iter()
        .map(|who| format!("{who}.default.serviceaccount.identity.linkerd.cluster.local"))
        .collect();
    mesh.clone()
        .resource(&format!(
            "apiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {{name: app, namespace: default}}\n\
             spec: {{podSelector: {{matchLabels: {{app: server}}}}, port: {APP}}}"
        ))
        .resource(
            "apiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\n\
             metadata: {name: app, namespace: default}\n\
             spec:\n  targetRef: {group: policy.linkerd.io, kind: Server, name: app}\n  \
             requiredAuthenticationRefs:\n  - {group: policy.linkerd.io, kind: MeshTLSAuthentication, name: them}",
        )
        .resource(&format!(
            "apiVersion: policy.linkerd.io/v1alpha1\nkind: MeshTLSAuthentication\n\
             metadata: {{name: them, namespace: default}}\nspec: {{identities: [{}]}}",
            names.join(", ")
        ))
}

impl Office {
    /// A connection to the application over which something went already.
    fn dial(&self, from: &str) -> Result<TcpStream> {
        let mut stream = talk::dial(self.cluster.ns(from), self.cluster.addr("server", APP, false))?;
        talk::echo(&mut stream, b"hello").with_context(|| format!("{from} to the server"))?;
        Ok(stream)
    }

    /// Of the server's agent.
    fn counted(&self, name: &str, labels: &[String]) -> Result<f64> {
        self.cluster.n2.metric(name, &labels.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn lines(&self) -> Result<usize> {
        Ok(self.cluster.n2.access()?.len())
    }

    fn line_of(&self, who: &str, seen: usize, cause: &str) -> Result<Line> {
        let identity = identity(who);
        let theirs = |l: &Line| l.is("src.identity", &identity) && l.cause() == cause;
        self.cluster.n2.wait_access_after(seen, &format!("{who}'s connection"), theirs)
    }

    /// A new connection of either family is served, and `why` says so for this cause.
    fn admitted(&self, who: &str, port: u16, cause: &str) -> Result<()> {
        self.settled(who, port, true)?;
        for v6 in [false, true] {
            let to = self.cluster.addr("server", port, v6);
            let mut stream = talk::dial(self.cluster.ns(who), to)
                .with_context(|| format!("{who} to port {port}, which is open"))?;
            talk::echo(&mut stream, b"?").with_context(|| format!("{who} to port {port}, which is open"))?;
            drop(talk::finish(stream)?);
        }
        self.agrees(who, port, ("allow", cause))
    }

    /// A new connection of either family does not reach the application, the log says by which resource,
    /// and `why` says the same.
    fn refused(&self, who: &str, port: u16, cause: &str, by: &str) -> Result<()> {
        self.settled(who, port, false)?;
        for v6 in [false, true] {
            self.apps.iter().for_each(Server::forget);
            let seen = self.lines()?;
            let to = self.cluster.addr("server", port, v6);
            let refusal = talk::try_echo(self.cluster.ns(who), to, Duration::from_secs(2));
            ensure!(refusal.is_err(), "{who} reached port {port}, which is closed to it ({cause})");
            ensure!(self.apps.iter().all(|app| app.peers().is_empty()), "{who} reached the application");
            // Plaintext that STRICT forbids is the kernel's to drop, and not logged.
            if who != "guest" {
                ensure!(refusal == Err(Refusal::Reset), "{who}: {refusal:?}");
                let line = self.line_of(who, seen, "policy_denied")?;
                let told = line.get("policy").unwrap_or_default();
                let resource = by.split('#').next().unwrap_or_default();
                ensure!(told == resource && line.is("reason", cause), "not by {by} for {cause}: {line}");
                let rule = by.split_once('#').map(|(_, rule)| rule.to_owned());
                ensure!(line.get("rule") == rule, "not by {by}: {line}");
                let labels = [format!("reason=\"{cause}\""), format!("policy=\"{resource}\"")];
                ensure!(self.counted(DENIED, &labels)? >= 1.0, "not counted: {labels:?}");
            }
        }
        self.agrees(who, port, ("deny", cause))?;
        let decided = self.why(who, port)?["decidedBy"][0].clone();
        ensure!(decided.as_str().unwrap_or_default() == by, "why: {decided}, not {by:?}");
        Ok(())
    }

    /// The kernel is told what becomes of plaintext just after the agent has said that it holds the mesh.
    fn settled(&self, who: &str, port: u16, open: bool) -> Result<()> {
        if who != "guest" {
            return Ok(());
        }
        let to = self.cluster.addr("server", port, false);
        let is_open = || talk::try_echo(self.cluster.ns(who), to, Duration::from_secs(2)).is_ok();
        wait::until_true(wait::PATIENCE, &format!("port {port} is open to {who}: {open}"), || {
            is_open() == open
        })
    }

    fn agrees(&self, who: &str, port: u16, (verdict, cause): (&str, &str)) -> Result<()> {
        let told = self.why(who, port)?;
        ensure!(
            told["verdict"] == verdict && told["cause"] == cause,
            "{who} to port {port} is {verdict} for {cause}, but why: {told}"
        );
        Ok(())
    }

    /// What `underpass why` answers, the running agent and the same YAML alike.
    fn why(&self, who: &str, port: u16) -> Result<Value> {
        let ip = self.cluster.ip(who, false).to_string();
        let (from, port) =
            (if who == "guest" { "plaintext".into() } else { format!("default/{who}") }, port.to_string());
        let asked = ["why", &from, "default/server", "--port", &port, "--from-ip", &ip, "-o", "json"];
        let live = self.ask(&asked)?;
        let file = self.cluster.topology.dir().join("kubernetes.yaml");
        std::fs::write(&file, self.cluster.mesh.kubernetes(&self.cluster.topology))?;
        let offline = self.ask(&[&asked[..], &["-f", &file.to_string_lossy()]].concat())?;
        for part in ["verdict", "cause", "decidedBy", "mtls", "policies", "dryRun", "defects"] {
            ensure!(live[part] == offline[part], "{part} differs: live {live}, from YAML {offline}");
        }
        Ok(live)
    }

    fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.cluster.n2.cli(arguments)?;
        let answer: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("why: {}", String::from_utf8_lossy(&output.stderr)))?;
        let code = if answer["verdict"] == "allow" { 0 } else { 3 };
        ensure!(output.status.code() == Some(code), "exit code {:?} with {answer}", output.status.code());
        Ok(answer)
    }
}

/// The connection ends as one that was cut, not as one that is over.
fn cut(stream: &mut TcpStream) -> Result<()> {
    use std::io::Read;
    let ended = stream.read(&mut [0; 16]);
    let reset = ended.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset);
    ensure!(reset, "the forbidden connection: {ended:?}");
    Ok(())
}
