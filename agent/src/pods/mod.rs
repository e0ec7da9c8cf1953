//! Which pods of this node are enrolled, with their namespace, certificate and listeners.

mod destinations;
mod enrol;
mod enrolled;
mod find;
mod forbidden;
mod listeners;
mod manager;
mod plumbing;
mod uninstall;

pub use destinations::Destinations;
pub use enrol::{EnrolError, Setting};
pub use enrolled::EnrolledPod;
pub use forbidden::{denial, denied};
pub use listeners::{Accepting, ListenError};
pub use manager::{Manager, PodState, Started, Table};
pub use plumbing::{Numbers, Wanted};
pub use uninstall::restore_namespaces;
