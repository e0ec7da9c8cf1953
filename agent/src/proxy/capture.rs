//! The first stage: who is there, and where did they want to go.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::node::PodProxy;
use crate::bpf::BpfError;
use crate::model::{Cause, ClientAddr, ConnectionId, Direction, LocalPod, OriginalDst, ports};
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
    let refusal = not_outbound(&pod.enrolled.pod, client, &asked);
    Some(finish(stream, client, destination, record, refusal))
}

/// A plaintext connection from outside the pod, steered here because a policy must see it.
pub fn plaintext(pod: &PodProxy, stream: TcpStream) -> Option<Result<Captured, Refused>> {
    let (client, destination) = ends(&stream)?;
    let record = open(pod, Direction::Inbound, client, destination);
    let refusal = not_inbound(&pod.enrolled.pod, destination);
    Some(finish(stream, client, destination, record, refusal))
}

type Refusal = Option<(Cause, String)>;

/// Why this is no connection that the pod's application made.
fn not_outbound(pod: &LocalPod, client: ClientAddr, asked: &Result<OriginalDst, BpfError>) -> Refusal {
    let destination = match asked {
        Ok(destination) => destination,
        Err(e) => return Some((Cause::Loop, format!("not a captured connection: {e}"))),
    };
    if destination.ip().is_loopback() {
        // Captured connections never have such a destination: somebody dialled the listener itself.
        return Some((Cause::Loop, format!("{destination} is the agent's own listener")));
    }
    if !pod.owns(client.ip()) && !client.ip().is_loopback() {
        return Some((Cause::SpoofedSource, format!("{} is not an address of this pod", client.ip())));
    }
    None
}

/// Why this is no plaintext connection to the pod's application.
fn not_inbound(pod: &LocalPod, destination: OriginalDst) -> Refusal {
    if !pod.owns(destination.ip()) {
        return Some((Cause::Loop, format!("{destination} is not an address of this pod")));
    }
    if ports::ALL.contains(&destination.port()) {
        return Some((Cause::BadTarget, format!("{} is one of the agent's own ports", destination.port())));
    }
    None
}

fn finish(
    stream: TcpStream,
    client: ClientAddr,
    destination: OriginalDst,
    record: Record,
    refusal: Refusal,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NetnsCookie;

    fn pod() -> LocalPod {
        LocalPod {
            uid: crate::model::PodUid("p".into()),
            namespace: "shop".into(),
            name: "cart".into(),
            identity: "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap(),
            netns: "/run/netns/p".into(),
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        }
    }

    fn cause(refusal: Refusal) -> Option<Cause> {
        refusal.map(|(cause, _)| cause)
    }

    #[test]
    fn only_the_pods_own_dials_are_outbound() {
        for (client, to, expected) in [
            ("10.0.0.1:4000", "10.0.0.2:80", None),
            ("[fd00::1]:4000", "[fd00::2]:80", None),
            // Bound to loopback, and captured by the mark: the way back is inside the pod all the same.
            ("127.0.0.1:4000", "10.0.0.2:80", None),
            ("10.0.0.9:4000", "10.0.0.2:80", Some(Cause::SpoofedSource)),
            ("[fd00::9]:4000", "[fd00::2]:80", Some(Cause::SpoofedSource)),
            ("127.0.0.1:4000", "127.0.0.1:15001", Some(Cause::Loop)),
            ("[::1]:4000", "[::1]:15001", Some(Cause::Loop)),
        ] {
            let asked = Ok(OriginalDst(to.parse().unwrap()));
            let refusal = not_outbound(&pod(), ClientAddr(client.parse().unwrap()), &asked);
            assert_eq!(cause(refusal), expected, "{client} to {to}");
        }
        let local = "[fd75:6e64:6572::1]:20000".parse().unwrap();
        let unknown = Err(BpfError::UnknownConnection { pod: NetnsCookie(7), local });
        let client = ClientAddr("[fd00::1]:4000".parse().unwrap());
        assert_eq!(cause(not_outbound(&pod(), client, &unknown)), Some(Cause::Loop), "nobody was captured");
    }

    #[test]
    fn plaintext_is_for_the_pods_own_addresses_and_ports() {
        for (to, expected) in [
            ("10.0.0.1:80", None),
            ("[fd00::1]:80", None),
            ("10.0.0.2:80", Some(Cause::Loop)),
            ("127.0.0.1:15006", Some(Cause::Loop)),
            ("10.0.0.1:15001", Some(Cause::BadTarget)),
            ("10.0.0.1:15006", Some(Cause::BadTarget)),
            ("[fd00::1]:15008", Some(Cause::BadTarget)),
        ] {
            let to = OriginalDst(to.parse().unwrap());
            assert_eq!(cause(not_inbound(&pod(), to)), expected, "{to}");
        }
    }
}
