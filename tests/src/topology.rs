//! Nodes joined by a link, and pods on them, wired as the ptp CNI plugin does it: one veth a pod, a host
//! route on the node, a link-scope gateway in the pod, no bridge. IPv4 and IPv6 both, MTU 1500.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use crate::netns::{Netns, ip};
use crate::sweep;

/// The interface that joins two nodes, by its name in both.
pub const NODE_LINK: &str = "nodelink";
/// Every pod address lies in here (IPv4, IPv6): what a mesh calls its own ranges.
pub const POD_RANGES: [&str; 2] = ["10.201.0.0/16", "fd00:201::/32"];
/// For services' virtual addresses; nothing routes them.
pub const VIP_RANGES: [&str; 2] = ["10.203.0.0/16", "fd00:203::/32"];

/// What stands. Dropping it removes every namespace and the folder, also when a test panics.
#[derive(Debug)]
pub struct Topology {
    prefix: String,
    dir: PathBuf,
    nodes: Vec<Node>,
    pods: BTreeMap<String, Pod>,
    keep: bool,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub name: String,
    pub ns: Netns,
    pub ip4: Ipv4Addr,
    pub ip6: Ipv6Addr,
    index: u8,
}

#[derive(Clone, Debug)]
pub struct Pod {
    pub name: String,
    /// The node's name.
    pub node: String,
    pub ns: Netns,
    pub ip4: Ipv4Addr,
    pub ip6: Ipv6Addr,
    /// The pod's interface as the node has it.
    pub node_veth: String,
}

impl Pod {
    pub fn ip(&self, v6: bool) -> IpAddr {
        if v6 { self.ip6.into() } else { self.ip4.into() }
    }

    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.ip4.into(), self.ip6.into()]
    }
}

impl Topology {
    /// One or two nodes (the second is reached over [`NODE_LINK`]) and `(pod, node)` pairs.
    ///
    /// # Errors
    /// `ip` is missing or refused, with what it said.
    pub fn new(nodes: &[&str], pods: &[(&str, &str)]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        sweep::leftovers();
        let prefix = format!("up{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Self::with_prefix(&prefix, nodes, pods)
    }

    /// As [`Topology::new`] with namespaces named `<prefix>-<node or pod>`.
    pub fn with_prefix(prefix: &str, nodes: &[&str], pods: &[(&str, &str)]) -> Result<Self> {
        ensure!((1..=2).contains(&nodes.len()), "a topology has one node or two");
        let dir = sweep::folder(prefix);
        sweep::made(prefix);
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        // From here on Drop cleans up whatever got made.
        let mut this = Self { prefix: prefix.into(), dir, nodes: vec![], pods: BTreeMap::new(), keep: false };
        for (i, name) in nodes.iter().enumerate() {
            this.make_node(name, i as u8 + 1)?;
        }
        if let [a, b] = &this.nodes[..] {
            join(a, b)?;
        }
        for (pod, node) in pods {
            this.add_pod(pod, node)?;
        }
        Ok(this)
    }

    /// A folder of this topology's own, removed with it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `up<pid>-<n>`: unique on this machine, and the first part of every name that is made.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Leaves everything standing when this is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// Panics on a name that was never made: a mistake in the test.
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|n| n.name == name).unwrap_or_else(|| panic!("no node {name}"))
    }

    /// Panics on a name that was never made: a mistake in the test.
    pub fn pod(&self, name: &str) -> &Pod {
        self.pods.get(name).unwrap_or_else(|| panic!("no pod {name}"))
    }

    /// A pod with the node's next free addresses.
    pub fn add_pod(&mut self, name: &str, node: &str) -> Result<&Pod> {
        let n = self.node(node).index;
        let taken: Vec<Ipv4Addr> = self.pods.values().map(|p| p.ip4).collect();
        let free = (11..250)
            .find(|host| !taken.contains(&Ipv4Addr::new(10, 201, n, *host)))
            .context("no free pod address on the node")?;
        let ip4 = Ipv4Addr::new(10, 201, n, free);
        let ip6 = Ipv6Addr::new(0xfd00, 0x201, n.into(), 0, 0, 0, 0, free.into());
        self.add_pod_at(name, node, ip4, ip6)
    }

    /// A pod, or anything else on the node's network, with addresses of the caller's choice.
    pub fn add_pod_at(&mut self, name: &str, node: &str, ip4: Ipv4Addr, ip6: Ipv6Addr) -> Result<&Pod> {
        ensure!(!self.pods.contains_key(name), "there is a pod {name} already");
        let home = self.node(node).clone();
        let ns = self.make_netns(name)?;
        let pod = Pod { name: name.into(), node: node.into(), ns, ip4, ip6, node_veth: format!("v-{name}") };
        ensure!(pod.node_veth.len() <= 15, "the pod's name {name} is too long for an interface name");
        self.pods.insert(name.into(), pod.clone());
        attach(&home, &pod)?;
        for other in self.nodes.iter().filter(|o| o.index != home.index) {
            other.ns.ip_batch(&format!(
                "route replace {ip4}/32 via {}\nroute replace {ip6}/128 via {}\n",
                home.ip4, home.ip6
            ))?;
        }
        Ok(self.pod(name))
    }

    /// Removes the pod's namespace name, and with it the pod once its last socket is closed.
    pub fn remove_pod(&mut self, name: &str) -> Result<()> {
        let pod = self.pods.remove(name).with_context(|| format!("no pod {name}"))?;
        self.node(&pod.node).ns.ip(&format!("link del {}", pod.node_veth))?;
        ip(&format!("netns del {}", pod.ns.name()), "").map(drop)
    }

    fn make_node(&mut self, name: &str, index: u8) -> Result<()> {
        let ns = self.make_netns(name)?;
        for (key, value) in [
            ("ipv4.ip_forward", "1"),
            ("ipv6.conf.all.forwarding", "1"),
            ("ipv4.ip_local_port_range", "1024 65535"),
        ] {
            ns.sysctl(key, value)?;
        }
        let ip4 = Ipv4Addr::new(10, 200, 0, index);
        let ip6 = Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 0, index.into());
        self.nodes.push(Node { name: name.into(), ns, ip4, ip6, index });
        Ok(())
    }

    fn make_netns(&self, name: &str) -> Result<Netns> {
        let ns = Netns::named(&format!("{}-{name}", self.prefix));
        ip(&format!("netns add {}", ns.name()), "")?;
        ns.ip("link set lo up")?;
        // Duplicate address detection would keep every address unusable for a second.
        for scope in ["all", "default"] {
            ns.sysctl(&format!("ipv6.conf.{scope}.accept_dad"), "0")?;
        }
        Ok(ns)
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        if !self.keep {
            sweep::remove(&self.prefix);
        }
    }
}

fn join(a: &Node, b: &Node) -> Result<()> {
    a.ns.ip(&format!("link add {NODE_LINK} type veth peer name {NODE_LINK} netns {}", b.ns.name()))?;
    for (here, there) in [(a, b), (b, a)] {
        here.ns.ip_batch(&format!(
            "link set {NODE_LINK} mtu 1500 up\n\
             addr add {}/24 dev {NODE_LINK}\n\
             addr add {}/64 dev {NODE_LINK} nodad\n",
            here.ip4, here.ip6
        ))?;
        let _ = there;
    }
    // Routes by IPv6 gateways are refused until both ends are up.
    for (here, there) in [(a, b), (b, a)] {
        here.ns.ip_batch(&format!(
            "route add 10.201.{n}.0/24 via {}\nroute add fd00:201:{n}::/48 via {}\n",
            there.ip4,
            there.ip6,
            n = there.index
        ))?;
    }
    Ok(())
}

fn attach(node: &Node, pod: &Pod) -> Result<()> {
    let Pod { ip4, ip6, node_veth: veth, .. } = pod;
    let gw4 = Ipv4Addr::new(10, 201, node.index, 1);
    let gw6 = Ipv6Addr::new(0xfd00, 0x201, node.index.into(), 0, 0, 0, 0, 1);
    let mut outside = String::new();
    let _ = writeln!(outside, "link add {veth} type veth peer name eth0 netns {}", pod.ns.name());
    let _ = writeln!(outside, "link set {veth} mtu 1500 up");
    let _ = writeln!(outside, "addr add {gw4}/32 dev {veth}");
    let _ = writeln!(outside, "addr add {gw6}/128 dev {veth} nodad");
    let _ = writeln!(outside, "route add {ip4}/32 dev {veth}");
    let _ = writeln!(outside, "route add {ip6}/128 dev {veth}");
    node.ns.ip_batch(&outside)?;
    let mut inside = String::new();
    let _ = writeln!(inside, "link set eth0 mtu 1500 up");
    let _ = writeln!(inside, "addr add {ip4}/32 dev eth0");
    let _ = writeln!(inside, "addr add {ip6}/128 dev eth0 nodad");
    let _ = writeln!(inside, "route add {gw4} dev eth0 scope link");
    let _ = writeln!(inside, "route add default via {gw4}");
    let _ = writeln!(inside, "route add {gw6} dev eth0");
    let _ = writeln!(inside, "route add ::/0 via {gw6}");
    pod.ns.ip_batch(&inside)
}
