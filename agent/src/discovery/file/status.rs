//! How the file source is doing, for the admin API, logs and metrics.

use std::path::{Path, PathBuf};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;

use crate::discovery::yaml::{Invalid, Problem};

use super::error::FileError;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FileStatus {
    pub path: PathBuf,
    /// The snapshot that the last accepted version of the file became; 0 before the first.
    pub revision: u64,
    /// When it was accepted (RFC 3339).
    pub accepted_at: Option<String>,
    /// How many versions were accepted and refused since the start.
    pub accepted: u64,
    pub refused: u64,
    /// What is doubtful in the accepted version.
    pub warnings: Vec<Problem>,
    /// What is wrong with the file as it is now; none while the accepted version is what it says.
    pub refusal: Option<Refusal>,
}

/// A version of the file that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// When it was first seen (RFC 3339).
    pub at: String,
    /// One line with everything, as it was logged.
    pub message: String,
    /// Line, column and field, where the file could be read at all.
    pub problems: Vec<Problem>,
}

/// Shows the status of a source that runs elsewhere.
#[derive(Clone, Debug)]
pub struct StatusHandle {
    status: watch::Sender<FileStatus>,
}

impl StatusHandle {
    pub fn get(&self) -> FileStatus {
        self.status.borrow().clone()
    }

    /// The status and every change of it.
    pub fn subscribe(&self) -> watch::Receiver<FileStatus> {
        self.status.subscribe()
    }

    pub(super) fn new(path: &Path) -> Self {
        let status = FileStatus {
            path: path.to_path_buf(),
            revision: 0,
            accepted_at: None,
            accepted: 0,
            refused: 0,
            warnings: Vec::new(),
            refusal: None,
        };
        Self { status: watch::Sender::new(status) }
    }

    pub(super) fn accepted(&self, revision: u64, warnings: Vec<Problem>) {
        self.status.send_modify(|status| {
            status.revision = revision;
            status.accepted_at = Some(now());
            status.accepted += 1;
            status.warnings = warnings;
            status.refusal = None;
        });
    }

    pub(super) fn refused(&self, error: &FileError) {
        self.status.send_modify(|status| {
            let problems = match error {
                FileError::Invalid(Invalid { problems, .. }) => problems.clone(),
                FileError::Read(_) | FileError::Utf8(_) => Vec::new(),
            };
            let message = in_file(&status.path, error);
            status.refused += 1;
            status.refusal = Some(Refusal { at: now(), message, problems });
        });
    }
}

/// `mesh.yaml:3:7: field: what is wrong`.
pub(super) fn in_file(path: &Path, error: &FileError) -> String {
    let path = path.display();
    match error {
        FileError::Read(_) | FileError::Utf8(_) => format!("{path}: {error}"),
        FileError::Invalid(Invalid { problems, omitted }) => {
            let mut lines: Vec<String> = problems.iter().map(|problem| format!("{path}:{problem}")).collect();
            if *omitted > 0 {
                lines.push(format!("and {omitted} more"));
            }
            lines.join("; ")
        }
    }
}

fn now() -> String {
    // The year is below 10000, which is all that RFC 3339 asks.
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}
