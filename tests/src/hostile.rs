//! What a root container may do in its pod's namespace with the capabilities that containers have by
//! default (CAP_NET_RAW, CAP_NET_BIND_SERVICE), and a bit more.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::netns::Netns;
use crate::work::talk;

/// Options that a hostile application sets on its socket before it dials.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tricks<'a> {
    /// SO_MARK before connect.
    pub mark: Option<u32>,
    /// SO_MARK again once connected: what an application does that clears ours.
    pub mark_after: Option<u32>,
    /// SO_BINDTODEVICE.
    pub device: Option<&'a str>,
    /// Binds this source with IP_TRANSPARENT; the address may be anybody's.
    pub source: Option<SocketAddr>,
    /// IPPROTO_MPTCP instead of TCP.
    pub mptcp: bool,
}

const MPTCP: i32 = 262;

/// Dials from inside the namespace with tricks.
pub fn dial(from: &Netns, to: SocketAddr, tricks: Tricks<'_>, patience: Duration) -> io::Result<TcpStream> {
    from.run(|| {
        let protocol = if tricks.mptcp { Protocol::from(MPTCP) } else { Protocol::TCP };
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(protocol))?;
        if let Some(mark) = tricks.mark {
            socket.set_mark(mark)?;
        }
        if let Some(device) = tricks.device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        if let Some(source) = tricks.source {
            transparent(&socket, source.ip())?;
            socket.bind(&source.into())?;
        }
        socket.connect_timeout(&to.into(), patience)?;
        if let Some(mark) = tricks.mark_after {
            socket.set_mark(mark)?;
        }
        let stream = TcpStream::from(socket);
        talk::prepare(&stream, patience)?;
        Ok(stream)
    })
}

/// connect() to AF_UNSPEC: ends the connection, and the socket may dial again.
pub fn disconnect(socket: &impl AsRawFd) -> io::Result<()> {
    let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let length = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the address lives over the call and is as long as it is said to be.
    let done = unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Binds (and listens on) an address inside the namespace; with `share`, SO_REUSEPORT joins whoever is
/// there already, if the kernel allows it.
pub fn bind(inside: &Netns, addr: SocketAddr, share: bool) -> io::Result<Socket> {
    inside.run(|| {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        if share {
            socket.set_reuse_port(true)?;
        }
        socket.bind(&addr.into())?;
        socket.listen(16)?;
        Ok(socket)
    })
}

/// Sends one SYN with a source of the caller's choice, past every socket hook.
pub fn spoof_syn(from: &Netns, source: SocketAddrV4, to: SocketAddrV4) -> io::Result<()> {
    let packet = syn(source, to);
    from.run(|| {
        let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
        raw.set_header_included_v4(true)?;
        raw.send_to(&packet, &SockAddr::from(to)).map(drop)
    })
}

fn transparent(socket: &Socket, family: IpAddr) -> io::Result<()> {
    match family {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true),
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}

/// An IPv4 packet with a bare SYN. The kernel fills in the IP header's checksum, not TCP's.
fn syn(source: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    let mut tcp = vec![];
    tcp.extend(source.port().to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    tcp.extend(0x1234_5678_u32.to_be_bytes());
    tcp.extend([0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let sum = checksum(&tcp, *source.ip(), *to.ip());
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());

    let mut packet = vec![0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0];
    packet.extend(source.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(tcp);
    packet
}

fn checksum(tcp: &[u8], source: Ipv4Addr, to: Ipv4Addr) -> u16 {
    let mut pseudo = vec![];
    pseudo.extend(source.octets());
    pseudo.extend(to.octets());
    pseudo.extend([0, 6]);
    pseudo.extend((tcp.len() as u16).to_be_bytes());
    pseudo.extend(tcp);
    let mut sum: u32 =
        pseudo.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
