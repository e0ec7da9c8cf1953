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
    pub pad: [u16; 3],
}

crosses!(LoopbackKey, size 32, align 8, netns at 0, address at 8, port at 24, pad at 26);

/// Where the application dialled to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopbackValue {
    pub address: Addr16,
    /// Host byte order.
    pub port: u16,
    pub pad: [u16; 3],
}

crosses!(LoopbackValue, size 24, align 4, address at 0, port at 16, pad at 18);

impl LoopbackKey {
    /// As a map takes it.
    pub fn to_bytes(self) -> [u8; size_of::<Self>()] {
        let mut bytes = [0; size_of::<Self>()];
        bytes[..8].copy_from_slice(&self.netns.to_ne_bytes());
        bytes[8..24].copy_from_slice(&self.address.0);
        bytes[24..26].copy_from_slice(&self.port.to_ne_bytes());
        bytes
    }
}

impl LoopbackValue {
    /// As a map gives it.
    pub fn from_bytes(bytes: [u8; size_of::<Self>()]) -> Self {
        let mut address = [0; 16];
        address.copy_from_slice(&bytes[..16]);
        Self { address: Addr16(address), port: u16::from_ne_bytes([bytes[16], bytes[17]]), pad: [0; 3] }
    }
}
