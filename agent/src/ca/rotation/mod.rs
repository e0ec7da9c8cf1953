//! A root's replacement in five steps, without a connection failing: what stands where, what still has to
//! happen before the next step, and the files that each step changes.
//!
//! | step | what | may be done when |
//! |---|---|---|
//! | 1 | a new root is named | at any time |
//! | 2 | agents are told to trust both | at once |
//! | 3 | certificates are issued under the new root | every agent trusts both |
//! | 4 | waiting | |
//! | 5 | the old root is withdrawn | nothing rests on it any more |
//!
//! [`judge`] decides, from a [`Record`] of what was done and from what controllers [`Observed`]; it
//! touches nothing. [`Folder`] does, and can be interrupted between any two of its writes: doing the same
//! step again completes it. Each change is given a higher `revision` at its end, so agents and this command
//! tell it from the same change at an earlier time.

mod folder;
mod judge;
mod observed;
mod record;

pub use folder::{Folder, FolderError, REVISION};
pub use judge::{Blocked, Standing, judge};
pub use observed::{AgentView, ControllerView, HeldView, Observed, RestingView, RootView};
pub use record::{Phase, Record, RecordError, read_revision, root_ids};

#[cfg(test)]
mod tests;
