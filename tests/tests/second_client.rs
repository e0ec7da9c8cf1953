//! A client of the certificate service that shares no code with ours (tests/python) gets certificates from
//! the controller, checks them with another X.509 library, and is refused what its node does not run.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use underpass_tests::Topology;
use underpass_tests::controller::{Authority, Controller, NAME};
use underpass_tests::mesh::identity;
use underpass_tests::stories::{self, World};

fn main() -> ExitCode {
    stories::run(&[
        ("it_gets_a_certificate_that_another_library_believes", issued),
        ("it_is_refused_what_its_node_does_not_run", refused),
        ("it_is_refused_a_request_for_somebody_else", smuggled),
    ])
}

struct Two {
    controller: Controller,
    authority: Authority,
    topology: Topology,
}

impl World for Two {
    fn build() -> Result<Self> {
        let topology = Topology::new(&["n1", "n2"], &[("client", "n1"), ("server", "n2")])?;
        let authority = Authority::make(&topology)?;
        let controller = Controller::start(&topology, "n1", &authority, "")?;
        Ok(Self { controller, authority, topology })
    }

    fn diagnose(&self) -> String {
        self.controller.tail()
    }
}

fn issued(w: &mut Two) -> Result<()> {
    let said = w.ask("n1", &["--identity", &identity("client"), "--lifetime", "1800"])?;
    ensure!(said["identity"] == identity("client"), "{said}");
    ensure!(said["intermediates"] == 1 && said["roots"] == 1, "{said}");
    let seconds = said["seconds"].as_u64().context("no lifetime")?;
    ensure!((1800..=1800 + 600).contains(&seconds), "{said}");
    Ok(())
}

fn refused(w: &mut Two) -> Result<()> {
    let said = w.ask("n2", &["--identity", &identity("client")])?;
    ensure!(said["code"] == "PERMISSION_DENIED", "{said}");
    let log = w.controller.log();
    ensure!(
        log.contains("n2") && log.contains(&identity("client")),
        "the log does not say who asked for what"
    );
    Ok(())
}

fn smuggled(w: &mut Two) -> Result<()> {
    let arguments = ["--identity", &identity("client"), "--csr-identity", &identity("server")];
    let said = w.ask("n1", &arguments)?;
    ensure!(said["code"] == "INVALID_ARGUMENT", "{said}");
    Ok(())
}

impl Two {
    fn ask(&self, node: &str, arguments: &[&str]) -> Result<Value> {
        let python = std::env::var("UNDERPASS_PYTHON")
            .context("UNDERPASS_PYTHON is not set: run this by `cargo xtask test`")?;
        let papers = self.authority.papers(node);
        let mut client = Command::new(python);
        client.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("python/ca_client.py"));
        client.args(["--address", &self.controller.address().to_string(), "--server-name", NAME]);
        client.arg("--root").arg(self.authority.root_certificate());
        client.arg("--certificate").arg(papers.join("node.pem"));
        client.arg("--key").arg(papers.join("node.key"));
        // Beside the sources there is to be no compiled Python.
        client.env("PYTHONDONTWRITEBYTECODE", "1").args(arguments).stdin(Stdio::null());
        let ns = &self.topology.node(node).ns;
        let output = ns.run(|| client.output()).context("starting the second client")?;
        ensure!(
            matches!(output.status.code(), Some(0 | 3)),
            "it ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).context("what it printed is no JSON")
    }
}
