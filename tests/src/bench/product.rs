//! The agents that are measured: ours, or another's by a driver script.
//!
//! A driver is called as `DRIVER <command> DIR …` with `DIR/topology.json` in place: `prepare DIR BIN`,
//! `start|ready|pids|stop DIR NODE`, `tunnel-port DIR`, `describe DIR`, `cleanup DIR`. Variables of the
//! environment go through; `MESHLOAD` names this program, which `stamp FILE CMD…` like the load tool that
//! the drivers were written for.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{Agent, Mesh, Settings, Topology, binary, hbone, wait};

pub(super) enum Product {
    Ours(Vec<Agent>),
    Driven(Driver),
}

pub(super) struct Driver {
    script: PathBuf,
    dir: PathBuf,
}

const NODES: [&str; 2] = ["node1", "node2"];

impl Product {
    pub(super) fn ours(topology: &Topology, mesh: &Mesh, access_log: bool) -> Result<Self> {
        let settings = Settings { access_log, log: "warn", ..Settings::default() };
        let agents = NODES.iter().map(|node| Agent::prepare(topology, node, mesh, settings.clone()));
        Ok(Self::Ours(agents.collect::<Result<_>>()?))
    }

    pub(super) fn driven(topology: &Topology, script: &Path, binary: &Path) -> Result<Self> {
        let script = script.canonicalize().with_context(|| format!("the driver {}", script.display()))?;
        let driver = Driver { script, dir: topology.dir().to_owned() };
        let binary = binary.canonicalize().unwrap_or_else(|_| binary.to_owned());
        driver.call("prepare", &[&binary.to_string_lossy()])?;
        Ok(Self::Driven(driver))
    }

    /// Starts both nodes' agents and waits until they are ready.
    pub(super) fn start(&mut self) -> Result<()> {
        match self {
            Self::Ours(agents) => {
                for agent in agents.iter_mut() {
                    agent.spawn()?;
                }
                agents.iter_mut().try_for_each(Agent::wait_ready)
            }
            Self::Driven(driver) => {
                for node in NODES {
                    driver.call("start", &[node])?;
                }
                for node in NODES {
                    let ready = || driver.call("ready", &[node]).is_ok();
                    wait::until_true(Duration::from_secs(30), "the driven agent is ready", ready)?;
                }
                Ok(())
            }
        }
    }

    /// Ends them at once.
    pub(super) fn stop(&mut self) -> Result<()> {
        match self {
            Self::Ours(agents) => agents.iter_mut().try_for_each(Agent::kill),
            Self::Driven(driver) => NODES.iter().try_for_each(|node| driver.call("stop", &[node]).map(drop)),
        }
    }

    /// Processes whose cost is the product's.
    pub(super) fn pids(&self) -> Result<Vec<i32>> {
        match self {
            Self::Ours(agents) => agents.iter().map(|a| Ok(a.pid()?.as_raw())).collect(),
            Self::Driven(driver) => {
                let mut pids = vec![];
                for node in NODES {
                    for word in driver.call("pids", &[node])?.split_whitespace() {
                        pids.push(word.parse().with_context(|| format!("the driver's pid {word:?}"))?);
                    }
                }
                Ok(pids)
            }
        }
    }

    pub(super) fn tunnel_port(&self) -> Result<u16> {
        match self {
            Self::Ours(_) => Ok(hbone::PORT),
            Self::Driven(driver) => driver.call("tunnel-port", &[])?.trim().parse().context("tunnel-port"),
        }
    }

    pub(super) fn describe(&self) -> String {
        let said = match self {
            Self::Ours(_) => binary::agent()
                .and_then(|b| Command::new(b).arg("--version").output().map_err(Into::into))
                .map(|o| String::from_utf8_lossy(&o.stdout).into_owned()),
            Self::Driven(driver) => driver.call("describe", &[]),
        };
        said.map(|s| s.trim().to_owned()).unwrap_or_default()
    }
}

impl Driver {
    fn call(&self, command: &str, more: &[&str]) -> Result<String> {
        let me = std::env::current_exe().context("finding this program's own path")?;
        let output = Command::new(&self.script)
            .arg(command)
            .arg(&self.dir)
            .args(more)
            .env("MESHLOAD", me)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("running {}", self.script.display()))?;
        if !output.status.success() {
            bail!("{} {command} {}: {}", self.script.display(), more.join(" "), output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Err(e) = self.call("cleanup", &[]) {
            eprintln!("cleaning up: {e:#}");
        }
    }
}
