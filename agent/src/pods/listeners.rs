//! The agent's listening sockets inside one pod's namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use socket2::Socket;
use tokio::net::TcpListener;

use crate::bpf::{self, BpfError, Kernel};
use crate::model::ports;
use crate::sys::SysError;
use crate::sys::netns::Netns;
use crate::sys::socket::{self, ListenOptions};

/// One pod's listeners; closing them makes the kernel refuse what they took.
#[derive(Debug)]
pub struct Listeners {
    outbound: Family,
    plaintext: Family,
    hbone: Family,
}

/// A listener for each address family that the namespace has.
#[derive(Debug)]
struct Family {
    v4: Socket,
    v6: Option<Socket>,
}

/// The same, ready to accept.
#[derive(Debug)]
pub struct Accepting {
    pub outbound: Vec<TcpListener>,
    pub plaintext: Vec<TcpListener>,
    pub hbone: Vec<TcpListener>,
}

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen in the pod: {0}")]
    Sys(#[from] SysError),
    #[error("port {port} is taken inside the pod; stop what holds it (ss -ltnp there shows it): {source}")]
    Taken { port: u16, source: SysError },
    #[error(transparent)]
    Kernel(#[from] BpfError),
    #[error("cannot hand the listener to the runtime: {0}")]
    Runtime(#[from] io::Error),
}

impl Listeners {
    /// Opens all of them. Each is the agent's own (by socket storage) before it is bound, since binds
    /// by others to these ports are refused.
    pub fn open(netns: &Netns, kernel: &dyn Kernel) -> Result<Self, ListenError> {
        let loopback = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
        let any = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        let steered = ListenOptions { transparent: true, dual_stack: false };
        netns.run(|| {
            Ok(Self {
                outbound: Family::open(kernel, loopback, ports::OUTBOUND, steered)?,
                plaintext: Family::open(kernel, loopback, ports::PLAINTEXT, steered)?,
                hbone: Family::open(kernel, any, ports::HBONE, ListenOptions::default())?,
            })
        })?
    }

    /// What the kernel programs steer to.
    pub fn as_kernel(&self) -> bpf::Listeners<'_> {
        bpf::Listeners {
            outbound_v4: Some(self.outbound.v4.as_fd()),
            outbound_v6: self.outbound.v6(),
            plaintext_v4: Some(self.plaintext.v4.as_fd()),
            plaintext_v6: self.plaintext.v6(),
            hbone_v4: Some(self.hbone.v4.as_fd()),
            hbone_v6: self.hbone.v6(),
        }
    }

    /// Hands them to the tokio runtime of the caller.
    pub fn accepting(self) -> Result<Accepting, ListenError> {
        Ok(Accepting {
            outbound: self.outbound.accepting()?,
            plaintext: self.plaintext.accepting()?,
            hbone: self.hbone.accepting()?,
        })
    }
}

impl Family {
    fn open(
        kernel: &dyn Kernel,
        (v4, v6): (IpAddr, IpAddr),
        port: u16,
        options: ListenOptions,
    ) -> Result<Self, ListenError> {
        let v4 = open_one(kernel, SocketAddr::new(v4, port), options)?;
        let v6 = match open_one(kernel, SocketAddr::new(v6, port), options) {
            Ok(socket) => Some(socket),
            // The kernel or the namespace has IPv6 switched off.
            Err(ListenError::Sys(e)) if is_without_ipv6(&e) => None,
            Err(e) => return Err(e),
        };
        Ok(Self { v4, v6 })
    }

    fn v6(&self) -> Option<BorrowedFd<'_>> {
        self.v6.as_ref().map(AsFd::as_fd)
    }

    fn accepting(self) -> Result<Vec<TcpListener>, io::Error> {
        [Some(self.v4), self.v6].into_iter().flatten().map(|s| TcpListener::from_std(s.into())).collect()
    }
}

fn open_one(kernel: &dyn Kernel, addr: SocketAddr, options: ListenOptions) -> Result<Socket, ListenError> {
    let socket = socket::tcp(addr.ip())?;
    kernel.own(socket.as_fd())?;
    match socket::listen(&socket, addr, options) {
        Ok(()) => Ok(socket),
        Err(source) if source.raw_os_error() == Some(libc::EADDRINUSE) => {
            Err(ListenError::Taken { port: addr.port(), source })
        }
        Err(e) => Err(e.into()),
    }
}

fn is_without_ipv6(e: &SysError) -> bool {
    matches!(e.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT))
}
