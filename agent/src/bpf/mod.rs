//! The kernel half as the rest of the agent sees it: which pods are enrolled, which listeners serve
//! them, what is known of destinations, and which flows were left alone. The only user of aya.
//!
//! [`Kernel`] is the seam: the programs in `ebpf/` stand behind it, `fake::FakeKernel` serves unit tests.

mod error;
#[cfg(test)]
pub mod fake;
mod kernel;

pub use error::BpfError;
pub use kernel::{CaptureMode, Destination, Enrolment, Flow, Flows, Kernel, Listeners, Marks, OwnPorts};
