//! Sockets as applications make them, with what the standard library does not offer.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd};

use socket2::{Domain, Socket, Type};
use underpass_tests::Netns;
use underpass_tests::work::talk;

/// A TCP socket inside the namespace, not yet bound, prepared by `prepare`.
pub fn tcp(
    from: &Netns,
    v6: bool,
    prepare: impl FnOnce(&Socket) -> io::Result<()> + Send,
) -> io::Result<Socket> {
    from.run(|| {
        let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
        let socket = Socket::new(domain, Type::STREAM, None)?;
        prepare(&socket)?;
        Ok(socket)
    })
}

/// Connects a socket with the usual patience.
pub fn connect(socket: Socket, to: SocketAddr) -> io::Result<TcpStream> {
    socket.connect_timeout(&to.into(), talk::DEADLINE)?;
    let stream = TcpStream::from(socket);
    talk::prepare(&stream, talk::DEADLINE)?;
    Ok(stream)
}

/// What a non-blocking connect() itself says: `Err` is a refusal at once, before any packet.
pub fn connect_at_once(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        result => result,
    }
}

/// Whether an error is the refusal of a connect hook: chosen, or what older kernels give.
pub fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ECONNREFUSED | libc::EPERM))
}

/// connect() to AF_UNSPEC: the socket may be used again.
pub fn disconnect(socket: &impl AsRawFd) -> io::Result<()> {
    let unspecified = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    // SAFETY: the kernel reads one sockaddr of the length given.
    let result = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            &raw const unspecified,
            size_of::<libc::sockaddr>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs as uid 65534 without capabilities, on a thread that ends with it.
pub fn as_nobody<T: Send>(inside: &Netns, f: impl FnOnce() -> T + Send) -> T {
    inside.run(|| {
        // The system calls themselves: the C library would change every thread of the process.
        // SAFETY: they take integers. The thread is the closure's own and ends with it.
        let changed = unsafe {
            libc::syscall(libc::SYS_setresgid, 65534, 65534, 65534) == 0
                && libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) == 0
        };
        assert!(changed, "setresuid: {}", io::Error::last_os_error());
        f()
    })
}

/// Sets an integer option.
pub fn set(socket: &impl AsRawFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the kernel reads one int.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// sendto() with MSG_FASTOPEN: connects and sends in one.
pub fn send_fast_open(socket: &Socket, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
    socket.send_to_with_flags(bytes, &to.into(), libc::MSG_FASTOPEN)
}

pub fn mark(socket: &BorrowedFd<'_>) -> io::Result<u32> {
    socket2::SockRef::from(socket).mark()
}
