//! The control plane: processes in a namespace of their own, which is no node.

use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use super::daemon::Daemon;
use super::kubeconfig;
use super::kubectl::Kubectl;
use super::pki::Pki;
use super::places::{API_PORT, CONTROL, CONTROL_IP, DNS_SERVICE, DOMAIN, SERVICES, netns, programs};
use crate::wait;

const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEERS: &str = "http://127.0.0.1:2380";

/// What loaded machines take to start an API server, several times over.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

/// Starts everything, and waits until the API server answers and cluster DNS can be found.
pub fn start(folder: &Path, pki: &Pki, kubectl: &Kubectl) -> Result<()> {
    etcd(folder)?;
    api_server(pki, kubectl)?;
    controllers(folder, pki)?;
    dns(folder, kubectl)
}

fn etcd(folder: &Path) -> Result<()> {
    let mut etcd = program("etcd")?;
    etcd.arg("--data-dir").arg(folder.join("etcd"));
    // Nothing that is to outlive a crash of this machine.
    etcd.arg("--unsafe-no-fsync");
    etcd.args(["--listen-client-urls", ETCD, "--advertise-client-urls", ETCD]);
    etcd.args(["--listen-peer-urls", ETCD_PEERS]);
    start_one("etcd", &mut etcd)?.wait(wait::PATIENCE, "etcd listens", || listens(Ipv4Addr::LOCALHOST, 2379))
}

fn api_server(pki: &Pki, kubectl: &Kubectl) -> Result<()> {
    let mut api = program("kube-apiserver")?;
    api.args(["--etcd-servers", ETCD, "--service-cluster-ip-range", SERVICES]);
    api.args(["--bind-address", "0.0.0.0", "--advertise-address", &CONTROL_IP.to_string()]);
    api.args(["--secure-port", &API_PORT.to_string()]);
    api.args(["--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction"]);
    api.args(["--allow-privileged", "--kubelet-preferred-address-types", "InternalIP"]);
    api.args(["--service-account-issuer", &format!("https://kubernetes.default.svc.{DOMAIN}")]);
    for (flag, file) in [
        ("--tls-cert-file", "apiserver.crt"),
        ("--tls-private-key-file", "apiserver.key"),
        ("--client-ca-file", "ca.crt"),
        ("--service-account-key-file", "sa.pub"),
        ("--service-account-signing-key-file", "sa.key"),
        ("--kubelet-certificate-authority", "ca.crt"),
        ("--kubelet-client-certificate", "admin.crt"),
        ("--kubelet-client-key", "admin.key"),
    ] {
        api.arg(flag).arg(pki.file(file));
    }
    let ready = || kubectl.run(&["get", "--raw", "/readyz"]).is_ok_and(|said| said == "ok");
    start_one("kube-apiserver", &mut api)?.wait(PATIENCE, "the API server is ready", ready)
}

fn controllers(folder: &Path, pki: &Pki) -> Result<()> {
    let name = "kube-controller-manager";
    let mut manager = program(name)?;
    manager.arg("--kubeconfig").arg(kubeconfig::write(folder, pki, name)?);
    manager.args(["--leader-elect=false", "--use-service-account-credentials"]);
    // Its default is a folder of the machine's own.
    manager.arg("--flex-volume-plugin-dir").arg(folder.join("volume-plugins"));
    for (flag, file) in [
        ("--service-account-private-key-file", "sa.key"),
        ("--root-ca-file", "ca.crt"),
        ("--cluster-signing-cert-file", "ca.crt"),
        ("--cluster-signing-key-file", "ca.key"),
    ] {
        manager.arg(flag).arg(pki.file(file));
    }
    start_one(name, &mut manager)?;

    let name = "kube-scheduler";
    let mut scheduler = program(name)?;
    scheduler.arg("--kubeconfig").arg(kubeconfig::write(folder, pki, name)?).arg("--leader-elect=false");
    start_one(name, &mut scheduler).map(drop)
}

/// Cluster DNS stands beside the API server, behind the usual service: it is there before any node is.
fn dns(folder: &Path, kubectl: &Kubectl) -> Result<()> {
    let config = folder.join("Corefile");
    let admin = kubeconfig::path(folder, "admin");
    let text = format!(
        "{DOMAIN}:53 {{\n    errors\n    ready {CONTROL_IP}:8181\n    kubernetes {DOMAIN} {{\n        kubeconfig {}\n    }}\n}}\n",
        admin.display()
    );
    std::fs::write(&config, text).with_context(|| format!("writing {}", config.display()))?;
    let mut server = program("coredns")?;
    server.arg("-conf").arg(&config);
    let mut server = start_one("coredns", &mut server)?;
    let port = |name: &str, protocol: &str| json!({"name": name, "port": 53, "protocol": protocol});
    let ports = [port("dns", "UDP"), port("dns-tcp", "TCP")];
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system"},
        "spec": {"clusterIP": DNS_SERVICE, "ports": ports},
    });
    let endpoints = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kube-dns-beside-api-server",
            "namespace": "kube-system",
            "labels": {"kubernetes.io/service-name": "kube-dns"},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [CONTROL_IP], "conditions": {"ready": true}}],
        "ports": ports,
    });
    // The namespace is made by the API server itself, a moment after it is ready.
    wait::until(wait::PATIENCE, "the DNS service is made", || {
        kubectl.apply(&[service.clone(), endpoints.clone()]).ok()
    })?;
    server.wait(wait::PATIENCE, "cluster DNS is ready", || listens(CONTROL_IP, 8181))
}

fn listens(ip: Ipv4Addr, port: u16) -> bool {
    netns(CONTROL).run(|| TcpStream::connect((ip, port))).is_ok()
}

fn start_one(name: &str, command: &mut Command) -> Result<Daemon> {
    Daemon::spawn(name, &netns(CONTROL), command)
}

fn program(name: &str) -> Result<Command> {
    Ok(Command::new(programs()?.join(name)))
}
