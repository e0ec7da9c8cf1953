//! What stands, for `status`.

use anyhow::{Context, Result};
use serde_json::Value;

use super::daemon::recorded;
use super::kubectl::Kubectl;
use super::places::folder;

/// Prints nodes and processes. False unless a cluster stands whose every process lives and node is Ready.
pub fn show() -> Result<bool> {
    if !folder().exists() {
        println!("no cluster stands: `cargo xtask cluster up` starts one");
        return Ok(false);
    }
    let mut well = true;
    println!("{:<28} {:>8}  STATE", "PROCESS", "PID");
    for process in recorded() {
        let state = if process.alive { "running" } else { "ended" };
        println!("{:<28} {:>8}  {state}", process.name, process.pid);
        well &= process.alive;
    }
    let nodes = nodes();
    match &nodes {
        Ok(nodes) => {
            println!("\n{:<28} {:>8}  ADDRESS", "NODE", "READY");
            for node in nodes {
                let (ready, message) = readiness(node);
                let shown = if ready { "yes" } else { "no" };
                println!("{:<28} {shown:>8}  {}", text(&node["metadata"]["name"]), address(node));
                if !ready {
                    println!("    {message}");
                }
                well &= ready;
            }
            well &= !nodes.is_empty();
        }
        Err(error) => {
            println!("\nthe API server does not answer: {error:#}");
            well = false;
        }
    }
    println!("\nfiles and logs: {}", folder().display());
    Ok(well)
}

fn nodes() -> Result<Vec<Value>> {
    let list = Kubectl::standing()?.json(&["get", "nodes"])?;
    list["items"].as_array().cloned().context("no list of nodes")
}

/// Whether a node is Ready, and what kubelet says of it.
pub(super) fn readiness(node: &Value) -> (bool, String) {
    let conditions = node["status"]["conditions"].as_array();
    match conditions.into_iter().flatten().find(|condition| condition["type"] == "Ready") {
        Some(ready) => (ready["status"] == "True", text(&ready["message"]).to_owned()),
        None => (false, "kubelet has said nothing yet".to_owned()),
    }
}

fn address(node: &Value) -> &str {
    let addresses = node["status"]["addresses"].as_array();
    let internal = addresses.into_iter().flatten().find(|address| address["type"] == "InternalIP");
    internal.map_or("", |address| text(&address["address"]))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_node_that_says_true_is_ready() {
        let node = |status: &str| {
            json!({"status": {"conditions": [
                {"type": "MemoryPressure", "status": "True"},
                {"type": "Ready", "status": status, "message": "m"},
            ]}})
        };
        assert_eq!(readiness(&node("True")), (true, "m".to_owned()));
        assert_eq!(readiness(&node("False")), (false, "m".to_owned()));
        assert!(!readiness(&node("Unknown")).0);
        assert!(!readiness(&json!({"status": {}})).0);
    }
}
