//! Addresses with their role in the type, so that two of them cannot be swapped unnoticed.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

macro_rules! role {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub SocketAddr);

        impl $name {
            /// The address without the port; a v4-mapped IPv6 address is given as IPv4.
            pub fn ip(&self) -> IpAddr {
                self.0.ip().to_canonical()
            }

            pub fn port(&self) -> u16 {
                self.0.port()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

role!(
    /// Who opened the connection, as the network saw it: the client pod's address and port.
    ClientAddr
);
role!(
    /// Where the application wanted to go: a pod, a service's VIP, or anything else.
    OriginalDst
);
role!(
    /// Where the tunnel's own TCP connection goes: the peer's HBONE listener, or a gateway's.
    NextHop
);
role!(
    /// Where the application listens: the pod's address and the target port.
    AppAddr
);

/// The kernel's name for a network namespace (`SO_NETNS_COOKIE`): never reused while the machine is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsCookie(pub u64);

impl fmt::Display for NetnsCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
