//! Whatever is broken, lost or tampered with: a connection to the mesh never leaves the pod in
//! plaintext, and nothing of a capture outlives it.

mod kernel;

use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kernel::sockets::{self, as_nobody, connect, connect_at_once, disconnect, is_refusal, tcp};
use kernel::{Place, answerer, at, read_line, who};
use socket2::{SockRef, Socket};
use underpass::bpf::{CaptureMode, Counters, Destination, Kernel, Marks};
use underpass_tests::capture::{Capture, settle};
use underpass_tests::stories::{self, World};
use underpass_tests::wait;
use underpass_tests::work::talk;

fn main() -> ExitCode {
    stories::run(&[
        ("no_rule", no_rule),
        ("no_route", no_route),
        ("no_listener_is_refused_at_once", no_listener),
        ("a_closed_listener_is_refused_at_once", closed_listener),
        ("a_socket_bound_to_a_device_is_captured_by_root", device_by_root),
        ("a_socket_bound_to_a_device_is_refused_to_others", device_by_nobody),
        ("a_device_bound_after_connect_lets_nothing_out", device_after_connect),
        ("a_cleared_mark_lets_nothing_out", cleared_mark),
        ("late_answers_to_a_closed_socket_stay_inside", late_answers),
        ("a_mark_does_not_outlive_its_connection", redial),
        ("a_mark_does_not_outlive_enrolment", redial_after_unenrolment),
        ("a_captured_socket_that_listens_is_an_ordinary_listener", listens_afterwards),
    ])
}

impl World for Place {
    fn build() -> Result<Self> {
        Place::new()
    }
}

/// How long a connect that must not succeed is waited for: some retransmissions.
const BRIEFLY: Duration = Duration::from_millis(1500);

const PORT: u16 = 8080;

/// The wire outside the pod, and a server that must not be reached.
struct Watch {
    capture: Capture,
    real: underpass_tests::Server,
    before: Counters,
}

impl Watch {
    fn start(place: &Place) -> Result<Self> {
        Ok(Self {
            capture: Capture::start(&place.pod("client").ns, "eth0")?,
            real: place.real("server", PORT)?,
            before: place.programs.counters()?,
        })
    }

    /// Nothing of a connection to the server's port was on the wire.
    fn saw_nothing(&self) -> Result<()> {
        settle(&self.capture)?;
        let seen: Vec<_> = self.capture.segments()?.into_iter().filter(|s| s.on_port(PORT)).collect();
        ensure!(seen.is_empty(), "left the pod: {seen:?}");
        ensure!(self.real.peers().is_empty(), "the server was reached: {:?}", self.real.peers());
        Ok(())
    }

    fn guarded(&self, place: &Place) -> Result<bool> {
        Ok(place.programs.counters()?.guard_dropped > self.before.guard_dropped)
    }
}

fn no_rule(place: &mut Place) -> Result<()> {
    without(place, "rule del priority 75")
}

fn no_route(place: &mut Place) -> Result<()> {
    without(place, "route flush table 15008")
}

fn without(place: &Place, what: &str) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    // As an agent sets it: the connections below end in the stories after this one, and the resets that the
    // kernel sends for them would leave by eth0.
    reflect_marks(place)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    // Lost while a connection lives, and for those that come.
    let mut live = vec![];
    for v6 in [false, true] {
        let mut stream = talk::dial(&client.ns, at(server.ip(v6), PORT))?;
        read_line(&mut stream)?;
        live.push(stream);
    }
    let watch = Watch::start(place)?;
    for family in ["-4", "-6"] {
        client.ns.ip(&format!("{family} {what}"))?;
    }
    for v6 in [false, true] {
        let result = talk::dial_within(&client.ns, at(server.ip(v6), PORT), BRIEFLY);
        ensure!(result.is_err(), "connected without a {what}: {result:?}");
    }
    ensure!(watch.guarded(place)?);
    for mut stream in live {
        stream.write_all(b"still here?")?;
    }
    watch.saw_nothing()?;
    drop(stand_in);
    Ok(())
}

fn no_listener(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    stand_in.close();
    refused_at_once(place)?;
    stand_in.open()?;
    for v6 in [false, true] {
        let line = who(&place.pod("client").ns, at(place.pod("server").ip(v6), PORT))?;
        ensure!(answerer(&line) == "outbound", "{line}");
    }
    Ok(())
}

/// By connect() itself, before any packet: IPv4 as well, where a dropped SYN would mean a long wait.
fn refused_at_once(place: &Place) -> Result<()> {
    let watch = Watch::start(place)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    for v6 in [false, true] {
        let socket = tcp(&client.ns, v6, |_| Ok(()))?;
        let error = connect_at_once(&socket, at(server.ip(v6), PORT)).err().context("not refused")?;
        ensure!(is_refusal(&error), "{error}");
        if underpass::bpf::Features::detect().set_retval {
            ensure!(error.raw_os_error() == Some(libc::ECONNREFUSED), "{error}");
        }
    }
    ensure!(place.programs.counters()?.refused_no_listener >= watch.before.refused_no_listener + 2);
    watch.saw_nothing()
}

/// The map's slot goes with the socket, and a socket that no longer listens does not count.
fn closed_listener(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    let (v4, v6) = stand_in.netns.run(|| -> Result<(Socket, Socket)> {
        let open = |addr: std::net::SocketAddr| -> Result<Socket> {
            let socket = underpass::sys::socket::tcp(addr.ip())?;
            stand_in.programs.own(socket.as_fd())?;
            let options = underpass::sys::socket::ListenOptions { transparent: true, dual_stack: false };
            underpass::sys::socket::listen(&socket, addr, options)?;
            Ok(socket)
        };
        Ok((open("127.0.0.1:25001".parse()?)?, open("[::1]:25001".parse()?)?))
    })??;
    place.programs.set_listeners(
        stand_in.cookie(),
        &underpass::bpf::Listeners {
            outbound_v4: Some(v4.as_fd()),
            outbound_v6: Some(v6.as_fd()),
            ..Default::default()
        },
    )?;
    let client = &place.pod("client").ns;
    let to = |v6| at(place.pod("server").ip(v6), PORT);
    for v6 in [false, true] {
        connect_at_once(&tcp(client, v6, |_| Ok(()))?, to(v6)).context("they listen")?;
    }
    for socket in [&v4, &v6] {
        // Ends listening without closing.
        SockRef::from(socket).shutdown(std::net::Shutdown::Both)?;
    }
    refused_at_once(place)?;
    drop((v4, v6));
    refused_at_once(place)
}

fn device_by_root(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    let watch = Watch::start(place)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    for v6 in [false, true] {
        for device in ["eth0", "lo"] {
            // The hook asks with the caller's rights, so the caller must be root at connect().
            let mut stream = client.ns.run(|| -> Result<TcpStream> {
                let socket = tcp(&client.ns, v6, |s| s.bind_device(Some(device.as_bytes())))?;
                Ok(connect(socket, at(server.ip(v6), PORT))?)
            })?;
            ensure!(read_line(&mut stream)?.starts_with("outbound "));
            ensure!(stand_in.take_accepted().len() == 1);
        }
    }
    watch.saw_nothing()
}

fn device_by_nobody(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    let watch = Watch::start(place)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    for v6 in [false, true] {
        let error = as_nobody(&client.ns, || {
            // Allowed to anyone while the socket is not bound to another (5.7).
            let socket = Socket::new(
                if v6 { socket2::Domain::IPV6 } else { socket2::Domain::IPV4 },
                socket2::Type::STREAM,
                None,
            )?;
            socket.bind_device(Some(b"eth0"))?;
            Ok::<_, std::io::Error>(connect_at_once(&socket, at(server.ip(v6), PORT)).err())
        })?
        .context("not refused")?;
        ensure!(is_refusal(&error), "{error}");
    }
    let now = place.programs.counters()?;
    ensure!(now.refused_uncapturable == watch.before.refused_uncapturable + 2, "{now:?}");
    ensure!(stand_in.take_accepted().is_empty());
    // Without a device the same uid is captured like anyone.
    for v6 in [false, true] {
        let line = as_nobody(&client.ns, || {
            let mut stream = TcpStream::connect(at(server.ip(v6), PORT))?;
            read_line(&mut stream)
        })?;
        ensure!(answerer(&line) == "outbound", "{line}");
    }
    watch.saw_nothing()
}

fn device_after_connect(place: &mut Place) -> Result<()> {
    tampered(place, |stream| SockRef::from(stream).bind_device(Some(b"eth0")))
}

fn cleared_mark(place: &mut Place) -> Result<()> {
    tampered(place, |stream| SockRef::from(stream).set_mark(0))
}

/// A captured connection whose socket is changed afterwards: what it still sends goes nowhere.
fn tampered(place: &Place, tamper: impl Fn(&TcpStream) -> std::io::Result<()>) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    reflect_marks(place)?;
    let watch = Watch::start(place)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    for v6 in [false, true] {
        let before = place.programs.counters()?.guard_dropped;
        let mut stream = talk::dial(&client.ns, at(server.ip(v6), PORT))?;
        read_line(&mut stream)?;
        tamper(&stream)?;
        let marker = b"plaintext-that-must-not-leave";
        stream.write_all(marker)?;
        wait::until_true(wait::PATIENCE, "the guard dropped it", || {
            place.programs.counters().is_ok_and(|c| c.guard_dropped > before)
        })?;
        // Its end must not leave either: the FIN, and what answers the agent's closing.
        drop(stream);
    }
    stand_in.close();
    drop(stand_in);
    watch.saw_nothing()
}

/// Packets without a socket (the reset that answers data for a closed one) carry the mark of what they
/// answer, and so stay on lo as well.
fn reflect_marks(place: &Place) -> Result<()> {
    let client = &place.pod("client").ns;
    client.sysctl("ipv4.fwmark_reflect", "1")?;
    client.sysctl("ipv6.fwmark_reflect", "1")
}

/// The agent sends to a socket that is gone without its knowledge: the kernel answers with a reset that
/// belongs to no socket, and so has neither storage nor a mark of its own.
fn late_answers(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    reflect_marks(place)?;
    let watch = Watch::start(place)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    for v6 in [false, true] {
        let mut stream = talk::dial(&client.ns, at(server.ip(v6), PORT))?;
        read_line(&mut stream)?;
        // Its own reset goes astray, where the guard drops it.
        SockRef::from(&stream).set_mark(0)?;
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        drop(stream);
        let mut agents_end =
            stand_in.streams.lock().unwrap_or_else(|p| p.into_inner()).pop().context("the agent's end")?;
        agents_end.write_all(b"an answer for nobody")?;
        wait::until_true(wait::PATIENCE, "the reset came", || {
            SockRef::from(&agents_end).take_error().is_ok_and(|e| e.is_some())
                || agents_end.write(b"?").is_err()
        })?;
    }
    watch.saw_nothing()
}

fn redial(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    let _real = place.real("server", PORT)?;
    let (client, server, beside) = (place.pod("client"), place.pod("server"), place.pod("beside"));
    let _beside = place.real("beside", PORT)?;
    for v6 in [false, true] {
        place.programs.set_destinations(&[(beside.ip(v6), Destination::Leave)].into())?;
        let application = 0x0000_0077;
        let socket = tcp(&client.ns, v6, |s| s.set_mark(application))?;
        socket.connect(&at(server.ip(v6), PORT).into())?;
        ensure!(read_line(&mut TcpStream::from(socket.try_clone()?))?.starts_with("outbound "));
        // Captured, left alone, captured, left alone: one socket.
        for round in 0..2 {
            disconnect(&socket)?;
            socket.connect(&at(beside.ip(v6), PORT).into())?;
            let mut stream = TcpStream::from(socket.try_clone()?);
            talk::prepare(&stream, talk::DEADLINE)?;
            let line = read_line(&mut stream).with_context(|| format!("round {round}"))?;
            ensure!(answerer(&line) == "server", "round {round}: {line}");
            ensure!(socket.mark()? == application, "{:#x} is left", socket.mark()?);

            disconnect(&socket)?;
            socket.connect(&at(server.ip(v6), PORT + 1 + round).into())?;
            let line = read_line(&mut stream)?;
            ensure!(line.starts_with("outbound "), "round {round}: {line}");
            ensure!(socket.mark()? == application | Marks::default().capture);
            let last = stand_in.take_accepted().pop().context("accepted")?;
            ensure!(last.original == at(server.ip(v6), PORT + 1 + round));
        }
    }
    place.programs.set_destinations(&Default::default())?;
    Ok(())
}

fn redial_after_unenrolment(place: &mut Place) -> Result<()> {
    let _real = place.real("server", PORT)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    for v6 in [false, true] {
        let stand_in = place.enrol("client", CaptureMode::Mark)?;
        let socket = tcp(&client.ns, v6, |_| Ok(()))?;
        socket.connect(&at(server.ip(v6), PORT).into())?;
        drop(stand_in);
        disconnect(&socket)?;
        socket.connect_timeout(&at(server.ip(v6), PORT).into(), talk::DEADLINE)?;
        let line = read_line(&mut TcpStream::from(socket.try_clone()?))?;
        ensure!(answerer(&line) == "server", "{line}");
        ensure!(socket.mark()? == 0);
    }
    Ok(())
}

fn listens_afterwards(place: &mut Place) -> Result<()> {
    let _stand_in = place.enrol("client", CaptureMode::Mark)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    for v6 in [false, true] {
        let socket = tcp(&client.ns, v6, |s| s.bind(&at(client.ip(v6), 46_000).into()))?;
        socket.connect(&at(server.ip(v6), PORT).into())?;
        disconnect(&socket)?;
        ensure!(socket.mark()? == Marks::default().capture);
        socket.listen(4)?;
        ensure!(socket.mark()? == 0, "its answers would loop");
        let mut from_outside = talk::dial(&server.ns, at(client.ip(v6), 46_000))?;
        let (accepted, _) = socket.accept()?;
        ensure!(accepted.mark()? == 0);
        let mut accepted = TcpStream::from(accepted);
        talk::prepare(&accepted, talk::DEADLINE)?;
        accepted.write_all(b"hello\n")?;
        ensure!(read_line(&mut from_outside)? == "hello");
        sockets::disconnect(&socket).ok();
    }
    Ok(())
}
