//! HBONE as anybody might speak it: a client and a server that show whichever certificate they are given
//! and trust everyone, to see whom a real agent trusts.

mod client;
mod flood;
mod old;
mod outstay;
mod server;
mod tls;

pub use client::{Attempt, Outcome};
pub use flood::Flood;
pub use old::tls12_hello;
pub use outstay::Outstay;
pub use server::Impostor;
pub use tls::Groups;

/// The port of HBONE on every pod.
pub const PORT: u16 = 15_008;
