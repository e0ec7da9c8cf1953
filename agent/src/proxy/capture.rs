//! The first stage: who is there, and where did they want to go.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::node::PodProxy;
use crate::model::{Cause, ClientAddr, ConnectionId, Direction, OriginalDst, ports};
use crate::sys::socket;
use crate::telemetry::{Opened, Record};

/// A connection that the kernel programs handed to the agent.
pub struct Captured {
    pub stream: TcpStream,
    pub client: ClientAddr,
    pub destination: OriginalDst,
    pub record: Record,
}

/// Why a connection ends before anything is done for it.
pub struct Refused {
    pub cause: Cause,
    pub why: String,
    pub record: Record,
}

/// A connection of the pod's own application. On refusal the stream is reset.
pub fn outbound(pod: &PodProxy, stream: TcpStream) -> Option<Result<Captured, Refused>> {
    let (client, local) = ends(&stream)?;
    let asked = pod.node.kernel.original_destination(pod.enrolled.netns.cookie(), local.0);
    let destination = *asked.as_ref().unwrap_or(&local);
    let record = open(pod, Direction::Outbound, client, destination);
    let refuse = |cause, why: String| (cause, why);
    let refusal = if let Err(e) = asked {
        Some(refuse(Cause::Loop, format!("not a captured connection: {e}")))
    } else if destination.ip().is_loopback() {
        // Captured connections never have such a destination: somebody dialled the listener itself.
        Some(refuse(Cause::Loop, format!("{destination} is the agent's own listener")))
    } else if !pod.owns(client.ip()) && !client.ip().is_loopback() {
        Some(refuse(Cause::SpoofedSource, format!("{} is not an address of this pod", client.ip())))
    } else {
        None
    };
    Some(finish(stream, client, destination, record, refusal))
}

/// A plaintext connection from outside the pod, steered here because a policy must see it.
pub fn plaintext(pod: &PodProxy, stream: TcpStream) -> Option<Result<Captured, Refused>> {
    let (client, destination) = ends(&stream)?;
    let record = open(pod, Direction::Inbound, client, destination);
    let refusal = if !pod.owns(destination.ip()) {
        Some((Cause::Loop, format!("{destination} is not an address of this pod")))
    } else if ports::ALL.contains(&destination.port()) {
        Some((Cause::BadTarget, format!("{} is one of the agent's own ports", destination.port())))
    } else {
        None
    };
    Some(finish(stream, client, destination, record, refusal))
}

fn finish(
    stream: TcpStream,
    client: ClientAddr,
    destination: OriginalDst,
    record: Record,
    refusal: Option<(Cause, String)>,
) -> Result<Captured, Refused> {
    // Refused here, later, or by the end of the process: an end in order without a byte could be taken
    // for an empty answer.
    let _ = socket::reset_on_close(stream.as_fd());
    if let Some((cause, why)) = refusal {
        return Err(Refused { cause, why, record });
    }
    Ok(Captured { stream, client, destination, record })
}

/// `None` when the client is gone already: there is nothing to say of a connection without ends.
fn ends(stream: &TcpStream) -> Option<(ClientAddr, OriginalDst)> {
    let canonical = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
    let client = ClientAddr(canonical(stream.peer_addr().ok()?));
    let local = OriginalDst(canonical(stream.local_addr().ok()?));
    Some((client, local))
}

pub(super) fn open(
    pod: &PodProxy,
    direction: Direction,
    client: ClientAddr,
    destination: OriginalDst,
) -> Record {
    pod.node.telemetry.open(Opened {
        id: ConnectionId::next(),
        direction,
        pod: Arc::clone(&pod.enrolled.pod),
        client,
        destination,
    })
}
