//! Flows that were left alone: counted to the byte, reported when they close; others are not.

mod kernel;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kernel::{Place, at, read_line};
use socket2::SockRef;
use tokio::runtime::Runtime;
use underpass::bpf::{self, BpfError, CaptureMode, Destination, Flow, Flows, Kernel};
use underpass::model::{Direction, InboundAction, InboundPlan};
use underpass_tests::stories::{self, World};
use underpass_tests::wait;
use underpass_tests::work::{server, talk};
use underpass_tests::{Netns, Server};

fn main() -> ExitCode {
    stories::run(&[
        ("both_directions_are_counted_to_the_byte", counted),
        ("whichever_end_closes_first", closings),
        ("a_reset_flow_is_reported", resets),
        ("what_the_mesh_carries_is_not_a_flow", not_flows),
        ("a_full_ring_is_counted_and_read_in_order", full_ring),
        ("there_is_one_reader", one_reader),
    ])
}

/// A place whose flows are read.
struct Reading {
    place: Place,
    runtime: Runtime,
    flows: Flows,
}

impl World for Reading {
    fn build() -> Result<Self> {
        let place = Place::new()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let flows = runtime.block_on(async { place.programs.flows() })?;
        // Everything is left alone.
        place.programs.set_ranges(&[])?;
        Ok(Self { place, runtime, flows })
    }
}

impl Reading {
    /// The next flow that has this port at the server's end.
    fn next(&mut self, port: u16) -> Result<Flow> {
        self.runtime.block_on(async {
            loop {
                let next = tokio::time::timeout(wait::PATIENCE, self.flows.next());
                let flow = next.await.with_context(|| format!("no flow of port {port}"))?.context("ended")?;
                if flow.local.port() == port || flow.remote.port() == port {
                    return Ok(flow);
                }
            }
        })
    }

    /// Makes sure that nothing is reported before a flow that is made now.
    fn nothing_before(&mut self, from: &Netns, to: SocketAddr) -> Result<()> {
        drop(talk::finish(talk::dial(from, to)?)?);
        let flow = self
            .runtime
            .block_on(async { tokio::time::timeout(wait::PATIENCE, self.flows.next()).await.ok().flatten() });
        let flow = flow.context("the flow that was made is not reported")?;
        ensure!(flow.remote == to || flow.local == to, "before it came {flow:?}");
        Ok(())
    }
}

fn counted(w: &mut Reading) -> Result<()> {
    let stand_in = w.place.enrol("client", CaptureMode::Mark)?;
    let (client, beyond) = (w.place.pod("client").clone(), w.place.pod("server").clone());
    let _there = Server::start(&beyond.ns, 7001, server::sink)?;
    let _here = Server::start(&client.ns, 7002, server::source(54_321))?;
    for v6 in [false, true] {
        for bytes in [0, 1, 10_000, 3_000_000] {
            let mut stream = talk::dial(&client.ns, at(beyond.ip(v6), 7001))?;
            let local = stream.local_addr()?;
            underpass_tests::work::pattern::write(&mut stream, bytes)?;
            let answer = talk::finish(stream)?;
            let flow = w.next(7001)?;
            ensure!(flow.pod == stand_in.cookie() && flow.direction == Direction::Outbound, "{flow:?}");
            ensure!(flow.local == local && flow.remote == at(beyond.ip(v6), 7001), "{flow:?}");
            ensure!(flow.sent == bytes as u64, "{bytes} sent: {flow:?}");
            ensure!(flow.received == answer.len() as u64, "{} received: {flow:?}", answer.len());
            ensure!(flow.duration > Duration::ZERO && flow.duration < wait::PATIENCE, "{flow:?}");
        }
        let stream = talk::dial(&beyond.ns, at(client.ip(v6), 7002))?;
        let peer = stream.local_addr()?;
        ensure!(talk::finish(stream)?.len() == 54_321);
        let flow = w.next(7002)?;
        ensure!(flow.direction == Direction::Inbound, "{flow:?}");
        ensure!(flow.local == at(client.ip(v6), 7002) && flow.remote == peer, "{flow:?}");
        ensure!((flow.sent, flow.received) == (54_321, 0), "{flow:?}");
    }
    Ok(())
}

/// The kernel counts SYN and FIN among the bytes; whoever closes first decides which of them.
fn closings(w: &mut Reading) -> Result<()> {
    let _stand_in = w.place.enrol("client", CaptureMode::Mark)?;
    for dialled in [true, false] {
        for pod_first in [true, false] {
            for half in [true, false] {
                let case = format!("dialled {dialled}, pod first {pod_first}, half {half}");
                let (pod, other) = pair(&w.place, dialled, 7003)?;
                let sent = converse(pod, other, pod_first, half).with_context(|| case.clone())?;
                let flow = w.next(7003).with_context(|| case.clone())?;
                ensure!((flow.sent, flow.received) == sent, "{case}: {flow:?}, expected {sent:?}");
            }
        }
    }
    Ok(())
}

/// The two ends of a connection of the pod's, dialled by it or to it.
fn pair(place: &Place, dialled: bool, port: u16) -> Result<(TcpStream, TcpStream)> {
    let (pod, beyond) = (place.pod("client"), place.pod("server"));
    let (from, to) = if dialled { (pod, beyond) } else { (beyond, pod) };
    let addr = at(to.ip(false), port);
    let listener = to.ns.run(|| TcpListener::bind(addr))?;
    let there = talk::dial(&from.ns, addr)?;
    let (here, _) = listener.accept()?;
    talk::prepare(&here, talk::DEADLINE)?;
    Ok(if dialled { (there, here) } else { (here, there) })
}

/// Talks, then closes both ends in the order asked for. Returns what the pod sent and received.
fn converse(mut pod: TcpStream, mut other: TcpStream, pod_first: bool, half: bool) -> Result<(u64, u64)> {
    pod.write_all(&[1; 1000])?;
    other.read_exact(&mut [0; 1000])?;
    other.write_all(&[2; 333])?;
    pod.read_exact(&mut [0; 333])?;
    let mut sent = (1000, 333);
    let (mut first, mut second) = if pod_first { (pod, other) } else { (other, pod) };
    if half {
        // One end has closed its direction, the other goes on for a while.
        first.shutdown(Shutdown::Write)?;
        ended(&mut second)?;
        second.write_all(&[3; 77])?;
        first.read_exact(&mut [0; 77])?;
        *(if pod_first { &mut sent.1 } else { &mut sent.0 }) += 77;
        second.shutdown(Shutdown::Write)?;
        ended(&mut first)?;
    } else {
        drop(first);
        ended(&mut second)?;
    }
    Ok(sent)
}

fn ended(stream: &mut TcpStream) -> Result<()> {
    match stream.read(&mut [0; 16])? {
        0 => Ok(()),
        n => bail!("{n} bytes instead of the end"),
    }
}

fn resets(w: &mut Reading) -> Result<()> {
    let _stand_in = w.place.enrol("client", CaptureMode::Mark)?;
    let (client, beyond) = (w.place.pod("client").clone(), w.place.pod("server").clone());
    for by_pod in [true, false] {
        let to = at(beyond.ip(false), 7004);
        let listener = beyond.ns.run(|| TcpListener::bind(to))?;
        let mut pod = talk::dial(&client.ns, to)?;
        let (mut other, _) = listener.accept()?;
        pod.write_all(&[1; 500])?;
        other.read_exact(&mut [0; 500])?;
        let (first, second) = if by_pod { (pod, other) } else { (other, pod) };
        SockRef::from(&first).set_linger(Some(Duration::ZERO))?;
        drop(first);
        let flow = w.next(7004)?;
        ensure!((flow.sent, flow.received) == (500, 0), "by pod {by_pod}: {flow:?}");
        drop(second);
    }
    Ok(())
}

fn not_flows(w: &mut Reading) -> Result<()> {
    let stand_in = w.place.enrol("client", CaptureMode::Mark)?;
    let (client, beyond) = (w.place.pod("client").clone(), w.place.pod("server").clone());
    let _there = w.place.real("server", 7005)?;
    let _here = w.place.real("client", 7005)?;
    let _last = w.place.real("server", 7006)?;
    for v6 in [false, true] {
        // Captured.
        w.place.programs.set_destinations(&[(beyond.ip(v6), Destination::Capture)].into())?;
        ensure!(read_line(&mut talk::dial(&client.ns, at(beyond.ip(v6), 7005))?)?.starts_with("outbound "));
        w.place.programs.set_destinations(&Default::default())?;
        // Its own loopback and its own address.
        let local = if v6 { "::1".parse()? } else { "127.0.0.1".parse()? };
        for ip in [local, client.ip(v6)] {
            read_line(&mut talk::dial(&client.ns, at(ip, 7005))?)?;
        }
        // The agent's own dials, plain and in a client's name.
        read_line(&mut stand_in.deliver(None, at(beyond.ip(v6), 7005))?)?;
        read_line(&mut stand_in.deliver(Some(beyond.ip(v6)), at(client.ip(v6), 7005))?)?;
        // Steered to the agent, and tunnels.
        stand_in.inbound(InboundPlan::all(InboundAction::Steer))?;
        read_line(&mut talk::dial(&beyond.ns, at(client.ip(v6), 7005))?)?;
        read_line(&mut talk::dial(&beyond.ns, at(client.ip(v6), 15_008))?)?;
        // Another pod's.
        read_line(&mut talk::dial(&w.place.pod("beside").ns, at(beyond.ip(v6), 7005))?)?;
    }
    w.nothing_before(&client.ns, at(beyond.ip(false), 7006))
}

fn full_ring(w: &mut Reading) -> Result<()> {
    // 256 KiB hold 2,978 events of 80 bytes and their headers.
    const FLOWS: usize = 4000;
    let _stand_in = w.place.enrol("client", CaptureMode::Mark)?;
    let (client, beyond) = (w.place.pod("client").clone(), w.place.pod("server").clone());
    let listener = Server::start(&beyond.ns, 7007, |_| Ok(()))?;
    for _ in 0..FLOWS {
        let stream = talk::dial(&client.ns, at(beyond.ip(false), 7007))?;
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    }
    let mut read = 0;
    let lost = wait::until(wait::PATIENCE, "every flow was read or counted as lost", || {
        while let Ok(Some(flow)) = w
            .runtime
            .block_on(async { tokio::time::timeout(Duration::from_millis(50), w.flows.next()).await })
        {
            read += usize::from(flow.remote.port() == 7007);
        }
        let lost = w.place.programs.counters().ok()?.flows_lost;
        (read + lost as usize >= FLOWS).then_some(lost)
    })?;
    ensure!(read + lost as usize == FLOWS, "{read} read, {lost} lost");
    ensure!(lost > 0 && read > 2000, "{read} read, {lost} lost");
    drop(listener);
    Ok(())
}

fn one_reader(w: &mut Reading) -> Result<()> {
    let again = w.runtime.block_on(async { w.place.programs.flows().map(drop) });
    ensure!(matches!(again, Err(BpfError::FlowsTaken)), "{again:?}");
    // What nobody read is there for the next agent, once.
    let stand_in = w.place.enrol("client", CaptureMode::Mark)?;
    let (client, beyond) = (w.place.pod("client").clone(), w.place.pod("server").clone());
    let _there = Server::start(&beyond.ns, 7008, server::echo)?;
    drop(talk::finish(talk::dial(&client.ns, at(beyond.ip(false), 7008))?)?);
    let next = kernel::load(&w.place.config, bpf::Features::detect())?;
    w.flows = w.runtime.block_on(async { next.flows() })?;
    ensure!(w.next(7008)?.pod == stand_in.cookie());
    Ok(())
}
