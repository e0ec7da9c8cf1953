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
//! touches nothing. A [`Site`] does: a [`Folder`], which can be interrupted between any two of its writes, and
//! doing the same step again completes it; or a [`Secret`], which changes as a whole or not at all. Each change is given a higher `revision` at its end, so agents and this command
//! tell it from the same change at an earlier time.

mod folder;
mod judge;
mod observed;
mod record;
mod secret;

use super::kubernetes::Keys;

pub use folder::{Folder, FolderError, REVISION};
pub use judge::{Blocked, Standing, judge};
pub use observed::{AgentView, ControllerView, HeldView, Observed, RestingView, RootView};
pub use record::{Phase, Record, RecordError, read_revision, root_ids};
pub use secret::{Secret, SecretError};

/// Where an authority's files are while somebody changes them.
pub trait Site {
    /// Takes in what others have done since it was opened or changed last.
    fn look_again(&self) -> Result<(), FolderError>;

    /// The files that a controller signs with, as they are.
    fn keys(&self) -> Result<Keys, FolderError>;

    /// The rotation that is under way, if one is.
    fn record(&self) -> Result<Option<Record>, FolderError>;

    /// Brings the files in line with the record: completes what was interrupted. To be called before anything
    /// else is done.
    fn settle(&self, record: &Record) -> Result<(), FolderError>;

    /// Step 1.
    fn name(&self, new_root: &str) -> Result<Record, FolderError>;

    /// Step 2.
    fn trust_both(&self, record: &Record) -> Result<Record, FolderError>;

    /// Step 3: `with` has the three files of the new authority, which the caller has checked.
    fn issue_anew(&self, record: &Record, with: &Keys) -> Result<Record, FolderError>;

    /// Step 5.
    fn withdraw_old(&self, record: &Record) -> Result<Record, FolderError>;

    /// After the last step: forgets the rotation, and what signed before it.
    fn finish(&self) -> Result<(), FolderError>;

    /// Takes the last step back. `None`: it was the first.
    fn back(&self, record: &Record) -> Result<Option<Record>, FolderError>;
}

#[cfg(test)]
mod tests;
