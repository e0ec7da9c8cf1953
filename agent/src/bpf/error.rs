//! What can go wrong between the agent and the kernel, sorted by whose fault it is.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::model::NetnsCookie;

#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    // The build's or the node's.
    #[error(
        "this binary carries no kernel programs: it was built without them; `cargo xtask build` builds \
         one that does"
    )]
    NoBytecode,
    #[error("the kernel programs in this binary are unusable: {0}; build it again with `cargo xtask build`")]
    Object(String),
    #[error("this node cannot run the kernel programs:\n{0}\n`underpass check` shows all of them")]
    Requirements(String),
    #[error("cannot {call} {object}: {source}; {hint}")]
    Setup { call: &'static str, object: String, source: io::Error, hint: &'static str },

    #[error("{0:?} cannot be an instance's name: letters, digits, - and _ only, at most 64")]
    BadInstance(String),

    // Somebody else's things where ours should be.
    #[error(
        "{path} is not what this agent pinned there ({found}, expected {expected}); if no other agent \
         uses this folder, `underpass uninstall` clears it"
    )]
    ForeignPin { path: PathBuf, expected: String, found: String },

    #[error("agent instance {0} runs on this kernel; stop it first (SIGTERM), then try again")]
    InUse(String),
    #[error(
        "it is enrolled by another agent of this kernel: {other}; list it in one agent's mesh file only, or, \
         if that agent is gone for good, run `underpass uninstall --instance` for it. Until then it is left \
         to the other"
    )]
    Neighbours { other: String },

    // The caller's.
    #[error("network namespace {0} is not enrolled; enrol it first")]
    NotEnrolled(NetnsCookie),
    #[error("network namespace {0} cannot be enrolled: {1}")]
    BadEnrolment(NetnsCookie, &'static str),
    #[error("the {kind} listener for network namespace {pod} cannot be used: {why}")]
    BadListener { pod: NetnsCookie, kind: &'static str, why: String },
    #[error("nothing is remembered of {local} in network namespace {pod}: it was dialled directly")]
    UnknownConnection { pod: NetnsCookie, local: SocketAddr },
    #[error("the flows of this agent are already being read")]
    FlowsTaken,

    // The kernel's.
    #[error("map {map} is full: this node has more than Underpass is made for")]
    Full { map: &'static str },
    #[error("{call} for {object} failed: {source}")]
    Call { call: &'static str, object: String, source: io::Error },
    #[error("the kernel refused program {program}: {message}")]
    Refused { program: String, message: String },
}
