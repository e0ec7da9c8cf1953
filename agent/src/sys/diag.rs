//! A namespace's TCP sockets, listed and ended (NETLINK_SOCK_DIAG, as `ss` and `ss -K` do), from a thread
//! that is in it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};

use super::{Named, SysError};

/// A TCP socket as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    pub state: TcpState,
    pub local: SocketAddr,
    /// Unspecified while it listens.
    pub remote: SocketAddr,
    /// What BPF programs keep with it, of the maps that were asked for.
    pub storages: Vec<Vec<u8>>,
    family: u8,
    /// `struct inet_diag_sockid`, with the cookie by which the kernel knows it from a later one.
    id: [u8; ID],
}

/// As far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpState {
    /// A handshake has begun from outside; there is no socket yet.
    Requested,
    Listen,
    /// Something may still flow.
    Open,
    /// Dialling, or over.
    Other,
}

/// A conversation with the kernel about the sockets of the namespace of the thread that opens it.
pub struct Diag {
    socket: Socket,
    sequence: u32,
}

impl Diag {
    pub fn open() -> Result<Self, SysError> {
        let what = || "NETLINK_SOCK_DIAG".to_owned();
        let mut socket = Socket::new(NETLINK_SOCK_DIAG).named("socket", what)?;
        socket.bind_auto().named("bind", what)?;
        socket.connect(&NetlinkAddr::new(0, 0)).named("connect", what)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// All of them, each with what it has in `maps` (socket storage).
    pub fn tcp(&mut self, maps: &[BorrowedFd<'_>]) -> Result<Vec<TcpSocket>, SysError> {
        let mut found = Vec::new();
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            let mut body = request(family, u32::MAX, &[0; ID]);
            let fds: Vec<u8> =
                maps.iter().flat_map(|fd| attribute(STORAGE_MAP_FD, &fd.as_raw_fd().to_ne_bytes())).collect();
            if !fds.is_empty() {
                body.extend(attribute(ASK_STORAGES, &fds));
            }
            self.send(LIST, libc::NLM_F_DUMP as u16, &body)
                .and_then(|()| self.answers(|message| found.extend(parse(message))))
                .named("SOCK_DIAG_BY_FAMILY", || format!("TCP, family {family}"))?;
        }
        Ok(found)
    }

    /// Ends the socket, with a reset to the other side. False where it is gone already.
    ///
    /// # Errors
    /// `EOPNOTSUPP` from a kernel without CONFIG_INET_DIAG_DESTROY.
    pub fn destroy(&mut self, socket: &TcpSocket) -> Result<bool, SysError> {
        let body = request(socket.family, u32::MAX, &socket.id);
        match self.send(DESTROY, libc::NLM_F_ACK as u16, &body).and_then(|()| self.answers(|_| ())) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => {
                Err(SysError::new("SOCK_DESTROY", format!("{} from {}", socket.local, socket.remote), e))
            }
        }
    }

    /// Whether sockets can be ended on this kernel.
    pub fn can_destroy() -> Result<bool, SysError> {
        let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let nobody = TcpSocket {
            state: TcpState::Other,
            local: nowhere,
            remote: nowhere,
            storages: Vec::new(),
            family: libc::AF_INET as u8,
            id: [0; ID],
        };
        match Self::open()?.destroy(&nobody) {
            Ok(_) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        self.socket.send(&message, 0).map(|_| ())
    }

    /// Reads until the acknowledgement, the error, or the end of the list.
    fn answers(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = &bytes[..];
            while let Some(length) = u32_at(rest, 0).map(|length| (length as usize).max(HEADER)) {
                let body = rest.get(HEADER..length).unwrap_or_default();
                let (kind, sequence) = (u16_at(rest, 4), u32_at(rest, 8));
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                if sequence != Some(self.sequence) {
                    continue;
                }
                match kind.map(i32::from) {
                    Some(libc::NLMSG_DONE) => return Ok(()),
                    Some(libc::NLMSG_ERROR) => {
                        let code = u32_at(body, 0).map_or(-libc::EBADMSG, |code| code as i32);
                        return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    _ => each(body),
                }
            }
        }
    }
}

/// linux/sock_diag.h, linux/inet_diag.h
const LIST: u16 = 20;
const DESTROY: u16 = 21;
const ASK_STORAGES: u16 = 2;
const STORAGE_MAP_FD: u16 = 1;
const STORAGES: u16 = 20;
const STORAGE: u16 = 1;
const STORAGE_VALUE: u16 = 3;

const HEADER: usize = 16;
const ID: usize = 48;
/// `struct inet_diag_msg`
const MESSAGE: usize = 72;

/// `struct inet_diag_req_v2`
fn request(family: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let mut body = vec![family, libc::IPPROTO_TCP as u8, 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend(id);
    body
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + value.len());
    bytes.extend(((4 + value.len()) as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Kind and value of each attribute.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let (kind, value) = (u16_at(rest, 2)?, rest.get(4..length)?);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        // The upper bits say that it is nested.
        Some((kind & 0x3fff, value))
    })
}

fn parse(message: &[u8]) -> Option<TcpSocket> {
    let (&[family, state, ..], rest) = (message, message.get(MESSAGE..)?) else { return None };
    let id: [u8; ID] = message.get(4..4 + ID)?.try_into().ok()?;
    let address = |at: usize| -> Option<IpAddr> {
        match i32::from(family) {
            libc::AF_INET => Some(Ipv4Addr::from(<[u8; 4]>::try_from(id.get(at..at + 4)?).ok()?).into()),
            libc::AF_INET6 => {
                Some(Ipv6Addr::from(<[u8; 16]>::try_from(id.get(at..at + 16)?).ok()?).to_canonical())
            }
            _ => None,
        }
    };
    let port = |at: usize| u16::from_be_bytes([id[at], id[at + 1]]);
    let storages = attributes(rest)
        .filter(|(kind, _)| *kind == STORAGES)
        .flat_map(|(_, all)| attributes(all))
        .filter(|(kind, _)| *kind == STORAGE)
        .flat_map(|(_, one)| attributes(one))
        .filter(|(kind, _)| *kind == STORAGE_VALUE)
        .map(|(_, value)| value.to_vec())
        .collect();
    Some(TcpSocket {
        state: match state {
            3 | 12 => TcpState::Requested,
            10 => TcpState::Listen,
            // ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING
            1 | 4 | 5 | 8 | 9 | 11 => TcpState::Open,
            _ => TcpState::Other,
        },
        local: SocketAddr::new(address(4)?, port(0)),
        remote: SocketAddr::new(address(20)?, port(2)),
        storages,
        family,
        id,
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_is_listed_from_both_ends_and_ended_alone() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let at = listener.local_addr().unwrap();
            let dial = || {
                let client = TcpStream::connect(at).unwrap();
                (listener.accept().unwrap().0, client)
            };
            let ((one, mut client), (other, _other_client)) = (dial(), dial());
            let mut diag = Diag::open().unwrap();
            let all = diag.tcp(&[]).unwrap();
            let find = |stream: &TcpStream| {
                let (local, remote) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
                all.iter().find(|s| s.local == local && s.remote == remote).expect("it is listed")
            };
            assert_eq!(find(&client).state, TcpState::Open);
            assert!(all.iter().any(|s| s.local == at && s.state == TcpState::Listen));
            let found = find(&one);
            find(&other);

            if nix::unistd::geteuid().is_root() && Diag::can_destroy().unwrap() {
                assert!(diag.destroy(found).unwrap());
                let ended = client.read(&mut [0]);
                assert!(ended.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset));
                assert!(!diag.destroy(found).unwrap(), "it is gone already");
                assert!(diag.tcp(&[]).unwrap().iter().any(|s| s.id == find(&other).id), "it was not meant");
            }
        }
    }

    #[test]
    fn what_is_cut_off_is_no_socket() {
        let mut message = vec![0; MESSAGE];
        message[0] = libc::AF_INET as u8;
        assert!(parse(&message).is_some());
        for length in 0..MESSAGE {
            assert_eq!(parse(&message[..length]), None);
        }
        message.extend([200, 0, STORAGES as u8, 0, 1]);
        assert_eq!(parse(&message).unwrap().storages, Vec::<Vec<u8>>::new());
    }
}
