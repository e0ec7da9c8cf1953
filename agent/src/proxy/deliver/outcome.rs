//! How a connection ended.

use crate::model::{Cause, Direction};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub cause: Cause,
    /// What the system call or the peer said, for the log.
    pub detail: Option<String>,
}

impl Outcome {
    pub(super) fn closed() -> Self {
        Self { cause: Cause::Closed, detail: None }
    }

    pub(super) fn new(cause: Cause, detail: impl ToString) -> Self {
        Self { cause, detail: Some(detail.to_string()) }
    }
}

/// The two applications as seen from one end: `near` is at our own TCP socket, `far` beyond the tunnel.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    pub(super) near_reset: Cause,
    pub(super) far_reset: Cause,
}

impl From<Direction> for Ends {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Outbound => Self { near_reset: Cause::ClientReset, far_reset: Cause::ServerReset },
            Direction::Inbound => Self { near_reset: Cause::ServerReset, far_reset: Cause::ClientReset },
        }
    }
}
