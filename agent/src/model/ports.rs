//! The agent's own TCP ports in every enrolled pod, those of Istio's ambient mode.

/// Where captured connections of the pod's applications are accepted, on loopback only.
pub const OUTBOUND: u16 = 15_001;
/// Where plaintext from outside is accepted that a policy must see, on loopback only.
pub const PLAINTEXT: u16 = 15_006;
/// Where other nodes' agents, gateways and waypoints dial, on the pod's addresses.
pub const HBONE: u16 = 15_008;

/// Nobody but the agent binds these in an enrolled pod, and nobody may name them as a target.
pub const ALL: [u16; 3] = [OUTBOUND, PLAINTEXT, HBONE];
