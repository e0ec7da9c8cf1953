//! A real controller process on a simulated node, and the authority that it signs with.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::mesh::identity;
use crate::topology::{Node, Topology};
use crate::work::http;
use crate::{binary, wait};

/// Where it listens, on its node.
pub const PORT: u16 = 15_012;

/// The name in its server certificate.
pub const NAME: &str = "controller.test";

/// An offline root, an authority under it, and the papers of every node; made by the commands that an
/// operator would use.
#[derive(Clone, Debug)]
pub struct Authority {
    dir: PathBuf,
    /// What each node may ask for.
    nodes: Vec<(String, Vec<String>)>,
    pins: Vec<String>,
    /// How long certificates are valid, where it is not left to the controller.
    lifetime: Option<Duration>,
}

impl Authority {
    /// In the topology's folder. Each node may ask for the identities of the pods on it, each of whose
    /// service accounts is called as the pod.
    pub fn make(topology: &Topology) -> Result<Self> {
        let nodes = topology.nodes().iter().map(|node| {
            let own = topology.pods().filter(|pod| pod.node == node.name);
            (node.name.clone(), own.map(|pod| identity(&pod.name)).collect())
        });
        Self::make_for(topology.dir(), nodes.collect())
    }

    /// In a folder, with these identities for each node.
    pub fn make_for(dir: &Path, nodes: Vec<(String, Vec<String>)>) -> Result<Self> {
        let mut this = Self { dir: dir.to_owned(), nodes, pins: Vec::new(), lifetime: None };
        this.root("root")?;
        this.intermediate("root", "ca")?;
        for (node, _) in &this.nodes {
            let out = this.path(&format!("{node}.papers"));
            let printed = run(this.cli(&["ca", "node", node, "--out", &out]))?;
            let pin = printed.split_whitespace().find(|word| word.starts_with("sha256:"));
            this.pins.push(pin.with_context(|| format!("no pin in {printed:?}"))?.to_owned());
            this.hand_out(node)?;
        }
        Ok(this)
    }

    /// Certificates are valid that long, whatever an agent asks for.
    #[must_use]
    pub fn with_lifetime(self, lifetime: Duration) -> Self {
        Self { lifetime: Some(lifetime), ..self }
    }

    /// Another offline root, in a folder of this name.
    pub fn root(&self, name: &str) -> Result<PathBuf> {
        run(self.cli(&["ca", "init", "--root", "--out", &self.path(name)]))?;
        Ok(self.dir.join(name))
    }

    /// An issuing certificate under such a root, in a folder of its own or in place of the one there.
    pub fn intermediate(&self, root: &str, folder: &str) -> Result<PathBuf> {
        let mut command = self.cli(&["ca", "intermediate", "--trust-domain", "cluster.local"]);
        command.args(["--root", &self.path(root), "--out", &self.path(folder)]);
        run(command)?;
        Ok(self.dir.join(folder))
    }

    /// What controllers read.
    pub fn folder(&self) -> PathBuf {
        self.dir.join("ca")
    }

    /// Copies the roots of now to a node, as its operator does.
    pub fn hand_out(&self, node: &str) -> Result<()> {
        let to = self.papers(node).join("root-cert.pem");
        fs::copy(self.root_certificate(), to).context("copying the roots to a node").map(drop)
    }

    /// What agents judge a controller by before they have heard of it.
    pub fn root_certificate(&self) -> PathBuf {
        self.folder().join("root-cert.pem")
    }

    /// The folder of a node's papers: `node.pem` and `node.key`.
    pub fn papers(&self, node: &str) -> PathBuf {
        self.dir.join(format!("{node}.papers"))
    }

    fn cli(&self, arguments: &[&str]) -> Command {
        // Where there is none, starting it says so.
        let mut command = Command::new(binary::agent().unwrap_or_else(|_| "underpass".into()));
        command.args(arguments).stdin(Stdio::null());
        command
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

/// One replica. Dropping it kills the process.
#[derive(Debug)]
pub struct Controller {
    node: Node,
    dir: PathBuf,
    child: Option<Child>,
}

impl Controller {
    /// On a node, with the configuration `more` beside what is needed.
    pub fn start(topology: &Topology, node: &str, authority: &Authority, more: &str) -> Result<Self> {
        let mut this =
            Self { node: topology.node(node).clone(), dir: topology.dir().to_owned(), child: None };
        this.configure(authority, more)?;
        this.run()?;
        Ok(this)
    }

    /// The same with a configuration of one's own; only the admin socket is added to it.
    pub fn start_with(topology: &Topology, node: &str, configuration: &str) -> Result<Self> {
        let mut this =
            Self { node: topology.node(node).clone(), dir: topology.dir().to_owned(), child: None };
        let text = format!("{configuration}admin:\n  socket: {}\n", this.socket().display());
        fs::write(this.config(), text).context("writing the controller's configuration")?;
        this.run()?;
        Ok(this)
    }

    fn configure(&self, authority: &Authority, more: &str) -> Result<()> {
        let mut t = String::new();
        let _ = writeln!(t, "listen: \"[::]:{PORT}\"");
        let _ = writeln!(t, "names: [{NAME}]");
        let _ = writeln!(t, "trustDomain: cluster.local");
        let _ = writeln!(t, "authority:\n  folder: {}", authority.folder().display());
        if let Some(lifetime) = authority.lifetime.map(|lifetime| lifetime.as_secs()) {
            let _ = writeln!(t, "  lifetime: {lifetime}s\n  maxLifetime: {lifetime}s");
        }
        let _ = writeln!(t, "attestation:\n  nodes:");
        for ((node, identities), pin) in authority.nodes.iter().zip(&authority.pins) {
            let _ = writeln!(t, "  - name: {node}\n    key: {pin}\n    identities: {identities:?}");
        }
        let _ = writeln!(t, "admin:\n  socket: {}", self.socket().display());
        let _ = write!(t, "{more}");
        fs::write(self.config(), t).context("writing the controller's configuration")
    }

    /// Starts the process and waits until it is ready.
    pub fn run(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the controller of {} runs already", self.node.name);
        let binary = binary::agent()?;
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let config = self.config();
        // A child is born in the namespace of the thread that makes it.
        let child = self.node.ns.run(|| {
            Command::new(&binary)
                .args(["controller", "--config"])
                .arg(&config)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
        });
        let child = child.with_context(|| format!("starting {}", binary.display()))?;
        fs::write(self.pid_file(), format!("{}\n{}\n", child.id(), config.display()))?;
        self.child = Some(child);
        let end = Instant::now() + wait::PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.child.as_mut().context("it was not started")?.try_wait()? {
                self.child = None;
                bail!("the controller ended ({status}) before it was ready\n{}", self.tail());
            }
            if self.admin("/agents").is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("the controller is not ready\n{}", self.tail());
    }

    /// SIGTERM, and its end awaited.
    pub fn stop(&mut self) -> Result<()> {
        self.end(Signal::SIGTERM)
    }

    /// SIGKILL: a crash.
    pub fn kill(&mut self) -> Result<()> {
        self.end(Signal::SIGKILL)
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        let child = self.child.as_mut().context("no controller runs")?;
        kill(Pid::from_raw(child.id().cast_signed()), signal).context("a signal to the controller")?;
        wait::until(wait::PATIENCE, "the controller has ended", || child.try_wait().ok().flatten())?;
        self.child = None;
        let _ = fs::remove_file(self.pid_file());
        Ok(())
    }

    /// Leaves the process running when this is dropped.
    pub fn detach(mut self) {
        self.child = None;
    }

    /// As agents reach it.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.node.ip4.into(), PORT)
    }

    /// The node that it runs on.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The operator's Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.file("controller.sock")
    }

    /// The admin API's answer as JSON.
    pub fn admin(&self, path: &str) -> Result<Value> {
        let mut stream = UnixStream::connect(self.socket()).context("connecting to the admin socket")?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let answer = http::request(&mut stream, "underpass", path, b"")?;
        ensure!(answer.status == 200, "{path}: {}", answer.status);
        serde_json::from_slice(&answer.body).with_context(|| format!("the answer to {path}"))
    }

    /// Everything that the process logged so far, over all its starts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The log's last lines.
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(25);
        format!("--- the end of the log of {}'s controller:\n{}", self.node.name, lines[from..].join("\n"))
    }

    /// The configuration's file, which it watches.
    pub fn config(&self) -> PathBuf {
        self.file("controller.yaml")
    }

    fn log_path(&self) -> PathBuf {
        self.file("controller.log")
    }

    fn pid_file(&self) -> PathBuf {
        self.file("controller.pid")
    }

    fn file(&self, end: &str) -> PathBuf {
        self.dir.join(format!("{}.{end}", self.node.name))
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if self.child.is_some() {
            let _ = self.kill();
        }
    }
}

/// Runs a command to its end, and gives what it printed.
pub fn run(mut command: Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    said(output).with_context(|| format!("{command:?}"))
}

fn said(output: Output) -> Result<String> {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{}: {out}{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(out)
}
