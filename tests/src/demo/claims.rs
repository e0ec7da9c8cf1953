//! What the demo claims, in the order it is told.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::report::Report;
use super::{Agents, MARKER, Stage, WEB};
use crate::capture::{Capture, settle};
use crate::hbone;
use crate::mesh::identity;
use crate::topology::NODE_LINK;
use crate::wait;
use crate::work::http::{self, Response};
use crate::work::talk::{self, Refusal};

/// Without agents everything goes in plain sight.
pub(super) fn before(stage: &Stage, report: &mut Report) {
    report.say("Before any agent runs:");
    let claim = "the capture between the nodes shows what client and server say to each other";
    report.claim(claim, plain_sight(stage, "client", "server", false));
    report.say("\nWith an agent on each node:");
}

pub(super) fn with_agents(stage: &Stage, agents: &Agents, report: &mut Report) {
    let claim = "the controller gave each node certificates of its own pods, under an offline root";
    report.claim(claim, certificates(agents));
    for v6 in [false, true] {
        let family = if v6 { "IPv6" } else { "IPv4" };
        let claim = format!("HTTP works unchanged, and in TLS on the wire ({family})");
        report.claim(&claim, encrypted(stage, v6));
    }
    let claim = "the server saw the client's real address";
    report.claim(claim, source_kept(stage));
    report.claim("both agents' logs name both identities", identities(agents));
    let claim = "the second client, of another service account, is refused by the policy";
    report.claim(claim, second_refused(stage, agents));
    report.claim("the unmeshed client is refused by STRICT", unmeshed_refused(stage));
    let claim = "traffic to the non-mesh destination never touches the agent";
    report.claim(claim, outside_untouched(stage, agents));
    let claim = "the same capture does show the marker where no mesh is (unmeshed client, same link)";
    report.claim(claim, plain_sight(stage, "unmeshed", "outside", false));
}

/// After the agents' orderly end and `underpass uninstall`.
pub(super) fn after(stage: &mut Stage, mut agents: Agents, report: &mut Report) {
    report.say("\nAfterwards:");
    report.claim("the agents end in order and nothing is left of them", gone(stage, &mut agents));
}

fn plain_sight(stage: &Stage, from: &str, to: &str, v6: bool) -> Result<String> {
    let capture = Capture::start(&stage.topology.node("n1").ns, NODE_LINK)?;
    fetch(stage, from, to, v6)?;
    settle(&capture)?;
    ensure!(capture.shows(MARKER.as_bytes())?, "the marker was not seen: the capture proves nothing");
    Ok(format!("{} packets on port {WEB}, the marker in plain text", capture.count_on(WEB)?))
}

fn encrypted(stage: &Stage, v6: bool) -> Result<String> {
    let capture = Capture::start(&stage.topology.node("n1").ns, NODE_LINK)?;
    let answer = fetch(stage, "client", "server", v6)?;
    settle(&capture)?;
    let tunnel = capture.count_on(hbone::PORT)?;
    let segments = capture.segments()?;
    let records = segments.iter().filter(|s| s.on_port(hbone::PORT) && s.is_tls(23)).count();
    ensure!(!capture.shows(MARKER.as_bytes())?, "the marker is on the wire in plain text");
    ensure!(capture.count_on(WEB)? == 0, "packets of port {WEB} are on the wire");
    ensure!(tunnel > 0 && records > 0, "no TLS on port {}: {tunnel} packets", hbone::PORT);
    Ok(format!(
        "{} with {} bytes; on the link {tunnel} packets on port {} with {records} TLS records, \
         0 on port {WEB}, the marker nowhere",
        answer.status,
        answer.body.len(),
        hbone::PORT
    ))
}

/// What the agents say that they hold, against what the controller says that it signed with.
fn certificates(agents: &Agents) -> Result<String> {
    let nodes = [("n1", vec![identity("client"), identity("second")]), ("n2", vec![identity("server")])];
    let view = wait::until(wait::PATIENCE, "both agents have told the controller what they hold", || {
        let view = agents.controller.admin("/agents").ok()?;
        let held =
            view["agents"].as_array()?.iter().map(|a| a["certificates"].as_array().map_or(0, Vec::len));
        (held.sum::<usize>() == 3).then_some(view)
    })?;
    let root = view["roots"][0]["sha256"].as_str().context("no root")?;
    for (node, expected) in &nodes {
        let agents = view["agents"].as_array().into_iter().flatten();
        let held: Vec<_> = agents
            .filter(|a| a["node"] == *node)
            .flat_map(|a| a["certificates"].as_array().into_iter().flatten())
            .collect();
        let mut identities: Vec<&str> = held.iter().filter_map(|c| c["identity"].as_str()).collect();
        identities.sort_unstable();
        ensure!(identities == *expected, "{node} holds {identities:?}");
        for certificate in held {
            ensure!(certificate["authority"] == view["authority"], "signed by another: {certificate}");
            ensure!(certificate["root"] == root, "under another root: {certificate}");
        }
    }
    let subject = view["roots"][0]["subject"].as_str().unwrap_or_default();
    Ok(format!(
        "3 certificates in memory on 2 nodes; the root is {subject}, its key is not in the controller's folder"
    ))
}

fn source_kept(stage: &Stage) -> Result<String> {
    for v6 in [false, true] {
        stage.web.forget();
        fetch(stage, "client", "server", v6)?;
        let (seen, client) = (stage.web.peer_ips(), stage.ip("client", v6));
        ensure!(seen == [client], "it saw {seen:?}, the client is {client}");
    }
    Ok(format!("{} and {}", stage.ip("client", false), stage.ip("client", true)))
}

fn identities(agents: &Agents) -> Result<String> {
    let (client, server) = (identity("client"), identity("server"));
    for (agent, direction) in [(&agents.n1, "outbound"), (&agents.n2, "inbound")] {
        agent.wait_access("the connection with both identities", |line| {
            line.is("direction", direction)
                && line.is("src.identity", &client)
                && line.is("dst.identity", &server)
                && line.cause() == "closed"
        })?;
    }
    Ok(format!("{client} to {server}"))
}

fn second_refused(stage: &Stage, agents: &Agents) -> Result<String> {
    stage.web.forget();
    if let Ok(answer) = fetch(stage, "second", "server", false) {
        bail!("it was answered: {}", answer.status);
    }
    ensure!(stage.web.peers().is_empty(), "the server was reached");
    let second = identity("second");
    let line = agents.n2.wait_access("the refusal", |line| {
        line.is("src.identity", &second) && line.cause() == "policy_denied"
    })?;
    let by = line.get("policy").or_else(|| line.get("error")).unwrap_or_default();
    Ok(format!("{second}: {} ({by})", line.cause()))
}

fn unmeshed_refused(stage: &Stage) -> Result<String> {
    stage.web.forget();
    let to = SocketAddr::new(stage.ip("server", false), WEB);
    let from = &stage.topology.pod("unmeshed").ns;
    let refusal = match talk::try_echo(from, to, Duration::from_secs(2)) {
        Err(refusal @ (Refusal::Refused | Refusal::Silence)) => refusal,
        other => bail!("instead: {other:?}"),
    };
    ensure!(stage.web.peers().is_empty(), "the server was reached");
    Ok(format!("{refusal:?} in the kernel: the server accepted nothing"))
}

fn outside_untouched(stage: &Stage, agents: &Agents) -> Result<String> {
    const FLOWS: &str = "underpass_passthrough_connections_total";
    let before = agents.n1.metric(FLOWS, &["\"client\""])?;
    stage.outside.forget();
    fetch(stage, "client", "outside", false)?;
    fetch(stage, "client", "outside", true)?;
    ensure!(stage.outside.peer_ips() == [stage.ip("client", false), stage.ip("client", true)]);
    let flows = wait::until(wait::PATIENCE, "the kernel counted both flows", || {
        let now = agents.n1.metric(FLOWS, &["\"client\""]).ok()? - before;
        (now >= 2.0).then_some(now)
    })?;
    let outside = stage.topology.pod("outside").addresses().map(|ip| ip.to_string());
    let touched = agents.n1.access()?.into_iter().find(|line| {
        let dst =
            line.get("dst.addr").unwrap_or_default() + &line.get("dst.original_addr").unwrap_or_default();
        outside.iter().any(|ip| dst.contains(ip.as_str()))
    });
    ensure!(
        touched.is_none(),
        "the agent's log has it: {}",
        touched.map_or(String::new(), |l| l.to_string())
    );
    Ok(format!("{flows} flows counted by the kernel, no line in the agent's log"))
}

fn gone(stage: &mut Stage, agents: &mut Agents) -> Result<String> {
    agents.controller.stop()?;
    for agent in [&mut agents.n1, &mut agents.n2] {
        let status = agent.stop(wait::PATIENCE)?;
        ensure!(status.success(), "{}: {status}\n{}", agent.node().name, agent.tail());
        agent.uninstall()?;
    }
    for pod in stage.topology.pods() {
        let rules = pod.ns.ip("rule")?;
        ensure!(!rules.contains("fwmark"), "{} still has a rule: {rules}", pod.name);
    }
    let answer = fetch(stage, "unmeshed", "server", false).context("plain TCP to the server")?;
    Ok(format!("no rule in any pod, and plain TCP works again: {}", answer.status))
}

/// An ordinary client's GET.
fn fetch(stage: &Stage, from: &str, to: &str, v6: bool) -> Result<Response> {
    let addr = SocketAddr::new(stage.ip(to, v6), WEB);
    let mut stream = talk::dial(&stage.topology.pod(from).ns, addr)
        .with_context(|| format!("{from} connecting to {to} ({addr})"))?;
    let answer = http::request(&mut stream, to, "/", b"").with_context(|| format!("{from} asking {to}"))?;
    ensure!(answer.status == 200 && answer.body == MARKER.as_bytes(), "the answer is {}", answer.status);
    Ok(answer)
}
