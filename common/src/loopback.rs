//! Capture without a rule: every connection gets a loopback address and port of its own, and this map
//! remembers what it stands for until the connection closes.

use crate::{Addr16, crosses};

/// 127.128.0.0/9: the lower 23 bits name the connection.
pub const LOOPBACK4_PREFIX: [u8; 4] = [127, 128, 0, 0];

/// A /64 that the namespace must have as a local route on lo; the lower 64 bits name the connection.
/// A unique local prefix (RFC 4193) with a fixed random part.
pub const LOOPBACK6_PREFIX: [u8; 8] = [0xfd, 0x75, 0x2e, 0x91, 0xc4, 0x0a, 0x7f, 0x01];

/// What the agent's accepted socket has as its local address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LoopbackKey {
    pub netns: u64,
    pub address: Addr16,
    /// Host byte order.
    pub port: u16,
    pub pad: [u8; 6],
}

crosses!(LoopbackKey, size 32, align 8, netns at 0, address at 8, port at 24, pad at 26);

/// Where the application dialled to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopbackValue {
    pub address: Addr16,
    /// Host byte order.
    pub port: u16,
    pub pad: [u8; 6],
}

crosses!(LoopbackValue, size 24, align 2, address at 0, port at 16, pad at 18);
