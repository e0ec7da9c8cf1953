//! One bridge in a namespace of its own, with the control plane and every node on it.

use anyhow::Result;

use super::places::{CONTROL, CONTROL_IP, netns, node, node_ip, pods_of};
use crate::netns::ip;

const SWITCH: &str = "switch";

/// Namespaces, links, and routes to every node's pods.
pub fn make(nodes: u8) -> Result<()> {
    add(SWITCH)?;
    netns(SWITCH).ip_batch("link add br0 type bridge\nlink set br0 up\n")?;
    join(CONTROL, &CONTROL_IP.to_string())?;
    for index in 1..=nodes {
        join(&node(index), &node_ip(index).to_string())?;
        let this = netns(&node(index));
        this.sysctl("ipv4.ip_forward", "1")?;
        this.ip(&format!("route add default via {CONTROL_IP}"))?;
    }
    for index in 1..=nodes {
        let here = (1..=nodes).filter(|&other| other != index).map(node);
        for name in here.chain([CONTROL.to_owned()]) {
            netns(&name).ip(&format!("route add {} via {}", pods_of(index), node_ip(index)))?;
        }
    }
    Ok(())
}

/// A namespace whose eth0 is on the bridge.
fn join(name: &str, address: &str) -> Result<()> {
    add(name)?;
    let this = netns(name);
    netns(SWITCH).ip_batch(&format!(
        "link add {name} type veth peer name eth0 netns {}\nlink set {name} master br0 up\n",
        this.name()
    ))?;
    this.ip_batch(&format!("addr add {address}/24 dev eth0\nlink set eth0 up\n"))
}

fn add(name: &str) -> Result<()> {
    ip(&format!("netns add {}", netns(name).name()), "")?;
    netns(name).ip("link set lo up").map(drop)
}
