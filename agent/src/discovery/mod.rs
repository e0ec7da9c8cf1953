//! What the mesh consists of: one revisioned, immutable [`Snapshot`] of workloads, services, compiled
//! policy and this node's pods, whichever [`Source`] it comes from.
//!
//! A source hands a whole [`State`] to the [`Store`]; whoever needs the mesh watches the store and
//! looks things up in the snapshot in constant time. [`route`] decides where a connection goes.

pub mod ask;
mod endpoints;
pub mod exceptions;
pub mod file;
mod kernel;
pub mod lapse;
pub mod manifest;
pub mod phases;
mod route;
mod snapshot;
mod state;
mod store;
pub mod yaml;

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

pub use kernel::KernelDestinations;
pub use route::{Route, route};
pub use snapshot::Snapshot;
pub use state::{State, UnknownDestinations};
pub use store::Store;

/// Where the state of the mesh comes from.
pub trait Source: Send {
    /// Publishes every accepted state, the first as soon as there is one, until `stop` is cancelled.
    /// What a source cannot understand it reports in its own status; the last good state stays.
    fn run(self: Box<Self>, store: Store, stop: CancellationToken) -> BoxFuture<'static, ()>;
}

#[cfg(test)]
mod tests;
