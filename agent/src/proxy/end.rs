//! How a connection ended, as its path reports it to the record.

use tokio::net::TcpStream;

use super::deliver::{self, Outcome};
use crate::model::Cause;

pub(super) struct End {
    pub cause: Cause,
    pub detail: Option<String>,
}

impl End {
    /// Ends a connection that was never delivered: the application gets a reset, not a clean end, which
    /// it could take for an empty answer.
    pub fn refused(stream: TcpStream, cause: Cause, why: String) -> Self {
        deliver::reset(stream);
        Self { cause, detail: Some(why) }
    }
}

impl From<Outcome> for End {
    fn from(outcome: Outcome) -> Self {
        Self { cause: outcome.cause, detail: outcome.detail }
    }
}
