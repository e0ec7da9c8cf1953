//! A named network namespace, and threads inside it.
//!
//! A socket belongs for life to the namespace of the thread that made it, so a pod's sockets are made in
//! a short-lived thread inside the pod and used from anywhere.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

/// A namespace by its name under `/run/netns`. Whoever made it removes it; this is only a handle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    name: Arc<str>,
}

impl Netns {
    /// The handle of a namespace that exists.
    pub fn named(name: &str) -> Self {
        Self { name: name.into() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/run/netns/{}", self.name))
    }

    /// Runs `f` on a thread inside the namespace and waits for it. A panic in `f` goes on here.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|s| {
            let inside = s.spawn(|| {
                self.enter();
                f()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread inside the namespace.
    pub fn spawn<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let this = self.clone();
        thread::spawn(move || {
            this.enter();
            f()
        })
    }

    /// Writes `net.…` as seen in the namespace: `sysctl("ipv4.ip_forward", "1")`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{}", key.replace('.', "/"));
        self.run(|| std::fs::write(&path, value))
            .with_context(|| format!("writing {value:?} to {path} in {}", self.name))
    }

    pub fn read_sysctl(&self, key: &str) -> Result<String> {
        let path = format!("/proc/sys/net/{}", key.replace('.', "/"));
        let text = self
            .run(|| std::fs::read_to_string(&path))
            .with_context(|| format!("reading {path} in {}", self.name))?;
        Ok(text.trim().to_owned())
    }

    /// `ip -n NAME …`; its standard output. Fails with what it said.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        ip(&format!("-n {} {arguments}", self.name), "")
    }

    /// The lines as one `ip -batch` inside the namespace.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        ip(&format!("-n {} -batch -", self.name), lines).map(drop)
    }

    /// Panics when the namespace is gone: a thread that went on would act on the host.
    fn enter(&self) {
        let path = self.path();
        let file = File::open(&path).unwrap_or_else(|e| panic!("opening {}: {e}", path.display()));
        setns(file, CloneFlags::CLONE_NEWNET).unwrap_or_else(|e| panic!("setns to {}: {e}", path.display()));
    }
}

/// `ip …` in the calling thread's namespace, with `input` as its standard input.
pub(crate) fn ip(arguments: &str, input: &str) -> Result<String> {
    use std::io::Write;
    use std::process::Stdio;

    let mut child = Command::new("ip")
        .args(arguments.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting ip (install iproute2)")?;
    // `ip` reads its batch line by line and writes next to nothing, so this cannot block on a full pipe.
    child.stdin.take().context("no pipe to ip")?.write_all(input.as_bytes()).context("writing to ip")?;
    let output = child.wait_with_output().context("waiting for ip")?;
    if !output.status.success() {
        bail!("ip {arguments}: {}\n{input}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
