//! An IP address of either family in one shape.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::crosses;

/// An address in network byte order, 16 bytes; IPv4 is written as v4-mapped (`::ffff:a.b.c.d`), so
/// that a v4 address dialled on an IPv6 socket is the same key.
///
/// Aligned to words: bytecode moves an address without alignment byte by byte.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr16(pub [u8; 16]);

crosses!(Addr16, size 16, align 4);

impl Addr16 {
    pub const fn from_ip(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped().octets()),
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }

    /// The address in its own family: v4-mapped gives IPv4.
    pub fn to_ip(self) -> IpAddr {
        Ipv6Addr::from(self.0).to_canonical()
    }

    pub const fn from_v4(octets: [u8; 4]) -> Self {
        Self(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).to_ipv6_mapped().octets())
    }
}

impl From<IpAddr> for Addr16 {
    fn from(ip: IpAddr) -> Self {
        Self::from_ip(ip)
    }
}
