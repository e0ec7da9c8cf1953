//! Sockets with the options that a transparent proxy needs. All of them are non-blocking and close on
//! exec; those for a pod are made inside [`super::netns::Netns::run`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use super::{Named, SysError};

/// How long a silent connection lives, as ztunnel has it: 180 s, then 9 probes 180 s apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    pub idle: Duration,
    pub interval: Duration,
    pub probes: u32,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { idle: Duration::from_secs(180), interval: Duration::from_secs(180), probes: 9 }
    }
}

/// A TCP socket, not yet bound, for either purpose.
pub fn tcp(family_of: IpAddr) -> Result<Socket, SysError> {
    let domain = if family_of.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))
        .named("socket", || format!("{domain:?}"))?;
    Ok(socket)
}

/// What a listener needs besides its address.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListenOptions {
    /// Accept connections whose destination is not local (IP_TRANSPARENT).
    pub transparent: bool,
    /// An IPv6 wildcard that takes IPv4 too.
    pub dual_stack: bool,
}

/// Makes `socket` a listener at `addr`. SO_REUSEADDR is set, SO_REUSEPORT is not: nobody may join.
pub fn listen(socket: &Socket, addr: SocketAddr, options: ListenOptions) -> Result<(), SysError> {
    let what = || addr.to_string();
    socket.set_reuse_address(true).named("setsockopt SO_REUSEADDR", what)?;
    if addr.is_ipv6() {
        socket.set_only_v6(!options.dual_stack).named("setsockopt IPV6_V6ONLY", what)?;
    }
    if options.transparent {
        set_transparent(socket, addr.ip())?;
    }
    socket.bind(&addr.into()).named("bind", what)?;
    socket.listen(BACKLOG).named("listen", what)?;
    Ok(())
}

/// The kernel cuts it to net.core.somaxconn.
const BACKLOG: i32 = 65_535;

/// IP_TRANSPARENT or IPV6_TRANSPARENT: bind to, and answer from, addresses that are not local.
pub fn set_transparent(socket: &Socket, family_of: IpAddr) -> Result<(), SysError> {
    if family_of.is_ipv4() {
        socket.set_ip_transparent_v4(true).named("setsockopt IP_TRANSPARENT", String::new)
    } else {
        set_flag(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, "setsockopt IPV6_TRANSPARENT")
    }
}

/// Leaves the choice of the port to connect(2), where the whole four-tuple counts: many connections
/// from one client address share the ephemeral range.
pub fn set_bind_no_port(socket: &Socket) -> Result<(), SysError> {
    // The option lives at the IP level for both families.
    set_flag(
        socket.as_fd(),
        libc::IPPROTO_IP,
        libc::IP_BIND_ADDRESS_NO_PORT,
        "setsockopt IP_BIND_ADDRESS_NO_PORT",
    )
}

/// SO_MARK.
pub fn set_mark(socket: &Socket, mark: u32) -> Result<(), SysError> {
    socket.set_mark(mark).named("setsockopt SO_MARK", || format!("{mark:#x}"))
}

/// Nagle off, keepalive on: what every connection of the agent has.
pub fn tune(socket: BorrowedFd<'_>, keepalive: Keepalive) -> Result<(), SysError> {
    let s = SockRef::from(&socket);
    s.set_tcp_nodelay(true).named("setsockopt TCP_NODELAY", String::new)?;
    let params = TcpKeepalive::new()
        .with_time(keepalive.idle)
        .with_interval(keepalive.interval)
        .with_retries(keepalive.probes);
    s.set_tcp_keepalive(&params).named("setsockopt SO_KEEPALIVE", String::new)
}

/// Makes the coming close send RST instead of FIN.
pub fn reset_on_close(socket: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&socket).set_linger(Some(Duration::ZERO))
}

/// Begins to connect; the caller waits for writability and then asks [`take_error`].
pub fn start_connect(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    match socket.connect(&SockAddr::from(to)) {
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        other => other,
    }
}

fn set_flag(fd: BorrowedFd<'_>, level: i32, option: i32, call: &'static str) -> Result<(), SysError> {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads one int from `on`.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if rc == 0 { Ok(()) } else { Err(SysError::new(call, "", io::Error::last_os_error())) }
}
