//! A real agent process on a simulated node.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::access_log::{self, Line};
use crate::mesh::{Mesh, identity};
use crate::settings::Settings;
use crate::topology::{Node, Topology};
use crate::work::http::{self, Response};
use crate::{binary, wait};

/// One node's agent: files in the topology's folder, a process or none. Dropping it kills the process;
/// the topology uninstalls what it left in the kernel.
#[derive(Debug)]
pub struct Agent {
    node: Node,
    instance: String,
    dir: PathBuf,
    settings: Settings,
    child: Option<Child>,
}

/// In the node's namespace, so every node has its own.
const HEALTH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15_021);
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15_020);

impl Agent {
    /// Writes the node's configuration and mesh file, and starts nothing.
    pub fn prepare(topology: &Topology, node: &str, mesh: &Mesh, settings: Settings) -> Result<Self> {
        let this = Self {
            node: topology.node(node).clone(),
            instance: format!("{}-{node}", topology.prefix()),
            dir: topology.dir().to_owned(),
            settings,
            child: None,
        };
        this.write_mesh(&mesh.text_for(topology, node))?;
        let text = this.settings.text(&this.node.name, &this.instance, &this.dir)?;
        write(&this.config(), &text)?;
        Ok(this)
    }

    /// As [`Agent::prepare`], then starts it and waits until it is ready.
    pub fn start(topology: &Topology, node: &str, mesh: &Mesh, settings: Settings) -> Result<Self> {
        let mut this = Self::prepare(topology, node, mesh, settings)?;
        this.run()?;
        Ok(this)
    }

    /// Starts the process and waits until it is ready.
    pub fn run(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_ready()
    }

    /// Starts the process only.
    pub fn spawn(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the agent of {} runs already", self.node.name);
        let binary = binary::agent()?;
        let log =
            OpenOptions::new().create(true).append(true).open(self.log_path()).context("the agent's log")?;
        let config = self.config();
        // A child is born in the namespace of the thread that makes it.
        let child = self.node.ns.run(|| {
            Command::new(&binary)
                .args(["agent", "--config"])
                .arg(&config)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
        });
        let child = child.with_context(|| format!("starting {}", binary.display()))?;
        write(&self.pid_file(), &format!("{}\n{}\n", child.id(), config.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until `/healthz/ready` says yes.
    ///
    /// # Errors
    /// It ended, or was not ready in time: with the last lines of its log.
    pub fn wait_ready(&mut self) -> Result<()> {
        let end = Instant::now() + wait::PATIENCE;
        let mut last = "nothing".to_owned();
        while Instant::now() < end {
            if let Some(status) = self.child.as_mut().context("the agent was not started")?.try_wait()? {
                self.child = None;
                bail!(
                    "the agent of {} ended ({status}) before it was ready\n{}",
                    self.node.name,
                    self.tail()
                );
            }
            match self.get(HEALTH, "/healthz/ready") {
                Ok(Response { status: 200, .. }) => return Ok(()),
                Ok(other) => last = format!("{} {}", other.status, String::from_utf8_lossy(&other.body)),
                Err(e) => last = e.to_string(),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("the agent of {} is not ready (it says: {last})\n{}", self.node.name, self.tail());
    }

    /// Whether `/healthz/ready` says yes now.
    pub fn is_ready(&self) -> bool {
        self.get(HEALTH, "/healthz/ready").is_ok_and(|r| r.status == 200)
    }

    /// SIGTERM, and its end awaited for as long as `patience`.
    pub fn stop(&mut self, patience: Duration) -> Result<ExitStatus> {
        self.terminate()?;
        self.wait_end(patience)
    }

    /// SIGTERM only.
    pub fn terminate(&self) -> Result<()> {
        kill(self.pid()?, Signal::SIGTERM).context("SIGTERM to the agent")
    }

    /// Waits for the process to end by itself.
    pub fn wait_end(&mut self, patience: Duration) -> Result<ExitStatus> {
        let child = self.child.as_mut().context("the agent was not started")?;
        let ended = wait::until(patience, "the agent has ended", || child.try_wait().ok().flatten());
        let status = ended.with_context(|| self.tail())?;
        self.child = None;
        let _ = std::fs::remove_file(self.pid_file());
        Ok(status)
    }

    /// SIGKILL: a crash.
    pub fn kill(&mut self) -> Result<()> {
        kill(self.pid()?, Signal::SIGKILL).context("SIGKILL to the agent")?;
        self.wait_end(wait::PATIENCE).map(drop)
    }

    /// Leaves the process running when this is dropped.
    pub fn detach(mut self) {
        self.child = None;
    }

    pub fn pid(&self) -> Result<Pid> {
        let child = self.child.as_ref().with_context(|| format!("no agent runs on {}", self.node.name))?;
        Ok(Pid::from_raw(child.id().cast_signed()))
    }

    pub fn node(&self) -> &Node {
        &self.node
    }

    pub fn instance(&self) -> &str {
        &self.instance
    }

    pub fn config(&self) -> PathBuf {
        self.file("agent.yaml")
    }

    pub fn mesh_file(&self) -> PathBuf {
        self.file("mesh.yaml")
    }

    /// The operator's Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.file("sock")
    }

    pub fn log_path(&self) -> PathBuf {
        self.file("log")
    }

    /// Replaces the mesh file in one step, as an editor or a ConfigMap does.
    pub fn write_mesh(&self, text: &str) -> Result<()> {
        let new = self.file("mesh.yaml.new");
        write(&new, text)?;
        std::fs::rename(&new, self.mesh_file()).context("renaming the mesh file into place")
    }

    /// Everything that the process logged so far, over all its starts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The log's last lines.
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(25);
        format!("--- the end of {}'s log:\n{}", self.node.name, lines[from..].join("\n"))
    }

    /// The connections that ended so far.
    pub fn access(&self) -> Result<Vec<Line>> {
        access_log::read(&self.dir.join(format!("{}.access.json", self.node.name)))
    }

    /// Waits for a line of the access log.
    pub fn wait_access(&self, what: &str, is_it: impl FnMut(&Line) -> bool) -> Result<Line> {
        self.wait_access_after(0, what, is_it)
    }

    /// As [`Agent::wait_access`], leaving out the first `seen` lines.
    pub fn wait_access_after(
        &self,
        seen: usize,
        what: &str,
        mut is_it: impl FnMut(&Line) -> bool,
    ) -> Result<Line> {
        let found =
            wait::until(wait::PATIENCE, &format!("{}'s access log has {what}", self.node.name), || {
                self.access().ok()?.into_iter().skip(seen).find(&mut is_it)
            });
        found.with_context(|| {
            let lines = self.access().unwrap_or_default();
            let last = lines.iter().rev().take(8).map(|l| format!("\n  {l}")).collect::<String>();
            format!("its last lines, newest first:{last}\n{}", self.tail())
        })
    }

    /// The admin API's answer as JSON: `admin("/connections")`.
    pub fn admin(&self, path: &str) -> Result<Value> {
        let mut stream = UnixStream::connect(self.socket()).context("connecting to the admin socket")?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let answer = http::request(&mut stream, "underpass", path, b"")
            .with_context(|| format!("asking the admin socket for {path}"))?;
        ensure!(
            answer.status == 200,
            "admin {path}: {} {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
        serde_json::from_slice(&answer.body).with_context(|| format!("the answer to {path}"))
    }

    /// Prometheus's text.
    /// What it holds for a service account of the mesh's namespace.
    pub fn certificate(&self, service_account: &str) -> Result<Value> {
        let all = self.admin("/certificates")?;
        let wanted = identity(service_account);
        let found = all.as_array().and_then(|all| all.iter().find(|c| c["identity"] == wanted));
        found.cloned().with_context(|| format!("no certificate of {service_account} in {all}"))
    }

    pub fn metrics(&self) -> Result<String> {
        let answer = self.get(METRICS, "/metrics").context("asking for /metrics")?;
        ensure!(answer.status == 200, "/metrics: {}", answer.status);
        String::from_utf8(answer.body).context("/metrics is not text")
    }

    /// The sum of a metric's samples whose labels contain every one of `labels` (`name="value"`).
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        let text = self.metrics()?;
        let samples = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (set, value) = rest.rsplit_once(' ')?;
            let named = set.is_empty() || set.starts_with('{');
            (named && labels.iter().all(|l| set.contains(l))).then(|| value.parse::<f64>().ok())?
        });
        Ok(samples.sum())
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.pid()?)).context("listing descriptors")?.count())
    }

    /// `underpass <arguments> --config <this agent's>`.
    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        let binary = binary::agent()?;
        let mut command = Command::new(&binary);
        command.args(arguments).arg("--config").arg(self.config()).stdin(Stdio::null());
        self.node.ns.run(|| command.output()).with_context(|| format!("running {}", binary.display()))
    }

    /// `underpass uninstall` for this agent's instance.
    pub fn uninstall(&self) -> Result<()> {
        let output = self.cli(&["uninstall"])?;
        ensure!(output.status.success(), "uninstall: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn get(&self, to: SocketAddr, path: &str) -> std::io::Result<Response> {
        let mut stream = self.node.ns.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(2)))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        http::request(&mut stream, "localhost", path, b"")
    }

    fn file(&self, end: &str) -> PathBuf {
        self.dir.join(format!("{}.{end}", self.node.name))
    }

    fn pid_file(&self) -> PathBuf {
        self.file("pid")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.child.is_some() {
            let _ = self.kill();
        }
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("writing {}", path.display()))
}
