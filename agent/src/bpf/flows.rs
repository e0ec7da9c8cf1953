//! Flows that were left alone, from the ring to the reader.

use std::net::SocketAddr;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
#[cfg(test)]
use tokio::sync::mpsc;
use underpass_common::{Addr16, FlowEvent, flow_direction};

use super::BpfError;
use crate::model::{Direction, NetnsCookie};

/// A TCP connection of an enrolled pod that was left alone and has closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    pub pod: NetnsCookie,
    /// Outbound when the pod dialled.
    pub direction: Direction,
    /// The pod's end.
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// Bytes of data that the other side acknowledged.
    pub sent: u64,
    /// Bytes of data that arrived. An aborted connection may be off by one.
    pub received: u64,
    /// From the handshake to the close.
    pub duration: Duration,
}

/// The stream of [`super::Kernel::flows`].
pub struct Flows {
    source: Source,
}

enum Source {
    Ring(Box<AsyncFd<RingBuf<MapData>>>),
    #[cfg(test)]
    Channel(mpsc::Receiver<Flow>),
}

impl Flows {
    /// The next flow. `None` never comes from a kernel; it ends a test's stream. Cancel safe.
    pub async fn next(&mut self) -> Option<Flow> {
        match &mut self.source {
            Source::Ring(ring) => loop {
                if let Some(flow) = take(ring.get_mut()) {
                    return Some(flow);
                }
                match ring.readable_mut().await {
                    Ok(mut guard) => {
                        // The ring is read to its end before the readiness is given back, or an event
                        // that came in between would wait for the one after it.
                        if let Some(flow) = take(guard.get_inner_mut()) {
                            return Some(flow);
                        }
                        guard.clear_ready();
                    }
                    Err(error) => {
                        tracing::error!(%error, "the ring of flows cannot be waited for");
                        return None;
                    }
                }
            },
            #[cfg(test)]
            Source::Channel(receiver) => receiver.recv().await,
        }
    }

    #[cfg(test)]
    pub(super) fn from_channel(receiver: mpsc::Receiver<Flow>) -> Self {
        Self { source: Source::Channel(receiver) }
    }
}

pub(super) fn read(ring: RingBuf<MapData>) -> Result<Flows, BpfError> {
    // SAFETY: the ring owns its map's descriptor, which stays the same and open until both are
    // dropped together.
    let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
    ring.map(|ring| Flows { source: Source::Ring(Box::new(ring)) }).map_err(|e| BpfError::Call {
        call: "epoll",
        object: "the ring of flows".to_owned(),
        source: e.into(),
    })
}

/// The next well-formed event.
fn take(ring: &mut RingBuf<MapData>) -> Option<Flow> {
    while let Some(item) = ring.next() {
        if let Some(flow) = decode(&item) {
            return Some(flow);
        }
        tracing::warn!(bytes = item.len(), "an event of the kernel programs has an unknown shape");
    }
    None
}

fn decode(bytes: &[u8]) -> Option<Flow> {
    if bytes.len() != size_of::<FlowEvent>() {
        return None;
    }
    // SAFETY: the length was checked, every bit pattern is a FlowEvent, and nothing is assumed of the
    // alignment.
    let event = unsafe { bytes.as_ptr().cast::<FlowEvent>().read_unaligned() };
    let direction = match event.direction {
        flow_direction::OUTBOUND => Direction::Outbound,
        flow_direction::INBOUND => Direction::Inbound,
        _ => return None,
    };
    let end = |address: Addr16, port| SocketAddr::new(address.to_ip(), port);
    Some(Flow {
        pod: NetnsCookie(event.netns),
        direction,
        local: end(event.local, event.local_port),
        remote: end(event.remote, event.remote_port),
        sent: event.sent,
        received: event.received,
        duration: Duration::from_nanos(event.duration),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_decoded_and_malformed_ones_are_not() {
        let event = FlowEvent {
            netns: 7,
            started: 1,
            duration: 2_000_000_000,
            sent: 10,
            received: 20,
            local: Addr16::from_v4([10, 0, 0, 1]),
            remote: Addr16::from_ip("fd00::2".parse().unwrap()),
            local_port: 40000,
            remote_port: 80,
            direction: flow_direction::INBOUND,
            pad: [0; 3],
        };
        // SAFETY: the type has no padding.
        let mut bytes: [u8; size_of::<FlowEvent>()] = unsafe { std::mem::transmute(event) };
        let flow = decode(&bytes).unwrap();
        assert_eq!(flow.local, "10.0.0.1:40000".parse().unwrap());
        assert_eq!(flow.remote, "[fd00::2]:80".parse().unwrap());
        assert_eq!((flow.pod, flow.direction), (NetnsCookie(7), Direction::Inbound));
        assert_eq!((flow.sent, flow.received, flow.duration), (10, 20, Duration::from_secs(2)));

        assert_eq!(decode(&bytes[1..]), None, "short");
        let direction = std::mem::offset_of!(FlowEvent, direction);
        bytes[direction] = 9;
        assert_eq!(decode(&bytes), None, "no such direction");
    }
}
