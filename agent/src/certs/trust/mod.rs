//! What peers are verified against, put together from all who have a say in it.
//!
//! The roots of a trust domain are those of the issuer (its own if it keeps any, else those that came with
//! the newest certificate) and those of the configured files for that very domain. Nothing moves a root from
//! one domain to another, so a federated bundle vouches for nobody of ours.

mod files;
mod read;

pub use files::{FileView, TrustConfig, TrustFiles};
pub use read::TrustFileError;

use crate::tls::{TrustBundles, Trusted};

pub(super) use files::FileState;

/// `issuer` has the issuer's roots.
pub(super) fn compose(issuer: &TrustBundles, files: &FileState) -> Trusted {
    let mut bundles = issuer.clone();
    bundles.add_all(&files.bundles);
    Trusted { bundles, revoked: files.revoked.clone() }
}
