//! Advisory locks of files and folders, waited for no longer than somebody has patience.

use std::fs::File;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

/// Locks what is open.
///
/// # Errors
/// `EWOULDBLOCK`: another process has held it all the time.
pub(crate) fn within(patience: Duration, mut open: File) -> Result<Flock<File>, nix::Error> {
    let started = Instant::now();
    loop {
        match Flock::lock(open, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, nix::Error::EWOULDBLOCK)) if started.elapsed() < patience => open = back,
            Err((_, e)) => return Err(e),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
