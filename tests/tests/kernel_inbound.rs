//! What arrives in an enrolled pod: judged when it comes from outside, untouched when it does not, and
//! nobody but the agent on the agent's ports.

mod kernel;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kernel::sockets::{self, as_nobody, tcp};
use kernel::{Place, StandIn, answerer, at, read_line, rows, who};
use socket2::{Domain, Socket, Type};
use underpass::bpf::{CaptureMode, Features, Kernel, Listeners, OwnPorts};
use underpass::model::{InboundAction, InboundPlan};
use underpass_tests::hostile;
use underpass_tests::stories::{self, World};
use underpass_tests::wait;
use underpass_tests::work::talk::{self, Refusal};

fn main() -> ExitCode {
    stories::run(&[
        ("plaintext_passes_is_steered_or_refused_by_port", by_port),
        ("a_new_plan_holds_for_the_next_connection", plan_changes),
        ("a_plan_that_does_not_fit_lets_nothing_of_the_former_one_pass", plan_too_large),
        ("tunnels_reach_the_agent_whoever_has_the_port", tunnels),
        ("a_missing_listener_means_refusal", missing_listener),
        ("a_pod_reaches_itself_whatever_the_plan", inside),
        ("the_agents_deliveries_reach_the_application", deliveries),
        ("a_source_that_claims_to_be_the_pod_gains_nothing", spoofed),
        ("without_capture_inbound_is_judged_all_the_same", inbound_only),
        ("nobody_else_binds_the_agents_ports", guarded_binds),
        ("unmeshed_namespaces_bind_what_they_like", unguarded_binds),
        ("bad_listeners_are_refused", bad_listeners),
        ("what_is_said_of_one_pod_changes_no_other", two_pods),
    ])
}

impl World for Place {
    fn build() -> Result<Self> {
        Place::new()
    }
}

/// Everything in a pod that accepts: an application, and the agent's stand-in.
fn enrolled(place: &Place) -> Result<(StandIn, Vec<underpass_tests::Server>)> {
    let stand_in = place.enrol("server", CaptureMode::Mark)?;
    let applications =
        [8080, 8081, 8082, 8083].map(|port| place.real("server", port)).into_iter().collect::<Result<_>>()?;
    Ok((stand_in, applications))
}

fn plan(default: InboundAction, ports: &[(u16, InboundAction)]) -> InboundPlan {
    InboundPlan { default, ports: ports.iter().copied().collect::<BTreeMap<_, _>>() }
}

use InboundAction::{Drop as Dropped, Pass, Steer};

/// Who answers a client outside the pod.
fn outcome(place: &Place, to: SocketAddr) -> Result<String> {
    match talk::dial_within(&place.pod("client").ns, to, Duration::from_millis(700)) {
        Ok(mut stream) => Ok(answerer(&read_line(&mut stream)?).to_owned()),
        Err(_) => Ok("refused".to_owned()),
    }
}

fn plan_too_large(place: &mut Place) -> Result<()> {
    let (stand_in, _applications) = enrolled(place)?;
    let server = place.pod("server");
    // One map has all pods' rows.
    let many: Vec<_> = (20_001..=60_000).map(|port| (port, Steer)).collect();
    let filling = place.enrol("beside", CaptureMode::Mark)?;
    filling.inbound(plan(Dropped, &many))?;
    stand_in.inbound(plan(Pass, &[(8080, Pass), (8081, Steer)]))?;
    ensure!(stand_in.inbound(plan(Dropped, &many)).is_err(), "there is room for everything");
    for port in [8080, 8081, 8083] {
        let outcome = outcome(place, at(server.ip(false), port))?;
        ensure!(outcome == "refused", "{port}: {outcome}");
    }
    drop(filling);
    stand_in.inbound(plan(Dropped, &[(8080, Pass)]))?;
    ensure!(outcome(place, at(server.ip(false), 8080))? == "server");
    Ok(())
}

fn by_port(place: &mut Place) -> Result<()> {
    let (stand_in, applications) = enrolled(place)?;
    let server = place.pod("server");
    let ports = [(8080, Pass), (8081, Steer), (8082, Dropped)];
    let table = [
        (Pass, [(8080, "server"), (8081, "plaintext"), (8082, "refused"), (8083, "server")]),
        (Steer, [(8080, "server"), (8081, "plaintext"), (8082, "refused"), (8083, "plaintext")]),
        (Dropped, [(8080, "server"), (8081, "plaintext"), (8082, "refused"), (8083, "refused")]),
    ];
    for (default, expected) in table {
        stand_in.inbound(plan(default, &ports))?;
        for v6 in [false, true] {
            for (port, answer) in expected {
                let to = at(server.ip(v6), port);
                let got = outcome(place, to)?;
                ensure!(got == answer, "default {default:?}, {to}: {got}, expected {answer}");
            }
            // Steered with its destination and its source kept.
            let last = stand_in.take_accepted().pop().context("something was steered")?;
            ensure!(last.listener == "plaintext" && last.original.ip() == server.ip(v6), "{last:?}");
            ensure!(last.peer.ip() == place.pod("client").ip(v6), "{last:?}");
        }
    }
    ensure!(applications[2].peers().is_empty(), "a dropped port was reached");
    ensure!(place.programs.counters()?.inbound_dropped > 0);
    // A port that nobody listens on reaches the agent all the same.
    stand_in.inbound(plan(Steer, &[]))?;
    ensure!(outcome(place, at(server.ip(false), 9999))? == "plaintext");
    Ok(())
}

fn plan_changes(place: &mut Place) -> Result<()> {
    let (stand_in, _applications) = enrolled(place)?;
    let to = at(place.pod("server").ip(false), 8080);
    let mut live = talk::dial(&place.pod("client").ns, to)?;
    ensure!(answerer(&read_line(&mut live)?) == "server");
    for (action, expected) in [(Dropped, "refused"), (Steer, "plaintext"), (Pass, "server")] {
        stand_in.inbound(plan(action, &[]))?;
        ensure!(outcome(place, to)? == expected);
        stand_in.inbound(plan(Pass, &[(8080, action)]))?;
        ensure!(outcome(place, to)? == expected);
        // Enrolled again, as by an agent that restarts: the plan stays.
        stand_in.enrol()?;
        ensure!(outcome(place, to)? == expected);
    }
    // The plan is about new connections.
    stand_in.inbound(plan(Dropped, &[]))?;
    Ok(talk::echo(&mut live, b"still served")?)
}

/// Whoever had the port before enrolment, on an address that the agent's own bind does not meet, must
/// not answer tunnels.
fn tunnels(place: &mut Place) -> Result<()> {
    let server = place.pod("server").clone();
    let squatter = hostile::bind(&server.ns, at(server.ip(false), 15_008), true)?;
    let stand_in = place.enrol("server", CaptureMode::Mark);
    let taken = stand_in.err().map(|e| format!("{e:#}")).unwrap_or_default();
    ensure!(taken.contains("Address already in use"), "the agent joined the squatter: {taken}");
    drop(squatter);
    let stand_in = place.enrol("server", CaptureMode::Mark)?;
    for action in [Pass, Steer, Dropped] {
        stand_in.inbound(plan(action, &[(15_008, action)]))?;
        for v6 in [false, true] {
            ensure!(outcome(place, at(server.ip(v6), 15_008))? == "hbone", "{action:?}");
        }
    }
    // Its listener may be anywhere: the packet is handed to it, not looked up.
    let elsewhere = stand_in.netns.run(|| -> Result<Socket> {
        let socket = underpass::sys::socket::tcp(server.ip(false))?;
        place.programs.own(socket.as_fd())?;
        underpass::sys::socket::listen(&socket, "127.0.0.1:0".parse()?, Default::default())?;
        Ok(socket)
    })??;
    place.programs.set_listeners(
        stand_in.cookie(),
        &Listeners { hbone_v4: Some(elsewhere.as_fd()), ..Listeners::default() },
    )?;
    let stream = talk::dial(&place.pod("client").ns, at(server.ip(false), 15_008))?;
    wait::until_true(wait::PATIENCE, "it was handed over", || elsewhere.accept().is_ok())?;
    drop(stream);
    Ok(())
}

fn missing_listener(place: &mut Place) -> Result<()> {
    let (stand_in, applications) = enrolled(place)?;
    stand_in.inbound(plan(Steer, &[(8081, Pass)]))?;
    stand_in.close();
    let server = place.pod("server");
    for v6 in [false, true] {
        for port in [8080, 15_008] {
            ensure!(outcome(place, at(server.ip(v6), port))? == "refused", "{port}");
        }
        ensure!(outcome(place, at(server.ip(v6), 8081))? == "server", "what passes needs no agent");
    }
    ensure!(applications[0].peers().is_empty());
    ensure!(place.programs.counters()?.no_listener_dropped > 0);
    stand_in.open()?;
    ensure!(outcome(place, at(server.ip(false), 8080))? == "plaintext");
    Ok(())
}

fn inside(place: &mut Place) -> Result<()> {
    let (stand_in, _applications) = enrolled(place)?;
    stand_in.inbound(plan(Dropped, &[(8081, Steer)]))?;
    let server = place.pod("server");
    for v6 in [false, true] {
        let local: IpAddr = if v6 { "::1".parse()? } else { "127.0.0.1".parse()? };
        for port in [8080, 8081] {
            for to in [local, server.ip(v6)] {
                let line = who(&server.ns, at(to, port)).with_context(|| format!("{to}:{port}"))?;
                ensure!(answerer(&line) == "server", "{to}:{port}: {line}");
            }
            // Its own address, from loopback.
            let socket = tcp(&server.ns, v6, |s| s.bind(&at(server.ip(v6), 0).into()))?;
            let mut stream = sockets::connect(socket, at(local, port))?;
            ensure!(answerer(&read_line(&mut stream)?) == "server");
        }
    }
    ensure!(stand_in.take_accepted().is_empty());
    Ok(())
}

/// With the client's address as source, under a plan that lets nothing in.
fn deliveries(place: &mut Place) -> Result<()> {
    let (stand_in, applications) = enrolled(place)?;
    stand_in.inbound(plan(Dropped, &[]))?;
    delivered(place, &stand_in)?;
    ensure!(applications[0].peers().len() == 4);
    drop((stand_in, applications));
    // And on kernels whose sk_lookup knows no interface.
    let old = Features { ingress_ifindex: false, ..Features::detect() };
    let place = Place::with(old)?;
    let (stand_in, _applications) = enrolled(&place)?;
    stand_in.inbound(plan(Dropped, &[]))?;
    delivered(&place, &stand_in).context("without ingress_ifindex")?;
    wait::until_true(wait::PATIENCE, "announced deliveries are forgotten", || {
        place.programs.connection_rows().is_ok_and(|rows| rows == 0)
    })?;
    for v6 in [false, true] {
        ensure!(outcome(&place, at(place.pod("server").ip(v6), 8080))? == "refused");
    }
    Ok(())
}

fn delivered(place: &Place, stand_in: &StandIn) -> Result<()> {
    let (client, server) = (place.pod("client"), place.pod("server"));
    for v6 in [false, true] {
        for source in [client.ip(v6), if v6 { "fd00:201:9::9".parse()? } else { "10.201.9.9".parse()? }] {
            let mut stream = stand_in
                .deliver(Some(source), at(server.ip(v6), 8080))
                .with_context(|| format!("delivering as {source}"))?;
            let line = read_line(&mut stream)?;
            ensure!(line.starts_with("server ") && line.contains(&source.to_string()), "{line}");
            talk::echo(&mut stream, &[5; 50_000])?;
            stream.shutdown(std::net::Shutdown::Both)?;
        }
    }
    Ok(())
}

/// A SYN from outside with the pod's own address as source passes the program, and its answer goes to
/// the pod itself.
fn spoofed(place: &mut Place) -> Result<()> {
    let (stand_in, applications) = enrolled(place)?;
    stand_in.inbound(plan(Dropped, &[]))?;
    let server = place.pod("server");
    for source in [server.ip4, "127.0.0.1".parse()?] {
        let (from, to) = (SocketAddrV4::new(source, 4444), SocketAddrV4::new(server.ip4, 8080));
        // The sender's own routing may refuse to send it at all.
        let _ = hostile::spoof_syn(&place.topology.node("n2").ns, from, to);
    }
    // The program has seen every packet before this one.
    ensure!(outcome(place, at(server.ip(false), 8080))? == "refused");
    ensure!(applications[0].peers().is_empty(), "{:?}", applications[0].peers());
    Ok(())
}

fn inbound_only(place: &mut Place) -> Result<()> {
    let stand_in = StandIn::start(&place.programs, place.pod("server"), CaptureMode::None)?;
    let _application = place.real("server", 8080)?;
    let _beyond = place.real("client", 8080)?;
    stand_in.inbound(plan(Steer, &[]))?;
    for v6 in [false, true] {
        ensure!(outcome(place, at(place.pod("server").ip(v6), 8080))? == "plaintext");
        let line = who(&place.pod("server").ns, at(place.pod("client").ip(v6), 8080))?;
        ensure!(answerer(&line) == "server", "outbound was captured: {line}");
        let line = who(&place.pod("server").ns, at(place.pod("server").ip(v6), 8080))?;
        ensure!(answerer(&line) == "server", "the pod does not reach itself: {line}");
    }
    Ok(())
}

fn two_pods(place: &mut Place) -> Result<()> {
    let [first, second] = ["server", "client"].map(|pod| place.enrol(pod, CaptureMode::Mark));
    let (first, second) = (first?, second?);
    let _applications =
        [place.real("server", 8080)?, place.real("server", 8081)?, place.real("client", 8080)?];
    first.inbound(plan(Dropped, &[(8080, Pass)]))?;
    second.inbound(plan(Steer, &[(8081, Pass)]))?;
    second.enrol()?;
    let (beside, server, client) = (place.pod("beside"), place.pod("server"), place.pod("client"));
    for v6 in [false, true] {
        // The last one by what are its own addresses, since its plan forbids it.
        for (from, to, port, answer) in [
            (beside, server, 8080, "server"),
            (beside, client, 8080, "plaintext"),
            (server, server, 8081, "server"),
        ] {
            let what = format!("{} to {}", from.name, at(to.ip(v6), port));
            let line = who(&from.ns, at(to.ip(v6), port)).with_context(|| what.clone())?;
            ensure!(answerer(&line) == answer, "{what}: {line}");
        }
    }
    let [gone, stays] = [&first, &second].map(StandIn::cookie);
    drop(first);
    let rows = |pod| rows::rows_of(pod, &place.config.pin_root, "a");
    ensure!(rows(gone)? == 0 && rows(stays)? > 0, "{} and {} rows", rows(gone)?, rows(stays)?);
    Ok(())
}

fn guarded_binds(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("server", CaptureMode::Mark)?;
    let server = place.pod("server");
    let before = place.programs.counters()?.bind_refused;
    let OwnPorts { hbone, plaintext, outbound } = OwnPorts::default();
    let addresses = ["0.0.0.0", "::", "127.7.7.7", "::1", "::ffff:127.0.0.1"];
    let mut refused = 0;
    for taken in [true, false] {
        if !taken {
            // The agent is away: its ports are free, and still not for others.
            stand_in.close();
        }
        for port in [hbone, plaintext, outbound] {
            for ip in addresses.iter().map(|a| a.parse::<IpAddr>()).chain([Ok(server.ip(false))]) {
                let ip = ip?;
                for share in [false, true] {
                    let addr = at(ip, port);
                    let error = hostile::bind(&server.ns, addr, share).err();
                    let error = error.with_context(|| format!("bound {addr}, sharing: {share}"))?;
                    let expected = [Some(libc::EPERM), taken.then_some(libc::EADDRINUSE)];
                    ensure!(expected.contains(&error.raw_os_error()), "{addr}: {error}");
                    refused += u64::from(error.raw_os_error() == Some(libc::EPERM));
                }
            }
        }
    }
    ensure!(place.programs.counters()?.bind_refused == before + refused);
    ensure!(refused >= 36, "{refused}");

    // MPTCP binds through TCP.
    let mptcp = tcp_of(&server.ns, 262)?;
    ensure!(mptcp.bind(&at("0.0.0.0".parse()?, hbone).into()).is_err(), "MPTCP bound the agent's port");

    // bind(0) that can draw nothing else. (No connection of an earlier story holds this one.)
    let range = server.ns.read_sysctl("ipv4.ip_local_port_range")?;
    server.ns.sysctl("ipv4.ip_local_port_range", &format!("{plaintext} {plaintext}"))?;
    for addr in ["0.0.0.0:0", "[::]:0"] {
        let error = hostile::bind(&server.ns, addr.parse()?, false).err().context("bind(0) drew it")?;
        ensure!(error.raw_os_error() == Some(libc::EPERM), "{addr}: {error}");
    }
    server.ns.sysctl("ipv4.ip_local_port_range", &range)?;

    // A listener without bind draws past the hook; reserved ports are never drawn.
    server.ns.sysctl("ipv4.ip_local_port_range", &format!("{} {}", hbone - 1, hbone + 1))?;
    server.ns.sysctl("ipv4.ip_local_reserved_ports", &hbone.to_string())?;
    for _ in 0..20 {
        let socket = tcp(&server.ns, false, |_| Ok(()))?;
        socket.listen(1)?;
        let port = socket.local_addr()?.as_socket().context("address")?.port();
        ensure!(port != hbone, "listen() drew the agent's port");
    }
    server.ns.sysctl("ipv4.ip_local_port_range", &range)?;
    server.ns.sysctl("ipv4.ip_local_reserved_ports", "")?;

    // UDP on that number is none of our business, nor are other ports.
    server.ns.run(|| std::net::UdpSocket::bind(at(server.ip(false), hbone)))?;
    hostile::bind(&server.ns, at(server.ip(false), hbone + 1), false)?;
    // The agent itself may.
    stand_in.open()
}

fn tcp_of(ns: &underpass_tests::Netns, protocol: i32) -> Result<Socket> {
    Ok(ns.run(|| Socket::new(Domain::IPV4, Type::STREAM, Some(socket2::Protocol::from(protocol))))?)
}

fn unguarded_binds(place: &mut Place) -> Result<()> {
    let _stand_in = place.enrol("server", CaptureMode::Mark)?;
    for pod in ["client", "beside"] {
        for port in [15_001, 15_006, 15_008] {
            hostile::bind(&place.pod(pod).ns, at("0.0.0.0".parse()?, port), false)
                .with_context(|| format!("{pod} {port}"))?;
        }
    }
    Ok(())
}

/// The checks themselves are unit-tested; here, that the map does not get what they refuse.
fn bad_listeners(place: &mut Place) -> Result<()> {
    let (stand_in, _applications) = enrolled(place)?;
    stand_in.inbound(plan(Steer, &[]))?;
    let foreign = std::net::TcpListener::bind("127.0.0.1:0")?;
    let error = place
        .programs
        .set_listeners(
            stand_in.cookie(),
            &Listeners { plaintext_v4: Some(foreign.as_fd()), ..Listeners::default() },
        )
        .err()
        .context("a listener of the host was taken")?;
    ensure!(error.to_string().contains("listens in network namespace"), "{error}");
    // What was there before is still there.
    let to = at(place.pod("server").ip(false), 8080);
    ensure!(outcome(place, to)? == "plaintext");
    // An application of another user reaches what it is told to, like anyone.
    let said = as_nobody(&place.pod("client").ns, || talk_once(to))?;
    ensure!(answerer(&said) == "plaintext");
    ensure!(
        talk::try_echo(&place.pod("client").ns, at(to.ip(), 15_008), talk::DEADLINE) != Err(Refusal::Refused)
    );
    Ok(())
}

fn talk_once(to: SocketAddr) -> Result<String> {
    let mut stream = std::net::TcpStream::connect_timeout(&to, talk::DEADLINE)?;
    talk::prepare(&stream, talk::DEADLINE)?;
    stream.write_all(b"x")?;
    Ok(read_line(&mut stream)?)
}
