//! Short connections: connect, one byte there and back, orderly end, and again.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use super::{Times, dial};

/// What the clients do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub to: SocketAddr,
    /// Clients, each one connection after the other.
    pub at_once: usize,
    /// Not measured.
    pub warm: Duration,
    pub run: Duration,
}

/// Times from connect to the first byte of the answer; from the calling thread's namespace, which the
/// clients' threads share.
pub fn measure(plan: &Plan) -> io::Result<Times> {
    let begin = Instant::now() + plan.warm;
    let end = begin + plan.run;
    let client = || {
        let mut times = Times::default();
        loop {
            let started = Instant::now();
            if started >= end {
                return Ok(times);
            }
            let took = once(plan.to, b'x').map(|(took, _)| took)?;
            if started >= begin {
                times.push(took);
            }
        }
    };
    if plan.at_once == 1 {
        return client();
    }
    std::thread::scope(|s| {
        let clients: Vec<_> = (0..plan.at_once).map(|_| s.spawn(client)).collect();
        let mut all = Times::default();
        for client in clients {
            all.merge(client.join().unwrap_or_else(|_| Err(io::Error::other("a client panicked")))?);
        }
        Ok(all)
    })
}

/// One connection: connect to first byte, and the byte that came back.
pub fn once(to: SocketAddr, byte: u8) -> io::Result<(Duration, u8)> {
    let started = Instant::now();
    let mut stream = dial(to)?;
    let mut answer = [0];
    stream.write_all(&[byte])?;
    stream.read_exact(&mut answer)?;
    let took = started.elapsed();
    stream.shutdown(Shutdown::Write)?;
    while stream.read(&mut [0; 16])? != 0 {}
    Ok((took, answer[0]))
}
