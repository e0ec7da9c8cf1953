//! The last stage: bytes between two ends until both ways are over, faithfully.
//!
//! Each way ends by itself: FIN becomes END_STREAM or FIN, and the other way goes on for as long as it
//! likes. A reset at one end becomes a reset at the other, after the bytes that came before it. Memory is
//! bounded whatever the readers do, and a connection on which nothing happens holds no buffer.

mod backlog;
mod outcome;
mod plain;
mod source;
mod tcp;
mod tunnelled;

pub use outcome::Outcome;
pub use plain::copy_tcp;
pub use tcp::{arm_reset, broken, disarm_reset, reset};
pub use tunnelled::{NOT_HTTP, REVOKED, copy};

/// Reads what a client says on its way to the server. Nothing waits for it.
pub trait Watch: Send {
    /// What comes next.
    fn bytes(&mut self, bytes: &[u8]);
}

/// Who watches, if anybody.
pub type Watched<'a> = Option<&'a mut (dyn Watch + 'static)>;

/// How long bytes that came before a reset may take to reach a reader who is slow, before the reset does.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(1);

#[cfg(test)]
mod tests;
