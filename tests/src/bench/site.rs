//! Where one product is measured: nodes, pods of the mesh, and twins that it leaves alone.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use serde_json::json;

use super::product::Product;
use crate::load::{Answer, EchoServer, bulk};
use crate::{Mesh, Pod, Server, Topology};

pub(super) struct Site {
    pub(super) name: String,
    // Before the topology, so that agents end first.
    pub(super) product: Product,
    /// By server and port.
    pub(super) echo: BTreeMap<(&'static str, u16), EchoServer>,
    pub(super) drain: BTreeMap<&'static str, Server>,
    pub(super) topology: Topology,
}

pub(super) const ECHO: u16 = 7000;
pub(super) const DRAIN: u16 = 7001;
pub(super) const HTTP: u16 = 7002;
/// The same, under a policy that looks at requests.
pub(super) const JUDGED: u16 = 7003;

/// Says nothing of the other ports, and refuses none of what the load asks for.
const RULES: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: judged, namespace: default}
spec:
  action: DENY
  rules:
  - to: [{operation: {ports: ['7003'], notPaths: ['/orders/*']}}]
  - to: [{operation: {ports: ['7003'], notMethods: [GET, POST]}}]
  - to: [{operation: {ports: ['7003']}}]
    when: [{key: 'request.headers[X-Team]', notValues: [red]}]
";

/// Whose path: the mesh's pods, or their twins'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Direct,
    Mesh,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    SameNode,
    CrossNode,
}

const MESHED: [(&str, &str); 3] = [("c1", "node1"), ("s1", "node1"), ("s2", "node2")];
const DIRECT: [(&str, &str); 3] = [("dc1", "node1"), ("ds1", "node1"), ("ds2", "node2")];

impl Site {
    pub(super) fn build(
        name: &str,
        product: impl FnOnce(&Topology, &Mesh) -> Result<Product>,
    ) -> Result<Self> {
        let topology = Topology::new(&["node1", "node2"], &[MESHED, DIRECT].concat())?;
        let mut mesh = Mesh::default();
        for (pod, _) in MESHED {
            mesh = mesh.meshed(pod, pod);
        }
        for (pod, _) in DIRECT {
            mesh = mesh.plain(pod);
        }
        mesh = mesh.resource(RULES);
        for pod in topology.pods() {
            // A short-connection test closes first on the client: it would run out of ports, not of proxy.
            pod.ns.sysctl("ipv4.tcp_tw_reuse", "1")?;
            pod.ns.sysctl("ipv4.ip_local_port_range", "1024 65535")?;
            pod.ns.sysctl("core.somaxconn", "65535")?;
            pod.ns.sysctl("ipv4.tcp_max_syn_backlog", "65535")?;
        }
        std::fs::write(topology.dir().join("topology.json"), describe(&topology)).context("topology.json")?;
        let (mut echo, mut drain) = (BTreeMap::new(), BTreeMap::new());
        for server in ["s1", "s2", "ds1", "ds2"] {
            let ns = &topology.pod(server).ns;
            for (port, answer) in [(ECHO, Answer::Same), (HTTP, Answer::Http), (JUDGED, Answer::Http)] {
                echo.insert((server, port), EchoServer::start(ns, port, answer)?);
            }
            drain.insert(server, Server::start(ns, DRAIN, bulk::drain)?);
        }
        let product = product(&topology, &mesh).with_context(|| format!("preparing {name}"))?;
        Ok(Self { name: name.into(), product, echo, drain, topology })
    }

    /// Client and server of a path.
    pub(super) fn ends(&self, kind: Kind, reach: Reach) -> (&Pod, &'static str) {
        let (client, same, cross) = match kind {
            Kind::Mesh => ("c1", "s1", "s2"),
            Kind::Direct => ("dc1", "ds1", "ds2"),
        };
        let server = if reach == Reach::SameNode { same } else { cross };
        (self.topology.pod(client), server)
    }

    pub(super) fn address(&self, server: &str, port: u16) -> SocketAddr {
        SocketAddr::new(self.topology.pod(server).ip(false), port)
    }
}

/// What a driver reads.
fn describe(topology: &Topology) -> String {
    let nodes: Vec<_> = topology
        .nodes()
        .iter()
        .map(|n| {
            json!({"name": n.name, "netns": n.ns.name(), "netns_path": n.ns.path(), "ip": n.ip4,
                   "link": crate::topology::NODE_LINK})
        })
        .collect();
    let pods: Vec<_> = topology
        .pods()
        .map(|p| {
            let role = if MESHED.iter().any(|(name, _)| *name == p.name) { "meshed" } else { "direct" };
            json!({"name": p.name, "node": p.node, "netns": p.ns.name(), "netns_path": p.ns.path(),
                   "ip": p.ip4, "role": role, "node_veth": p.node_veth})
        })
        .collect();
    format!("{:#}\n", json!({"nodes": nodes, "pods": pods}))
}
