//! Why a mesh file was refused.

use std::io;

use crate::discovery::yaml::Invalid;

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot read it: {0}")]
    Read(#[from] io::Error),
    #[error("it is not UTF-8 after byte {0}")]
    Utf8(usize),
    #[error(transparent)]
    Invalid(#[from] Invalid),
}
