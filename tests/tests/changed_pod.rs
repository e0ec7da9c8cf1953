//! A local pod that is described anew: between two descriptions, and when the new one cannot be had,
//! nothing of it passes in plaintext, whatever its processes did before; and who is taken out of the mesh
//! is let go, whatever state it or the agent is in.

use std::net::{Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use underpass_tests::cluster::{Cluster, SHORT};
use underpass_tests::hostile;
use underpass_tests::stories::{self, World};
use underpass_tests::work::server;
use underpass_tests::work::talk::{self, Refusal};
use underpass_tests::{Mesh, Server, wait};

fn main() -> ExitCode {
    stories::run(&[
        ("one_that_cannot_be_enrolled_as_described_anew_stays_closed", stays_closed),
        ("one_that_was_refused_is_let_go_when_it_leaves_the_mesh", is_let_go),
        ("one_that_took_the_agents_ports_first_is_closed_until_they_are_free", ports_taken),
        ("another_pods_address_on_its_lo_opens_no_way_past_the_mesh", borrowed_address),
        ("an_agent_that_ends_while_it_drains_leaves_the_namespace_tidy", ends_while_it_drains),
    ])
}

const APP: u16 = 8080;

struct Move {
    cluster: Cluster,
    app: Server,
}

impl World for Move {
    fn build() -> Result<Self> {
        // Plaintext would reach the server: only capture keeps the client from it.
        let mesh = Mesh::default().meshed("client", "client").meshed("server", "server");
        let cluster = Cluster::start(&[("client", "n1"), ("server", "n2")], mesh)?;
        let app = Server::start(cluster.ns("server"), APP, server::echo)?;
        Ok(Self { cluster, app })
    }

    fn diagnose(&self) -> String {
        self.cluster.diagnose()
    }
}

fn stays_closed(w: &mut Move) -> Result<()> {
    w.dial(false).ok().context("the client as first described")?;
    w.describe_unenrollably()?;
    w.app.forget();
    for v6 in [false, true] {
        let refusal = w.dial(v6);
        ensure!(refusal == Err(Refusal::Refused), "while it cannot be enrolled: {refusal:?}");
    }
    ensure!(w.app.peers().is_empty(), "it reached the server past the mesh");
    w.restore()
}

fn is_let_go(w: &mut Move) -> Result<()> {
    w.describe_unenrollably()?;
    let mesh = w.cluster.mesh.clone().without("client");
    w.cluster.n1.write_mesh(&mesh.text_for(&w.cluster.topology, "n1"))?;
    wait::until_true(wait::PATIENCE, "the former pod dials like any other", || w.dial(false).is_ok())?;
    w.dial(true).ok().context("over IPv6")?;
    wait::until_true(wait::PATIENCE, "its rule is gone", || w.has_rule().is_ok_and(|there| !there))?;
    w.restore()
}

/// Before it is enrolled, nobody keeps its processes from the agent's ports.
fn ports_taken(w: &mut Move) -> Result<()> {
    let open = Server::start(w.cluster.ns("client"), APP, server::echo)?;
    for port in [15_001, 15_006, 15_008] {
        w.take_out()?;
        let there = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        let taken = hostile::bind(w.cluster.ns("client"), there, false)?;
        let good = w.cluster.mesh.text_for(&w.cluster.topology, "n1");
        w.cluster.n1.write_mesh(&good)?;
        w.pod_is("refused")?;
        let said = w.cluster.n1.admin("/pods")?.to_string();
        ensure!(
            said.contains(&format!("port {port} is taken")) && said.contains("closed meanwhile"),
            "{said}"
        );
        w.app.forget();
        for v6 in [false, true] {
            let refusal = w.dial(v6);
            ensure!(refusal == Err(Refusal::Refused), "with {port} taken it dials: {refusal:?}");
            let to = w.cluster.addr("client", APP, v6);
            let from = &w.cluster.n2.node().ns;
            ensure!(talk::dial_within(from, to, SHORT).is_err(), "with {port} taken it is reached over {to}");
        }
        ensure!(w.app.peers().is_empty() && open.peers().is_empty(), "plaintext passed");
        drop(taken);
        w.restore()?;
    }
    Ok(())
}

fn borrowed_address(w: &mut Move) -> Result<()> {
    w.take_out()?;
    let server = w.cluster.ip("server", false);
    w.cluster.ns("client").ip(&format!("addr add {server}/32 dev lo"))?;
    let good = w.cluster.mesh.text_for(&w.cluster.topology, "n1");
    w.cluster.n1.write_mesh(&good)?;
    w.pod_is("enrolled")?;
    w.cluster.ns("client").ip(&format!("addr del {server}/32 dev lo"))?;
    w.restore()
}

fn ends_while_it_drains(w: &mut Move) -> Result<()> {
    for crash in [false, true] {
        let mut live = talk::dial(w.cluster.ns("client"), w.cluster.addr("server", APP, false))?;
        talk::echo(&mut live, b"before")?;
        let mesh = w.cluster.mesh.clone().without("client");
        w.cluster.n1.write_mesh(&mesh.text_for(&w.cluster.topology, "n1"))?;
        w.pod_is("leaving")?;
        if crash {
            w.cluster.n1.kill()?;
            w.cluster.n1.run()?;
        } else {
            w.cluster.n1.stop(wait::PATIENCE)?;
        }
        ensure!(!w.has_rule()?, "its rule is left (crash: {crash})");
        let accept = w.cluster.ns("client").read_sysctl("ipv4.tcp_fwmark_accept")?;
        ensure!(accept.trim() == "0", "its sysctls are left (crash: {crash})");
        if !crash {
            w.cluster.n1.run()?;
        }
        w.restore()?;
    }
    Ok(())
}

impl Move {
    /// Takes the client out of the mesh, and waits until nothing is left of it.
    fn take_out(&mut self) -> Result<()> {
        let mesh = self.cluster.mesh.clone().without("client");
        self.cluster.n1.write_mesh(&mesh.text_for(&self.cluster.topology, "n1"))?;
        wait::until_true(wait::PATIENCE, "its rule is gone", || self.has_rule().is_ok_and(|there| !there))
    }

    fn has_rule(&self) -> Result<bool> {
        Ok(self.cluster.ns("client").ip("rule")?.contains("fwmark"))
    }

    fn dial(&self, v6: bool) -> Result<(), Refusal> {
        let to = self.cluster.addr("server", APP, v6);
        talk::try_echo(self.cluster.ns("client"), to, Duration::from_secs(5))
    }

    /// With an identity that the issuer refuses.
    fn describe_unenrollably(&mut self) -> Result<()> {
        let good = self.cluster.mesh.text_for(&self.cluster.topology, "n1");
        let account = "serviceAccount: client\n";
        let foreign = good.replace(account, &format!("{account}  trustDomain: elsewhere.example\n"));
        self.cluster.n1.write_mesh(&foreign)?;
        self.pod_is("refused")
    }

    fn restore(&mut self) -> Result<()> {
        let good = self.cluster.mesh.text_for(&self.cluster.topology, "n1");
        self.cluster.n1.write_mesh(&good)?;
        self.pod_is("enrolled")?;
        let seen = self.cluster.n1.access()?.len();
        self.dial(false).ok().context("the client as first described")?;
        self.cluster.n1.wait_access_after(seen, "its connection", |l| l.is("src.workload", "client"))?;
        Ok(())
    }

    fn pod_is(&self, state: &str) -> Result<()> {
        let is = |pods: Value| pods.to_string().contains(&format!("\"state\":\"{state}\""));
        wait::until_true(wait::PATIENCE, &format!("the client is {state}"), || {
            self.cluster.n1.admin("/pods").is_ok_and(is)
        })
    }
}
