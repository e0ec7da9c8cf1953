//! How the process and its parts begin and end: readiness, an orderly stop, and tasks whose death is
//! noticed.

pub mod dumps;
mod readiness;
mod shutdown;
mod stop;
mod tasks;

pub use readiness::{Guard, Pending, Readiness};
pub use shutdown::{Shutdown, Signals};
pub use stop::Stop;
pub use tasks::{Ended, Outcome, TaskGroup};

#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    #[error("cannot listen for {signal}: {source}; without it the agent could not be stopped in order")]
    Signal { signal: &'static str, source: std::io::Error },
}
