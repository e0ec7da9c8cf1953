//! Requests and answers on connections that stay: each sends, waits for the answer, and sends again.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{Answer, Times, dial};

/// What a client does.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub to: SocketAddr,
    pub connections: usize,
    pub say: Say,
    /// Not measured.
    pub warm: Duration,
    pub run: Duration,
}

/// What is asked and answered.
#[derive(Clone, Copy, Debug)]
pub enum Say {
    /// So many bytes, which come back ([`Answer::Same`]).
    Echo(usize),
    /// A request of HTTP/1.1 ([`Answer::Http`]).
    Http,
}

/// Runs from the calling thread's namespace.
///
/// # Errors
/// A connection could not be made, ended, or brought back other bytes.
pub fn measure(plan: &Plan) -> io::Result<Times> {
    let (request, answer) = match plan.say {
        Say::Echo(size) => (request(size), request(size)),
        Say::Http => (HTTP.to_vec(), Answer::OK.to_vec()),
    };
    if plan.connections == 1 { alone(plan, &request, &answer) } else { together(plan, &request, &answer) }
}

/// A connection by itself blocks: no epoll between it and what is measured.
fn alone(plan: &Plan, request: &[u8], expected: &[u8]) -> io::Result<Times> {
    let mut stream = dial(plan.to)?;
    let mut answer = vec![0; expected.len()];
    let mut times = Times::default();
    let begin = Instant::now() + plan.warm;
    let end = begin + plan.run;
    loop {
        let sent = Instant::now();
        if sent >= end {
            return Ok(times);
        }
        stream.write_all(request)?;
        stream.read_exact(&mut answer)?;
        if sent >= begin {
            times.push(sent.elapsed());
        }
        if answer != expected {
            return Err(io::Error::other("the answer is not what was expected"));
        }
    }
}

struct Connection {
    stream: TcpStream,
    sent: Instant,
    got: usize,
}

fn together(plan: &Plan, request: &[u8], expected: &[u8]) -> io::Result<Times> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut connections = Vec::with_capacity(plan.connections);
    for i in 0..plan.connections {
        let stream = dial(plan.to)?;
        stream.set_nonblocking(true)?;
        epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, i as u64))?;
        connections.push(Connection { stream, sent: Instant::now(), got: 0 });
    }
    for c in &mut connections {
        c.sent = Instant::now();
        c.stream.write_all(request)?;
    }
    let begin = Instant::now() + plan.warm;
    let end = begin + plan.run;
    let mut events = vec![EpollEvent::empty(); plan.connections];
    let mut answer = vec![0; expected.len()];
    let mut times = Times::default();
    let mut last = Instant::now();
    loop {
        let ready = match epoll.wait(&mut events, EpollTimeout::from(200u16)) {
            Err(nix::Error::EINTR) => continue,
            other => other?,
        };
        let now = Instant::now();
        if now >= end {
            return Ok(times);
        }
        if ready > 0 {
            last = now;
        } else if now - last > super::DEADLINE {
            return Err(ErrorKind::TimedOut.into());
        }
        for event in &events[..ready] {
            let c = &mut connections[event.data() as usize];
            match c.stream.read(&mut answer[c.got..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => c.got += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => continue,
                Err(e) => return Err(e),
            }
            if c.got < expected.len() {
                // The rest is read over the beginning of the next connection's: only lengths count here,
                // `alone` compares bytes.
                continue;
            }
            let now = Instant::now();
            if c.sent >= begin {
                times.push(now - c.sent);
            }
            (c.got, c.sent) = (0, now);
            c.stream.write_all(request)?;
        }
    }
}

fn request(size: usize) -> Vec<u8> {
    const MARKER: &[u8] = super::MARKER;
    (0..size).map(|i| MARKER.get(i).copied().unwrap_or(b'.')).collect()
}

/// As long as the echoed one, and with the marker too.
const HTTP: &[u8] = b"GET /orders/7 HTTP/1.1\r\nHost: server\r\nX-Marker: underpass-load-in-plain-sight\r\n\
    X-Team: red\r\nUser-Agent: underpass-load\r\n\r\n";
