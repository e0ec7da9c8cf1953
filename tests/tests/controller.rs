//! Agents that have their certificates from a controller: what they are refused, what goes on while it is
//! away, and what they notice when it is replaced.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use underpass_tests::controller::{Authority, Controller, PORT};
use underpass_tests::mesh::identity;
use underpass_tests::stories::{self, World};
use underpass_tests::work::{Traffic, server, talk};
use underpass_tests::{Agent, Cluster, Mesh, Node, Server, Settings, Topology, wait};

fn main() -> ExitCode {
    stories::run(&[
        ("a_pod_that_its_node_may_not_have_is_not_ready_and_the_others_are", not_listed),
        ("the_controller_goes_away_and_comes_back_and_no_connection_fails", away),
        ("one_of_two_replicas_dies_and_renewal_goes_on", replica_dies),
        ("the_issuing_certificate_is_replaced_under_traffic", reissued),
        ("a_node_that_is_taken_out_of_the_list_gets_no_more_certificates", taken_out),
    ])
}

const APP: u16 = 8080;
/// Renewed after three to six seconds.
const LIFETIME: Duration = Duration::from_secs(12);

struct Mine {
    // Before the topology, which has its namespace.
    _front: Front,
    cluster: Cluster,
    controllers: [Controller; 2],
    authority: Authority,
    _servers: Vec<Server>,
}

impl World for Mine {
    fn build() -> Result<Self> {
        let pods = [("client", "n1"), ("stranger", "n1"), ("server", "n2")];
        let topology = Topology::new(&["n1", "n2"], &pods)?;
        let may = [("n1", "client"), ("n2", "server")];
        let may = may.map(|(node, pod)| (node.to_owned(), vec![identity(pod)]));
        let authority = Authority::make_for(topology.dir(), may.into())?.with_lifetime(LIFETIME);
        let hurry = "rotation:\n  renewWithin: 1s\n";
        let controllers = [
            Controller::start(&topology, "n1", &authority, hurry)?,
            Controller::start(&topology, "n2", &authority, hurry)?,
        ];
        let front = Front::start(&topology, &controllers)?;
        let settings = Settings { controller: Some(front.address), ..Settings::default() };
        let cluster = Cluster::on(topology, mesh(), settings)?;
        let servers = ["client", "server"]
            .into_iter()
            .map(|pod| Server::start(cluster.ns(pod), APP, server::echo))
            .collect::<Result<_>>()?;
        Ok(Self { _front: front, cluster, controllers, authority, _servers: servers })
    }

    fn diagnose(&self) -> String {
        let tails: Vec<String> = self.controllers.iter().map(Controller::tail).collect();
        format!("{}\n{}", self.cluster.diagnose(), tails.join("\n"))
    }
}

fn mesh() -> Mesh {
    Mesh::default().meshed("client", "client").meshed("server", "server").strict()
}

fn not_listed(w: &mut Mine) -> Result<()> {
    let traffic = Traffic::start(&w.cluster, ["client", "server"], APP);
    w.cluster.apply(mesh().meshed("stranger", "stranger"))?;
    let asked = identity("stranger");
    wait::until_true(wait::PATIENCE, "the pod is refused, and it is said why", || {
        w.cluster.n1.cli(&["pods", "-o", "json"]).is_ok_and(|pods| {
            let pods = serde_json::from_slice(&pods.stdout).unwrap_or(Value::Null);
            let stranger = pods.as_array().and_then(|all| all.iter().find(|p| p["name"] == "stranger"));
            stranger.is_some_and(|pod| {
                let why = pod["reason"].as_str().unwrap_or_default();
                pod["state"] == "refused" && why.contains(&asked) && why.contains("attestation.nodes")
            })
        })
    })
    .with_context(|| format!("{:?}", w.cluster.n1.admin("/pods")))?;
    let logs = w.controllers.each_ref().map(Controller::log).concat();
    for (whose, log) in [("agent", w.cluster.n1.log()), ("controller", logs)] {
        let line = log.lines().find(|l| l.contains("no certificate issued") && l.contains(&asked));
        let line = line.with_context(|| format!("the {whose}'s log does not tell it"))?;
        ensure!(whose == "agent" || line.contains("n1"), "{line}");
    }
    let refused = talk::echo_once(w.cluster.ns("stranger"), w.cluster.addr("server", APP, false));
    ensure!(refused.is_err(), "a pod without a certificate was served");
    ensure!(w.cluster.n1.certificate("client")?["state"] == "valid");
    w.cluster.apply(mesh())?;
    traffic.end().map(drop)
}

fn away(w: &mut Mine) -> Result<()> {
    let traffic = Traffic::start(&w.cluster, ["client", "server"], APP);
    let mut old = w.long_lived()?;
    for controller in &mut w.controllers {
        controller.kill()?;
    }
    w.both("its renewal fails, and it is used", |c| c["state"] == "renewal_failing")?;
    talk::echo(&mut old, b"while nobody issues")?;
    traffic.goes_on()?;
    let before = w.serials()?;
    for controller in &mut w.controllers {
        controller.run()?;
    }
    w.both("it is another one", |c| c["state"] == "valid" && !before.contains(&c["serial"]))?;
    talk::echo(&mut old, b"and afterwards")?;
    traffic.end().map(drop)
}

fn replica_dies(w: &mut Mine) -> Result<()> {
    let traffic = Traffic::start(&w.cluster, ["client", "server"], APP);
    for dies in 0..2 {
        w.controllers[dies].kill()?;
        let before = w.serials()?;
        w.both("it is renewed", |c| c["state"] == "valid" && !before.contains(&c["serial"]))?;
        w.controllers[dies].run()?;
    }
    traffic.end().map(drop)
}

fn reissued(w: &mut Mine) -> Result<()> {
    let traffic = Traffic::start(&w.cluster, ["client", "server"], APP);
    let mut old = w.long_lived()?;
    let before = [w.cluster.n1.certificate("client")?["authority"].clone()];
    w.authority.intermediate("root", "ca")?;
    w.both("it is of the new authority", |c| c["state"] == "valid" && !before.contains(&c["authority"]))?;
    talk::echo(&mut old, b"over the tunnel of before")?;
    ensure!(w.cluster.agents().iter().all(|agent| agent.is_ready()));
    traffic.end().map(drop)
}

fn taken_out(w: &mut Mine) -> Result<()> {
    let texts: Vec<String> =
        w.controllers.iter().map(|c| std::fs::read_to_string(c.config())).collect::<Result<_, _>>()?;
    for (controller, text) in w.controllers.iter().zip(&texts) {
        replace(controller, &without_node(text, "n2"))?;
    }
    wait::until_true(wait::PATIENCE, "n2 is expected no more", || {
        w.controllers
            .iter()
            .all(|c| c.admin("/agents").is_ok_and(|v| v["expected"] == serde_json::json!(["n1"])))
    })?;
    wait::until_true(wait::PATIENCE, "n2's certificate is not renewed, and runs out", || {
        w.cluster.n2.certificate("server").is_ok_and(|c| c["state"] == "expired")
    })?;
    let end = w.cluster.n2.certificate("server")?;
    let why = end["last_error"].as_str().context("no last_error")?;
    ensure!(why.contains("not known"), "{why}");
    let before = w.cluster.n1.certificate("client")?["serial"].clone();
    wait::until_true(wait::PATIENCE, "n1 has another certificate all the same", || {
        w.cluster.n1.certificate("client").is_ok_and(|c| c["serial"] != before && c["state"] == "valid")
    })?;
    let refused = talk::echo_once(w.cluster.ns("client"), w.cluster.addr("server", APP, false));
    ensure!(refused.is_err(), "an expired certificate served a connection");
    for (controller, text) in w.controllers.iter().zip(&texts) {
        replace(controller, text)?;
    }
    w.both("it is valid again", |c| c["state"] == "valid")?;
    talk::echo_once(w.cluster.ns("client"), w.cluster.addr("server", APP, false))
        .context("traffic when the node is back in the list")
}

/// The configuration without one node's three lines.
fn without_node(text: &str, node: &str) -> String {
    let name = format!("  - name: {node}");
    let from = text.lines().position(|line| line == name).unwrap_or(usize::MAX);
    let kept = text.lines().enumerate().filter(|(at, _)| at.wrapping_sub(from) >= 3);
    kept.map(|(_, line)| format!("{line}\n")).collect()
}

/// In one step, as everybody should.
fn replace(controller: &Controller, text: &str) -> Result<()> {
    let new = controller.config().with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(new, controller.config()).context("replacing the configuration")
}

impl Mine {
    fn both(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<()> {
        for (agent, account) in [(&self.cluster.n1, "client"), (&self.cluster.n2, "server")] {
            wait::until_true(wait::PATIENCE, &format!("{account}'s certificate: {what}"), || {
                agent.certificate(account).is_ok_and(|c| is_so(&c))
            })
            .with_context(|| format!("{:?}", agent.certificate(account)))?;
        }
        Ok(())
    }

    fn serials(&self) -> Result<[Value; 2]> {
        let of =
            |agent: &Agent, account| Ok::<_, anyhow::Error>(agent.certificate(account)?["serial"].clone());
        Ok([of(&self.cluster.n1, "client")?, of(&self.cluster.n2, "server")?])
    }

    fn long_lived(&self) -> Result<TcpStream> {
        let mut stream = talk::dial(self.cluster.ns("client"), self.cluster.addr("server", APP, false))?;
        talk::echo(&mut stream, b"first")?;
        Ok(stream)
    }
}

/// One address for all replicas, as a Service of Kubernetes has: each connection goes to one that answers.
struct Front {
    node: Node,
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Front {
    fn start(topology: &Topology, controllers: &[Controller; 2]) -> Result<Self> {
        let node = topology.node("n1").clone();
        let address = SocketAddr::new(node.ip4.into(), PORT + 1);
        let listener = node.ns.run(|| TcpListener::bind(address)).context("the replicas' common address")?;
        let stop = Arc::<AtomicBool>::default();
        let (behind, stopped) = (controllers.each_ref().map(Controller::address), stop.clone());
        let ns = node.ns.clone();
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(client) = client else { continue };
                let dial = |to: &SocketAddr| TcpStream::connect_timeout(to, Duration::from_secs(1)).ok();
                if let Some(replica) = ns.run(|| behind.iter().find_map(dial)) {
                    join(client, replica);
                }
            }
        });
        Ok(Self { node, address, stop, thread: Some(thread) })
    }
}

/// Each end's end is the other's: threads that end with their connection.
fn join(client: TcpStream, replica: TcpStream) {
    let (Ok(from), Ok(to)) = (client.try_clone(), replica.try_clone()) else { return };
    for (mut from, mut to) in [(from, replica), (to, client)] {
        std::thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = from.shutdown(std::net::Shutdown::Both);
            let _ = to.shutdown(std::net::Shutdown::Both);
        });
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It waits for a connection.
        let _ = self.node.ns.run(|| TcpStream::connect_timeout(&self.address, Duration::from_secs(1)));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
