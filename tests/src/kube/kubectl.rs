//! kubectl, as the cluster's administrator, from the control plane's namespace.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use super::kubeconfig;
use super::places::{CONTROL, folder, netns, programs};

#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    config: PathBuf,
}

impl Kubectl {
    pub fn new() -> Result<Self> {
        Ok(Self { program: programs()?.join("kubectl"), config: kubeconfig::path(&folder(), "admin") })
    }

    /// As [`Self::new`], if a cluster stands.
    pub fn standing() -> Result<Self> {
        ensure!(netns(CONTROL).path().exists(), "no cluster stands: `cargo xtask cluster up` starts one");
        Self::new()
    }

    /// What it printed; fails with what it said.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.run_with(arguments, "")
    }

    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let said = self.run(&[arguments, &["--output", "json"]].concat())?;
        serde_json::from_str(&said).with_context(|| format!("kubectl {}: no JSON", arguments.join(" ")))
    }

    /// Creates or changes objects.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.run_with(&["apply", "--filename", "-"], &list.to_string()).map(drop)
    }

    /// Becomes kubectl, with our own standard streams and its exit status; returns only to say why not.
    pub fn exec(&self, arguments: &[String]) -> anyhow::Error {
        let mut command = self.command();
        command.args(arguments);
        let refused = netns(CONTROL).run(|| command.exec());
        anyhow!(refused).context(format!("starting {}", self.program.display()))
    }

    fn run_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = self.command();
        command.arg("--request-timeout=10s").args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = netns(CONTROL).run(|| command.spawn());
        let mut child = child.with_context(|| format!("starting {}", self.program.display()))?;
        // It reads all of its input before it prints.
        child
            .stdin
            .take()
            .context("no pipe to kubectl")?
            .write_all(input.as_bytes())
            .context("writing to kubectl")?;
        let ended = child.wait_with_output().context("waiting for kubectl")?;
        if !ended.status.success() {
            bail!("kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&ended.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.config);
        // The next cluster has the same address, and may be another release; nor is it the home's business.
        command.arg("--cache-dir").arg(folder().join("kubectl"));
        command
    }
}
