//! An authority of one's own: it judges signing requests, signs what it grants, and follows its files.
//!
//! [`check_request`] reads what a caller sent and lets nothing through but a public key whose private
//! half the caller holds. [`Authority::issue`] makes a certificate for it, of which the authority alone
//! writes every field. The files are those of Istio's `cacerts` secret (`signing.rs`); [`hierarchy`]
//! makes them.

pub mod agents;
pub mod attest;
mod authority;
mod csr;
pub mod hierarchy;
pub mod kubernetes;
pub mod publish;
pub mod rotation;
pub mod serve;
mod signing;
mod turns;

pub use authority::{Authority, AuthorityConfig, IssueError, IssuedChain, ServerPapers, Source};
pub use csr::{CheckedRequest, RequestError, check_request};
pub(crate) use signing::check_root;
pub use signing::{AuthorityError, RootView, Signing};

#[cfg(test)]
mod tests;
