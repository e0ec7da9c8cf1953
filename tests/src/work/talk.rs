//! Clients: dialling from a pod, and short conversations.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use crate::netns::Netns;

/// Bounds every connect, read and write in the stories.
pub const DEADLINE: Duration = Duration::from_secs(15);

/// Connects from inside the namespace.
pub fn dial(from: &Netns, to: SocketAddr) -> io::Result<TcpStream> {
    dial_within(from, to, DEADLINE)
}

/// As [`dial`], giving up sooner: for what is expected to be refused or dropped.
pub fn dial_within(from: &Netns, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let stream = from.run(|| TcpStream::connect_timeout(&to, patience))?;
    prepare(&stream, patience)?;
    Ok(stream)
}

/// Deadlines on reads and writes, and Nagle off.
pub fn prepare(stream: &TcpStream, patience: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.set_nodelay(true)
}

/// Sends `bytes` to an echo server and reads them back.
pub fn echo(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back)?;
    if back == bytes { Ok(()) } else { Err(io::Error::other("other bytes came back than were sent")) }
}

/// Connects and echoes once: whether the path works.
pub fn echo_once(from: &Netns, to: SocketAddr) -> io::Result<()> {
    echo(&mut dial(from, to)?, b"are you there?")
}

/// Connects and reads all that the server says.
pub fn listen_to(from: &Netns, to: SocketAddr) -> io::Result<String> {
    let mut said = String::new();
    dial(from, to)?.read_to_string(&mut said)?;
    Ok(said.trim().to_owned())
}

/// Ends our direction and reads what the other end still says.
pub fn finish(mut stream: TcpStream) -> io::Result<Vec<u8>> {
    stream.shutdown(Shutdown::Write)?;
    let mut rest = vec![];
    stream.read_to_end(&mut rest)?;
    Ok(rest)
}

/// How an attempt to be served ended, seen from the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// connect() was refused.
    Refused,
    /// The connection was made, then reset.
    Reset,
    /// The connection was made, then ended in order without a byte.
    Ended,
    /// Nothing came within the deadline: dropped packets, or no answer.
    Silence,
    /// connect() failed otherwise (no route, not permitted).
    Unreachable,
}

/// Tries to get one byte echoed within `patience`; `Ok` when it was.
pub fn try_echo(from: &Netns, to: SocketAddr, patience: Duration) -> Result<(), Refusal> {
    match dial_within(from, to, patience) {
        Ok(mut stream) => echo_or_refusal(&mut stream),
        Err(e) => Err(match e.kind() {
            io::ErrorKind::ConnectionRefused => Refusal::Refused,
            io::ErrorKind::ConnectionReset => Refusal::Reset,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Refusal::Silence,
            _ => Refusal::Unreachable,
        }),
    }
}

/// As [`try_echo`] on a connection that exists.
pub fn echo_or_refusal(stream: &mut TcpStream) -> Result<(), Refusal> {
    match echo(stream, b"?") {
        Ok(()) => Ok(()),
        Err(e) => Err(match e.kind() {
            io::ErrorKind::UnexpectedEof => Refusal::Ended,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Refusal::Silence,
            _ => Refusal::Reset,
        }),
    }
}
