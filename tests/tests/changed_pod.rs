//! A local pod that is described anew: between two descriptions, and when the new one cannot be had,
//! nothing of it passes in plaintext; and who is taken out of the mesh is let go, whatever state it is in.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use underpass_tests::cluster::Cluster;
use underpass_tests::stories::{self, World};
use underpass_tests::work::server;
use underpass_tests::work::talk::{self, Refusal};
use underpass_tests::{Mesh, Server, wait};

fn main() -> ExitCode {
    stories::run(&[
        ("one_that_cannot_be_enrolled_as_described_anew_stays_closed", stays_closed),
        ("one_that_was_refused_is_let_go_when_it_leaves_the_mesh", is_let_go),
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
    let rules = || w.cluster.ns("client").ip("rule").map(|rules| rules.contains("fwmark"));
    wait::until_true(wait::PATIENCE, "its rule is gone", || rules().is_ok_and(|there| !there))?;
    w.restore()
}

impl Move {
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
