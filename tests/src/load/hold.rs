//! Connections that are made, used once, and then only kept.

use std::io;
use std::net::{SocketAddr, TcpStream};

use super::dial;
use crate::work::talk;

/// Opens so many from the calling thread's namespace, each proved by one byte there and back.
pub fn open(to: SocketAddr, connections: usize) -> io::Result<Vec<TcpStream>> {
    (0..connections)
        .map(|_| {
            let mut stream = dial(to)?;
            talk::echo(&mut stream, b"x")?;
            Ok(stream)
        })
        .collect()
}

/// How many of them still answer.
pub fn alive(connections: &mut [TcpStream]) -> usize {
    connections.iter_mut().filter_map(|s| talk::echo(s, b"y").ok()).count()
}
