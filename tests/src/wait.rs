//! Waiting for a fact with a deadline, instead of sleeping and hoping.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Long enough for anything a loaded two-core machine does in these stories.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Asks again until there is an answer; fails with `what` when there is none in time.
pub fn until<T>(patience: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + patience;
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        if Instant::now() >= end {
            bail!("after {patience:?} still not: {what}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// As [`until`], for a plain yes.
pub fn until_true(patience: Duration, what: &str, mut ask: impl FnMut() -> bool) -> Result<()> {
    until(patience, what, || ask().then_some(()))
}
