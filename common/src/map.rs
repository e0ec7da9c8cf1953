//! Keys and values of the maps, in the order in which a connection meets them.

use crate::{Addr16, crosses};

/// One enrolled pod. Key: the cookie of its network namespace (`u64`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodRow {
    /// See [`capture`].
    pub capture: u8,
    /// What happens to an inbound connection whose port has no row of its own: see [`inbound`].
    pub inbound_default: u8,
    /// The agent's port for tunnels: what comes to it from outside goes to the agent's listener.
    pub hbone_port: u16,
    /// The agent's other ports in this namespace, for which others may not bind; 0 is none.
    pub guarded_ports: [u16; 2],
    /// What a captured socket's mark becomes within `mark_mask`.
    pub mark: u32,
    /// The mark of the agent's own deliveries that keep the client's address as source.
    pub return_mark: u32,
    pub mark_mask: u32,
}

crosses!(PodRow, size 20, align 4, capture at 0, inbound_default at 1, hbone_port at 2,
    guarded_ports at 4, mark at 8, return_mark at 12, mark_mask at 16);

/// How a pod's outgoing connections are captured.
pub mod capture {
    /// Not at all: only what comes in is judged.
    pub const NONE: u8 = 0;
    /// By a mark, a rule and a local route: the connection keeps its true addresses.
    pub const MARK: u8 = 1;
    /// By a loopback address of its own for each connection, where a namespace cannot have the rule.
    pub const LOOPBACK: u8 = 2;
}

/// "This address is this pod's own." The value (`u8`) is 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OwnAddressKey {
    pub netns: u64,
    pub address: Addr16,
}

crosses!(OwnAddressKey, size 24, align 8, netns at 0, address at 8);

/// What is known of a destination address (a `u8`).
pub mod destination {
    /// Not the mesh's: the connection is left alone.
    pub const LEAVE: u8 = 1;
    /// The mesh's: the agent takes it.
    pub const CAPTURE: u8 = 2;
}

/// Which of the agent's listeners in which namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    pub netns: u64,
    /// See [`listener`].
    pub kind: u32,
    /// 4 or 6: a listener of one family cannot be given a packet of the other.
    pub family: u32,
}

crosses!(ListenerKey, size 16, align 8, netns at 0, kind at 8, family at 12);

/// The agent's listeners in a pod's namespace.
pub mod listener {
    /// Takes captured connections of the pod.
    pub const OUTBOUND: u32 = 1;
    /// Takes plaintext that arrives from outside and must be judged.
    pub const PLAINTEXT: u32 = 2;
    /// Takes tunnels.
    pub const HBONE: u32 = 3;
}

/// An inbound port that has a rule of its own. The value (`u8`) is one of [`inbound`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InboundKey {
    pub netns: u64,
    pub port: u16,
    pub pad: [u16; 3],
}

crosses!(InboundKey, size 16, align 8, netns at 0, port at 8, pad at 10);

impl InboundKey {
    pub const fn new(netns: u64, port: u16) -> Self {
        Self { netns, port, pad: [0; 3] }
    }
}

/// What happens to a plaintext connection from outside.
pub mod inbound {
    pub const DROP: u8 = 0;
    pub const PASS: u8 = 1;
    pub const STEER: u8 = 2;
}

/// Whose a socket is (`u32`, in storage that only the agent writes).
pub mod own_socket {
    pub const AGENT: u32 = 1;
}

/// What a captured socket remembers, in its storage. Whoever has it may leave by lo only.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured {
    /// The namespace in which it was captured.
    pub netns: u64,
    /// Where the application dialled to.
    pub address: Addr16,
    /// Host byte order.
    pub port: u16,
    /// See [`capture`].
    pub mode: u8,
    /// 4 or 6: the family the application dialled in, for [`capture::LOOPBACK`].
    pub family: u8,
    /// Counts this socket's captured dials: the next one gets another loopback port, so that two
    /// destinations of one socket are never mistaken for each other.
    pub dials: u32,
    /// The loopback address and port the connection was sent to; zero unless [`capture::LOOPBACK`].
    pub loopback: Addr16,
    pub loopback_port: u16,
    /// 1 while the loopback address has its row.
    pub announced: u8,
    pub pad: u8,
    /// The mask in which the socket's mark was changed, to undo it.
    pub mark_mask: u32,
}

crosses!(Captured, size 56, align 8, netns at 0, address at 8, port at 24, mode at 26, family at 27,
    dials at 28, loopback at 32, loopback_port at 48, announced at 50, pad at 51,
    mark_mask at 52);

/// What a counted flow remembers, in its socket's storage.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowState {
    pub netns: u64,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub started: u64,
    /// `bytes_received` when the own FIN was acknowledged.
    pub received_at_fin: u64,
    /// See [`crate::flow_direction`].
    pub direction: u8,
    /// 1 once the peer's FIN was seen.
    pub peer_fin: u8,
    pub pad: [u16; 3],
}

crosses!(FlowState, size 32, align 8, netns at 0, started at 8, received_at_fin at 16,
    direction at 24, peer_fin at 25, pad at 26);

/// A connection that the agent delivers to an application with the client's address as source, which
/// `sk_lookup` cannot tell from one that comes from the client. The value (`u8`) is 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeliveryKey {
    pub netns: u64,
    /// The application's end.
    pub local: Addr16,
    /// The client's address, bound by the agent.
    pub remote: Addr16,
    /// Host byte order.
    pub local_port: u16,
    /// Host byte order.
    pub remote_port: u16,
    pub pad: u32,
}

crosses!(DeliveryKey, size 48, align 8, netns at 0, local at 8, remote at 24, local_port at 40,
    remote_port at 42, pad at 44);

/// Indices of the per-CPU counters (`u64`).
pub mod counter {
    /// Flow events that found the ring full.
    pub const FLOWS_LOST: u32 = 0;
    /// Outgoing connections handed to the agent.
    pub const CAPTURED: u32 = 1;
    /// Outgoing connections refused because the agent's listener was away.
    pub const REFUSED_NO_LISTENER: u32 = 2;
    /// Outgoing connections refused because their socket could not be captured: bound to a device by
    /// someone who must not undo it, out of memory, or out of loopback addresses.
    pub const REFUSED_UNCAPTURABLE: u32 = 3;
    /// Packets of captured connections that would have left by another interface than lo.
    pub const GUARD_DROPPED: u32 = 4;
    /// Plaintext connections from outside that were dropped because none is allowed.
    pub const INBOUND_DROPPED: u32 = 5;
    /// Connection attempts dropped because the agent's listener was away.
    pub const NO_LISTENER_DROPPED: u32 = 6;
    /// Binds to the agent's ports by others.
    pub const BIND_REFUSED: u32 = 7;
    pub const COUNT: u32 = 8;
}
