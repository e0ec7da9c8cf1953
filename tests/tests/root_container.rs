//! A root process in the client pod, with the capabilities that containers have by default and one more.
//!
//! Whatever it does to its sockets: what it says to a meshed destination does not leave the pod in
//! plaintext, and the honest connections beside it go on. The destination is PERMISSIVE and would take
//! plaintext: only the client's own node keeps it from being sent.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use socket2::{Domain, SockRef, Socket, Type};
use underpass_common::{CAPTURE_MARK, MARK_MASK, RETURN_MARK, RULE_MARK};
use underpass_tests::capture::{Capture, settle};
use underpass_tests::cluster::{Cluster, SHORT};
use underpass_tests::hbone;
use underpass_tests::hostile::{self, Tricks};
use underpass_tests::packet::Segment;
use underpass_tests::stories::{self, World};
use underpass_tests::work::server;
use underpass_tests::work::talk;
use underpass_tests::{Mesh, Netns, Server, wait};

fn main() -> ExitCode {
    stories::run(&[
        ("the_capture_would_show_plaintext", capture_works),
        ("marks_before_and_after_connect_let_nothing_out", marks),
        ("devices_before_and_after_connect_let_nothing_out", devices),
        ("foreign_sources_let_nothing_out", sources),
        ("a_socket_that_dials_again_lets_nothing_out", dials_again),
        ("nobody_binds_or_joins_the_agents_ports", ports),
        ("a_deleted_rule_or_route_lets_nothing_out_and_is_repaired", rule_deleted),
        ("what_a_pod_routes_back_to_itself_does_not_go_in_circles", routed_back),
    ])
}

const APP: u16 = 8080;
const MARKER: &[u8] = b"not-for-the-wire";

struct Breach {
    cluster: Cluster,
    app: Server,
    _plain: Server,
}

impl World for Breach {
    fn build() -> Result<Self> {
        let mesh = Mesh::default().meshed("client", "client").meshed("server", "server").plain("plain");
        let cluster = Cluster::start(&[("client", "n1"), ("server", "n2"), ("plain", "n2")], mesh)?;
        let app = Server::start(cluster.ns("server"), APP, server::echo)?;
        let plain = Server::start(cluster.ns("plain"), APP, server::echo)?;
        Ok(Self { cluster, app, _plain: plain })
    }

    fn diagnose(&self) -> String {
        self.cluster.diagnose()
    }
}

/// What the other stories look for is seen by the same capture where it is allowed.
fn capture_works(w: &mut Breach) -> Result<()> {
    for v6 in [false, true] {
        let wire = w.wire()?;
        talk::echo(&mut talk::dial(w.client(), w.cluster.addr("plain", APP, v6))?, MARKER)?;
        settle(&wire)?;
        ensure!(wire.shows(MARKER)? && wire.count_on(APP)? > 0, "the capture proves nothing");
    }
    Ok(())
}

/// Marks that mean something to the agent, and some that mean everything or nothing.
const MARKS: [u32; 8] = [CAPTURE_MARK, RETURN_MARK, RULE_MARK, MARK_MASK, !MARK_MASK, 0, 1, u32::MAX];

fn marks(w: &mut Breach) -> Result<()> {
    for v6 in [false, true] {
        let mut row = w.under_attack(v6)?;
        for mark in MARKS {
            let what = format!("mark {mark:#x} before connect");
            row.by(&what, |to| tricked(w.client(), to, Tricks { mark: Some(mark), ..Tricks::default() }))?;
            let what = format!("mark {mark:#x} after connect");
            row.by(&what, |to| {
                tricked(w.client(), to, Tricks { mark_after: Some(mark), ..Tricks::default() })
            })?;
            // By the agent's own mark the SYN finds its way to the agent whether it was captured or not;
            // what comes after it must not be free to leave.
            let what = format!("the agent's mark before connect, mark {mark:#x} after");
            row.by(&what, |to| {
                let tricks = Tricks { mark: Some(RETURN_MARK), mark_after: Some(mark), ..Tricks::default() };
                tricked(w.client(), to, tricks)
            })?;
            let what = format!("mark {mark:#x} once something was said");
            row.by(&what, |to| {
                let mut stream = talk::dial_within(w.client(), to, SHORT)?;
                stream.write_all(MARKER)?;
                SockRef::from(&stream).set_mark(mark)?;
                Ok(stream)
            })?;
        }
        row.end()?;
    }
    // A mark of the application's own is no reason to refuse it.
    let own = Tricks { mark: Some(0x5), ..Tricks::default() };
    let mut stream = hostile::dial(w.client(), w.cluster.addr("server", APP, false), own, talk::DEADLINE)?;
    talk::echo(&mut stream, MARKER).context("a connection with a mark of its own")?;
    Ok(())
}

fn devices(w: &mut Breach) -> Result<()> {
    for v6 in [false, true] {
        let mut row = w.under_attack(v6)?;
        for device in ["eth0", "lo"] {
            for mark in [None, Some(0), Some(RETURN_MARK)] {
                let tricks = Tricks { device: Some(device), mark, mark_after: mark, ..Tricks::default() };
                let what = format!("{device} before connect, mark {mark:?}");
                row.by(&what, |to| tricked(w.client(), to, tricks))?;
                let what = format!("{device} after connect, mark {mark:?}");
                row.by(&what, |to| {
                    let tricks = Tricks { device: None, ..tricks };
                    let stream = tricked(w.client(), to, tricks)?;
                    SockRef::from(&stream).bind_device(Some(device.as_bytes()))?;
                    Ok(stream)
                })?;
            }
        }
        row.end()?;
    }
    Ok(())
}

fn sources(w: &mut Breach) -> Result<()> {
    for v6 in [false, true] {
        w.app.forget();
        let mut row = w.under_attack(v6)?;
        let foreign: IpAddr = if v6 { "fd00:201:1::99".parse()? } else { "10.201.1.99".parse()? };
        let loopback: IpAddr = if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
        let candidates = [
            (foreign, 0),
            (foreign, hbone::PORT),
            (w.cluster.ip("server", v6), 0),
            (w.cluster.ip("plain", v6), APP),
            (loopback, 0),
        ];
        for (ip, port) in candidates {
            for device in [None, Some("eth0")] {
                let source = Some(SocketAddr::new(ip, port));
                let what = format!("source {ip}:{port}, device {device:?}");
                row.by(&what, |to| tricked(w.client(), to, Tricks { source, device, ..Tricks::default() }))?;
            }
        }
        row.end()?;
        // The application never saw anybody but the pod itself.
        let expected = w.cluster.ip("client", v6);
        let others: Vec<_> = w.app.peer_ips().into_iter().filter(|ip| *ip != expected).collect();
        ensure!(others.is_empty(), "the server took {others:?} for its client");
    }
    Ok(())
}

fn dials_again(w: &mut Breach) -> Result<()> {
    for v6 in [false, true] {
        let mut row = w.under_attack(v6)?;
        // Left alone once, then to the mesh on the same socket.
        let first = w.cluster.addr("plain", APP, v6);
        for mark in [None, Some(0), Some(RETURN_MARK)] {
            let what = format!("a socket that was left alone before, mark {mark:?}");
            row.by(&what, |to| {
                let stream = talk::dial_within(w.client(), first, SHORT)?;
                hostile::disconnect(&stream)?;
                if let Some(mark) = mark {
                    SockRef::from(&stream).set_mark(mark)?;
                }
                w.client().run(|| SockRef::from(&stream).connect_timeout(&to.into(), SHORT))?;
                Ok(stream)
            })?;
        }
        row.end()?;
    }
    // And a socket that was captured can be let go: the mark does not outlive its connection.
    for v6 in [false, true] {
        let stream = talk::dial(w.client(), w.cluster.addr("server", APP, v6))?;
        hostile::disconnect(&stream)?;
        let to = w.cluster.addr("plain", APP, v6);
        w.client().run(|| SockRef::from(&stream).connect_timeout(&to.into(), talk::DEADLINE))?;
        let mut stream = stream;
        talk::echo(&mut stream, MARKER).context("the second dial of a captured socket")?;
    }
    Ok(())
}

fn ports(w: &mut Breach) -> Result<()> {
    let own = ["client", "server"].map(|pod| (pod, w.cluster.ns(pod).clone()));
    for (pod, ns) in &own {
        for port in [15_001, 15_006, hbone::PORT] {
            let four = w.cluster.ip(pod, false);
            let IpAddr::V4(v4) = four else { unreachable!("ip(_, false) is IPv4") };
            for ip in [
                four,
                w.cluster.ip(pod, true),
                Ipv4Addr::UNSPECIFIED.into(),
                Ipv6Addr::UNSPECIFIED.into(),
                Ipv4Addr::LOCALHOST.into(),
                Ipv4Addr::new(127, 7, 7, 7).into(),
                Ipv6Addr::LOCALHOST.into(),
                v4.to_ipv6_mapped().into(),
                Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(),
            ] {
                for share in [false, true] {
                    let addr = SocketAddr::new(ip, port);
                    let bound = hostile::bind(ns, addr, share);
                    ensure!(bound.is_err(), "{addr} in {pod} could be bound (SO_REUSEPORT: {share})");
                }
            }
            // Datagrams are not the agent's.
            let udp = ns.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)));
            udp.with_context(|| format!("UDP port {port} in {pod}"))?;
        }
        // Nor are they drawn by whoever leaves the choice to the kernel, also while the agent is away.
        let reserved = ns.read_sysctl("ipv4.ip_local_reserved_ports")?;
        for port in [15_001, 15_006, hbone::PORT] {
            ensure!(reserved.trim().split(',').any(|p| p == port.to_string()), "{pod} reserves {reserved:?}");
        }
        // A pod may narrow the range that the kernel draws from (a "safe" sysctl in Kubernetes).
        ns.sysctl("ipv4.ip_local_port_range", "15000 15009")?;
        let drawn = ns.run(|| {
            draw(Ipv4Addr::UNSPECIFIED.into()).chain(draw(Ipv6Addr::UNSPECIFIED.into())).collect::<Vec<_>>()
        });
        ns.sysctl("ipv4.ip_local_port_range", "32768 60999")?;
        let ports: Vec<u16> =
            drawn.iter().filter_map(|s| s.local_addr().ok()?.as_socket()).map(|a| a.port()).collect();
        ensure!(!ports.is_empty(), "nothing could be drawn at all");
        ensure!(!ports.iter().any(|p| [15_001, 15_006, hbone::PORT].contains(p)), "{pod} drew {ports:?}");
    }
    for v6 in [false, true] {
        w.honest(v6)?;
    }
    // All other ports are the application's.
    let ns = w.cluster.ns("server");
    let shared = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 15_002);
    let _one = hostile::bind(ns, shared, true).context("a port that is nobody's")?;
    let _two = hostile::bind(ns, shared, true).context("joining one's own listener")?;
    Ok(())
}

fn rule_deleted(w: &mut Breach) -> Result<()> {
    let ns = w.client().clone();
    let rules = [the_rule(&ns, "")?, the_rule(&ns, "-6 ")?];
    let rule = rules[0].as_ref().context("there is no rule to delete")?;
    let table = rule.split(' ').skip_while(|w| *w != "lookup").nth(1).context("a rule without a table")?;
    let preference = rule.split(':').next().context("a rule without a preference")?;
    for cut in [format!("rule del pref {preference}"), format!("route flush table {table}")] {
        let to = [false, true].map(|v6| w.cluster.addr("server", APP, v6));
        let mut live = [talk::dial(&ns, to[0])?, talk::dial(&ns, to[1])?];
        for stream in &mut live {
            talk::echo(stream, b"before")?;
        }
        let wire = w.wire()?;
        ip(&ns, "", &cut)?;
        ip(&ns, "-6 ", &cut)?;
        // Until the agent has repaired it, dials are refused or wait; none gets through in plaintext.
        for to in to {
            let repaired = wait::until(wait::PATIENCE, &format!("{cut} is repaired"), || {
                let mut stream = talk::dial_within(&ns, to, SHORT).ok()?;
                talk::echo(&mut stream, MARKER).ok()
            });
            said_nothing(&wire, to.ip(), &cut)?;
            repaired?;
        }
        // The connections that stood had lost their way as well, and find it again.
        for stream in &mut live {
            talk::echo(stream, MARKER).with_context(|| format!("a live connection after {cut}"))?;
        }
        settle(&wire)?;
        for to in to {
            said_nothing(&wire, to.ip(), &cut)?;
        }
        let back = [the_rule(&ns, "")?, the_rule(&ns, "-6 ")?];
        ensure!(back == rules, "after {cut} the rules are {back:?} instead of {rules:?}");
    }
    // A rule of its own before ours, that sends marked packets out of the pod.
    for v6 in [false, true] {
        let family = if v6 { "-6 " } else { "" };
        ip(&ns, family, &format!("rule add pref 5 fwmark {CAPTURE_MARK:#x}/{MARK_MASK:#x} lookup main"))?;
        let what = format!("a {family}rule before ours");
        let wire = w.wire()?;
        if let Ok(mut stream) = talk::dial_within(&ns, w.cluster.addr("server", APP, v6), SHORT) {
            let _ = stream.write_all(MARKER);
        }
        ip(&ns, family, "rule del pref 5")?;
        settle(&wire)?;
        said_nothing(&wire, w.cluster.ip("server", v6), &what)?;
        w.honest(v6)?;
    }
    Ok(())
}

/// Addresses in the mesh's ranges that nobody has, which the pod's own routes bring back to it, with the
/// pod's address as source: the agent passes on what it does not know, and must not meet its own dial.
fn routed_back(w: &mut Breach) -> Result<()> {
    let ns = w.client();
    let _own = Server::start(ns, 7091, server::echo)?;
    for (v6, range, to) in
        [(false, "10.201.77.0/28", "10.201.77.7"), (true, "fd00:201:77::/64", "fd00:201:77::7")]
    {
        let family = if v6 { "-6 " } else { "" };
        let route = format!("local {range} dev lo table local");
        ip(ns, family, &format!("route add {route} src {}", w.cluster.ip("client", v6)))?;
        let said = talk::try_echo(ns, SocketAddr::new(to.parse()?, 7091), SHORT);
        let is_ours = |text: String| text.contains(to) && text.contains(":7091");
        let live = w.cluster.n1.admin("/connections")?;
        let live = live.as_array().into_iter().flatten().filter(|c| is_ours(c.to_string())).count();
        let lines = w.cluster.n1.access()?.iter().filter(|l| is_ours(l.to_string())).count();
        ip(ns, family, &format!("route del {route}"))?;
        ensure!(live <= 1 && lines <= 1, "one connection to {to} became {live} and {lines}: {said:?}");
        ensure!(said.is_ok(), "{to} is the pod's own: {said:?}");
        w.honest(v6)?;
    }
    Ok(())
}

impl Breach {
    fn client(&self) -> &Netns {
        self.cluster.ns("client")
    }

    /// All that leaves or enters the client pod.
    fn wire(&self) -> Result<Capture> {
        let client = self.cluster.topology.pod("client");
        Capture::start(&self.cluster.topology.node("n1").ns, &client.node_veth)
    }

    /// Begins a row of attacks on the meshed server, with an eye on the wire and an honest connection
    /// beside them.
    fn under_attack(&self, v6: bool) -> Result<Attacked<'_>> {
        let to = self.cluster.addr("server", APP, v6);
        let mut honest = talk::dial(self.client(), to).context("an honest connection")?;
        talk::echo(&mut honest, b"before")?;
        Ok(Attacked { breach: self, to, honest, wire: self.wire()?, last: String::new() })
    }

    fn honest(&self, v6: bool) -> Result<()> {
        let mut stream = talk::dial(self.client(), self.cluster.addr("server", APP, v6))?;
        talk::echo(&mut stream, MARKER)?;
        Ok(())
    }
}

/// One row of attacks.
struct Attacked<'a> {
    breach: &'a Breach,
    to: SocketAddr,
    honest: TcpStream,
    wire: Capture,
    last: String,
}

impl Attacked<'_> {
    /// Says the marker on whatever connection the attack got, if it got one; then looks at the wire, at
    /// the honest connection that was there before, and at one that is made after.
    fn by(&mut self, what: &str, attack: impl FnOnce(SocketAddr) -> io::Result<TcpStream>) -> Result<()> {
        what.clone_into(&mut self.last);
        if let Ok(mut stream) = attack(self.to) {
            // Twice, with an answer waited for in between: the first goes out under the eyes of connect,
            // the second when everything has settled.
            stream.set_read_timeout(Some(Duration::from_millis(50)))?;
            let _ = talk::echo(&mut stream, MARKER);
            let _ = stream.write_all(MARKER);
        }
        self.leaked_nothing()?;
        talk::echo(&mut self.honest, MARKER)
            .with_context(|| format!("the honest connection beside {what}"))?;
        self.breach.honest(self.to.is_ipv6()).with_context(|| format!("an honest connection after {what}"))
    }

    /// Looks at what came late.
    fn end(self) -> Result<()> {
        settle(&self.wire)?;
        self.leaked_nothing()
    }

    fn leaked_nothing(&self) -> Result<()> {
        leaked_nothing(&self.wire, self.to.ip(), &self.last)
    }
}

/// No marker on the wire, and not even a packet of a connection to the application. `after` is what was
/// done last; what came late may be of an attack before it.
fn leaked_nothing(wire: &Capture, to: IpAddr, after: &str) -> Result<()> {
    leaked_only(wire, to, after, |_| false)
}

/// As [`leaked_nothing`] where the way over lo was taken away: what the kernel answers for a connection
/// that is gone (a reset, an acknowledgement out of TIME_WAIT) belongs to no socket and finds the way
/// out. It says nothing. A SYN would ask for a connection, and counts.
fn said_nothing(wire: &Capture, to: IpAddr, after: &str) -> Result<()> {
    leaked_only(wire, to, after, |s| s.payload.is_empty() && !s.opens())
}

fn leaked_only(wire: &Capture, to: IpAddr, after: &str, harmless: impl Fn(&Segment) -> bool) -> Result<()> {
    ensure!(!wire.shows(MARKER)?, "after {after}: the marker left the pod in plaintext");
    let servers = |addr: SocketAddr| addr.ip() == to && addr.port() == APP;
    let leaked = wire.segments()?.into_iter().find(|s| (servers(s.from) || servers(s.to)) && !harmless(s));
    ensure!(leaked.is_none(), "after {after}: a connection left the pod beside the tunnel: {leaked:?}");
    Ok(())
}

fn tricked(from: &Netns, to: SocketAddr, tricks: Tricks<'_>) -> io::Result<TcpStream> {
    hostile::dial(from, to, tricks, SHORT)
}

/// Listeners on ports of the kernel's choice, by bind(0) and by listen() without bind, until it has none
/// left.
fn draw(ip: IpAddr) -> impl Iterator<Item = Socket> {
    let made = move |bind: bool| {
        let addr = SocketAddr::new(ip, 0);
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
        if ip.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if bind {
            socket.bind(&addr.into())?;
        }
        socket.listen(1)?;
        Ok::<_, io::Error>(socket)
    };
    (0..6).map(move |i| made(i % 2 == 0)).chain((0..20).map(move |i| made(i % 2 == 1))).filter_map(Result::ok)
}

/// Our rule as `ip rule` prints it.
fn the_rule(ns: &Netns, family: &str) -> Result<Option<String>> {
    let rules = ip(ns, family, "rule")?;
    let mark = format!("fwmark {RULE_MARK:#x}");
    Ok(rules.lines().find(|l| l.contains(&mark)).map(|l| l.replace('\t', " ").trim().to_owned()))
}

fn ip(ns: &Netns, family: &str, arguments: &str) -> Result<String> {
    ns.ip(&format!("{family}{arguments}"))
}
