//! How a connection ended, and how somebody else ends it.

use std::future::Future;
use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

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

/// Ends a live connection from outside, with the truth about why. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Stop {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    token: CancellationToken,
    cause: OnceLock<Cause>,
}

impl Stop {
    /// `cut` is the process's or the pod's drain deadline: when it is cancelled the connection ends with
    /// [`Cause::Drained`].
    pub fn under(cut: &CancellationToken) -> Self {
        Self { inner: Arc::new(Inner { token: cut.child_token(), cause: OnceLock::new() }) }
    }

    /// The first cause counts.
    pub fn end(&self, cause: Cause) {
        let _ = self.inner.cause.set(cause);
        self.inner.token.cancel();
    }

    /// Ready once the connection shall end.
    pub fn ended(&self) -> impl Future<Output = Cause> + Send + use<'_> {
        let token = self.inner.token.cancelled();
        async move {
            token.await;
            self.inner.cause.get().copied().unwrap_or(Cause::Drained)
        }
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
