//! Nobody but the agent binds the agent's ports in an enrolled namespace.
//!
//! After the bind and not before it: so that a port drawn by bind(0) is seen as well.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::programs::SockContext;
use underpass_common::counter;

use crate::context::{self, TCP, field};
use crate::count::count;
use crate::maps::{AGENT_SOCKETS, pod};

const REFUSE: i32 = 0;
const ALLOW: i32 = 1;

#[inline(always)]
pub fn post_bind(ctx: &SockContext) -> i32 {
    if field!(ctx.sock, bpf_sock, protocol, u32) != TCP {
        return ALLOW;
    }
    let Some(row) = pod(context::netns_cookie(ctx)) else { return ALLOW };
    // Host order, unlike in bind4 and bind6.
    let port = field!(ctx.sock, bpf_sock, src_port, u32) as u16;
    let [first, second] = row.guarded_ports;
    if port == 0 || (port != row.hbone_port && port != first && port != second) {
        return ALLOW;
    }
    // SAFETY: a post_bind context is its socket.
    if unsafe { AGENT_SOCKETS.get(ctx.sock) }.is_some() {
        return ALLOW;
    }
    count(counter::BIND_REFUSED);
    REFUSE
}
