//! Marks on sockets and packets (`SO_MARK`), and the rule that looks at them.
//!
//! A mark routes, it proves nothing: any process with CAP_NET_RAW, which containers have by default,
//! may set any mark. Who the agent is, is decided by socket storage.

/// The bits that are ours while a connection is captured. All others stay the application's.
pub const MARK_MASK: u32 = 0x0fff_0000;

/// A captured connection of an application.
pub const CAPTURE_MARK: u32 = 0x075a_0000;

/// The agent's own connection to an application with the client's address as source. What the
/// application answers carries it back over lo (`net.ipv4.tcp_fwmark_accept`).
pub const RETURN_MARK: u32 = 0x075b_0000;

/// `ip rule fwmark RULE_MARK/RULE_MASK`: both marks above and nothing else.
pub const RULE_MARK: u32 = 0x075a_0000;
/// See [`RULE_MARK`].
pub const RULE_MASK: u32 = 0x0ffe_0000;

const _: () = {
    assert!(CAPTURE_MARK & !MARK_MASK == 0 && RETURN_MARK & !MARK_MASK == 0);
    assert!(CAPTURE_MARK & RULE_MASK == RULE_MARK && RETURN_MARK & RULE_MASK == RULE_MARK);
};
