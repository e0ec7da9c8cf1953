//! Agents that crash, stop, start again and stand still: what applications see of it, and that nothing
//! leaves in plaintext meanwhile.

#[path = "kernel/loaded.rs"]
mod loaded;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use socket2::{Domain, Socket, Type};
use underpass_tests::access_log::Line;
use underpass_tests::capture::{Capture, settle};
use underpass_tests::cluster::SHORT;
use underpass_tests::mesh::identity;
use underpass_tests::stories::{self, World};
use underpass_tests::topology::NODE_LINK;
use underpass_tests::work::pattern;
use underpass_tests::work::server::{self, Conn};
use underpass_tests::work::talk::{self, Refusal};
use underpass_tests::{Agent, Cluster, Mesh, Netns, Server, Settings, hbone, wait};

fn main() -> ExitCode {
    stories::run(&[
        ("a_crash_at_the_clients_node_resets_and_refuses_until_the_restart", crash_at_the_client),
        ("a_crash_at_the_servers_node_resets_and_nobody_falls_back_to_plaintext", crash_at_the_server),
        ("sigterm_at_the_servers_node_drains_and_sends_peers_away", drain_at_the_server),
        ("sigterm_at_the_clients_node_drains_and_refuses", drain_at_the_client),
        ("a_policy_is_obeyed_while_an_agent_drains", obeys_while_draining),
        ("a_pod_that_was_enrolled_anew_is_drained_with_its_former_connections", enrolled_anew),
        ("every_connection_has_one_line_at_each_end_when_an_agent_stops", no_lost_record),
        ("upgrades_in_turn_cost_connections_only_while_an_agent_is_away", upgrades),
        ("restarts_leave_no_growth", no_growth),
        ("an_agent_that_stands_still_holds_connections_and_goes_on", stands_still),
        ("a_peer_that_does_not_answer_pings_is_given_up", pings),
        ("the_connections_of_a_pod_that_is_gone_say_so", pod_gone),
    ])
}

/// Says its name, then echoes.
const NAMED: u16 = 8080;
/// Takes all.
const UP: u16 = 8081;
/// Sends without end.
const DOWN: u16 = 8082;
const PORTS: [u16; 3] = [NAMED, UP, DOWN];

const MARKER: &[u8] = b"life-marker-that-nobody-may-read";

struct Life {
    cluster: Cluster,
    up: Server,
    named: [Server; 2],
    /// How connections to [`UP`] and [`DOWN`] ended for the server's applications.
    ends: mpsc::Receiver<(u16, End)>,
    mesh: Mesh,
    _down: Server,
}

/// How an application saw a connection end: `None` is an end in order.
type End = Option<ErrorKind>;

impl World for Life {
    fn build() -> Result<Self> {
        let pods = [("client", "n1"), ("mayfly", "n1"), ("server", "n2"), ("other", "n2")];
        let mesh = pods.iter().fold(Mesh::default(), |mesh, (pod, _)| mesh.meshed(pod, pod));
        let cluster = Cluster::start_with(&pods, mesh.clone(), settings())?;
        let named = [
            Server::start(cluster.ns("server"), NAMED, |conn| named("server", conn))?,
            Server::start(cluster.ns("other"), NAMED, |conn| named("other", conn))?,
        ];
        let (tell, ends) = mpsc::channel();
        let tell_up = tell.clone();
        let up = Server::start(cluster.ns("server"), UP, move |conn| {
            let end = read_to_end(&mut conn.stream.try_clone()?, |n| conn.took(n));
            let _ = tell_up.send((UP, end));
            Ok(())
        })?;
        let down = Server::start(cluster.ns("server"), DOWN, move |conn| {
            let _ = tell.send((DOWN, write_without_end(&mut conn.stream)));
            Ok(())
        })?;
        Ok(Self { cluster, up, named, ends, mesh, _down: down })
    }

    fn diagnose(&self) -> String {
        self.cluster.diagnose()
    }
}

fn settings() -> Settings {
    Settings { drain_deadline: Duration::from_secs(6), ..Settings::default() }
}

fn crash_at_the_client(w: &mut Life) -> Result<()> {
    for v6 in [false, true] {
        let wire = w.watch()?;
        let pins = pins(&w.cluster.n1)?;
        let transfers = w.transfers(v6)?;
        w.cluster.n1.kill()?;
        transfers.are_reset(&w.ends)?;

        ensure!(w.dial_at_once(v6)? == Some(ErrorKind::ConnectionRefused));
        ensure!(self::pins(&w.cluster.n1)? == pins, "a crash changed what is pinned");
        // Somebody dials all the time: were the pod let go for a moment, one of these would be seen.
        let (stop, refused) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|s| -> Result<()> {
            let (stop, refused) = (&stop, &refused);
            let (ns, to) = (w.cluster.ns("client").clone(), w.cluster.addr("server", NAMED, v6));
            let dialling = s.spawn(move || -> Result<()> {
                while !stop.load(Ordering::Relaxed) {
                    match greet(&ns, to) {
                        Ok(said) => ensure!(said == "server", "{said} answered"),
                        Err(_) => drop(refused.fetch_add(1, Ordering::Relaxed)),
                    }
                }
                Ok(())
            });
            let restarted = wait::until_true(wait::PATIENCE, "a dial was refused", || {
                refused.load(Ordering::Relaxed) > 0
            })
            .and_then(|()| w.cluster.n1.run());
            stop.store(true, Ordering::Relaxed);
            dialling.join().unwrap_or_else(|p| std::panic::resume_unwind(p))?;
            restarted
        })?;
        ensure!(greet(w.cluster.ns("client"), w.cluster.addr("server", NAMED, v6))? == "server");
        ensure!(self::pins(&w.cluster.n1)? == pins, "the restart did not adopt what was pinned");
        w.unseen(&wire)?;
    }
    let log = w.cluster.n1.log();
    ensure!(!log.contains("leaving the mesh") && !log.contains("forgetting a namespace"), "{log}");
    Ok(())
}

fn crash_at_the_server(w: &mut Life) -> Result<()> {
    for mesh in [w.mesh.clone().strict(), w.mesh.clone()] {
        w.cluster.apply(mesh)?;
        let wire = w.watch()?;
        let transfers = w.transfers(false)?;
        w.cluster.n2.kill()?;
        transfers.are_reset(&w.ends)?;

        w.forget();
        let seen = w.cluster.n1.access()?.len();
        let refusals: Vec<_> = std::thread::scope(|s| {
            let dials = [false, true].map(|v6| {
                let (ns, to) = (w.cluster.ns("client"), w.cluster.addr("server", NAMED, v6));
                s.spawn(move || talk::try_echo(ns, to, talk::DEADLINE))
            });
            dials.into_iter().map(|d| d.join().expect("no panic")).collect()
        });
        ensure!(refusals == [Err(Refusal::Reset); 2], "{refusals:?}");
        w.cluster.n1.wait_access_after(seen, "why", |l| l.cause() == "peer_unreachable")?;
        ensure!(w.named.iter().all(|s| s.peers().is_empty()), "somebody got through");

        w.cluster.n2.run()?;
        for v6 in [false, true] {
            ensure!(greet(w.cluster.ns("client"), w.cluster.addr("server", NAMED, v6))? == "server");
        }
        w.unseen(&wire)?;
    }
    Ok(())
}

fn drain_at_the_server(w: &mut Life) -> Result<()> {
    let wire = w.watch()?;
    let seen = [w.cluster.n1.access()?.len(), w.cluster.n2.access()?.len()];
    let (mut ends, mut stays) = (w.dial(NAMED)?, w.dial(NAMED)?);
    w.cluster.n2.terminate()?;
    stopping(&w.cluster.n2)?;
    for stream in [&mut ends, &mut stays] {
        talk::echo(stream, MARKER).context("draining cut a live connection")?;
    }

    // GOAWAY has come, so a new connection does not go into the tunnel that still stands; and the
    // listener is closed, so no other comes to be.
    settle(&wire)?;
    let tunnels = || -> Result<usize> {
        Ok(wire.segments()?.iter().filter(|s| s.opens() && s.to.port() == hbone::PORT).count())
    };
    let before = tunnels()?;
    w.forget();
    let refusal =
        talk::try_echo(w.cluster.ns("client"), w.cluster.addr("server", NAMED, false), talk::DEADLINE);
    ensure!(refusal == Err(Refusal::Reset), "a new connection: {refusal:?}");
    wait::until_true(wait::PATIENCE, "the peer was told to go away, and dials another tunnel", || {
        tunnels().is_ok_and(|now| now > before)
    })?;
    ensure!(w.named[0].peers().is_empty(), "a new connection was taken");
    w.cluster.n1.wait_access_after(seen[0], "why", |l| l.cause() == "peer_unreachable")?;

    drop(talk::finish(ends)?);
    w.cluster.n2.wait_access_after(seen[1], "who ended in time", |l| l.cause() == "closed")?;
    ensure!(reads(&mut stays) == Some(ErrorKind::ConnectionReset), "the deadline");
    let status = w.cluster.n2.wait_end(wait::PATIENCE)?;
    ensure!(status.success(), "{status}");
    w.cluster.n2.wait_access_after(seen[1], "who was cut", |l| l.cause() == "drained")?;
    w.cluster.n1.wait_access_after(seen[0], "the other end", |l| l.cause() == "tunnel_failed")?;
    w.unseen(&wire)?;
    w.cluster.n2.run()
}

fn drain_at_the_client(w: &mut Life) -> Result<()> {
    let wire = w.watch()?;
    let seen = [w.cluster.n1.access()?.len(), w.cluster.n2.access()?.len()];
    let (mut ends, mut stays) = (w.dial(NAMED)?, w.dial(NAMED)?);
    w.cluster.n1.terminate()?;
    stopping(&w.cluster.n1)?;
    wait::until_true(wait::PATIENCE, "a new connection is refused by connect() itself", || {
        w.dial_at_once(false).is_ok_and(|e| e == Some(ErrorKind::ConnectionRefused))
    })?;
    for stream in [&mut ends, &mut stays] {
        talk::echo(stream, MARKER).context("draining cut a live connection")?;
    }
    drop(talk::finish(ends)?);
    w.cluster.n1.wait_access_after(seen[0], "who ended in time", |l| l.cause() == "closed")?;
    ensure!(reads(&mut stays) == Some(ErrorKind::ConnectionReset), "the deadline");
    let status = w.cluster.n1.wait_end(wait::PATIENCE)?;
    ensure!(status.success(), "{status}");
    w.cluster.n1.wait_access_after(seen[0], "who was cut", |l| l.cause() == "drained")?;
    w.cluster.n2.wait_access_after(seen[1], "the other end", |l| l.cause() == "tunnel_failed")?;
    w.unseen(&wire)?;
    w.cluster.n1.run()
}

fn obeys_while_draining(w: &mut Life) -> Result<()> {
    let seen = w.cluster.n2.access()?.len();
    let (mut forbidden, to) = (w.dial(NAMED)?, w.cluster.addr("server", NAMED, false));
    let mut allowed = talk::dial(w.cluster.ns("mayfly"), to)?;
    ensure!(greeting(&mut allowed)? == "server");
    w.cluster.n2.terminate()?;
    stopping(&w.cluster.n2)?;
    let deny = w.mesh.clone().rule("no-client", "DENY", "principals: [\"*/sa/client\"]");
    w.cluster.n2.write_mesh(&deny.text_for(&w.cluster.topology, "n2"))?;
    ensure!(reads(&mut forbidden) == Some(ErrorKind::ConnectionReset));
    w.cluster.n2.wait_access_after(seen, "who is forbidden", |l| l.cause() == "policy_revoked")?;
    talk::echo(&mut allowed, MARKER).context("the other is cut as well")?;
    drop(talk::finish(allowed)?);
    ensure!(w.cluster.n2.wait_end(wait::PATIENCE)?.success());
    w.cluster.n2.write_mesh(&w.mesh.text_for(&w.cluster.topology, "n2"))?;
    w.cluster.n2.run()
}

fn enrolled_anew(w: &mut Life) -> Result<()> {
    let seen = w.cluster.n1.access()?.len();
    let mut former = w.dial(NAMED)?;
    let mut mesh = w.mesh.clone();
    mesh.workload("client").service_account = "another".into();
    w.cluster.apply(mesh)?;
    wait::until_true(wait::PATIENCE, "the pod has its new identity", || {
        w.cluster.n1.admin("/pods").is_ok_and(|pods| {
            pods.as_array().is_some_and(|all| {
                all.iter().any(|p| p["state"] == "enrolled" && p["identity"] == identity("another"))
            })
        })
    })?;
    drop(w.dial(NAMED)?);
    w.cluster.n1.terminate()?;
    stopping(&w.cluster.n1)?;
    talk::echo(&mut former, MARKER).context("it is not drained")?;
    drop(talk::finish(former)?);
    ensure!(w.cluster.n1.wait_end(wait::PATIENCE)?.success());
    let lines = w.cluster.n1.access()?.split_off(seen);
    let of =
        |who| lines.iter().filter(|l| l.is("src.identity", &identity(who)) && l.cause() == "closed").count();
    ensure!((of("client"), of("another")) == (1, 1), "{lines:?}");
    w.cluster.n1.write_mesh(&w.mesh.text_for(&w.cluster.topology, "n1"))?;
    w.cluster.n1.run()?;
    w.cluster.apply(w.mesh.clone())
}

/// The `n`th connection sends `n` bytes more than the greeting, so that its lines are known at both ends.
fn no_lost_record(w: &mut Life) -> Result<()> {
    const EACH: usize = 67;
    for stopped in ["n1", "n2"] {
        let seen = [w.cluster.n1.access()?.len(), w.cluster.n2.access()?.len()];
        // What is not this story's has ended, so what is open is known.
        for agent in w.cluster.agents() {
            wait::until_true(wait::PATIENCE, "former connections have ended", || open(agent) == Ok(0.0))?;
        }
        let mut streams = vec![];
        for n in 1..=3 * EACH {
            let mut stream = w.dial(NAMED)?;
            talk::echo(&mut stream, &vec![b'x'; n])?;
            streams.push(stream);
        }
        let mut thirds = vec![];
        while !streams.is_empty() {
            thirds.push(streams.split_off(streams.len() - EACH));
        }
        let [before, during, stay] = <[Vec<TcpStream>; 3]>::try_from(thirds).expect("three thirds");
        for stream in before {
            drop(talk::finish(stream)?);
        }
        w.agent(stopped).terminate()?;
        for stream in during {
            drop(talk::finish(stream)?);
        }
        for agent in w.cluster.agents() {
            wait::until_true(wait::PATIENCE, "the totals differ by the live connections", || {
                open(agent) == Ok(EACH as f64)
            })
            .with_context(|| format!("{:?} are open", open(agent)))?;
        }
        for mut stream in stay {
            ensure!(reads(&mut stream) == Some(ErrorKind::ConnectionReset));
        }
        let status = w.agent(stopped).wait_end(wait::PATIENCE)?;
        ensure!(status.success(), "{status}");
        for (agent, seen, field) in
            [(&w.cluster.n1, seen[0], "bytes_sent"), (&w.cluster.n2, seen[1], "bytes_recv")]
        {
            let node = &agent.node().name;
            let lines = || -> Result<Vec<Line>> { Ok(agent.access()?.split_off(seen)) };
            wait::until_true(wait::PATIENCE, "the other end's lines too", || {
                lines().is_ok_and(|l| l.len() >= 3 * EACH)
            })?;
            let mut by_number: BTreeMap<u64, Vec<String>> = BTreeMap::new();
            for line in lines()? {
                by_number.entry(line.number(field).unwrap_or_default()).or_default().push(line.cause());
            }
            let cut = if node == stopped { "drained" } else { "tunnel_failed" };
            // The last third was made first.
            let expected = (1..=3 * EACH as u64)
                .map(|n| (n, vec![if n <= EACH as u64 { cut.to_owned() } else { "closed".to_owned() }]));
            let expected: BTreeMap<_, _> = expected.collect();
            ensure!(by_number == expected, "{node}, {stopped} stopped: {by_number:?}");
        }
        w.agent(stopped).run()?;
        for agent in w.cluster.agents() {
            ensure!(open(agent) == Ok(0.0), "{}: {:?} are open", agent.node().name, open(agent));
        }
    }
    Ok(())
}

fn upgrades(w: &mut Life) -> Result<()> {
    let wire = w.watch()?;
    let tally = Tally::default();
    let targets = ["server", "other"].map(|pod| (pod, w.cluster.addr(pod, NAMED, pod == "other")));
    let client = w.cluster.ns("client").clone();
    std::thread::scope(|s| -> Result<()> {
        let (tally, client) = (&tally, &client);
        let dialling: Vec<_> =
            targets.into_iter().cycle().take(4).map(|t| s.spawn(move || tally.dial(client, t))).collect();
        let upgraded = (0..2).try_for_each(|_| -> Result<()> {
            for node in ["n1", "n2"] {
                tally.goes_on("before the upgrade")?;
                tally.away(true);
                let status = w.agent(node).stop(wait::PATIENCE)?;
                ensure!(status.success(), "{status}");
                tally.goes_round("while nobody is there")?;
                w.agent(node).run()?;
                tally.away(false);
                tally.goes_on(&format!("after {node}'s upgrade"))?;
            }
            Ok(())
        });
        tally.stop.store(true, Ordering::Relaxed);
        for dialler in dialling {
            dialler.join().unwrap_or_else(|p| std::panic::resume_unwind(p))?;
        }
        upgraded
    })?;
    // Refused by connect() while the client's agent is away, reset while the server's is.
    let counts = [&tally.good, &tally.refused, &tally.reset].map(|n| n.load(Ordering::Relaxed));
    ensure!(counts.iter().all(|n| *n > 0), "{tally:?}");
    w.unseen(&wire)
}

fn no_growth(w: &mut Life) -> Result<()> {
    w.dial(NAMED)?;
    let before = [Left::of(&w.cluster, &w.cluster.n1)?, Left::of(&w.cluster, &w.cluster.n2)?];
    for round in 0..3 {
        for node in ["n1", "n2"] {
            let agent = w.agent(node);
            if round == 1 {
                agent.kill()?;
            } else {
                agent.stop(wait::PATIENCE)?;
            }
            agent.run()?;
        }
        w.dial(NAMED)?;
        for (agent, before) in w.cluster.agents().into_iter().zip(&before) {
            // The kernel frees replaced programs and closed listeners in its own time.
            let mut now = Left::of(&w.cluster, agent)?;
            let same = wait::until_true(wait::PATIENCE, "what is left is the same", || {
                now = Left::of(&w.cluster, agent).unwrap_or_default();
                now == *before
            });
            same.with_context(|| format!("restart {round}\nbefore {before:#?}\nafter {now:#?}"))?;
        }
    }
    Ok(())
}

fn stands_still(w: &mut Life) -> Result<()> {
    let wire = w.watch()?;
    let seen = w.cluster.n1.access()?.len();
    let mut live = w.dial(NAMED)?;
    w.forget();
    let agent = w.cluster.n2.pid()?;
    kill(agent, Signal::SIGSTOP)?;
    live.write_all(MARKER)?;
    talk::prepare(&live, SHORT)?;
    let silent = Some(ErrorKind::WouldBlock);
    ensure!(reads(&mut live) == silent, "the live connection ended");
    let mut new = talk::dial_within(w.cluster.ns("client"), w.cluster.addr("server", NAMED, false), SHORT)?;
    new.write_all(MARKER)?;
    ensure!(reads(&mut new) == silent, "the new connection ended");
    ensure!(w.named[0].peers().is_empty(), "it came in past the agent");
    ensure!(w.cluster.n1.access()?.len() == seen, "the client's agent has ended something");

    kill(agent, Signal::SIGCONT)?;
    for (stream, greeting) in [(&mut live, ""), (&mut new, "server\n")] {
        talk::prepare(stream, talk::DEADLINE)?;
        let expected = [greeting.as_bytes(), MARKER].concat();
        let mut got = vec![0; expected.len()];
        stream.read_exact(&mut got)?;
        ensure!(got == expected, "{}", String::from_utf8_lossy(&got));
        talk::echo(stream, MARKER)?;
    }
    w.unseen(&wire)
}

fn pings(w: &mut Life) -> Result<()> {
    w.restart_n1_with(Settings { tunnel: "{pingInterval: 1s, pingTimeout: 3s}", ..settings() })?;
    let transfers = w.transfers(false)?;
    let (mut live, agent) = (w.dial(NAMED)?, w.cluster.n2.pid()?);
    let seen = w.cluster.n1.access()?.len();
    kill(agent, Signal::SIGSTOP)?;
    ensure!(reads(&mut live) == Some(ErrorKind::ConnectionReset), "the live connection");
    w.cluster.n1.wait_access_after(seen, "why", |l| l.cause() == "tunnel_failed")?;
    kill(agent, Signal::SIGCONT)?;
    transfers.are_reset(&w.ends)?;
    drop(w.dial(NAMED).context("the peer is back")?);
    w.restart_n1_with(settings())
}

fn pod_gone(w: &mut Life) -> Result<()> {
    let seen = w.cluster.n1.access()?.len();
    let to = w.cluster.addr("server", NAMED, false);
    let mut mayfly = talk::dial(w.cluster.ns("mayfly"), to)?;
    ensure!(greeting(&mut mayfly)? == "server");
    // The sandbox ends, and nobody has told the agent; the connection holds the namespace.
    w.cluster.topology.remove_pod("mayfly")?;
    ensure!(reads(&mut mayfly) == Some(ErrorKind::ConnectionReset));
    let line = w.cluster.n1.wait_access_after(seen, "its end", |l| l.is("src.workload", "mayfly"))?;
    ensure!(line.cause() == "pod_gone", "{line}");
    w.cluster.topology.add_pod("mayfly", "n1")?;
    let enrolled = || w.cluster.n1.admin("/status").is_ok_and(|s| s["pods"]["enrolled"] == 2);
    wait::until_true(wait::PATIENCE, "its successor is enrolled", enrolled)
}

impl Life {
    fn agent(&mut self, node: &str) -> &mut Agent {
        if node == "n1" { &mut self.cluster.n1 } else { &mut self.cluster.n2 }
    }

    fn restart_n1_with(&mut self, settings: Settings) -> Result<()> {
        self.cluster.n1.stop(wait::PATIENCE)?;
        self.cluster.n1 = Agent::start(&self.cluster.topology, "n1", &self.cluster.mesh, settings)?;
        Ok(())
    }

    fn watch(&self) -> Result<Capture> {
        Capture::start(&self.cluster.topology.node("n1").ns, NODE_LINK)
    }

    /// Nothing of the applications' was on the wire, and something of the mesh's was.
    fn unseen(&self, wire: &Capture) -> Result<()> {
        settle(wire)?;
        for port in PORTS {
            ensure!(wire.count_on(port)? == 0, "port {port} between the nodes");
        }
        ensure!(!wire.shows(MARKER)?, "in plain text between the nodes");
        ensure!(wire.count_on(hbone::PORT)? > 0);
        Ok(())
    }

    /// A connection to the server over which something went already.
    fn dial(&self, port: u16) -> Result<TcpStream> {
        let mut stream = talk::dial(self.cluster.ns("client"), self.cluster.addr("server", port, false))?;
        ensure!(greeting(&mut stream)? == "server");
        Ok(stream)
    }

    /// What connect() says without waiting for anything: `None` if it has begun, or is through.
    fn dial_at_once(&self, v6: bool) -> Result<End> {
        let to = self.cluster.addr("server", NAMED, v6);
        let begun = self.cluster.ns("client").run(|| -> io::Result<()> {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            socket.connect(&to.into())
        });
        Ok(match begun {
            Ok(()) => None,
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => None,
            // Before 6.1 a hook cannot choose the error.
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => Some(ErrorKind::ConnectionRefused),
            Err(e) => Some(e.kind()),
        })
    }

    fn forget(&self) {
        self.named.iter().for_each(Server::forget);
    }

    /// One without end in each direction, both in their middle.
    fn transfers(&self, v6: bool) -> Result<Transfers> {
        const FLOWING: usize = 1 << 20;
        while self.ends.try_recv().is_ok() {}
        let (client, before) = (self.cluster.ns("client"), self.up.bytes());
        let mut up = talk::dial(client, self.cluster.addr("server", UP, v6))?;
        let mut down = talk::dial(client, self.cluster.addr("server", DOWN, v6))?;
        let (tell, flowing) = mpsc::channel();
        let this = Transfers {
            up: std::thread::spawn(move || write_without_end(&mut up)),
            down: std::thread::spawn(move || {
                let mut total = 0;
                read_to_end(&mut down, |n| {
                    total += n;
                    let _ = tell.send(total);
                })
            }),
        };
        while flowing.recv_timeout(talk::DEADLINE).context("nothing comes down")? < FLOWING {}
        wait::until_true(wait::PATIENCE, "something goes up", || self.up.bytes() > before + FLOWING)?;
        Ok(this)
    }
}

struct Transfers {
    up: JoinHandle<End>,
    down: JoinHandle<End>,
}

impl Transfers {
    /// No application takes what it got for all there was.
    fn are_reset(self, at_the_server: &mpsc::Receiver<(u16, End)>) -> Result<()> {
        let is_reset = |end| matches!(end, Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe));
        let down = self.down.join().expect("no panic");
        ensure!(down == Some(ErrorKind::ConnectionReset), "the client that reads: {down:?}");
        let up = self.up.join().expect("no panic");
        ensure!(is_reset(up), "the client that writes: {up:?}");
        for _ in 0..2 {
            let (port, end) = at_the_server.recv_timeout(talk::DEADLINE).context("a server saw no end")?;
            ensure!(is_reset(end), "the server on {port}: {end:?}");
        }
        Ok(())
    }
}

/// Short connections, counted by how they ended.
#[derive(Debug, Default)]
struct Tally {
    stop: AtomicBool,
    /// Odd while an agent is away.
    epoch: AtomicUsize,
    good: AtomicUsize,
    refused: AtomicUsize,
    reset: AtomicUsize,
}

impl Tally {
    /// # Errors
    /// Somebody else answered, or a connection failed that began and ended while both agents were there.
    fn dial(&self, from: &Netns, (pod, to): (&str, SocketAddr)) -> Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            let epoch = self.epoch.load(Ordering::SeqCst);
            match greet(from, to) {
                Ok(said) => {
                    ensure!(said == pod, "{said} answered for {pod}");
                    self.good.fetch_add(1, Ordering::Relaxed);
                }
                Err(e) => {
                    let same = self.epoch.load(Ordering::SeqCst) == epoch;
                    ensure!(!same || epoch % 2 == 1, "{pod} failed while both agents are there: {e}");
                    let refused = e.kind() == ErrorKind::ConnectionRefused;
                    let count = if refused { &self.refused } else { &self.reset };
                    count.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
        Ok(())
    }

    fn away(&self, away: bool) {
        let epoch = self.epoch.fetch_add(1, Ordering::SeqCst);
        assert_eq!(away, epoch.is_multiple_of(2));
    }

    fn goes_on(&self, when: &str) -> Result<()> {
        let before = self.good.load(Ordering::Relaxed);
        wait::until_true(wait::PATIENCE, &format!("connections go on {when}"), || {
            self.good.load(Ordering::Relaxed) > before + 50
        })
    }

    fn goes_round(&self, when: &str) -> Result<()> {
        let all = || [&self.refused, &self.reset].map(|n| n.load(Ordering::Relaxed)).iter().sum::<usize>();
        let before = all();
        wait::until_true(wait::PATIENCE, &format!("connections fail {when}"), || all() > before)
    }
}

/// What an agent has put into the kernel, as others see it.
#[derive(Debug, Default, PartialEq)]
struct Left {
    pins: Vec<String>,
    programs: usize,
    links: usize,
    /// By pod: rules, routes, listeners, reserved ports.
    pods: BTreeMap<String, [Vec<String>; 4]>,
}

impl Left {
    fn of(cluster: &Cluster, agent: &Agent) -> Result<Self> {
        let programs = loaded::program_ids(Path::new(PINS), agent.instance())?;
        let mut pods = BTreeMap::new();
        for pod in cluster.topology.pods().filter(|p| p.node == agent.node().name) {
            let lines = |arguments: &str| -> Result<Vec<String>> {
                let mut all = vec![];
                for family in ["-4", "-6"] {
                    let said = pod.ns.ip(&format!("{family} {arguments}"))?;
                    all.extend(said.lines().map(str::to_owned));
                }
                all.sort();
                Ok(all)
            };
            let reserved = vec![pod.ns.read_sysctl("ipv4.ip_local_reserved_ports")?];
            let seen = [lines("rule show")?, lines("route show table all")?, listeners(&pod.ns)?, reserved];
            pods.insert(pod.name.clone(), seen);
        }
        Ok(Self {
            pins: pins(agent)?,
            programs: programs.len(),
            links: loaded::link_ids(&programs)?.len(),
            pods,
        })
    }
}

const PINS: &str = "/sys/fs/bpf/underpass";

fn pins(agent: &Agent) -> Result<Vec<String>> {
    let mut folders = vec![Path::new(PINS).join(agent.instance())];
    let mut all = vec![];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))? {
            let entry = entry?;
            all.push(entry.path().display().to_string());
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    all.sort();
    Ok(all)
}

/// Addresses as `/proc/net/tcp` writes them.
fn listeners(ns: &Netns) -> Result<Vec<String>> {
    ns.run(|| {
        let mut all = vec![];
        for table in ["tcp", "tcp6"] {
            let text = std::fs::read_to_string(format!("/proc/thread-self/net/{table}"))?;
            for line in text.lines() {
                let mut fields = line.split_ascii_whitespace().skip(1);
                if let (Some(local), Some(_), Some("0A")) = (fields.next(), fields.next(), fields.next()) {
                    all.push(local.to_owned());
                }
            }
        }
        all.sort();
        Ok(all)
    })
}

/// How many connections are open, by the difference of Istio's totals.
fn open(agent: &Agent) -> Result<f64, String> {
    let total = |name| agent.metric(name, &[]).map_err(|e| e.to_string());
    Ok(total("istio_tcp_connections_opened_total")? - total("istio_tcp_connections_closed_total")?)
}

/// It says that it is stopping, and is still there to say it.
fn stopping(agent: &Agent) -> Result<()> {
    wait::until_true(wait::PATIENCE, "the agent says that it stops and is not ready", || {
        agent.admin("/status").is_ok_and(|s| s["stopping"] == "SIGTERM" && s["ready"] == false)
    })?;
    ensure!(!agent.is_ready(), "/healthz/ready");
    agent.metrics().map(drop)
}

fn named(name: &str, conn: &mut Conn) -> io::Result<()> {
    writeln!(conn.stream, "{name}")?;
    server::echo(conn)
}

fn greeting(stream: &mut TcpStream) -> io::Result<String> {
    let mut said = vec![];
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte)?;
        match byte {
            [b'\n'] => return String::from_utf8(said).map_err(io::Error::other),
            [b] => said.push(b),
        }
    }
}

/// One short connection, in order to its end: who answered.
fn greet(from: &Netns, to: SocketAddr) -> io::Result<String> {
    let mut stream = talk::dial(from, to)?;
    let said = greeting(&mut stream)?;
    talk::echo(&mut stream, MARKER)?;
    talk::finish(stream)?;
    Ok(said)
}

/// How the next read ends, on a connection on which nothing is to come.
fn reads(stream: &mut TcpStream) -> End {
    stream.read(&mut [0; 16]).map_err(|e| e.kind()).err()
}

fn read_to_end(stream: &mut TcpStream, mut took: impl FnMut(usize)) -> End {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return None,
            Ok(n) => took(n),
            Err(e) => return Some(e.kind()),
        }
    }
}

/// Until it is told otherwise, and not faster than a capture may grow.
fn write_without_end(stream: &mut TcpStream) -> End {
    let piece: Vec<u8> = MARKER.iter().copied().chain((0..64 << 10).map(pattern::byte)).collect();
    loop {
        if let Err(e) = stream.write_all(&piece) {
            return Some(e.kind());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
