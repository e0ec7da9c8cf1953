//! Two pods of one service account on one node: what they prove is the same, but tunnels, source
//! addresses and lifetimes are each one's own.

use std::collections::BTreeSet;
use std::net::{IpAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use underpass_tests::capture::{Capture, settle};
use underpass_tests::cluster::Cluster;
use underpass_tests::hbone;
use underpass_tests::mesh::identity;
use underpass_tests::packet::Segment;
use underpass_tests::stories::{self, World};
use underpass_tests::topology::NODE_LINK;
use underpass_tests::work::server;
use underpass_tests::work::talk::{self, Refusal};
use underpass_tests::{Mesh, Server, Settings, wait};

fn main() -> ExitCode {
    stories::run(&[
        ("each_pods_connections_come_from_its_own_address_in_its_own_tunnel", own_tunnels),
        ("a_policy_by_address_tells_the_twins_apart", policy_by_address),
        ("a_twin_that_leaves_the_mesh_takes_nothing_of_the_other_along", leaves_the_mesh),
        ("a_twin_with_another_account_is_somebody_else", another_account),
        ("a_twin_that_is_deleted_takes_nothing_of_the_other_along", deleted),
    ])
}

const APP: u16 = 8080;
const WHO: u16 = 8081;
const TWINS: [&str; 2] = ["castor", "pollux"];

struct Twins {
    cluster: Cluster,
    echo: Server,
    mesh: Mesh,
    _whoami: Server,
}

impl World for Twins {
    fn build() -> Result<Self> {
        let pods = [(TWINS[0], "n1"), (TWINS[1], "n1"), ("server", "n2")];
        let mesh =
            Mesh::default().meshed(TWINS[0], "twin").meshed(TWINS[1], "twin").meshed("server", "server");
        // Connections of a pod that leaves end when this is over.
        let settings = Settings { drain_deadline: Duration::from_millis(500), ..Settings::default() };
        let cluster = Cluster::start_with(&pods, mesh.clone(), settings)?;
        let echo = Server::start(cluster.ns("server"), APP, server::echo)?;
        let whoami = Server::start(cluster.ns("server"), WHO, server::whoami)?;
        Ok(Self { cluster, echo, mesh, _whoami: whoami })
    }

    fn diagnose(&self) -> String {
        self.cluster.diagnose()
    }
}

fn own_tunnels(w: &mut Twins) -> Result<()> {
    const ROUNDS: usize = 20;
    for v6 in [false, true] {
        let wire = Capture::start(&w.cluster.topology.node("n1").ns, NODE_LINK)?;
        w.echo.forget();
        let seen = w.cluster.n2.access()?.len();
        // In turns and open at the same time, so that a tunnel of the one is there to be mistaken for the
        // other's.
        let mut live = vec![];
        for _ in 0..ROUNDS {
            for twin in TWINS {
                let said = talk::listen_to(w.cluster.ns(twin), w.cluster.addr("server", WHO, v6))?;
                ensure!(said == w.cluster.ip(twin, v6).to_string(), "{twin} is taken for {said}");
                live.push(w.dial(twin, v6)?);
            }
        }
        let expected: Vec<IpAddr> =
            (0..ROUNDS).flat_map(|_| TWINS.map(|twin| w.cluster.ip(twin, v6))).collect();
        ensure!(w.echo.peer_ips() == expected, "the server saw {:?}", w.echo.peer_ips());
        for stream in live {
            drop(talk::finish(stream)?);
        }
        settle(&wire)?;
        let tunnels = tunnels(&wire.segments()?);
        let of = |twin| tunnels.iter().filter(|(ip, _)| *ip == w.cluster.ip(twin, v6)).count();
        ensure!(TWINS.iter().all(|twin| of(twin) >= 1), "{tunnels:?}");
        ensure!(
            tunnels.len() == TWINS.into_iter().map(of).sum::<usize>(),
            "somebody else's tunnel: {tunnels:?}"
        );
        // Pooled: 80 connections came in a handful of them.
        ensure!(tunnels.len() <= 8, "{} tunnels for {} connections", tunnels.len(), 4 * ROUNDS);
        ensure!(!wire.shows(b"I am castor")? && !wire.shows(b"I am pollux")?);

        // The log has one identity and two addresses.
        for twin in TWINS {
            let ip = w.cluster.ip(twin, v6);
            let line = w.cluster.n2.wait_access_after(seen, twin, |l| l.source_ip() == Some(ip))?;
            ensure!(line.is("src.identity", &identity("twin")) && line.is("src.workload", twin), "{line}");
        }
    }
    Ok(())
}

fn policy_by_address(w: &mut Twins) -> Result<()> {
    let [castor, _] = TWINS;
    let [four, six] = w.cluster.topology.pod(castor).addresses();
    // Their tunnels stand already: the one that was allowed must not carry the other.
    for twin in TWINS {
        drop(w.dial(twin, false)?);
    }
    let rule = format!("principals: [\"*/sa/twin\"], sourceIps: [\"{four}\", \"{six}\"]");
    w.cluster.apply(w.mesh.clone().rule("only-castor", "ALLOW", &rule))?;
    for _ in 0..5 {
        for v6 in [false, true] {
            drop(w.dial(TWINS[0], v6)?);
            w.echo.forget();
            let to = w.cluster.addr("server", APP, v6);
            let seen = talk::try_echo(w.cluster.ns(TWINS[1]), to, talk::DEADLINE);
            ensure!(seen == Err(Refusal::Reset), "pollux: {seen:?}");
            ensure!(w.echo.peers().is_empty(), "pollux reached the application");
        }
    }
    w.cluster.n2.wait_access("pollux's refusal", |l| {
        l.is("src.workload", TWINS[1]) && l.cause() == "policy_denied"
    })?;
    w.cluster.apply(w.mesh.clone())
}

fn leaves_the_mesh(w: &mut Twins) -> Result<()> {
    let mut castor = [w.dial(TWINS[0], false)?, w.dial(TWINS[0], true)?];
    let pollux = w.dial(TWINS[1], false)?;
    let seen = w.cluster.n1.access()?.len();
    w.cluster.apply(w.mesh.clone().without(TWINS[1]))?;
    w.cluster.n1.wait_access_after(seen, "pollux's connection ends", |l| {
        l.is("src.workload", TWINS[1]) && l.cause() == "pod_gone"
    })?;
    drop(pollux);
    w.goes_on(&mut castor)?;
    // It is a pod like any other now, and has back what it was like.
    enrolled(&w.cluster, 1)?;
    let seen = w.cluster.n1.access()?.len();
    for v6 in [false, true] {
        talk::echo_once(w.cluster.ns(TWINS[1]), w.cluster.addr("server", APP, v6))
            .context("without the mesh")?;
        let rules = w.cluster.ns(TWINS[1]).ip(if v6 { "-6 rule" } else { "rule" })?;
        ensure!(!rules.contains("fwmark"), "it keeps the rule: {rules}");
    }
    let lines = w.cluster.n1.access()?;
    ensure!(!lines[seen..].iter().any(|l| l.is("src.workload", TWINS[1])), "the agent still carries it");

    w.cluster.apply(w.mesh.clone())?;
    enrolled(&w.cluster, TWINS.len())?;
    w.goes_on(&mut castor)?;
    drop(w.dial(TWINS[1], false).context("pollux is back")?);
    Ok(())
}

/// The same sandbox, and from one edit of the file to the next another identity.
fn another_account(w: &mut Twins) -> Result<()> {
    for account in ["other", "twin"] {
        let mut mesh = w.mesh.clone();
        mesh.workload(TWINS[1]).service_account = account.into();
        w.cluster.apply(mesh)?;
        wait::until_true(wait::PATIENCE, &format!("{} is {account}", TWINS[1]), || {
            let Ok(stream) = w.dial(TWINS[1], false) else { return false };
            let _ = talk::finish(stream);
            let lines = w.cluster.n2.access().unwrap_or_default();
            lines.last().is_some_and(|l| l.is("src.identity", &identity(account)))
        })?;
    }
    enrolled(&w.cluster, TWINS.len())
}

fn deleted(w: &mut Twins) -> Result<()> {
    let mut castor = [w.dial(TWINS[0], false)?, w.dial(TWINS[0], true)?];
    let pollux = w.dial(TWINS[1], true)?;
    // As Kubernetes does it: the sandbox is gone before the agent is told.
    drop(pollux);
    w.cluster.topology.remove_pod(TWINS[1])?;
    w.goes_on(&mut castor)?;
    w.cluster.apply(w.mesh.clone().without(TWINS[1]))?;
    enrolled(&w.cluster, 1)?;
    w.goes_on(&mut castor)?;

    // Its address is free, and whoever gets it is somebody else.
    w.cluster.topology.add_pod(TWINS[1], "n1")?;
    let mut mesh = w.mesh.clone();
    mesh.workload(TWINS[1]).service_account = "other".into();
    w.cluster.apply(mesh)?;
    enrolled(&w.cluster, TWINS.len())?;
    let seen = w.cluster.n2.access()?.len();
    drop(talk::finish(w.dial(TWINS[1], true)?)?);
    let line = w.cluster.n2.wait_access_after(seen, "the newcomer", |_| true)?;
    ensure!(line.is("src.identity", &identity("other")), "{line}");
    w.goes_on(&mut castor)
}

/// The client's ends of TCP connections to the HBONE port.
fn tunnels(segments: &[Segment]) -> BTreeSet<(IpAddr, u16)> {
    let opening = segments.iter().filter(|s| s.opens() && s.to.port() == hbone::PORT);
    opening.map(|s| (s.from.ip(), s.from.port())).collect()
}

/// Waits until n1's agent serves so many pods.
fn enrolled(cluster: &Cluster, pods: usize) -> Result<()> {
    wait::until_true(wait::PATIENCE, &format!("{pods} pods are enrolled and none is leaving"), || {
        let Ok(status) = cluster.n1.admin("/status") else { return false };
        status["pods"]["enrolled"] == pods && status["pods"]["leaving"] == 0
    })
}

impl Twins {
    fn dial(&self, from: &str, v6: bool) -> Result<TcpStream> {
        let mut stream = talk::dial(self.cluster.ns(from), self.cluster.addr("server", APP, v6))?;
        talk::echo(&mut stream, format!("I am {from}").as_bytes())
            .with_context(|| format!("{from} dials"))?;
        Ok(stream)
    }

    fn goes_on(&self, castor: &mut [TcpStream]) -> Result<()> {
        for stream in castor {
            talk::echo(stream, b"still here").context("castor's connection is cut")?;
        }
        drop(self.dial(TWINS[0], false).context("castor's new connection")?);
        Ok(())
    }
}
