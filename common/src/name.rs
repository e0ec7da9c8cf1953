//! The names of maps, programs and globals in the object file, as both halves spell them.

/// Pinned maps: they outlive the agent, and the next one adopts them.
pub mod map {
    pub const PODS: &str = "PODS";
    pub const OWN_ADDRESSES: &str = "OWN_ADDRESSES";
    pub const DESTINATIONS: &str = "DESTINATIONS";
    pub const RANGES: &str = "RANGES";
    pub const LISTENERS: &str = "LISTENERS";
    pub const INBOUND: &str = "INBOUND";
    pub const AGENT_SOCKETS: &str = "AGENT_SOCKETS";
    pub const CAPTURED: &str = "CAPTURED";
    pub const FLOW: &str = "FLOW";
    pub const FLOWS: &str = "FLOWS";
    pub const COUNTERS: &str = "COUNTERS";
    pub const LOOPBACK_DESTINATIONS: &str = "LOOPBACK_DESTINATIONS";
    pub const DELIVERIES: &str = "DELIVERIES";

    pub const ALL: [&str; 13] = [
        PODS,
        OWN_ADDRESSES,
        DESTINATIONS,
        RANGES,
        LISTENERS,
        INBOUND,
        AGENT_SOCKETS,
        CAPTURED,
        FLOW,
        FLOWS,
        COUNTERS,
        LOOPBACK_DESTINATIONS,
        DELIVERIES,
    ];
}

/// Programs, in the order in which a connection meets them.
pub mod program {
    pub const CONNECT4: &str = "connect4";
    pub const CONNECT6: &str = "connect6";
    pub const GETPEERNAME4: &str = "getpeername4";
    pub const GETPEERNAME6: &str = "getpeername6";
    pub const EGRESS_GUARD: &str = "egress_guard";
    pub const SK_LOOKUP: &str = "steer";
    pub const POST_BIND4: &str = "post_bind4";
    pub const POST_BIND6: &str = "post_bind6";
    pub const SOCK_OPS: &str = "count_flows";
}

/// Values that are fixed when a program is loaded.
pub mod global {
    /// `u64`: the namespace that this copy of the `steer` program serves.
    pub const NETNS_COOKIE: &str = "NETNS_COOKIE";
    /// `u8`: 1 when connect hooks may choose the error (`bpf_set_retval`).
    pub const HAS_SET_RETVAL: &str = "HAS_SET_RETVAL";
    /// `u8`: 1 when `sk_lookup` knows the interface (5.17).
    pub const HAS_INGRESS_IFINDEX: &str = "HAS_INGRESS_IFINDEX";
}
