//! What the kernel may do with a connection that a pod opens.

use serde::Serialize;

/// What is known of a destination address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Destination {
    /// Not the mesh's: connections to it are left alone.
    Leave,
    /// The mesh's: connections to it come to the agent.
    Capture,
}
