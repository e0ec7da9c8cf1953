//! Checks of the sockets that are offered as a pod's listeners. The map takes nearly any socket; one
//! that does not listen, or listens in another namespace, would lose or mix connections.

use std::os::fd::{AsRawFd, BorrowedFd};

use underpass_common::{ListenerKey, listener};

use super::BpfError;
use super::kernel::Listeners;
use crate::model::NetnsCookie;

/// Each slot of the map with what goes into it, checked.
pub(super) fn slots<'a>(
    pod: NetnsCookie,
    listeners: &Listeners<'a>,
) -> Result<Vec<(ListenerKey, Option<BorrowedFd<'a>>)>, BpfError> {
    let offered = [
        (listener::OUTBOUND, 4, "outbound IPv4", listeners.outbound_v4),
        (listener::OUTBOUND, 6, "outbound IPv6", listeners.outbound_v6),
        (listener::PLAINTEXT, 4, "plaintext IPv4", listeners.plaintext_v4),
        (listener::PLAINTEXT, 6, "plaintext IPv6", listeners.plaintext_v6),
        (listener::HBONE, 4, "HBONE IPv4", listeners.hbone_v4),
        (listener::HBONE, 6, "HBONE IPv6", listeners.hbone_v6),
    ];
    let mut slots = Vec::with_capacity(offered.len());
    for (kind, family, name, socket) in offered {
        if let Some(socket) = socket {
            check(pod, kind, family, socket).map_err(|why| BpfError::BadListener { pod, kind: name, why })?;
        }
        slots.push((ListenerKey { netns: pod.0, kind, family }, socket));
    }
    Ok(slots)
}

fn check(pod: NetnsCookie, kind: u32, family: u32, socket: BorrowedFd<'_>) -> Result<(), String> {
    let domain = option(socket, libc::SOL_SOCKET, libc::SO_DOMAIN)?;
    let suits = match (family, domain) {
        (4, libc::AF_INET) | (6, libc::AF_INET6) => true,
        (4, libc::AF_INET6) => option(socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)? == 0,
        _ => false,
    };
    if !suits {
        return Err("it is of the other address family".to_owned());
    }
    if option(socket, libc::SOL_SOCKET, libc::SO_PROTOCOL)? != libc::IPPROTO_TCP
        || option(socket, libc::SOL_SOCKET, libc::SO_ACCEPTCONN)? != 1
    {
        return Err("it is not a listening TCP socket".to_owned());
    }
    let found = cookie(socket)?;
    if found != pod.0 {
        return Err(format!("it listens in network namespace {found}"));
    }
    // Answers to a captured connection come from the address that was dialled, which is foreign.
    let transparent = match domain {
        libc::AF_INET => option(socket, libc::SOL_IP, libc::IP_TRANSPARENT)?,
        _ => option(socket, libc::SOL_IPV6, libc::IPV6_TRANSPARENT)?,
    };
    if kind == listener::OUTBOUND && transparent != 1 {
        return Err("it is not transparent (IP_TRANSPARENT)".to_owned());
    }
    Ok(())
}

fn option(socket: BorrowedFd<'_>, level: i32, name: i32) -> Result<i32, String> {
    let mut value = 0i32;
    read(socket, level, name, &mut value).map(|()| value)
}

fn cookie(socket: BorrowedFd<'_>) -> Result<u64, String> {
    let mut value = 0u64;
    read(socket, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, &mut value).map(|()| value)
}

fn read<T>(socket: BorrowedFd<'_>, level: i32, name: i32, value: &mut T) -> Result<(), String> {
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is an integer of `length` bytes, which the kernel writes at most.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, std::ptr::from_mut(value).cast(), &mut length)
    };
    if result == 0 {
        Ok(())
    } else {
        Err(format!("getsockopt({level}, {name}): {}", std::io::Error::last_os_error()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::AsFd;

    use super::*;

    fn own() -> NetnsCookie {
        NetnsCookie(cookie(UdpSocket::bind("127.0.0.1:0").unwrap().as_fd()).unwrap())
    }

    #[test]
    fn only_listening_tcp_sockets_of_the_pod_are_taken() {
        let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let connected = std::net::TcpStream::connect(v4.local_addr().unwrap()).unwrap();
        let elsewhere = NetnsCookie(own().0 + 1_000_000);
        for (what, pod, kind, family, socket, expected) in [
            ("fine", own(), listener::PLAINTEXT, 4, v4.as_fd(), ""),
            ("opaque", own(), listener::OUTBOUND, 4, v4.as_fd(), "not transparent"),
            ("wrong family", own(), listener::PLAINTEXT, 6, v4.as_fd(), "other address family"),
            ("UDP", own(), listener::PLAINTEXT, 4, udp.as_fd(), "not a listening"),
            ("connected", own(), listener::PLAINTEXT, 4, connected.as_fd(), "not a listening"),
            ("elsewhere", elsewhere, listener::PLAINTEXT, 4, v4.as_fd(), "listens in network namespace"),
        ] {
            match check(pod, kind, family, socket) {
                Ok(()) => assert_eq!(expected, "", "{what}"),
                Err(why) => assert!(!expected.is_empty() && why.contains(expected), "{what}: {why}"),
            }
        }
    }
}
