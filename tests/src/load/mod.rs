//! Load: an echo server that stands many connections, and clients that measure.
//!
//! Everything is a thread of this process inside a pod's namespace, so nothing has to be installed and a
//! round can pin each thread where it wants it.

pub mod bulk;
pub mod echo;
pub mod hold;
pub mod round_trip;
pub mod short;
pub mod stats;

pub use echo::{Answer, EchoServer};
pub use stats::Times;

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// How every request begins: what a capture looks for.
pub const MARKER: &[u8] = b"underpass-load-in-plain-sight";

/// Bounds every call of a client; a path that is slower than this is broken.
const DEADLINE: Duration = Duration::from_secs(10);

/// Connects from the calling thread's namespace, Nagle off.
pub(crate) fn dial(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, DEADLINE)?;
    crate::work::talk::prepare(&stream, DEADLINE)?;
    Ok(stream)
}

/// Keeps a thread (0: the calling one, and those it starts) on these CPUs.
pub fn keep_on(thread: Pid, cpus: &[usize]) -> nix::Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    sched_setaffinity(thread, &set)
}
