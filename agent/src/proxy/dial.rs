//! Opens the agent's own connections, inside the pod's namespace.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
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

    /// A connection to the pod's application that bears `client`'s address (the port is the kernel's
    /// choice). Answers find their way back by the mark that the accepted socket inherits.
    pub async fn as_client(&self, to: SocketAddr, client: IpAddr) -> Result<TcpStream, DialError> {
        let socket = self.socket(to)?;
        socket::set_transparent(&socket, client)?;
        socket::set_mark(&socket, underpass_common::RETURN_MARK)?;
        socket::set_bind_no_port(&socket)?;
        bind(&socket, client)?;
        self.connect(socket, to).await
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

fn bind(socket: &socket2::Socket, ip: IpAddr) -> Result<(), SysError> {
    socket.bind(&SocketAddr::new(ip, 0).into()).map_err(|e| SysError::new("bind", ip.to_string(), e))
}
