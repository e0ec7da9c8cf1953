//! What the kernel reports upward.

use crate::{Addr16, crosses};

/// A TCP connection of an enrolled pod that was left alone, reported when it closes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEvent {
    pub netns: u64,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub started: u64,
    /// Nanoseconds.
    pub duration: u64,
    /// Bytes of application data that the peer acknowledged.
    pub sent: u64,
    /// Bytes of application data that arrived in order.
    pub received: u64,
    pub local: Addr16,
    pub remote: Addr16,
    /// Host byte order.
    pub local_port: u16,
    /// Host byte order.
    pub remote_port: u16,
    /// See [`flow_direction`].
    pub direction: u8,
    pub pad: [u8; 3],
}

crosses!(FlowEvent, size 80, align 8, netns at 0, started at 8, duration at 16, sent at 24,
    received at 32, local at 40, remote at 56, local_port at 72, remote_port at 74, direction at 76,
    pad at 77);

/// Who opened a counted flow.
pub mod flow_direction {
    /// The pod.
    pub const OUTBOUND: u8 = 1;
    /// The other side.
    pub const INBOUND: u8 = 2;
}
