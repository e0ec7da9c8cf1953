//! How the file source is doing, for the admin API, logs and metrics.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

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
    status: Arc<Mutex<FileStatus>>,
}

impl StatusHandle {
    pub fn get(&self) -> FileStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
        Self { status: Arc::new(Mutex::new(status)) }
    }

    pub(super) fn accepted(&self, revision: u64, warnings: Vec<Problem>) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.revision = revision;
        status.accepted_at = Some(now());
        status.accepted += 1;
        status.warnings = warnings;
        status.refusal = None;
    }

    pub(super) fn refused(&self, error: &FileError) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let message = in_file(&status.path, error);
        let problems = match error {
            FileError::Invalid(Invalid { problems, .. }) => problems.clone(),
            FileError::Read(_) | FileError::Utf8(_) => Vec::new(),
        };
        status.refused += 1;
        status.refusal = Some(Refusal { at: now(), message, problems });
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
