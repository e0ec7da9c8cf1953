//! The kernel half as the rest of the agent sees it: which pods are enrolled, which listeners serve
//! them, what is known of destinations, and which flows were left alone. The only user of aya.
//!
//! [`Kernel`] is the seam: [`Programs`] is the real one, `fake::FakeKernel` serves unit tests.

mod config;
mod error;
#[cfg(test)]
pub mod fake;
mod features;
mod flows;
mod kernel;
mod links;
mod listeners;
mod load;
mod logging;
mod maps;
mod mount;
mod neighbours;
mod object;
mod pins;
mod probe;
mod programs;
mod sockets;
mod steer;
mod syscall;
mod uninstall;

pub use config::{Config, LogLevel};
pub use error::BpfError;
pub use features::Features;
pub use flows::{Flow, Flows};
pub use kernel::{CaptureMode, Destination, Enrolment, Kernel, Listeners, Marks, OwnPorts};
pub use neighbours::{InstanceLock, lock_instance, other_instance};
pub use probe::{Report, Requirement};
pub use programs::{Counters, Programs};
pub use sockets::{Known, PodSocket};
pub use uninstall::{Removed, uninstall};
