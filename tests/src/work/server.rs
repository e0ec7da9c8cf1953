//! A TCP server in a pod: one thread per connection, and a memory of its peers.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, SockRef, Socket, Type};

use super::pattern;
use super::talk::DEADLINE;
use crate::netns::Netns;

/// A server until it is dropped; its live connections end by themselves.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    seen: Arc<Seen>,
    thread: Option<JoinHandle<()>>,
    port: u16,
}

#[derive(Debug, Default)]
struct Seen {
    peers: Mutex<Vec<SocketAddr>>,
    bytes: AtomicUsize,
}

impl Server {
    /// Listens on every address of the namespace, IPv4 and IPv6; each connection runs `handle`.
    pub fn start(ns: &Netns, port: u16, handle: impl Handler) -> Result<Self> {
        Self::on(ns, SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), handle)
    }

    /// As [`Server::start`] on one address.
    pub fn on(ns: &Netns, addr: SocketAddr, handle: impl Handler) -> Result<Self> {
        let listener =
            ns.run(|| listen(addr)).with_context(|| format!("listening on {addr} in {}", ns.name()))?;
        let port = listener.local_addr().context("getsockname")?.port();
        let (accepting, seen) = (listener.try_clone().context("dup")?, Arc::new(Seen::default()));
        let theirs = seen.clone();
        // The accepted sockets are the namespace's through the listener; the thread need not be inside.
        let thread = std::thread::spawn(move || accept(&accepting, &theirs, handle));
        Ok(Self { listener, seen, thread: Some(thread), port })
    }

    /// The port that was asked for, or what the kernel chose for 0.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Who has connected so far; v4-mapped addresses as IPv4.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.seen.peers.lock().unwrap_or_else(|p| p.into_inner()).clone()
    }

    pub fn peer_ips(&self) -> Vec<IpAddr> {
        self.peers().iter().map(SocketAddr::ip).collect()
    }

    /// Forgets the peers seen so far.
    pub fn forget(&self) {
        self.seen.peers.lock().unwrap_or_else(|p| p.into_inner()).clear();
    }

    /// Bytes that handlers said they took in.
    pub fn bytes(&self) -> usize {
        self.seen.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes accept(2) with EINVAL.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a server does with one connection. An error ends the connection and is nobody's news: the other
/// end is the one that tells.
pub trait Handler: Fn(&mut Conn) -> io::Result<()> + Send + Sync + 'static {}

impl<F: Fn(&mut Conn) -> io::Result<()> + Send + Sync + 'static> Handler for F {}

/// An accepted connection.
#[derive(Debug)]
pub struct Conn {
    pub stream: TcpStream,
    pub peer: SocketAddr,
    seen: Arc<Seen>,
}

impl Conn {
    /// Adds to what [`Server::bytes`] tells.
    pub fn took(&self, bytes: usize) {
        self.seen.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener, seen: &Arc<Seen>, handle: impl Handler) {
    let handle = Arc::new(handle);
    while let Ok((stream, peer)) = listener.accept() {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        seen.peers.lock().unwrap_or_else(|p| p.into_inner()).push(peer);
        let _ = stream.set_read_timeout(Some(DEADLINE));
        let _ = stream.set_write_timeout(Some(DEADLINE));
        let _ = stream.set_nodelay(true);
        let (handle, mut conn) = (handle.clone(), Conn { stream, peer, seen: seen.clone() });
        std::thread::spawn(move || handle(&mut conn));
    }
}

/// Sends back what comes, and ends when the other end ends.
pub fn echo(conn: &mut Conn) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match conn.stream.read(&mut buffer)? {
            0 => return conn.stream.shutdown(Shutdown::Write),
            n => {
                conn.took(n);
                conn.stream.write_all(&buffer[..n])?;
            }
        }
    }
}

/// Says who the peer is (one line), then ends.
pub fn whoami(conn: &mut Conn) -> io::Result<()> {
    writeln!(conn.stream, "{}", conn.peer.ip())
}

/// Takes everything, checks it against the pattern, then answers with one line: bytes, and whether they
/// were right.
pub fn sink(conn: &mut Conn) -> io::Result<()> {
    let mut check = pattern::Check::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match conn.stream.read(&mut buffer)? {
            0 => return writeln!(conn.stream, "{check}"),
            n => {
                conn.took(n);
                check.take(&buffer[..n]);
            }
        }
    }
}

/// Sends `bytes` of the pattern, then ends.
pub fn source(bytes: usize) -> impl Handler {
    move |conn| {
        pattern::write(&mut conn.stream, bytes)?;
        conn.stream.shutdown(Shutdown::Write)?;
        io::copy(&mut conn.stream, &mut io::sink()).map(drop)
    }
}

/// Reads a little, waits, and so on until `bytes` are read; then takes the rest quickly.
pub fn slow_reader(bytes: usize, pause: Duration) -> impl Handler {
    move |conn| {
        let mut buffer = vec![0; 4 << 10];
        let mut total = 0;
        loop {
            let n = conn.stream.read(&mut buffer)?;
            conn.took(n);
            total += n;
            match n {
                0 => return writeln!(conn.stream, "{total}"),
                _ if total < bytes => std::thread::sleep(pause),
                _ => buffer.resize(256 << 10, 0),
            }
        }
    }
}

/// Reads `after` bytes and resets the connection.
pub fn resetter(after: usize) -> impl Handler {
    move |conn| {
        let mut buffer = vec![0; after];
        conn.stream.read_exact(&mut buffer)?;
        SockRef::from(&conn.stream).set_linger(Some(Duration::ZERO))
        // The close that follows sends RST.
    }
}
