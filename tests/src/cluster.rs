//! Two nodes with an agent on each: the world of most stories.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::mesh::Mesh;
use crate::pki::Authority;
use crate::settings::{ROOT_CERTIFICATE, ROOT_KEY, Settings};
use crate::{Agent, Netns, Topology, wait};

pub struct Cluster {
    // Before the topology, so that agents end first.
    pub n1: Agent,
    pub n2: Agent,
    /// What the agents were told last.
    pub mesh: Mesh,
    pub topology: Topology,
}

/// How long a refusal is waited for where nothing at all may come: it bounds stories whose adversary is
/// met with silence.
pub const SHORT: Duration = Duration::from_millis(700);

impl Cluster {
    /// Nodes n1 and n2 with these `(pod, node)` pairs, and agents that are ready.
    pub fn start(pods: &[(&str, &str)], mesh: Mesh) -> Result<Self> {
        Self::start_with(pods, mesh, Settings::default())
    }

    pub fn start_with(pods: &[(&str, &str)], mesh: Mesh, settings: Settings) -> Result<Self> {
        let topology = Topology::new(&["n1", "n2"], pods)?;
        Self::on(topology, mesh, settings)
    }

    /// On a topology that stands.
    pub fn on(topology: Topology, mesh: Mesh, settings: Settings) -> Result<Self> {
        let n1 = Agent::prepare(&topology, "n1", &mesh, settings.clone())?;
        let n2 = Agent::prepare(&topology, "n2", &mesh, settings)?;
        let mut this = Self { n1, n2, mesh, topology };
        this.n1.spawn()?;
        this.n2.spawn()?;
        this.n1.wait_ready()?;
        this.n2.wait_ready()?;
        Ok(this)
    }

    pub fn ns(&self, pod: &str) -> &Netns {
        &self.topology.pod(pod).ns
    }

    pub fn ip(&self, pod: &str, v6: bool) -> IpAddr {
        self.topology.pod(pod).ip(v6)
    }

    pub fn addr(&self, pod: &str, port: u16, v6: bool) -> SocketAddr {
        SocketAddr::new(self.ip(pod, v6), port)
    }

    pub fn agents(&self) -> [&Agent; 2] {
        [&self.n1, &self.n2]
    }

    /// The agent of a pod's node.
    pub fn agent_of(&self, pod: &str) -> &Agent {
        if self.topology.pod(pod).node == "n1" { &self.n1 } else { &self.n2 }
    }

    /// Gives both agents another mesh and waits until they hold it.
    pub fn apply(&mut self, mesh: Mesh) -> Result<()> {
        self.apply_edited(mesh, |text| text)
    }

    /// As [`Cluster::apply`], with a last word on the files' text: for what a [`Mesh`] cannot say.
    pub fn apply_edited(&mut self, mesh: Mesh, edit: impl Fn(String) -> String) -> Result<()> {
        self.mesh = mesh;
        for agent in self.agents() {
            give(agent, &edit(self.mesh.text_for(&self.topology, &agent.node().name)))?;
        }
        Ok(())
    }

    /// The authority whose root both agents trust.
    pub fn authority(&self) -> Result<Authority> {
        let dir = self.topology.dir();
        Authority::of_files(&dir.join(ROOT_CERTIFICATE), &dir.join(ROOT_KEY))
    }

    /// The ends of both logs.
    pub fn diagnose(&self) -> String {
        format!("{}\n{}", self.n1.tail(), self.n2.tail())
    }
}

/// Gives one agent a mesh file and waits until it holds it.
pub fn give(agent: &Agent, text: &str) -> Result<()> {
    if std::fs::read_to_string(agent.mesh_file()).is_ok_and(|now| now == text) {
        return Ok(());
    }
    let before = revision(agent)?;
    agent.write_mesh(text)?;
    let newer = || revision(agent).is_ok_and(|now| now > before);
    wait::until_true(wait::PATIENCE, &format!("{} took the edited mesh file", agent.node().name), newer)
        .with_context(|| agent.tail())
}

/// Which revision of the mesh the agent holds.
pub fn revision(agent: &Agent) -> Result<u64> {
    agent.admin("/status")?["mesh"]["revision"].as_u64().context("no revision in /status")
}
