//! Whether a cluster does what clusters do: a pod on each node, and each reached from every other one by
//! the name of its service.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::images::BUSYBOX;
use super::kubectl::Kubectl;
use super::places::{DOMAIN, PREFIX};
use crate::wait;

const NAMESPACE: &str = "underpass-check";
const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(90);

/// Prints what it saw, and removes its pods.
pub fn run() -> Result<()> {
    let kubectl = Kubectl::standing()?;
    let nodes = kubectl.run(&["get", "nodes", "--output", "jsonpath={.items[*].metadata.name}"])?;
    let nodes: Vec<&str> = nodes.split_whitespace().collect();
    ensure!(!nodes.is_empty(), "the cluster has no node: `cargo xtask cluster up`");
    let result = talk(&kubectl, &nodes);
    result.and(remove(&kubectl))
}

fn talk(kubectl: &Kubectl, nodes: &[&str]) -> Result<()> {
    kubectl.apply(&[json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})])?;
    // Pods are refused until the namespace has its service account.
    let account = || kubectl.run(&["get", "serviceaccount", "default", "--namespace", NAMESPACE]).ok();
    wait::until(PATIENCE, "the namespace has a service account", account)?;
    for node in nodes {
        kubectl.apply(&[pod(node), service(node)])?;
    }
    for node in nodes {
        let running = || {
            kubectl.json(&["get", "pod", &name(node), "--namespace", NAMESPACE]).is_ok_and(|pod| ready(&pod))
        };
        wait::until_true(PATIENCE, &format!("the pod on {node} runs"), running)
            .with_context(|| events(kubectl))?;
    }
    for from in nodes {
        for to in nodes {
            let url = format!("http://{}.{NAMESPACE}.svc.{DOMAIN}:{PORT}/", name(to));
            let mut said = String::new();
            let answered = wait::until_true(wait::PATIENCE, &format!("{from} gets {url}"), || {
                said = exec(kubectl, from, &["wget", "-q", "-O", "-", &url])
                    .unwrap_or_else(|e| format!("{e:#}"));
                said.trim() == format!("this is {to}")
            });
            answered.with_context(|| said.clone())?;
            println!("cluster: a pod on {from} asks {url}: {}", said.trim());
        }
    }
    Ok(())
}

/// And waits, so that the next check finds none that is about to go.
fn remove(kubectl: &Kubectl) -> Result<()> {
    kubectl.run(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false"])?;
    let gone = || {
        let left = kubectl.run(&["get", "namespace", NAMESPACE, "--ignore-not-found", "--output", "name"]);
        left.is_ok_and(|left| left.is_empty())
    };
    wait::until_true(PATIENCE, "the namespace is removed", gone)
}

fn exec(kubectl: &Kubectl, node: &str, command: &[&str]) -> Result<String> {
    kubectl.run(&[&["exec", "--namespace", NAMESPACE, &name(node), "--"], command].concat())
}

fn pod(node: &str) -> Value {
    let serve = format!(
        "mkdir /tmp/www && echo this is {node} >/tmp/www/index.html && exec httpd -f -p {PORT} -h /tmp/www"
    );
    let container = json!({
        "name": "web",
        "image": BUSYBOX,
        "imagePullPolicy": "Never",
        "command": ["sh", "-c", serve],
        // kubelet's own connections have to arrive too.
        "readinessProbe": {"httpGet": {"path": "/", "port": PORT}, "periodSeconds": 1},
    });
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name(node), "namespace": NAMESPACE, "labels": {PREFIX: node}},
        "spec": {"nodeName": node, "containers": [container], "terminationGracePeriodSeconds": 0},
    })
}

fn service(node: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name(node), "namespace": NAMESPACE},
        "spec": {"selector": {PREFIX: node}, "ports": [{"port": PORT}]},
    })
}

fn name(node: &str) -> String {
    format!("web-{node}")
}

fn ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|it| it["type"] == "Ready" && it["status"] == "True")
}

/// Why a pod does not run is told by events.
fn events(kubectl: &Kubectl) -> String {
    kubectl.run(&["get", "events", "--namespace", NAMESPACE]).unwrap_or_else(|error| format!("{error:#}"))
}
