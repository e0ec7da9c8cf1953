//! The agent's only `unsafe` outside of the eBPF loader: network namespaces, socket options, netlink; and
//! news of files.

pub mod diag;
pub(crate) mod lock;
pub mod netlink;
pub mod netns;
pub mod socket;
pub(crate) mod watch;

use std::io;

/// A failed system call, named with what it was for.
#[derive(Debug, thiserror::Error)]
#[error("{call}{}: {source}", if .what.is_empty() { String::new() } else { format!(" ({})", .what) })]
pub struct SysError {
    /// The call that failed: `setns`, `bind`, `RTM_NEWRULE` …
    pub call: &'static str,
    /// What it was called on.
    pub what: String,
    #[source]
    pub source: io::Error,
}

impl SysError {
    pub fn new(call: &'static str, what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self { call, what: what.into(), source: source.into() }
    }

    pub fn raw_os_error(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// Adds the call's name and object to an `io::Result`.
pub(crate) trait Named<T> {
    fn named(self, call: &'static str, what: impl FnOnce() -> String) -> Result<T, SysError>;
}

impl<T, E: Into<io::Error>> Named<T> for Result<T, E> {
    fn named(self, call: &'static str, what: impl FnOnce() -> String) -> Result<T, SysError> {
        self.map_err(|e| SysError::new(call, what(), e))
    }
}
