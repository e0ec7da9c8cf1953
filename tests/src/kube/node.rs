//! One node: a network, a file tree and processes of its own, with containerd, kubelet and kube-proxy.
//!
//! What all nodes share is the kernel: /sys/fs/bpf, the cgroup tree, the clock. Everything of a node stands
//! under one cgroup, and its first process takes all others with it: killing that is a node's crash.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::daemon::{Daemon, child_of, record};
use super::pki::Pki;
use super::places::{DNS_SERVICE, DOMAIN, PODS, PREFIX, folder, logs, netns, node_ip, pods_of, programs};
use super::{cgroups, images, init, kubeconfig, places};
use crate::wait;

/// A node of a cluster that stands, or is being made.
#[derive(Clone, Debug)]
pub struct Node {
    index: u8,
    name: String,
    /// The id of its first process, as seen from outside.
    init: u32,
}

impl Node {
    /// Makes the node and starts everything on it. It becomes Ready later.
    pub fn start(index: u8, pki: &Pki, images: &[PathBuf]) -> Result<Self> {
        let name = places::node(index);
        let files = Files::make(&name, index, pki)?;
        cgroups::make(&name)?;
        let this = Self { index, init: boot(&name)?, name };
        this.start_runtime(&files)?;
        for image in images {
            this.import(image)?;
        }
        this.start_kubelet(&files, pki)?;
        this.start_proxy(pki)?;
        Ok(this)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// A program, to be run on the node as its own.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut enter = Command::new("nsenter");
        enter.args(["--target", &self.init.to_string(), "--net", "--mount", "--pid", "--"]);
        enter.arg(program.as_ref());
        enter
    }

    /// Gives the node an image that [`super::image`] made.
    pub fn import(&self, archive: &Path) -> Result<()> {
        let mut ctr = self.command(programs()?.join("ctr"));
        ctr.args(["--namespace", "k8s.io", "images", "import"]).arg(archive);
        let ended = ctr.output().context("starting ctr")?;
        let said = String::from_utf8_lossy(&ended.stderr);
        ensure!(ended.status.success(), "importing {} on {}: {}", archive.display(), self.name, said.trim());
        Ok(())
    }

    fn start_runtime(&self, files: &Files) -> Result<()> {
        let mut containerd = self.command(programs()?.join("containerd"));
        containerd.arg("--config").arg(&files.containerd);
        // It starts its shims by name.
        containerd.env("PATH", path()?);
        let ctr = programs()?.join("ctr");
        let ready = || self.command(&ctr).arg("version").output().is_ok_and(|it| it.status.success());
        self.daemon("containerd", &mut containerd)?.wait(wait::PATIENCE, "containerd answers", ready)
    }

    fn start_kubelet(&self, files: &Files, pki: &Pki) -> Result<()> {
        let mut kubelet = self.command(programs()?.join("kubelet"));
        kubelet.arg("--config").arg(&files.kubelet);
        kubelet.arg("--kubeconfig").arg(kubeconfig::write(&folder(), pki, &self.name)?);
        kubelet.args(["--hostname-override", &self.name, "--node-ip", &node_ip(self.index).to_string()]);
        self.daemon("kubelet", kubelet.env("PATH", path()?)).map(drop)
    }

    fn start_proxy(&self, pki: &Pki) -> Result<()> {
        let mut proxy = self.command(programs()?.join("kube-proxy"));
        proxy.arg("--kubeconfig").arg(kubeconfig::write(&folder(), pki, "kube-proxy")?);
        proxy.args(["--hostname-override", &self.name, "--proxy-mode", "nftables", "--cluster-cidr", PODS]);
        // These sysctls are the machine's, and not to be written from a namespace.
        for limit in ["max-per-core", "tcp-timeout-established", "tcp-timeout-close-wait"] {
            proxy.args([&format!("--conntrack-{limit}"), "0"]);
        }
        self.daemon("kube-proxy", &mut proxy).map(drop)
    }

    /// Starts a process on the node, among its daemons.
    fn daemon(&self, program: &str, command: &mut Command) -> Result<Daemon> {
        let name = format!("{}-{program}", self.name);
        let mut daemon = Daemon::spawn(&name, &netns(&self.name), command)?;
        // nsenter waits for what it started, and that is whom the others mean.
        let outer = daemon.id();
        let mut inner = None;
        daemon.wait(wait::PATIENCE, "it is on the node", || {
            inner = child_of(outer);
            inner.is_some()
        })?;
        let inner = inner.context("no process")?;
        record(&name, inner, program)?;
        cgroups::put_daemon(&self.name, inner)?;
        Ok(daemon)
    }
}

/// Starts the node's first process, and returns its id.
fn boot(name: &str) -> Result<u32> {
    let me = std::env::current_exe().context("finding this program's own path")?;
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
    unshare.arg(me).args([init::VERB, name]);
    let process = format!("{name}-init");
    let mut outer = Daemon::spawn(&process, &netns(name), &mut unshare)?;
    let ready = init::ready_file(name);
    outer.wait(wait::PATIENCE, "the node has its file tree", || ready.exists())?;
    let first = child_of(outer.id()).context("unshare started nothing")?;
    record(&process, first, init::VERB)?;
    Ok(first)
}

/// What a node's programs read.
struct Files {
    containerd: PathBuf,
    kubelet: PathBuf,
}

impl Files {
    fn make(name: &str, index: u8, pki: &Pki) -> Result<Self> {
        let folder = folder().join(name);
        let cni = folder.join("cni");
        for made in [&cni, &folder.join("lib/kubelet"), &logs().join(name)] {
            fs::create_dir_all(made).with_context(|| format!("making {}", made.display()))?;
        }
        let this = Self { containerd: folder.join("containerd.toml"), kubelet: folder.join("kubelet.json") };
        for (path, text) in [
            (&cni.join("10-ptp.conflist"), network(index).to_string()),
            (&this.containerd, runtime(&cni)),
            (&this.kubelet, kubelet(name, pki).to_string()),
        ] {
            fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(this)
    }
}

fn network(index: u8) -> Value {
    let addresses = json!({
        "type": "host-local",
        "dataDir": "/run/cni/addresses",
        "ranges": [[{"subnet": pods_of(index)}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    });
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [{"type": "ptp", "ipMasq": false, "ipam": addresses}],
    })
}

/// Without CAP_SYS_RESOURCE nobody may lower an `oom_score_adj`, and runc ends before it says why.
fn runtime(cni: &Path) -> String {
    format!(
        r#"version = 3

# Its default is a folder of the machine's own.
[plugins."io.containerd.internal.v1.opt"]
path = "/var/lib/containerd/opt"

[grpc]
address = "/run/containerd/containerd.sock"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{}"

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "{}"

[plugins."io.containerd.nri.v1.nri"]
disable = false
socket_path = "/run/nri/nri.sock"
"#,
        images::PAUSE,
        cni.display()
    )
}

fn kubelet(name: &str, pki: &Pki) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": pki.file("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": pki.file(&format!("{name}.crt")),
        "tlsPrivateKeyFile": pki.file(&format!("{name}.key")),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        // Its default is a folder of the machine's own.
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "clusterDomain": DOMAIN,
        "clusterDNS": [DNS_SERVICE],
        // A machine may still have controllers of cgroup v1 beside v2.
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{PREFIX}-{name}"),
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        "localStorageCapacityIsolation": false,
        // By share of the disk, a full disk of the developer's would evict every pod.
        "evictionHard": {"memory.available": "100Mi"},
    })
}

/// Our programs first, then those that Debian has in folders of root's.
fn path() -> Result<String> {
    Ok(format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", programs()?.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_configured_as_itself() {
        let of_two = kubelet("node2", &Pki::at(Path::new("/x")));
        assert_eq!(of_two["cgroupRoot"], "/upkube-node2");
        assert_eq!(of_two["tlsCertFile"], "/x/pki/node2.crt");
        assert_eq!(network(2)["plugins"][0]["ipam"]["ranges"][0][0]["subnet"], "10.244.2.0/24");
        assert_ne!(network(1), network(2));
    }

    #[test]
    fn nobody_without_a_certificate_reaches_kubelet() {
        let config = kubelet("node1", &Pki::at(Path::new("/x")));
        assert_eq!(config["authentication"]["anonymous"]["enabled"], false);
        assert_eq!(config["authorization"]["mode"], "Webhook");
    }
}
