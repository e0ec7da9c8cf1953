//! Opens the agent's own connections, inside the pod's namespace.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};

use crate::bpf::Kernel;
use crate::sys::netns::Netns;
use crate::sys::{SysError, socket};

/// What a dial needs to know of the pod it is made for.
#[derive(Clone, Copy)]
pub struct Dialer<'a> {
    pub netns: &'a Netns,
    pub kernel: &'a dyn Kernel,
    pub timeout: Duration,
    pub keepalive: socket::Keepalive,
}

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Our side: no descriptors, no memory, a missing capability.
    #[error("cannot prepare a socket: {0}")]
    Prepare(#[from] SysError),
    #[error("cannot mark the socket as the agent's: {0}")]
    Own(String),
    /// Their side, or the way there.
    #[error("connect to {to}: {source}")]
    Connect { to: SocketAddr, source: io::Error },
    #[error("connect to {to}: no answer in {after:?}")]
    Timeout { to: SocketAddr, after: Duration },
    #[error(
        "every port for connections from {client} to {to} is taken in the pod; widen its \
         net.ipv4.ip_local_port_range"
    )]
    NoPort { to: SocketAddr, client: IpAddr },
}

impl Dialer<'_> {
    /// A connection from the pod's own address.
    pub async fn as_pod(&self, to: SocketAddr, source: Option<IpAddr>) -> Result<TcpStream, DialError> {
        let socket = self.socket(to)?;
        if let Some(ip) = source {
            socket::set_bind_no_port(&socket)?;
            bind(&socket, ip)?;
        }
        self.connect(socket, to).await
    }

    /// A connection to the pod's application that bears `client`'s address (the port is ours to choose).
    /// Answers find their way back by the mark that the accepted socket inherits.
    ///
    /// The client had its own namespace's ports to dial from, so the range of this pod's must not limit
    /// it: when that is used up, ports are taken from [`SPARE`].
    pub async fn as_client(&self, to: SocketAddr, client: IpAddr) -> Result<TcpStream, DialError> {
        let socket = self.client_socket(to, client)?;
        socket::set_bind_no_port(&socket)?;
        bind(&socket, client)?;
        match self.connect(socket, to).await {
            Err(e) if e.is_out_of_ports() => {}
            done => return done,
        }
        for _ in 0..ATTEMPTS {
            let socket = self.client_socket(to, client)?;
            // Shared with the same client's connections to other ports, and with whoever listens there.
            socket.set_reuse_address(true).map_err(|e| SysError::new("setsockopt SO_REUSEADDR", "", e))?;
            if socket.bind(&SocketAddr::new(client, spare_port()).into()).is_err() {
                continue;
            }
            match self.connect(socket, to).await {
                Err(e) if e.is_out_of_ports() => {}
                done => return done,
            }
        }
        Err(DialError::NoPort { to, client })
    }

    fn client_socket(&self, to: SocketAddr, client: IpAddr) -> Result<socket2::Socket, DialError> {
        let socket = self.socket(to)?;
        socket::set_transparent(&socket, client)?;
        socket::set_mark(&socket, underpass_common::RETURN_MARK)?;
        Ok(socket)
    }

    fn socket(&self, to: SocketAddr) -> Result<socket2::Socket, DialError> {
        let socket = self.netns.run(|| socket::tcp(to.ip()))??;
        self.kernel.own(socket.as_fd()).map_err(|e| DialError::Own(e.to_string()))?;
        socket::tune(socket.as_fd(), self.keepalive)?;
        Ok(socket)
    }

    async fn connect(&self, socket: socket2::Socket, to: SocketAddr) -> Result<TcpStream, DialError> {
        let connecting = TcpSocket::from_std_stream(socket.into()).connect(to);
        match tokio::time::timeout(self.timeout, connecting).await {
            Ok(done) => done.map_err(|source| DialError::Connect { to, source }),
            Err(_) => Err(DialError::Timeout { to, after: self.timeout }),
        }
    }
}

impl DialError {
    /// The four-tuple, or every one that the kernel may choose, is in use.
    fn is_out_of_ports(&self) -> bool {
        matches!(self, Self::Connect { source, .. } if source.kind() == io::ErrorKind::AddrNotAvailable)
    }
}

/// From the kernel's usual range upward: where nobody expects a port to be free for listening.
const SPARE: std::ops::Range<u16> = 32_768..u16::MAX;

/// With nine ports of ten in use, one dial in a thousand fails.
const ATTEMPTS: usize = 64;

/// The port that was given out longest ago.
fn spare_port() -> u16 {
    static TURN: AtomicU32 = AtomicU32::new(0);
    spare_port_at(TURN.fetch_add(1, Ordering::Relaxed))
}

/// Every port once before any comes again, and never long in one part of them: the kernel's own range may
/// be all of that part.
fn spare_port_at(turn: u32) -> u16 {
    // Without a common divisor with the length.
    const STRIDE: u64 = 12_347;
    SPARE.start + (u64::from(turn) * STRIDE % SPARE.len() as u64) as u16
}

fn bind(socket: &socket2::Socket, ip: IpAddr) -> Result<(), SysError> {
    socket.bind(&SocketAddr::new(ip, 0).into()).map_err(|e| SysError::new("bind", ip.to_string(), e))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn spare_ports_come_in_turn_and_from_everywhere() {
        let all: BTreeSet<u16> = (0..SPARE.len() as u32).map(spare_port_at).collect();
        assert_eq!((all.len(), all.first()), (SPARE.len(), Some(&SPARE.start)));
        // Outside the kernel's usual range there are few.
        for first in (0..SPARE.len() as u32).step_by(997) {
            let beyond = (first..).take(ATTEMPTS).filter(|turn| spare_port_at(*turn) > 60_999);
            assert!(beyond.count() >= 4, "from turn {first}");
        }
    }
}
