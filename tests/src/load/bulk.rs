//! Throughput: a few streams that send as fast as they can, counted where they arrive.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::dial;
use crate::work::server::{Conn, Server};

/// What a [`Server`] runs to take it in.
pub fn drain(conn: &mut Conn) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        match conn.stream.read(&mut buffer)? {
            0 => return Ok(()),
            n => conn.took(n),
        }
    }
}

/// Bytes that arrived at `server` and how long that was, while `streams` connections from the calling
/// thread's namespace sent for `run` (after `warm`).
pub fn measure(
    to: SocketAddr,
    server: &Server,
    streams: usize,
    warm: Duration,
    run: Duration,
) -> io::Result<(usize, Duration)> {
    let stop = AtomicBool::new(false);
    let sender = || {
        let mut stream = dial(to)?;
        let piece = vec![0x5a; 128 << 10];
        while !stop.load(Ordering::Relaxed) {
            stream.write_all(&piece)?;
        }
        Ok::<(), io::Error>(())
    };
    std::thread::scope(|s| {
        let senders: Vec<_> = (0..streams).map(|_| s.spawn(sender)).collect();
        std::thread::sleep(warm);
        let (before, started) = (server.bytes(), Instant::now());
        std::thread::sleep(run);
        let (bytes, took) = (server.bytes() - before, started.elapsed());
        stop.store(true, Ordering::Relaxed);
        for sender in senders {
            sender.join().unwrap_or_else(|_| Err(io::Error::other("a sender panicked")))?;
        }
        Ok((bytes, took))
    })
}
