//! The mesh in one YAML file: a source for machines and demos without a cluster, in the field names of
//! Istio's own local configuration.
//!
//! [`parse`] is pure; [`FileSource`] watches the file and publishes what it says.

mod convert;
pub mod document;
mod error;
mod parse;
pub mod scalar;
mod source;
mod status;

pub use document::Document;
pub use error::FileError;
pub use parse::{FileState, parse};
pub use source::{FileOptions, FileSource};
pub use status::{FileStatus, Refusal, StatusHandle};

#[cfg(test)]
mod tests;
#[cfg(test)]
mod source_tests;
#[cfg(test)]
mod wire_tests;
