//! Applications do not notice: what works without the mesh works in it, in every form of connecting and
//! every way of ending, and what is not the mesh's is left alone.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use socket2::{Domain, SockRef, Socket, Type};
use underpass_tests::access_log::Line;
use underpass_tests::capture::{Capture, settle};
use underpass_tests::cluster::SHORT;
use underpass_tests::hostile::{self, Tricks};
use underpass_tests::mesh::identity;
use underpass_tests::stories::{self, World};
use underpass_tests::topology::NODE_LINK;
use underpass_tests::work::pattern::{self, Check};
use underpass_tests::work::{http, server, talk};
use underpass_tests::{Cluster, Mesh, Server, hbone, wait};

fn main() -> ExitCode {
    stories::run(&[
        ("http_works_encrypted_on_and_between_nodes_with_the_clients_address", http_everywhere),
        ("large_transfers_are_exact_both_ways", transfers),
        ("half_close_is_carried_both_ways", half_close),
        ("a_reset_stays_a_reset_and_a_refusal_is_no_clean_end", resets),
        ("who_leaves_while_the_other_end_is_still_dialled_is_not_waited_for", left_early),
        ("a_reader_who_stops_stops_the_writer_and_bounds_memory", slow_reader),
        ("every_form_of_connecting_works_and_shows_true_addresses", forms_of_connecting),
        ("two_destinations_are_reached_from_one_bound_port", bound_port),
        ("the_pods_own_addresses_stay_its_own", own_addresses),
        ("what_is_not_the_meshs_is_left_alone_and_counted", left_alone),
        ("an_unknown_address_in_the_meshs_ranges_passes_the_agent", unknown),
    ])
}

struct Traffic(Cluster);

impl World for Traffic {
    fn build() -> Result<Self> {
        let pods = [("client", "n1"), ("near", "n1"), ("server", "n2"), ("plain", "n2"), ("stranger", "n2")];
        let mesh = Mesh::default()
            .meshed("client", "client")
            .meshed("near", "near")
            .meshed("server", "server")
            .plain("plain");
        Ok(Self(Cluster::start(&pods, mesh)?))
    }

    fn diagnose(&self) -> String {
        self.0.diagnose()
    }
}

const MARKER: &str = "traffic-marker-that-nobody-may-read";

fn http_everywhere(w: &mut Traffic) -> Result<()> {
    let c = &w.0;
    for (pod, watched, device) in
        [("server", "n1", NODE_LINK.to_owned()), ("near", "n1", c.topology.pod("near").node_veth.clone())]
    {
        let web = Server::start(c.ns(pod), 8080, http::serve(MARKER))?;
        for v6 in [false, true] {
            let capture = Capture::start(&c.topology.node(watched).ns, &device)?;
            let mut stream = talk::dial(c.ns("client"), c.addr(pod, 8080, v6))?;
            for body in [&b""[..], MARKER.as_bytes()] {
                let answer = http::request(&mut stream, pod, "/", body)?;
                ensure!(answer.status == 200 && answer.body == MARKER.as_bytes(), "{pod}: {answer:?}");
            }
            settle(&capture)?;
            ensure!(!capture.shows(MARKER.as_bytes())?, "{pod}: in plain text on {device}");
            ensure!(capture.count_on(8080)? == 0 && capture.count_on(hbone::PORT)? > 0, "{pod}, v6 {v6}");
            ensure!(web.peer_ips().last() == Some(&c.ip("client", v6)), "{pod} saw {:?}", web.peers());
        }
        for (agent, direction) in [(&c.n1, "outbound"), (c.agent_of(pod), "inbound")] {
            agent.wait_access("the connection with both identities", |l| {
                l.is("direction", direction)
                    && l.is("src.identity", &identity("client"))
                    && l.is("dst.identity", &identity(pod))
                    && l.cause() == "closed"
            })?;
        }
    }
    Ok(())
}

fn transfers(w: &mut Traffic) -> Result<()> {
    const BYTES: usize = 20_000_000;
    let c = &w.0;
    let _sink = Server::start(c.ns("server"), 7001, server::sink)?;
    let _source = Server::start(c.ns("server"), 7002, server::source(BYTES))?;
    let (sink, source) = (c.addr("server", 7001, false), c.addr("server", 7002, true));
    let (mut up, mut down) = (talk::dial(c.ns("client"), sink)?, talk::dial(c.ns("client"), source)?);
    let (sent, got) = std::thread::scope(|s| {
        let up = s.spawn(move || -> io::Result<String> {
            pattern::write(&mut up, BYTES)?;
            Ok(String::from_utf8_lossy(&talk::finish(up)?).trim().to_owned())
        });
        let down = s.spawn(move || pattern::read(&mut down));
        (up.join(), down.join())
    });
    let (sent, got) = (sent.expect("no panic")?, got.expect("no panic")?);
    ensure!(sent == Check::exact(BYTES), "up: {sent}");
    ensure!(got.to_string() == Check::exact(BYTES), "down: {got}");
    Ok(())
}

fn half_close(w: &mut Traffic) -> Result<()> {
    const BYTES: usize = 300_000;
    let c = &w.0;
    let (tell, told) = mpsc::channel();
    // Which side ends first, and what the other side still gets across afterwards.
    let _client_first = Server::start(c.ns("server"), 7011, |conn| {
        let check = pattern::read(&mut conn.stream)?;
        writeln!(conn.stream, "{check}")?;
        pattern::write(&mut conn.stream, BYTES)
    })?;
    let _server_first = Server::start(c.ns("server"), 7012, move |conn| {
        pattern::write(&mut conn.stream, BYTES)?;
        conn.stream.shutdown(Shutdown::Write)?;
        let check = pattern::read(&mut conn.stream)?;
        let _ = tell.send(check);
        Ok(())
    })?;
    for v6 in [false, true] {
        let mut stream = talk::dial(c.ns("client"), c.addr("server", 7011, v6))?;
        pattern::write(&mut stream, BYTES)?;
        let rest = talk::finish(stream)?;
        let line_end = rest.iter().position(|b| *b == b'\n').context("no line came after our end")?;
        ensure!(String::from_utf8_lossy(&rest[..line_end]) == Check::exact(BYTES));
        ensure!(pattern::read(&mut &rest[line_end + 1..])?.to_string() == Check::exact(BYTES));

        let mut stream = talk::dial(c.ns("client"), c.addr("server", 7012, v6))?;
        ensure!(pattern::read(&mut stream)?.to_string() == Check::exact(BYTES));
        pattern::write(&mut stream, BYTES)?;
        drop(stream);
        let check = told.recv_timeout(talk::DEADLINE).context("the server did not see our end")?;
        ensure!(check.to_string() == Check::exact(BYTES), "after its own end the server got {check}");
    }
    Ok(())
}

fn resets(w: &mut Traffic) -> Result<()> {
    let c = &w.0;
    let (tell, told) = mpsc::channel();
    let _listener = Server::start(c.ns("server"), 7021, move |conn| {
        let mut all = vec![];
        let end = conn.stream.read_to_end(&mut all);
        let _ = tell.send((all.len(), end.map_err(|e| e.kind()).err()));
        Ok(())
    })?;
    let _resetter = Server::start(c.ns("server"), 7022, server::resetter(4))?;
    for v6 in [false, true] {
        let mut stream = talk::dial(c.ns("client"), c.addr("server", 7021, v6))?;
        stream.write_all(b"before the reset")?;
        // Until the server has the bytes: a reset overtakes what is on its way, here as in plain TCP.
        let received =
            || c.n2.admin("/connections").is_ok_and(|all| all.to_string().contains("\"bytes_sent\":16"));
        wait::until_true(wait::PATIENCE, "the bytes arrived", received)?;
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        drop(stream);
        let (bytes, end) = told.recv_timeout(talk::DEADLINE).context("the server saw no end")?;
        ensure!(bytes == 16 && end == Some(io::ErrorKind::ConnectionReset), "v6 {v6}: {bytes}, {end:?}");

        let mut stream = talk::dial(c.ns("client"), c.addr("server", 7022, v6))?;
        stream.write_all(b"four")?;
        let end = stream.read(&mut [0; 8]).map_err(|e| e.kind());
        ensure!(end == Err(io::ErrorKind::ConnectionReset), "v6 {v6}: {end:?}");

        // Nobody listens: connect() has succeeded by then, so a reset is what is left to say.
        let refused =
            talk::dial(c.ns("client"), c.addr("server", 7029, v6)).and_then(|mut s| s.read(&mut [0; 8]));
        let refused = refused.map_err(|e| e.kind());
        let told = matches!(refused, Err(io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused));
        ensure!(told, "v6 {v6}: {refused:?}");
    }
    c.n2.wait_access("the client's reset", |l| l.cause() == "client_reset")?;
    c.n1.wait_access("the server's reset", |l| l.cause() == "server_reset")?;
    c.n2.wait_access("the refusal", |l| l.cause() == "connect_refused")?;
    Ok(())
}

fn left_early(w: &mut Traffic) -> Result<()> {
    let c = &w.0;
    let to = c.addr("server", 7023, false);
    // Nobody accepts, and the queue is full: the server's agent waits for its SYN to be answered.
    let (_deaf, _queue) = c.ns("server").run(|| {
        let deaf = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        deaf.bind(&to.into())?;
        deaf.listen(0)?;
        let fill = || TcpStream::connect_timeout(&to, Duration::from_millis(500)).ok();
        let queue: Vec<_> = std::iter::from_fn(fill).take(16).collect();
        ensure!(queue.len() < 16, "the queue has no end");
        Ok((deaf, queue))
    })?;
    let seen = c.n1.access()?.len();
    let stream = talk::dial(c.ns("client"), to)?;
    let opening = || {
        let all = c.n2.admin("/connections").unwrap_or_default().to_string();
        all.contains(":7023") && all.contains("\"opening\"")
    };
    wait::until_true(wait::PATIENCE, "the server's agent dials", opening)?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    // Not what the server's agent says when it gives up.
    let line = c.n1.wait_access_after(seen, "the client's end", |l| l.to_string().contains(":7023"))?;
    ensure!(line.cause() == "client_reset", "{line}");
    Ok(())
}

fn slow_reader(w: &mut Traffic) -> Result<()> {
    let c = &w.0;
    let (go, gate) = mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let _lazy = Server::start(c.ns("server"), 7031, move |conn| {
        let _ = gate.lock().expect("no panic").recv();
        server::sink(conn)
    })?;
    let resident = || -> Result<u64> {
        let mut kib = 0;
        for agent in c.agents() {
            let statm = std::fs::read_to_string(format!("/proc/{}/statm", agent.pid()?))?;
            kib += statm.split(' ').nth(1).and_then(|p| p.parse::<u64>().ok()).context("statm")? * 4;
        }
        Ok(kib)
    };
    let before = resident()?;
    let mut stream = talk::dial(c.ns("client"), c.addr("server", 7031, false))?;
    stream.set_write_timeout(Some(Duration::from_millis(500)))?;
    let mut written = 0;
    let piece: Vec<u8> = (0..65_521).map(pattern::byte).collect();
    // The pattern's period is the piece, so a piece that was cut short goes on where it was cut.
    while written < 256 << 20 {
        match stream.write(&piece[written % piece.len()..]) {
            Ok(n) => written += n,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => break,
            Err(e) => return Err(e).context("writing to a reader who does not read"),
        }
    }
    let grown = resident()?.saturating_sub(before);
    ensure!(written < 64 << 20, "{written} bytes were taken for a reader who reads nothing");
    ensure!(grown < 32 << 10, "the agents grew by {grown} KiB");
    go.send(())?;
    let told = String::from_utf8(talk::finish(stream)?)?;
    ensure!(told.trim() == Check::exact(written), "{written} written: {told}");
    Ok(())
}

fn forms_of_connecting(w: &mut Traffic) -> Result<()> {
    let c = &w.0;
    let _echo = Server::start(c.ns("server"), 7041, server::echo)?;
    for v6 in [false, true] {
        let (to, own) = (c.addr("server", 7041, v6), c.ip("client", v6));
        let blocking = talk::dial(c.ns("client"), to)?;
        let nonblocking = c.ns("client").run(|| -> io::Result<TcpStream> {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            let begun = socket.connect(&to.into()).map_err(|e| e.raw_os_error());
            if begun != Err(Some(nix::Error::EINPROGRESS as i32)) {
                return Err(io::Error::other(format!("a non-blocking connect said {begun:?}")));
            }
            let stream = TcpStream::from(socket);
            let writable = || stream.peer_addr().is_ok();
            wait::until_true(talk::DEADLINE, "connected", writable).map_err(io::Error::other)?;
            stream.set_nonblocking(false)?;
            talk::prepare(&stream, talk::DEADLINE)?;
            Ok(stream)
        })?;
        let bound = c.ns("client").run(|| -> io::Result<TcpStream> {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.bind(&SocketAddr::new(own, 0).into())?;
            socket.connect_timeout(&to.into(), talk::DEADLINE)?;
            Ok(socket.into())
        })?;
        let multipath =
            hostile::dial(c.ns("client"), to, Tricks { mptcp: true, ..Tricks::default() }, talk::DEADLINE);
        let mut streams = vec![("blocking", blocking), ("non-blocking", nonblocking), ("bound", bound)];
        match multipath {
            Ok(stream) => streams.push(("multipath", stream)),
            Err(e) => ensure!(
                matches!(e.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::ENOPROTOOPT)),
                "multipath: {e}"
            ),
        }
        for (form, mut stream) in streams {
            talk::echo(&mut stream, b"hello").with_context(|| format!("{form}, v6 {v6}"))?;
            ensure!(stream.local_addr()?.ip() == own, "{form}: getsockname says {:?}", stream.local_addr());
            ensure!(stream.peer_addr()? == to, "{form}: getpeername says {:?}", stream.peer_addr());
        }
    }
    let to = c.addr("server", 7041, false);
    let mapped = SocketAddr::new(c.topology.pod("server").ip4.to_ipv6_mapped().into(), to.port());
    talk::echo_once(c.ns("client"), mapped).context("a v4-mapped address")?;
    ensure!(c.n1.access()?.iter().all(|l| l.cause() != "internal"));
    Ok(())
}

fn bound_port(w: &mut Traffic) -> Result<()> {
    let c = &w.0;
    let _one = Server::start(c.ns("server"), 7051, server::echo)?;
    let _two = Server::start(c.ns("near"), 7051, server::echo)?;
    for (v6, port) in [(false, 43_210), (true, 43_211)] {
        let dial = |pod| -> Result<TcpStream> {
            let (from, to) = (SocketAddr::new(c.ip("client", v6), port), c.addr(pod, 7051, v6));
            let stream = c.ns("client").run(|| -> io::Result<TcpStream> {
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
                socket.set_reuse_address(true)?;
                socket.bind(&from.into())?;
                socket.connect_timeout(&to.into(), talk::DEADLINE)?;
                Ok(socket.into())
            });
            let stream = stream.with_context(|| format!("{from} to {pod}"))?;
            talk::prepare(&stream, talk::DEADLINE)?;
            Ok(stream)
        };
        let (mut first, mut second) = (dial("server")?, dial("near")?);
        talk::echo(&mut first, b"one")?;
        talk::echo(&mut second, b"two")?;
        talk::echo(&mut first, b"three")?;
    }
    Ok(())
}

fn own_addresses(w: &mut Traffic) -> Result<()> {
    let c = &w.0;
    let _own = Server::start(c.ns("client"), 7061, server::whoami)?;
    let lines = c.n1.access()?.len();
    for addr in ["127.0.0.1", "127.8.8.8", "::1"] {
        let said = talk::listen_to(c.ns("client"), SocketAddr::new(addr.parse()?, 7061))?;
        ensure!(said.parse::<std::net::IpAddr>()?.is_loopback(), "{addr}: {said}");
    }
    for v6 in [false, true] {
        let said = talk::listen_to(c.ns("client"), c.addr("client", 7061, v6))?;
        ensure!(said == c.ip("client", v6).to_string(), "{said}");
    }
    let connections = c.n1.admin("/connections")?;
    ensure!(!connections.to_string().contains("7061"), "{connections}");
    ensure!(c.n1.access()?[lines..].iter().all(|l| !l.to_string().contains(":7061")));
    Ok(())
}

fn left_alone(w: &mut Traffic) -> Result<()> {
    const FLOWS: &str = "underpass_passthrough_connections_total";
    let c = &w.0;
    let plain = Server::start(c.ns("plain"), 7071, server::echo)?;
    let before = c.n1.metric(FLOWS, &["\"client\""])?;
    for v6 in [false, true] {
        let capture = Capture::start(&c.topology.node("n1").ns, NODE_LINK)?;
        let mut stream = talk::dial(c.ns("client"), c.addr("plain", 7071, v6))?;
        talk::echo(&mut stream, MARKER.as_bytes())?;
        drop(stream);
        settle(&capture)?;
        // Tunnels of earlier stories stand on the same link, and ping each other now and then.
        ensure!(capture.shows(MARKER.as_bytes())? && capture.count_on(7071)? > 0);
        ensure!(plain.peer_ips().last() == Some(&c.ip("client", v6)));
    }
    let counted = || c.n1.metric(FLOWS, &["\"client\""]).is_ok_and(|now| now >= before + 2.0);
    wait::until_true(wait::PATIENCE, "both flows were counted", counted)?;
    let touched = c.n1.access()?.into_iter().find(|l| l.to_string().contains(":7071"));
    ensure!(touched.is_none(), "the agent carried it: {}", touched.map_or(String::new(), |l| l.to_string()));
    Ok(())
}

fn unknown(w: &mut Traffic) -> Result<()> {
    let c = &w.0;
    let stranger = Server::start(c.ns("stranger"), 7081, server::echo)?;
    for v6 in [false, true] {
        for _ in 0..2 {
            talk::echo_once(c.ns("client"), c.addr("stranger", 7081, v6))?;
            ensure!(stranger.peer_ips().last() == Some(&c.ip("client", v6)), "{:?}", stranger.peers());
        }
    }
    // Each of them: the kernel is not taught to leave alone what may be the mesh's tomorrow.
    let passed = |l: &Line| l.to_string().contains(":7081") && l.get("dst.identity").is_none();
    let all = || c.n1.access().is_ok_and(|lines| lines.iter().filter(|l| passed(l)).count() == 4);
    wait::until_true(wait::PATIENCE, "four connections passed the agent", all)?;
    // Where nobody is, the application is not told that somebody was.
    let nobody = "10.201.2.240:7081".parse()?;
    ensure!(talk::try_echo(c.ns("client"), nobody, SHORT).is_err());
    Ok(())
}
