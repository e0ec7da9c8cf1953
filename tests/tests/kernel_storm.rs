//! A storm of captured connections: none lost, none to a wrong destination, nothing left behind.

mod kernel;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kernel::{Place, at};
use socket2::SockRef;
use underpass::bpf::{CaptureMode, Kernel, Listeners};
use underpass::model::NetnsCookie;
use underpass_tests::stories::{self, World};
use underpass_tests::wait;
use underpass_tests::work::talk;

fn main() -> ExitCode {
    stories::run(&[("a_hundred_thousand_by_mark", by_mark), ("by_loopback_address", by_loopback)])
}

impl World for Place {
    fn build() -> Result<Self> {
        Place::new()
    }
}

const CLIENTS: usize = 4;
const DESTINATIONS: u16 = 256;

fn by_mark(place: &mut Place) -> Result<()> {
    storm(place, CaptureMode::Mark, 100_000)
}

fn by_loopback(place: &mut Place) -> Result<()> {
    storm(place, CaptureMode::Loopback, 20_000)
}

fn storm(place: &mut Place, mode: CaptureMode, connections: usize) -> Result<()> {
    let stand_in = place.enrol("client", mode)?;
    let pod = stand_in.cookie();
    // Its own listeners start a thread for each connection; these answer in passing.
    stand_in.close();
    let echo = Echo::start(place, &stand_in, pod)?;
    let descriptors = descriptors()?;
    let client = place.pod("client").ns.clone();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| -> Result<()> {
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| scope.spawn(|| client.run(|| dial_all(&next, connections)))).collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
    })?;
    let seen = echo.seen.load(Ordering::Relaxed);
    ensure!(seen == connections, "{seen} of {connections} were accepted");
    wait::until_true(Duration::from_secs(5), "every map row is gone", || {
        place.programs.connection_rows().is_ok_and(|rows| rows == 0)
    })?;
    wait::until_true(Duration::from_secs(5), "every descriptor is gone", || {
        self::descriptors().is_ok_and(|now| now <= descriptors)
    })?;
    Ok(())
}

/// Dials destinations that nobody has in turn, and reads back which one the agent was given.
fn dial_all(next: &AtomicUsize, connections: usize) -> Result<()> {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= connections {
            return Ok(());
        }
        let to = destination(number);
        let mut stream = TcpStream::connect(to).with_context(|| format!("connection {number} to {to}"))?;
        talk::prepare(&stream, talk::DEADLINE)?;
        let mut said = String::new();
        stream.read_to_string(&mut said).with_context(|| format!("connection {number} to {to}"))?;
        let expected = format!("{to} {}", stream.local_addr()?);
        ensure!(said == expected, "connection {number} said {said}, expected {expected}");
        // The agent's end closed first; a reset here frees the port, which the storm needs again.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    }
}

/// Both families, many addresses and ports.
fn destination(number: usize) -> SocketAddr {
    let which = (number as u16) % DESTINATIONS;
    let ip: IpAddr = if which.is_multiple_of(2) {
        IpAddr::from([10, 201, 200, which as u8])
    } else {
        IpAddr::from([0xfd00, 0x201, 0, 0, 0, 0, 200, which])
    };
    at(ip, 1000 + (number as u16 / DESTINATIONS) % 7)
}

struct Echo {
    seen: Arc<AtomicUsize>,
    sockets: Vec<TcpListener>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Echo {
    fn start(place: &Place, stand_in: &kernel::StandIn, pod: NetnsCookie) -> Result<Self> {
        let sockets: Vec<TcpListener> = ["127.0.0.1:15001", "[::1]:15001"]
            .into_iter()
            .map(|addr| stand_in.listen(addr.parse()?, true))
            .collect::<Result<_>>()?;
        place.programs.set_listeners(
            pod,
            &Listeners {
                outbound_v4: Some(sockets[0].as_fd()),
                outbound_v6: Some(sockets[1].as_fd()),
                ..Listeners::default()
            },
        )?;
        let seen = Arc::new(AtomicUsize::new(0));
        let threads = sockets
            .iter()
            .map(|listener| {
                let (listener, programs) = (listener.try_clone()?, place.programs.clone());
                let seen = seen.clone();
                Ok(std::thread::spawn(move || {
                    while let Ok((mut stream, peer)) = listener.accept() {
                        let Ok(local) = stream.local_addr() else { continue };
                        // What is not known is closed unanswered, and fails the client's check.
                        let Ok(original) = programs.original_destination(pod, local) else { continue };
                        seen.fetch_add(1, Ordering::Relaxed);
                        let _ = write!(stream, "{} {peer}", original.0);
                    }
                }))
            })
            .collect::<Result<_>>()?;
        Ok(Self { seen, sockets, threads })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        for socket in &self.sockets {
            let _ = SockRef::from(socket).shutdown(std::net::Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn descriptors() -> Result<usize> {
    Ok(std::fs::read_dir("/proc/self/fd")?.count())
}
