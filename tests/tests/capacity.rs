//! As many connections as without the mesh, also where ports are few, and a storm of short ones: none
//! lost, none at a wrong destination, nothing left behind.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use socket2::SockRef;
use underpass_common::{DeliveryKey, LoopbackKey, LoopbackValue, name};
use underpass_tests::stories::{self, World};
use underpass_tests::work::server::Conn;
use underpass_tests::work::talk;
use underpass_tests::{Agent, Cluster, Mesh, Server, Settings, wait};

fn main() -> ExitCode {
    stories::run(&[
        ("a_client_with_few_ports_has_as_many_connections_as_without_the_mesh", few_client_ports),
        ("a_server_with_few_ports_takes_as_many_connections_as_without_the_mesh", few_server_ports),
        ("connections_that_ended_a_moment_ago_do_not_use_up_the_servers_ports", ended_connections),
        ("a_storm_of_a_hundred_thousand", storm),
    ])
}

struct Capacity {
    cluster: Cluster,
    mesh: Mesh,
    /// They say which port they are, so that every answer proves where it comes from.
    servers: Vec<Server>,
}

const FIRST: u16 = 8080;
const PORTS: u16 = 8;

impl World for Capacity {
    fn build() -> Result<Self> {
        let mesh = Mesh::default().meshed("client", "client").meshed("server", "server");
        // A hundred thousand lines would be a test of the disk.
        let settings = Settings { access_log: false, ..Settings::default() };
        let pods = [("client", "n1"), ("server", "n2")];
        let cluster = Cluster::start_with(&pods, mesh.clone(), settings)?;
        let servers = (FIRST..FIRST + PORTS)
            .map(|port| Server::start(cluster.ns("server"), port, move |conn| answer(conn, port)))
            .collect::<Result<_>>()?;
        Ok(Self { cluster, mesh, servers })
    }

    fn diagnose(&self) -> String {
        self.cluster.diagnose()
    }
}

/// Sends back the number that came, with the own port.
fn answer(conn: &mut Conn, port: u16) -> io::Result<()> {
    let mut number = [0; 4];
    while conn.stream.read(&mut number[..1])? == 1 {
        conn.stream.read_exact(&mut number[1..])?;
        let mut said = [0; 6];
        said[..2].copy_from_slice(&port.to_be_bytes());
        said[2..].copy_from_slice(&number);
        conn.stream.write_all(&said)?;
    }
    Ok(())
}

/// Whether the other end is the server on this port, and this connection's own.
fn ask(stream: &mut TcpStream, port: u16, number: usize) -> Result<()> {
    let number = (number as u32).to_be_bytes();
    stream.write_all(&number).context("asking")?;
    let mut said = [0; 6];
    stream.read_exact(&mut said).context("reading the answer")?;
    ensure!(said[..2] == port.to_be_bytes() && said[2..] == number, "port {port} answered {said:?}");
    Ok(())
}

const FEW: u16 = 100;

fn few_client_ports(w: &mut Capacity) -> Result<()> {
    let range = w.narrow("client")?;
    for v6 in [false, true] {
        w.cluster.apply(w.mesh.clone().without("client"))?;
        w.until_enrolled(0)?;
        let without = w.hold(3, FEW, v6).context("without the mesh")?;
        w.refused(v6)?;
        reset(without)?;

        w.cluster.apply(w.mesh.clone())?;
        w.until_enrolled(1)?;
        let with = w.hold(3, FEW, v6).context("in the mesh")?;
        w.refused(v6)?;
        reset(with)?;
        w.until_idle()?;
    }
    w.cluster.ns("client").sysctl(RANGE, &range)
}

fn few_server_ports(w: &mut Capacity) -> Result<()> {
    let range = w.narrow("server")?;
    for v6 in [false, true] {
        // All to one port: there every connection needs a port of its own on the other side.
        let streams = w.hold(1, 5 * FEW, v6)?;
        reset(streams)?;
        w.until_idle()?;
    }
    w.cluster.ns("server").sysctl(RANGE, &range)
}

fn ended_connections(w: &mut Capacity) -> Result<()> {
    let range = w.narrow("server")?;
    for v6 in [false, true] {
        for number in 0..usize::from(10 * FEW) {
            // Ended in order by the client, so that the mesh's end in the server's pod waits too.
            w.once(FIRST, number, v6)?;
        }
    }
    w.until_idle()?;
    w.cluster.ns("server").sysctl(RANGE, &range)
}

fn storm(w: &mut Capacity) -> Result<()> {
    const CONNECTIONS: usize = 100_000;
    const CLIENTS: usize = 8;
    // Tunnels of both families stand, as they will afterwards.
    for v6 in [false, true] {
        w.once(FIRST, 0, v6)?;
    }
    w.until_idle()?;
    for server in &w.servers {
        server.forget();
    }
    let before = w.left()?;
    let closed = w.closed()?;

    let next = AtomicUsize::new(0);
    let client = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= CONNECTIONS {
                return Ok(());
            }
            let port = FIRST + (number / 2) as u16 % PORTS;
            let to = w.cluster.addr("server", port, number.is_multiple_of(2));
            let one = || -> Result<()> {
                let mut stream = TcpStream::connect(to)?;
                talk::prepare(&stream, talk::DEADLINE)?;
                ask(&mut stream, port, number)?;
                ensure!(talk::finish(stream)?.is_empty(), "more than the answer came");
                Ok(())
            };
            one().with_context(|| format!("connection {number} to {to}"))?;
        }
    };
    std::thread::scope(|scope| -> Result<()> {
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| scope.spawn(|| w.cluster.ns("client").run(client))).collect();
        clients.into_iter().try_for_each(|c| c.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
    })?;

    let after = wait::until(SOON, "what connections hold is given back", || {
        let now = w.left().ok()?;
        now.values().zip(before.values()).all(|(now, before)| now <= before).then_some(now)
    });
    after.with_context(|| format!("before {before:?}, now {:?}", w.left()))?;
    for server in &w.servers {
        let seen = server.peers().len();
        ensure!(seen == CONNECTIONS / usize::from(PORTS), "port {} saw {seen}", server.port());
    }
    // Each agent tells of every one of them, once.
    let told = w.closed()?.map(|now| now as usize);
    let expected = closed.map(|before| before as usize + CONNECTIONS);
    ensure!(told == expected, "the agents tell of {told:?} connections, not of {expected:?}");
    Ok(())
}

const SOON: Duration = Duration::from_secs(5);
const RANGE: &str = "ipv4.ip_local_port_range";

impl Capacity {
    /// Leaves the pod so few ports for dialling; returns the range that it had.
    fn narrow(&self, pod: &str) -> Result<String> {
        let ns = self.cluster.ns(pod);
        let before = ns.read_sysctl(RANGE)?;
        ns.sysctl(RANGE, &format!("50000 {}", 50_000 + FEW - 1))?;
        Ok(before)
    }

    /// So many connections to each of the first ports, all open at once and all right.
    fn hold(&self, ports: u16, each: u16, v6: bool) -> Result<Vec<TcpStream>> {
        let mut open: Vec<(u16, TcpStream)> = Vec::new();
        for port in FIRST..FIRST + ports {
            for number in 0..each {
                let to = self.cluster.addr("server", port, v6);
                let dial = || -> Result<TcpStream> {
                    let mut stream = talk::dial(self.cluster.ns("client"), to)?;
                    ask(&mut stream, port, number.into())?;
                    Ok(stream)
                };
                open.push((port, dial().with_context(|| format!("connection {number} to {to}"))?));
            }
        }
        for (number, (port, stream)) in open.iter_mut().enumerate() {
            ask(stream, *port, number).context("a connection that was held open")?;
        }
        Ok(open.into_iter().map(|(_, stream)| stream).collect())
    }

    /// The client has no port left, so the count above was all of them.
    fn refused(&self, v6: bool) -> Result<()> {
        let to = self.cluster.addr("server", FIRST, v6);
        match talk::dial(self.cluster.ns("client"), to) {
            Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable => Ok(()),
            other => anyhow::bail!("more ports than there are: {other:?}"),
        }
    }

    fn once(&self, port: u16, number: usize, v6: bool) -> Result<()> {
        let to = self.cluster.addr("server", port, v6);
        let mut stream = talk::dial(self.cluster.ns("client"), to)?;
        ask(&mut stream, port, number).with_context(|| format!("connection {number} to {to}"))?;
        ensure!(talk::finish(stream)?.is_empty());
        Ok(())
    }

    fn until_enrolled(&self, pods: usize) -> Result<()> {
        wait::until_true(wait::PATIENCE, "n1 has enrolled the client or let it go", || {
            let Ok(status) = self.cluster.n1.admin("/status") else { return false };
            status["pods"]["enrolled"] == pods && status["pods"]["leaving"] == 0
        })
    }

    /// Neither agent carries a connection.
    fn until_idle(&self) -> Result<()> {
        wait::until_true(wait::PATIENCE, "no connection is left", || {
            self.cluster.agents().iter().all(|a| a.admin("/status").is_ok_and(|s| s["connections"] == 0))
        })
    }

    /// What connections hold in each agent and in its kernel maps.
    fn left(&self) -> Result<BTreeMap<String, usize>> {
        let mut left = BTreeMap::new();
        for agent in self.cluster.agents() {
            let node = &agent.node().name;
            let connections = agent.admin("/connections")?.as_array().map_or(0, Vec::len);
            left.insert(format!("{node} connections"), connections);
            left.insert(format!("{node} descriptors"), agent.descriptors()?);
            left.insert(format!("{node} rows"), rows(agent)?);
        }
        Ok(left)
    }

    /// How many connections each agent has told Prometheus of.
    fn closed(&self) -> Result<[f64; 2]> {
        const CLOSED: &str = "istio_tcp_connections_closed_total";
        Ok([self.cluster.n1.metric(CLOSED, &[])?, self.cluster.n2.metric(CLOSED, &[])?])
    }
}

/// Rows that come and go with connections.
fn rows(agent: &Agent) -> Result<usize> {
    let maps = Path::new("/sys/fs/bpf/underpass").join(agent.instance()).join("v1/maps");
    let open = |name| -> Result<Map> { Ok(Map::HashMap(MapData::from_pin(maps.join(name))?)) };
    let deliveries = HashMap::<_, DeliveryKey, u8>::try_from(open(name::map::DELIVERIES)?)?;
    let loopback =
        HashMap::<_, LoopbackKey, LoopbackValue>::try_from(open(name::map::LOOPBACK_DESTINATIONS)?)?;
    Ok(deliveries.keys().count() + loopback.keys().count())
}

/// Ends them without leaving anything that waits.
fn reset(streams: Vec<TcpStream>) -> Result<()> {
    for stream in streams {
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    }
    Ok(())
}
