//! What the kernel may do with plaintext that arrives from outside a pod.

use std::collections::BTreeMap;

use serde::Serialize;

/// One plaintext connection to one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InboundAction {
    /// Nobody needs to see it: it reaches the application untouched.
    Pass,
    /// The agent's plaintext listener takes it and judges.
    Steer,
    /// No plaintext is allowed: it is refused in the kernel.
    Drop,
}

/// What is allowed per local port of a pod. Ports that are not named get `default`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InboundPlan {
    pub default: InboundAction,
    pub ports: BTreeMap<u16, InboundAction>,
}

impl InboundPlan {
    pub fn all(default: InboundAction) -> Self {
        Self { default, ports: BTreeMap::new() }
    }

    pub fn action(&self, port: u16) -> InboundAction {
        self.ports.get(&port).copied().unwrap_or(self.default)
    }
}
