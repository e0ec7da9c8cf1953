//! Capture where a namespace cannot have the rule: a loopback address for each connection.

mod kernel;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6, TcpStream};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use kernel::sockets::{self, connect, connect_at_once, disconnect, is_refusal, tcp};
use kernel::{Place, answerer, at, read_line, who};
use underpass::bpf::{BpfError, CaptureMode, Destination, Kernel};
use underpass::model::NetnsCookie;
use underpass_tests::hostile::{self, Tricks};
use underpass_tests::stories::{self, World};
use underpass_tests::wait;
use underpass_tests::work::talk;

fn main() -> ExitCode {
    stories::run(&[
        ("captured_with_its_destination_and_seen_by_its_name", captured),
        ("v4_mapped_dials", v4_mapped),
        ("one_port_for_two_destinations_and_twice_for_one", bound),
        ("a_socket_that_dials_again_gets_what_it_dials", redial),
        ("rows_live_as_long_as_their_sockets", rows),
        ("no_listener_is_refused_at_once", no_listener),
        ("loopback_stays_the_applications", stays_local),
        ("an_address_dialled_directly_stands_for_nothing", dialled_directly),
        ("fast_open_and_mptcp", fast_open),
        ("as_many_connections_as_without_the_mesh", capacity),
        ("a_lost_route_lets_nothing_out", no_route),
    ])
}

impl World for Place {
    fn build() -> Result<Self> {
        Place::new()
    }
}

const PORT: u16 = 8080;

fn captured(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Loopback)?;
    let real = place.real("server", PORT)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    for v6 in [false, true] {
        let to = at(server.ip(v6), PORT);
        let mut stream = talk::dial(&client.ns, to)?;
        ensure!(read_line(&mut stream)?.starts_with(&format!("outbound {to} ")));
        ensure!(stream.peer_addr()? == to, "getpeername: {}", stream.peer_addr()?);
        ensure!(stream.local_addr()?.ip() == client.ip(v6), "getsockname: {}", stream.local_addr()?);
        let accepted = stand_in.take_accepted().pop().context("accepted")?;
        ensure!(accepted.original == to && accepted.peer.ip() == client.ip(v6), "{accepted:?}");
        talk::echo(&mut stream, &[9; 70_000])?;
        place.programs.teach(server.ip(v6), Destination::Leave)?;
        let mut stream = talk::dial(&client.ns, to)?;
        ensure!(answerer(&read_line(&mut stream)?) == "server");
        ensure!(stream.peer_addr()? == to);
    }
    ensure!(real.peers().len() == 2);
    place.programs.set_destinations(&Default::default())?;
    Ok(())
}

fn v4_mapped(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Loopback)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    let mapped = SocketAddr::V6(SocketAddrV6::new(server.ip4.to_ipv6_mapped(), PORT, 0, 0));
    let mut stream = connect(tcp(&client.ns, true, |s| s.set_only_v6(false))?, mapped)?;
    ensure!(read_line(&mut stream)?.starts_with("outbound "));
    ensure!(stream.peer_addr()? == mapped, "{}", stream.peer_addr()?);
    let accepted = stand_in.take_accepted().pop().context("accepted")?;
    ensure!(accepted.original == at(server.ip4.into(), PORT), "{accepted:?}");
    Ok(())
}

fn bound(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Loopback)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    for v6 in [false, true] {
        let mut open = Vec::new();
        for to in [PORT, PORT + 1, PORT] {
            let to = at(server.ip(v6), to);
            let socket = tcp(&client.ns, v6, |s| {
                s.set_reuse_address(true)?;
                s.bind(&at(client.ip(v6), 45_010).into())
            })?;
            let mut stream = connect(socket, to)?;
            ensure!(read_line(&mut stream)?.starts_with(&format!("outbound {to} ")));
            ensure!(stand_in.take_accepted()[0].peer == at(client.ip(v6), 45_010));
            open.push(stream);
        }
    }
    Ok(())
}

fn redial(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Loopback)?;
    let (client, server, beside) = (place.pod("client"), place.pod("server"), place.pod("beside"));
    let _beside = place.real("beside", PORT)?;
    for v6 in [false, true] {
        place.programs.set_destinations(&[(beside.ip(v6), Destination::Leave)].into())?;
        let socket = tcp(&client.ns, v6, |_| Ok(()))?;
        let mut stream = TcpStream::from(socket.try_clone()?);
        for round in 0..20 {
            let to = at(server.ip(v6), PORT + round);
            socket.connect(&to.into())?;
            let line = read_line(&mut stream)?;
            ensure!(line.starts_with(&format!("outbound {to} ")), "{line}");
            ensure!(stream.peer_addr()? == to);
            disconnect(&socket)?;
        }
        socket.connect(&at(beside.ip(v6), PORT).into())?;
        ensure!(answerer(&read_line(&mut stream)?) == "server");
        ensure!(stream.peer_addr()? == at(beside.ip(v6), PORT), "the name of an earlier dial");
        disconnect(&socket)?;
    }
    place.programs.set_destinations(&Default::default())?;
    wait::until_true(wait::PATIENCE, "no rows are left", || {
        place.programs.connection_rows().is_ok_and(|rows| rows == 0)
    })?;
    drop(stand_in);
    Ok(())
}

fn rows(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Loopback)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    let rows = || place.programs.connection_rows();
    ensure!(rows()? == 0);
    let mut open = Vec::new();
    for v6 in [false, true] {
        for _ in 0..50 {
            open.push(talk::dial(&client.ns, at(server.ip(v6), PORT))?);
        }
    }
    ensure!(rows()? == 100, "{}", rows()?);
    drop(open);
    stand_in.streams.lock().unwrap_or_else(|p| p.into_inner()).clear();
    wait::until_true(wait::PATIENCE, "rows go with their sockets", || rows().is_ok_and(|r| r == 0))?;
    // A connect that fails before its SYN (nobody may bind two sockets to one port) leaves none.
    let taken = tcp(&client.ns, false, |s| s.bind(&at(client.ip(false), 45_020).into()))?;
    let range = client.ns.read_sysctl("ipv4.ip_local_port_range")?;
    client.ns.sysctl("ipv4.ip_local_port_range", "45020 45020")?;
    let full = tcp(&client.ns, false, |_| Ok(()))?;
    let error = full.connect(&at(server.ip(false), PORT).into()).err().context("no port was free")?;
    ensure!(error.raw_os_error() == Some(libc::EADDRNOTAVAIL), "{error}");
    client.ns.sysctl("ipv4.ip_local_port_range", &range)?;
    ensure!(rows()? == 0, "a connect that failed left a row");
    drop(taken);
    // Nor do they outlive the pod's enrolment.
    let _open = talk::dial(&client.ns, at(server.ip(false), PORT))?;
    ensure!(rows()? == 1);
    drop(stand_in);
    ensure!(rows()? == 0, "rows of a pod that has left");
    Ok(())
}

fn no_listener(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Loopback)?;
    let real = place.real("server", PORT)?;
    stand_in.close();
    for v6 in [false, true] {
        let socket = tcp(&place.pod("client").ns, v6, |_| Ok(()))?;
        let error =
            connect_at_once(&socket, at(place.pod("server").ip(v6), PORT)).err().context("not refused")?;
        ensure!(is_refusal(&error), "{error}");
    }
    ensure!(real.peers().is_empty() && place.programs.connection_rows()? == 0);
    Ok(())
}

fn stays_local(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Loopback)?;
    let _real = place.real("client", 7000)?;
    let client = place.pod("client");
    for ip in ["127.0.0.1", "127.127.255.255", "::1", "0.0.0.0"] {
        let line = who(&client.ns, at(ip.parse()?, 7000))?;
        ensure!(answerer(&line) == "server", "{ip}: {line}");
    }
    for ip in client.addresses() {
        ensure!(answerer(&who(&client.ns, at(ip, 7000))?) == "server");
    }
    ensure!(stand_in.take_accepted().is_empty());
    Ok(())
}

fn dialled_directly(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Loopback)?;
    let client = place.pod("client");
    let direct = at(IpAddr::V4(Ipv4Addr::new(127, 129, 3, 4)), 20_000);
    let mut stream = talk::dial(&client.ns, direct)?;
    // The agent took it and found nothing to go by.
    ensure!(read_line(&mut stream).is_err());
    ensure!(stand_in.take_accepted().is_empty());
    let unknown = place.programs.original_destination(stand_in.cookie(), direct);
    ensure!(matches!(unknown, Err(BpfError::UnknownConnection { .. })), "{unknown:?}");
    // What one pod dialled is nothing to another.
    let real = talk::dial(&client.ns, at(place.pod("server").ip(false), PORT))?;
    let last =
        || stand_in.streams.lock().unwrap_or_else(|p| p.into_inner()).last().map(TcpStream::local_addr);
    wait::until_true(wait::PATIENCE, "the stand-in accepted", || last().is_some())?;
    let looped = last();
    let looped = looped.context("accepted")??;
    ensure!(place.programs.original_destination(stand_in.cookie(), looped).is_ok());
    let other = place.programs.original_destination(NetnsCookie(stand_in.cookie().0 + 1), looped);
    ensure!(matches!(other, Err(BpfError::UnknownConnection { .. })), "{other:?}");
    drop(real);
    Ok(())
}

fn fast_open(place: &mut Place) -> Result<()> {
    let _stand_in = place.enrol("client", CaptureMode::Loopback)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    client.ns.sysctl("ipv4.tcp_fastopen", "3")?;
    for v6 in [false, true] {
        let to = at(server.ip(v6), PORT);
        let socket = tcp(&client.ns, v6, |_| Ok(()))?;
        ensure!(sockets::send_fast_open(&socket, b"early", to)? == 5);
        ensure!(read_line(&mut socket.into())?.starts_with(&format!("outbound {to} ")));
        let tricks = Tricks { mptcp: true, ..Tricks::default() };
        let mut stream = hostile::dial(&client.ns, to, tricks, talk::DEADLINE)?;
        ensure!(read_line(&mut stream)?.starts_with(&format!("outbound {to} ")), "MPTCP");
    }
    Ok(())
}

fn capacity(place: &mut Place) -> Result<()> {
    const PORTS: u16 = 50;
    let (client, server) = (place.pod("client"), place.pod("server"));
    let range = client.ns.read_sysctl("ipv4.ip_local_port_range")?;
    client.ns.sysctl("ipv4.ip_local_port_range", &format!("52000 {}", 52_000 + PORTS - 1))?;
    let _stand_in = place.enrol("client", CaptureMode::Loopback)?;
    for v6 in [false, true] {
        let mut open = Vec::new();
        for port in 0..3 {
            for _ in 0..PORTS {
                open.push(talk::dial(&client.ns, at(server.ip(v6), PORT + port))?);
            }
        }
        ensure!(open.len() == 3 * usize::from(PORTS));
    }
    client.ns.sysctl("ipv4.ip_local_port_range", &range)
}

/// Without its local route an IPv6 loopback address is an address like any: the guard holds here too.
fn no_route(place: &mut Place) -> Result<()> {
    let _stand_in = place.enrol("client", CaptureMode::Loopback)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    let mut live = talk::dial(&client.ns, at(server.ip(true), PORT))?;
    read_line(&mut live)?;
    let capture = underpass_tests::capture::Capture::start(&client.ns, "eth0")?;
    let before = place.programs.counters()?.guard_dropped;
    client.ns.ip("-6 route del local fd75:2e91:c40a:7f01::/64 table local")?;
    let to = at(server.ip(true), PORT);
    ensure!(talk::dial_within(&client.ns, to, std::time::Duration::from_millis(600)).is_err());
    live.write_all(b"to nobody")?;
    wait::until_true(wait::PATIENCE, "the guard dropped it", || {
        place.programs.counters().is_ok_and(|c| c.guard_dropped > before)
    })?;
    underpass_tests::capture::settle(&capture)?;
    let seen: Vec<_> = capture.segments()?;
    ensure!(seen.is_empty(), "{seen:?}");
    Ok(())
}
