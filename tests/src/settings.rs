//! The agent's configuration file, as the harness fills it in.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::controller::NAME;
use crate::istiod;

/// What a story may want otherwise than usual.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `auto`, `mark` or `loopback`.
    pub capture: &'static str,
    pub drain_deadline: Duration,
    /// Levels by module for the process's log.
    pub log: &'static str,
    /// Whether connections are logged, one JSON line each.
    pub access_log: bool,
    /// Threads that carry connections; 0 leaves it to the agent.
    pub workers: u16,
    /// Where programs attach, relative to the cgroup v2 mount.
    pub cgroup: &'static str,
    /// The section of that name, as YAML on one line.
    pub tunnel: &'static str,
    /// `certificates.trust` as YAML on one line; `{dir}` is the topology's folder, `{node}` the node.
    pub trust: Option<&'static str>,
    /// How long a certificate is valid.
    pub certificate_lifetime: Duration,
    /// The address of a controller that issues them, in place of the embedded authority.
    pub controller: Option<SocketAddr>,
    /// The address of an [`istiod::Istiod`] that issues them.
    pub istiod: Option<SocketAddr>,
    /// `tls.profile`; empty leaves it to the agent.
    pub profile: &'static str,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            capture: "auto",
            drain_deadline: Duration::from_secs(5),
            log: "info",
            access_log: true,
            workers: 0,
            cgroup: "",
            tunnel: "{}",
            trust: None,
            certificate_lifetime: Duration::from_secs(3600),
            controller: None,
            istiod: None,
            profile: "",
        }
    }
}

/// Files in the topology's folder that its agents share.
pub const ROOT_CERTIFICATE: &str = "root-cert.pem";
pub const ROOT_KEY: &str = "root-key.pem";

impl Settings {
    /// The file's text for one node.
    pub fn text(&self, node: &str, instance: &str, dir: &Path) -> Result<String> {
        let (folder, dir) = (dir, dir.display());
        let cgroup = cgroup_mount()?.join(self.cgroup);
        let mut t = String::new();
        let _ = writeln!(t, "node:\n  name: {node}");
        // The agent's own pod, for what it says of itself.
        let _ = writeln!(t, "  pod: istio-system/underpass-{node}\n  serviceAccount: underpass");
        let _ = writeln!(t, "bpf:\n  instance: {instance}\n  cgroup: {}", cgroup.display());
        let _ = writeln!(t, "capture:\n  mode: {}", self.capture);
        let _ = writeln!(t, "discovery:\n  file: {dir}/{node}.mesh.yaml\n  debounce: 20ms");
        let _ = writeln!(t, "certificates:");
        if let Some(trust) = self.trust {
            let trust = trust.replace("{dir}", &dir.to_string()).replace("{node}", node);
            let _ = writeln!(t, "  trust: {trust}");
        }
        let lifetime = self.certificate_lifetime.as_secs();
        if let Some(controller) = self.controller {
            let _ = writeln!(t, "  issuer: controller\n  controller:");
            let _ = writeln!(t, "    address: https://{controller}\n    lifetime: {lifetime}s");
            let _ = writeln!(t, "    alternativeHostNames: [{NAME}]");
            let _ = writeln!(t, "    rootCertificate: {dir}/{node}.papers/root-cert.pem");
            let _ = writeln!(t, "    state: {dir}/{node}.papers/controller-roots.json");
            let _ = writeln!(t, "    clientCertificate: {dir}/{node}.papers/node.pem");
            let _ = writeln!(t, "    clientKey: {dir}/{node}.papers/node.key");
        } else if let Some(istiod) = self.istiod {
            let _ = writeln!(t, "  issuer: istio\n  istio:");
            let _ = writeln!(t, "    address: https://{istiod}\n    lifetime: {lifetime}s");
            let _ = writeln!(t, "    alternativeHostNames: [{}]", istiod::NAME);
            let _ = writeln!(t, "    rootCertificate: {dir}/{}/root-cert.pem", istiod::FOLDER);
            let _ = writeln!(t, "    tokenFile: {}", istiod::token_file(folder, node).display());
        } else {
            let _ = writeln!(t, "  embedded:\n    lifetime: {lifetime}s");
            let _ =
                writeln!(t, "    rootCertificate: {dir}/{ROOT_CERTIFICATE}\n    rootKey: {dir}/{ROOT_KEY}");
        }
        if !self.profile.is_empty() {
            let _ = writeln!(t, "tls:\n  profile: {}", self.profile);
        }
        let _ = writeln!(t, "tunnel: {}", self.tunnel);
        let _ = writeln!(t, "proxy:\n  workers: {}", self.workers);
        let _ = writeln!(t, "  drainDeadline: {}ms", self.drain_deadline.as_millis());
        let _ = writeln!(t, "telemetry:\n  log:\n    filter: {}", self.log);
        let _ = writeln!(t, "  accessLog:\n    enabled: {}\n    format: json", self.access_log);
        let _ = writeln!(t, "    path: {dir}/{node}.access.json");
        let _ = writeln!(t, "admin:\n  socket: {dir}/{node}.sock");
        Ok(t)
    }
}

/// Where cgroup v2 is mounted: not always at `/sys/fs/cgroup`, which version 1 may hold.
pub fn cgroup_mount() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    let found = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    });
    found.context("no cgroup v2 hierarchy is mounted")
}
