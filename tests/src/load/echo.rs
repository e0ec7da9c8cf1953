//! An echo server on one epoll thread, for more connections than threads could serve.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::unistd::Pid;
use socket2::{Domain, SockRef, Socket, Type};

use crate::netns::Netns;

/// What comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Each byte itself.
    Same,
    /// Always this one, for each: tells which server answered.
    Tag(u8),
    /// [`Answer::OK`] for each request of HTTP/1.1 without a body, which comes in one piece.
    Http,
}

impl Answer {
    pub const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
}

/// Ends when dropped.
#[derive(Debug)]
pub struct EchoServer {
    listener: TcpListener,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    tid: Pid,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    accepted: AtomicUsize,
    open: AtomicUsize,
}

impl EchoServer {
    /// On every address of the namespace.
    pub fn start(ns: &Netns, port: u16, answer: Answer) -> Result<Self> {
        let listener =
            ns.run(|| listen(port)).with_context(|| format!("listening on {port} in {}", ns.name()))?;
        let accepting = listener.try_clone().context("dup")?;
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _ = tell.send(nix::unistd::gettid());
            if let Err(e) = serve(&accepting, answer, &theirs) {
                eprintln!("the echo server ended: {e}");
            }
        });
        let tid = told.recv().context("the echo server's thread died")?;
        Ok(Self { listener, shared, thread: Some(thread), tid })
    }

    /// Its thread, to pin it.
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// Connections that were ever accepted.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Makes the listener readable (EPOLLHUP), which wakes the thread.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port).into())?;
    socket.listen(65_535)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

const LISTENER: u64 = u64::MAX;

fn serve(listener: &TcpListener, answer: Answer, shared: &Shared) -> io::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut connections: Vec<Option<TcpStream>> = vec![];
    let mut free: Vec<usize> = vec![];
    let mut events = vec![EpollEvent::empty(); 512];
    let mut buffer = vec![0; 64 << 10];
    while !shared.stop.load(Ordering::Relaxed) {
        let ready = match epoll.wait(&mut events, EpollTimeout::from(200u16)) {
            Err(nix::Error::EINTR) => continue,
            other => other?,
        };
        for event in &events[..ready] {
            if event.data() == LISTENER {
                accept_all(listener, &epoll, &mut connections, &mut free, shared)?;
                continue;
            }
            let slot = event.data() as usize;
            let Some(Some(stream)) = connections.get_mut(slot) else { continue };
            if !answer_once(stream, answer, &mut buffer) {
                connections[slot] = None;
                free.push(slot);
                shared.open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

fn accept_all(
    listener: &TcpListener,
    epoll: &Epoll,
    connections: &mut Vec<Option<TcpStream>>,
    free: &mut Vec<usize>,
    shared: &Shared,
) -> io::Result<()> {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == ErrorKind::ConnectionAborted => continue,
            Err(_) if shared.stop.load(Ordering::Relaxed) => return Ok(()),
            Err(e) => return Err(e),
        };
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let slot = free.pop().unwrap_or_else(|| {
            connections.push(None);
            connections.len() - 1
        });
        epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, slot as u64))?;
        connections[slot] = Some(stream);
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        shared.open.fetch_add(1, Ordering::Relaxed);
    }
}

/// False when the connection is over. Answers are small enough never to fill a socket's buffer: a client
/// waits for one before it asks again.
fn answer_once(stream: &mut TcpStream, answer: Answer, buffer: &mut [u8]) -> bool {
    match stream.read(buffer) {
        Ok(0) => false,
        Ok(n) => {
            if answer == Answer::Http {
                let requests = buffer[..n].windows(4).filter(|end| end == b"\r\n\r\n").count();
                return stream.write_all(&Answer::OK.repeat(requests)).is_ok();
            }
            if let Answer::Tag(tag) = answer {
                buffer[..n].fill(tag);
            }
            stream.write_all(&buffer[..n]).is_ok()
        }
        Err(e) => matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
    }
}
