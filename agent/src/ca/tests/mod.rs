#![allow(clippy::unwrap_used, reason = "tests")]

mod authority;
mod csr;
mod hierarchy;
mod openssl;
pub(super) mod support;
mod serve;
