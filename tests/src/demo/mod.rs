//! The demo: two nodes, five pods, a real controller, two real agents, and what can be seen of them.
//!
//! Each claim is checked with an instrument that is shown to be able to say the opposite: the capture
//! that must not see the marker in the mesh's traffic does see it in the traffic beside the mesh.

mod claims;
mod keep;
mod latency;
mod report;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use anyhow::{Context, Result};

pub use keep::{KEPT, clean, serve_forever};
use report::Report;

use crate::controller::{Authority, Controller};
use crate::work::http;
use crate::{Agent, Mesh, Server, Settings, Topology};

/// The five pods and the web servers of two of them.
struct Stage {
    topology: Topology,
    mesh: Mesh,
    web: Server,
    outside: Server,
}

/// Where the web servers listen.
const WEB: u16 = 8080;
/// The body of every answer: what the capture looks for.
const MARKER: &str = "the quick brown fox crosses under the road";
/// Neither lies in the mesh's ranges.
const OUTSIDE: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(198, 51, 100, 10), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10));

/// Tells the story on standard output. False when any of it was untrue.
///
/// # Errors
/// The stage could not be built.
pub fn run(keep: bool) -> Result<bool> {
    let mut report = Report::default();
    let mut stage = Stage::build(keep)?;
    report.say("Two nodes and five pods, each a network namespace:");
    for pod in stage.topology.pods() {
        let role = match pod.name.as_str() {
            "client" => "meshed, service account client",
            "second" => "meshed, service account second",
            "server" => "meshed, service account server; serves HTTP on port 8080",
            "unmeshed" => "not of the mesh",
            _ => "a server outside of the mesh's addresses",
        };
        report.say(&format!("  {:<9} on {}  {:<14} {role}", pod.name, pod.node, pod.ip4.to_string()));
    }
    report.say("The policy: only client may talk to server, and only in mutual TLS (STRICT).\n");

    claims::before(&stage, &mut report);
    let started = Instant::now();
    let agents = stage.start_agents();
    let agents = match agents {
        Ok(agents) => {
            let took = started.elapsed().as_millis();
            report.ok("a controller and two agents started", &format!("all ready after {took} ms"));
            agents
        }
        Err(e) => {
            report.failed("a controller and two agents started", &format!("{e:#}"));
            return Ok(report.end());
        }
    };
    claims::with_agents(&stage, &agents, &mut report);
    latency::tell(&stage, &mut report);
    if keep {
        let truth = report.end();
        keep::leave(stage, agents)?;
        return Ok(truth);
    }
    claims::after(&mut stage, agents, &mut report);
    Ok(report.end())
}

/// The agents of both nodes, and the controller on the first.
struct Agents {
    controller: Controller,
    n1: Agent,
    n2: Agent,
}

impl Stage {
    fn build(keep: bool) -> Result<Self> {
        let (nodes, pods) =
            (["n1", "n2"], [("client", "n1"), ("second", "n1"), ("unmeshed", "n1"), ("server", "n2")]);
        let mut topology = if keep {
            clean();
            Topology::with_prefix(KEPT, &nodes, &pods)?
        } else {
            Topology::new(&nodes, &pods)?
        };
        topology.add_pod_at("outside", "n2", OUTSIDE.0, OUTSIDE.1)?;
        let mesh = Mesh::default()
            .meshed("client", "client")
            .meshed("second", "second")
            .meshed("server", "server")
            .plain("unmeshed")
            .rule("only-client", "ALLOW", "principals: [\"*/sa/client\"], destinationPorts: [8080]")
            .strict();
        let web = Server::start(&topology.pod("server").ns, WEB, http::serve(MARKER))?;
        let outside = Server::start(&topology.pod("outside").ns, WEB, http::serve(MARKER))?;
        Ok(Self { topology, mesh, web, outside })
    }

    fn start_agents(&self) -> Result<Agents> {
        // An offline root, an authority under it, a key for each node; and what each node may ask for.
        let authority = Authority::make(&self.topology)?;
        let controller = Controller::start(&self.topology, "n1", &authority, "")?;
        let start = |node| {
            let settings = Settings { controller: Some(controller.address()), ..Settings::default() };
            let mut agent = Agent::prepare(&self.topology, node, &self.mesh, settings)?;
            agent.spawn()?;
            Ok::<_, anyhow::Error>(agent)
        };
        // Both at once, as on a cluster.
        let (mut n1, mut n2) = (start("n1")?, start("n2")?);
        n1.wait_ready().context("node n1")?;
        n2.wait_ready().context("node n2")?;
        Ok(Agents { controller, n1, n2 })
    }

    fn ip(&self, pod: &str, v6: bool) -> IpAddr {
        self.topology.pod(pod).ip(v6)
    }
}
