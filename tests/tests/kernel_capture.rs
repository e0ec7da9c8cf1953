//! Outgoing connections of an enrolled pod: captured with their addresses kept, or left alone.

mod kernel;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use kernel::sockets::{self, connect, connect_at_once, tcp};
use kernel::{Accepted, Place, StandIn, answerer, at, read_line, who};
use underpass::bpf::{CaptureMode, Destination, Kernel, Marks, OwnPorts};
use underpass_tests::hostile::{self, Tricks};
use underpass_tests::stories::{self, World};
use underpass_tests::wait;
use underpass_tests::work::talk;

fn main() -> ExitCode {
    stories::run(&[
        ("captured_with_its_true_destination_and_source", captured),
        ("what_is_known_or_out_of_range_is_left_alone", left_alone),
        ("other_namespaces_are_not_touched", not_enrolled),
        ("loopback_and_own_addresses_stay_local", stays_local),
        ("v4_mapped_dials_are_ipv4", v4_mapped),
        ("non_blocking_dials", non_blocking),
        ("bound_sources_and_one_port_for_two_destinations", bound),
        ("a_second_address_of_the_pod_stays_the_source", second_address),
        ("mptcp_and_fast_open", mptcp_and_fast_open),
        ("the_applications_own_mark_bits_are_kept", mark_bits),
        ("the_agents_own_sockets_are_left_alone_whatever_their_mark", agents_own),
        ("as_many_connections_as_without_the_mesh", capacity),
        ("udp_is_nobodys_business", udp),
    ])
}

impl World for Place {
    fn build() -> Result<Self> {
        Place::new()
    }
}

/// The one connection that the stand-in was given since it was last asked.
fn only(stand_in: &StandIn) -> Result<Accepted> {
    let mut accepted = stand_in.take_accepted();
    ensure!(accepted.len() == 1, "not one connection: {accepted:?}");
    accepted.pop().context("one")
}

fn captured(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    let real = place.real("server", 8080)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    for v6 in [false, true] {
        let to = at(server.ip(v6), 8080);
        let mut stream = talk::dial(&client.ns, to)?;
        ensure!(read_line(&mut stream)?.starts_with("outbound "));
        ensure!(stream.peer_addr()? == to, "the application sees another peer");
        let local = stream.local_addr()?;
        ensure!(local.ip() == client.ip(v6), "the application sees the source {local}");
        let accepted = only(&stand_in)?;
        ensure!(accepted.original == to && accepted.peer == local, "{accepted:?}");
        talk::echo(&mut stream, &[7; 100_000])?;

        // A destination that nobody routes and nobody has.
        let nowhere = at(if v6 { "fd00:201:ff::9".parse()? } else { "10.201.255.9".parse()? }, 9);
        who(&client.ns, nowhere)?;
        ensure!(only(&stand_in)?.original == nowhere);
    }
    ensure!(real.peers().is_empty(), "the server was reached: {:?}", real.peers());
    Ok(())
}

fn left_alone(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    let _real = place.real("server", 8080)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    let programs = &place.programs;
    let answers = |v6| -> Result<String> {
        stand_in.take_accepted();
        Ok(answerer(&who(&client.ns, at(server.ip(v6), 8080))?).to_owned())
    };
    for v6 in [false, true] {
        let ip = server.ip(v6);
        ensure!(answers(v6)? == "outbound", "unknown, in range");
        programs.teach(ip, Destination::Leave)?;
        ensure!(answers(v6)? == "server", "known not to be the mesh's");
        programs.teach(ip, Destination::Capture)?;
        ensure!(answers(v6)? == "outbound", "taught otherwise");
        programs.set_ranges(&[])?;
        ensure!(answers(v6)? == "outbound", "known, out of every range");
        programs.set_destinations(&Default::default())?;
        ensure!(answers(v6)? == "server", "unknown, out of every range");
        programs.set_ranges(&[ipnet::IpNet::from(ip)])?;
        ensure!(answers(v6)? == "outbound", "unknown, in the narrowest range");
        programs.set_destinations(&[(ip, Destination::Leave)].into())?;
        ensure!(answers(v6)? == "server", "what is known counts more than ranges");
        programs.set_destinations(&Default::default())?;
        programs.set_ranges(&kernel::ranges())?;
    }
    Ok(())
}

fn not_enrolled(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    let _real = place.real("server", 8080)?;
    for v6 in [false, true] {
        let to = at(place.pod("server").ip(v6), 8080);
        ensure!(answerer(&who(&place.pod("beside").ns, to)?) == "server");
        ensure!(answerer(&who(&place.topology.node("n1").ns, to)?) == "server");
    }
    ensure!(stand_in.take_accepted().is_empty());
    drop(stand_in);
    let to = at(place.pod("server").ip(false), 8080);
    ensure!(answerer(&who(&place.pod("client").ns, to)?) == "server", "no longer enrolled");
    ensure!(place.programs.enrolled()?.is_empty());
    Ok(())
}

fn stays_local(place: &mut Place) -> Result<()> {
    let client = place.pod("client").clone();
    client.ns.ip_batch("addr add 10.201.77.1/32 dev lo\naddr add fd00:201:77::1/128 dev lo nodad\n")?;
    let mut own = client.addresses().to_vec();
    own.extend::<[IpAddr; 2]>(["10.201.77.1".parse()?, "fd00:201:77::1".parse()?]);
    let stand_in = StandIn::start_with(&place.programs, &client, &own, CaptureMode::Mark)?;
    let _real = place.real("client", 7000)?;
    // Everything is in range, so that only being local speaks for them.
    place.programs.set_ranges(&["0.0.0.0/0".parse()?, "::/0".parse()?])?;
    own.extend::<[IpAddr; 4]>([
        "127.0.0.1".parse()?,
        "127.9.9.9".parse()?,
        "::1".parse()?,
        "0.0.0.0".parse()?,
    ]);
    for away in [false, true] {
        if away {
            // They are none of the agent's business, so they do without it.
            stand_in.close();
        }
        for ip in &own {
            let line = who(&client.ns, at(*ip, 7000)).with_context(|| format!("dialling {ip}, {away}"))?;
            ensure!(answerer(&line) == "server", "{ip}: {line}");
        }
    }
    ensure!(stand_in.take_accepted().is_empty());
    client.ns.ip_batch("addr del 10.201.77.1/32 dev lo\naddr del fd00:201:77::1/128 dev lo\n")?;
    place.programs.set_ranges(&kernel::ranges())?;
    Ok(())
}

fn v4_mapped(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    let mapped = SocketAddr::V6(SocketAddrV6::new(server.ip4.to_ipv6_mapped(), 8080, 0, 0));
    let mut stream = connect(tcp(&client.ns, true, |s| s.set_only_v6(false))?, mapped)?;
    ensure!(read_line(&mut stream)?.starts_with("outbound "));
    ensure!(stream.peer_addr()? == mapped);
    let accepted = only(&stand_in)?;
    ensure!(accepted.original == at(server.ip4.into(), 8080), "{accepted:?}");
    ensure!(accepted.peer.ip() == client.ip(false), "{accepted:?}");
    // Mapped loopback and own addresses are local, too.
    let _real = place.real("client", 7000)?;
    for own in [Ipv4Addr::LOCALHOST, client.ip4] {
        let to = SocketAddr::V6(SocketAddrV6::new(own.to_ipv6_mapped(), 7000, 0, 0));
        let mut stream = connect(tcp(&client.ns, true, |s| s.set_only_v6(false))?, to)?;
        ensure!(answerer(&read_line(&mut stream)?) == "server", "{own}");
    }
    Ok(())
}

fn non_blocking(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    for v6 in [false, true] {
        let to = at(server.ip(v6), 8080);
        let socket = tcp(&client.ns, v6, |_| Ok(()))?;
        connect_at_once(&socket, to)?;
        wait::until_true(wait::PATIENCE, "connected", || socket.peer_addr().is_ok())?;
        ensure!(socket.take_error()?.is_none());
        socket.set_nonblocking(false)?;
        ensure!(read_line(&mut socket.into())?.starts_with("outbound "));
        ensure!(only(&stand_in)?.original == to);
    }
    Ok(())
}

fn bound(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    for v6 in [false, true] {
        let any: IpAddr = if v6 { "::".parse()? } else { "0.0.0.0".parse()? };
        // Other ports each time: closed connections hold their four addresses for a while.
        for (source, port) in [(client.ip(v6), 45_000), (any, 45_001), (client.ip(v6), 0)] {
            let no_port = port == 0;
            let mut open = Vec::new();
            for to in [at(server.ip(v6), 8080), at(server.ip(v6), 8081), at(client.ip(v6), 1)] {
                let socket = tcp(&client.ns, v6, |s| {
                    s.set_reuse_address(true)?;
                    if no_port {
                        sockets::set(s, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
                    }
                    s.bind(&at(source, port).into())
                })?;
                if to.ip() == client.ip(v6) {
                    // Nobody listens there: what is local is refused by the pod itself.
                    ensure!(connect(socket, to).is_err());
                    continue;
                }
                let mut stream = connect(socket, to).with_context(|| format!("{source}:{port} to {to}"))?;
                ensure!(read_line(&mut stream)?.starts_with(&format!("outbound {to} ")));
                let accepted = only(&stand_in)?;
                ensure!(accepted.peer.ip() == client.ip(v6), "{accepted:?}");
                ensure!(no_port || accepted.peer.port() == port, "{accepted:?}");
                open.push(stream);
            }
        }
    }
    Ok(())
}

fn second_address(place: &mut Place) -> Result<()> {
    let client = place.pod("client").clone();
    client.ns.ip_batch("addr add 10.201.1.200/32 dev eth0\naddr add fd00:201:1::200/128 dev eth0 nodad\n")?;
    let second: [IpAddr; 2] = ["10.201.1.200".parse()?, "fd00:201:1::200".parse()?];
    let mut own = client.addresses().to_vec();
    own.extend(second);
    let stand_in = StandIn::start_with(&place.programs, &client, &own, CaptureMode::Mark)?;
    let server = place.pod("server");
    for (v6, source) in [(false, second[0]), (true, second[1])] {
        let socket = tcp(&client.ns, v6, |s| s.bind(&at(source, 0).into()))?;
        let mut stream = connect(socket, at(server.ip(v6), 8080))?;
        ensure!(read_line(&mut stream)?.starts_with("outbound "));
        let accepted = only(&stand_in)?;
        ensure!(accepted.peer.ip() == source, "{accepted:?}");
        ensure!(accepted.original == at(server.ip(v6), 8080));
    }
    client.ns.ip_batch("addr del 10.201.1.200/32 dev eth0\naddr del fd00:201:1::200/128 dev eth0\n")
}

fn mptcp_and_fast_open(place: &mut Place) -> Result<()> {
    const TCP_FASTOPEN_CONNECT: i32 = 30;
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    client.ns.sysctl("ipv4.tcp_fastopen", "3")?;
    for v6 in [false, true] {
        let to = at(server.ip(v6), 8080);
        let tricks = Tricks { mptcp: true, ..Tricks::default() };
        let mut stream = hostile::dial(&client.ns, to, tricks, talk::DEADLINE)?;
        ensure!(read_line(&mut stream)?.starts_with("outbound "), "MPTCP");
        ensure!(stream.peer_addr()? == to && stream.local_addr()?.ip() == client.ip(v6));
        ensure!(only(&stand_in)?.original == to);

        let socket = tcp(&client.ns, v6, |s| sockets::set(s, libc::SOL_TCP, TCP_FASTOPEN_CONNECT, 1))?;
        let mut stream = connect(socket, to)?;
        // Only the first write dials.
        stream.write_all(b"early")?;
        ensure!(read_line(&mut stream)?.starts_with("outbound "), "TCP_FASTOPEN_CONNECT");
        ensure!(only(&stand_in)?.original == to);

        let socket = tcp(&client.ns, v6, |_| Ok(()))?;
        ensure!(sockets::send_fast_open(&socket, b"early", to)? == 5);
        ensure!(read_line(&mut socket.into())?.starts_with("outbound "), "MSG_FASTOPEN");
        ensure!(only(&stand_in)?.original == to);
    }
    Ok(())
}

fn mark_bits(place: &mut Place) -> Result<()> {
    let _stand_in = place.enrol("client", CaptureMode::Mark)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    let Marks { capture, mask, .. } = Marks::default();
    for v6 in [false, true] {
        // Bits inside our mask are ours while it lasts, all others the application's.
        for application in [0, 0x77, 0xf000_ffff, 0x0123_0001] {
            let socket = tcp(&client.ns, v6, |s| s.set_mark(application))?;
            let mut stream = connect(socket, at(server.ip(v6), 8080))?;
            ensure!(read_line(&mut stream)?.starts_with("outbound "));
            let now = sockets::mark(&stream.as_fd())?;
            ensure!(now == (application & !mask) | capture, "{application:#x} became {now:#x}");
        }
    }
    Ok(())
}

fn agents_own(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    let real = place.real("server", 8080)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    for v6 in [false, true] {
        let to = at(server.ip(v6), 8080);
        let mut stream = stand_in.deliver(None, to)?;
        ensure!(answerer(&read_line(&mut stream)?) == "server");
        ensure!(real.peer_ips().last() == Some(&client.ip(v6)));
        // An application with the agent's marks is an application.
        for mark in [Marks::default().returned, Marks::default().capture] {
            let tricks = Tricks { mark: Some(mark), ..Tricks::default() };
            let mut stream = hostile::dial(&client.ns, to, tricks, talk::DEADLINE)?;
            ensure!(answerer(&read_line(&mut stream)?) == "outbound", "mark {mark:#x}");
        }
    }
    Ok(())
}

fn capacity(place: &mut Place) -> Result<()> {
    const PORTS: u16 = 100;
    let (client, server) = (place.pod("client"), place.pod("server"));
    let range = client.ns.read_sysctl("ipv4.ip_local_port_range")?;
    client.ns.sysctl("ipv4.ip_local_port_range", &format!("50000 {}", 50_000 + PORTS - 1))?;
    let _real: Vec<_> = (0..3).map(|i| place.real("server", 8080 + i)).collect::<Result<_>>()?;
    let count = |v6: bool| -> Result<usize> {
        let mut open = Vec::new();
        for port in [8080, 8081, 8082] {
            for _ in 0..PORTS {
                open.push(talk::dial(&client.ns, at(server.ip(v6), port))?);
            }
            ensure!(talk::dial(&client.ns, at(server.ip(v6), port)).is_err(), "more ports than there are");
        }
        Ok(open.len())
    };
    for v6 in [false, true] {
        let without = count(v6)?;
        let stand_in = place.enrol("client", CaptureMode::Mark)?;
        let with = count(v6)?;
        ensure!(with == without && with == 3 * usize::from(PORTS), "{with} of {without}");
        wait::until_true(wait::PATIENCE, "all were accepted", || {
            stand_in.accepted.lock().is_ok_and(|a| a.len() == with)
        })?;
    }
    client.ns.sysctl("ipv4.ip_local_port_range", &range)
}

fn udp(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    for v6 in [false, true] {
        let theirs = server.ns.run(|| std::net::UdpSocket::bind(at(server.ip(v6), 5353)))?;
        theirs.set_read_timeout(Some(talk::DEADLINE))?;
        let ours = client.ns.run(|| std::net::UdpSocket::bind(at(client.ip(v6), 0)))?;
        ours.connect(theirs.local_addr()?)?;
        ours.send(b"query")?;
        let mut buffer = [0; 16];
        let (n, from) = theirs.recv_from(&mut buffer)?;
        ensure!(&buffer[..n] == b"query" && from == ours.local_addr()?);
        // Into the pod as well, whatever its plan says of TCP, and to the agent's numbers.
        for port in [5353, OwnPorts::default().hbone] {
            let inside = client.ns.run(|| std::net::UdpSocket::bind(at(client.ip(v6), port)))?;
            inside.set_read_timeout(Some(talk::DEADLINE))?;
            server.ns.run(|| theirs.send_to(b"notice", inside.local_addr()?))?;
            let (n, _) = inside.recv_from(&mut buffer).with_context(|| format!("UDP to port {port}"))?;
            ensure!(&buffer[..n] == b"notice");
        }
    }
    ensure!(stand_in.take_accepted().is_empty());
    Ok(())
}
