//! Reads one file of trust, whole or not at all.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::model::TrustDomain;
use crate::tls::{Crls, MAX_CRL_BYTES, TlsError, TrustBundles};

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum TrustFileError {
    #[error("open or read {}: {source}: put the file there, readable for the agent", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} has more than {most} bytes: see whether it is the right file", .path.display())]
    TooLarge { path: PathBuf, most: usize },
    #[error("{} is unusable: {source}", .path.display())]
    Content { path: PathBuf, source: Box<TlsError> },
}

/// What a file is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Bundle(TrustDomain),
    RevocationList,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    Bundle(TrustBundles),
    RevocationList(Crls),
}

impl Purpose {
    pub(super) fn read(&self, path: &Path) -> Result<Vec<u8>, TrustFileError> {
        let most = match self {
            Self::Bundle(_) => MAX_BUNDLE_BYTES,
            Self::RevocationList => MAX_CRL_BYTES,
        };
        let bytes = read(path, most).map_err(|source| TrustFileError::Io { path: path.into(), source })?;
        if bytes.len() > most {
            return Err(TrustFileError::TooLarge { path: path.into(), most });
        }
        Ok(bytes)
    }

    /// Every part of it must be sound: of a file that is half written, half must not be believed.
    pub(super) fn parse(&self, path: &Path, bytes: &[u8]) -> Result<Content, TrustFileError> {
        let parsed = match self {
            Self::Bundle(domain) => {
                let mut bundles = TrustBundles::new();
                bundles.add_pem(domain, bytes).map(|()| Content::Bundle(bundles))
            }
            Self::RevocationList => {
                let mut lists = Crls::default();
                lists.add(bytes).map(|()| Content::RevocationList(lists))
            }
        };
        parsed.map_err(|e| TrustFileError::Content { path: path.into(), source: Box::new(e) })
    }
}

/// At most a byte more than is allowed, and from nothing that could block.
fn read(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A thousand roots.
const MAX_BUNDLE_BYTES: usize = 2 * 1024 * 1024;
