//! An authority that shares no code with ours and is to nodes what istiod is (tests/python/istiod.py).

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::mesh::identity;
use crate::topology::{Node, Topology};
use crate::wait;

/// The name in its server certificate.
pub const NAME: &str = "istiod.istio-system.svc";

/// The cluster whose tokens it can judge.
pub const CLUSTER: &str = "Kubernetes";

/// Its folder in the topology's.
pub const FOLDER: &str = "istiod";

const PORT: u16 = 15_012;

/// The process, and the files that it works by. Dropping it kills the process.
#[derive(Debug)]
pub struct Istiod {
    node: Node,
    dir: PathBuf,
    /// Whose token may ask for what, by node: what runs there.
    nodes: BTreeMap<String, Vec<String>>,
    tokens: BTreeMap<String, String>,
    child: Option<Child>,
}

impl Istiod {
    /// On a node. The others' agents may ask for the identities of the pods on them, each of whose service
    /// accounts is called as the pod, by the token in [`token_file`].
    pub fn start(topology: &Topology, node: &str, lifetime: Duration) -> Result<Self> {
        let mut this = Self::prepare(topology, node, FOLDER)?;
        this.answer(lifetime, &[])?;
        for node in topology.nodes() {
            this.give_token(topology, &node.name, "first")?;
        }
        this.run()?;
        Ok(this)
    }

    /// As [`Self::start`] in a folder of its own, with an authority of its own: an impostor. Nobody has a token
    /// for it, and it is not started yet.
    pub fn prepare(topology: &Topology, node: &str, folder: &str) -> Result<Self> {
        let dir = topology.dir().join(folder);
        fs::create_dir_all(&dir).context("the authority's folder")?;
        fs::write(dir.join("callers.json"), "{}")?;
        let nodes = topology.nodes().iter().map(|node| {
            let own = topology.pods().filter(|pod| pod.node == node.name);
            (node.name.clone(), own.map(|pod| identity(&pod.name)).collect())
        });
        Ok(Self {
            node: topology.node(node).clone(),
            dir,
            nodes: nodes.collect(),
            tokens: BTreeMap::new(),
            child: None,
        })
    }

    /// Makes a node's token another one, for the authority first: the one of before is good no more.
    pub fn give_token(&mut self, topology: &Topology, node: &str, name: &str) -> Result<String> {
        let token = format!("{name}-token-of-{node}");
        self.tokens.insert(node.to_owned(), token.clone());
        let callers = self
            .tokens
            .iter()
            .map(|(node, token)| (token.clone(), json!({"node": node, "identities": self.nodes.get(node)})));
        replace(&self.dir.join("callers.json"), &Value::Object(callers.collect()).to_string())?;
        // As Kubernetes writes it, and as an editor does.
        replace(&token_file(topology.dir(), node), &format!("{token}\n"))?;
        Ok(token)
    }

    /// What it does from now on: how long certificates are valid, and what certain identities get instead of
    /// one (`*` for all others).
    pub fn answer(&self, lifetime: Duration, instead: &[(&str, &str)]) -> Result<()> {
        let instead: BTreeMap<_, _> = instead.iter().copied().collect();
        let text = json!({"lifetime": lifetime.as_secs(), "instead": instead}).to_string();
        replace(&self.dir.join("answers.json"), &text)
    }

    /// Every call so far, over all its starts.
    pub fn calls(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.dir.join("calls.jsonl")).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    /// Starts the process and waits until it listens.
    pub fn run(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "it runs already");
        let python = std::env::var("UNDERPASS_PYTHON")
            .context("UNDERPASS_PYTHON is not set: run this by `cargo xtask test`")?;
        let ready = self.dir.join("ready");
        let _ = fs::remove_file(&ready);
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let mut command = Command::new(python);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("python/istiod.py"));
        command.arg("--folder").arg(&self.dir).args(["--listen", &self.address().to_string()]);
        command.args(["--server-name", NAME, "--cluster", CLUSTER]);
        // Beside the sources there is to be no compiled Python.
        command.env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A child is born in the namespace of the thread that makes it.
        let child = self.child.insert(self.node.ns.run(|| command.spawn()).context("starting istiod.py")?);
        fs::write(self.dir.with_extension("pid"), format!("{}\n{}\n", child.id(), self.dir.display()))?;
        let listens = wait::until(wait::PATIENCE, "istiod.py listens", || {
            let ended = child.try_wait().ok().flatten().map(Err);
            ended.or_else(|| ready.exists().then_some(Ok(())))
        });
        if let Err(ended) = listens.with_context(|| self.tail())? {
            self.child = None;
            bail!("istiod.py ended ({ended}) before it listened\n{}", self.tail());
        }
        Ok(())
    }

    /// A crash.
    pub fn kill(&mut self) -> Result<()> {
        let child = self.child.as_mut().context("no istiod.py runs")?;
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).context("SIGKILL to istiod.py")?;
        child.wait().context("waiting for istiod.py")?;
        self.child = None;
        Ok(())
    }

    /// As agents reach it.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.node.ip4.into(), PORT)
    }

    /// The log's last lines.
    pub fn tail(&self) -> String {
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("--- the end of istiod.py's log:\n{}", lines[lines.len().saturating_sub(25)..].join("\n"))
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }
}

impl Drop for Istiod {
    fn drop(&mut self) {
        if self.child.is_some() {
            let _ = self.kill();
        }
    }
}

/// The token of a node's agent.
pub fn token_file(dir: &Path, node: &str) -> PathBuf {
    dir.join(format!("{node}.token"))
}

/// In one step.
fn replace(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text).with_context(|| format!("writing {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("replacing {}", path.display()))
}
