//! From text to state, without I/O.

use crate::discovery::State;
use crate::discovery::yaml::{self, Problem};
use crate::policy::Resources;

use super::convert::convert;
use super::document::Document;
use super::error::FileError;

/// What a mesh file says.
#[derive(Debug)]
pub struct FileState {
    pub state: State,
    /// What is allowed but hardly meant, with its place.
    pub warnings: Vec<Problem>,
}

/// Reads and checks a whole mesh file. Never panics, whatever the text; takes time and memory in
/// proportion to its size, which is bounded by [`yaml::MAX_BYTES`].
///
/// # Errors
/// [`FileError::Invalid`] with line, column and field of what is wrong.
pub fn parse(text: &str) -> Result<FileState, FileError> {
    parse_after(text, None)
}

/// The same; what of the policies is as in `before` is not compiled again.
///
/// # Errors
/// As of [`parse`].
pub fn parse_after(text: &str, before: Option<&Resources>) -> Result<FileState, FileError> {
    let document: Document = yaml::read(text)?;
    let converted = convert(document, before);
    converted.errors.into_result(text)?;
    Ok(FileState { state: converted.state, warnings: converted.warnings.locate(text) })
}
