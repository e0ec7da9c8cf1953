//! The last line against plaintext: whatever happens to a captured socket's mark, its device or the
//! namespace's rule, its packets leave by lo only.

use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::programs::SkBuffContext;
use underpass_common::counter;

use crate::context::{LOOPBACK_IFINDEX, field};
use crate::count::count;
use crate::maps::CAPTURED;

const DROP: i32 = 0;
const PASS: i32 = 1;

#[inline(always)]
pub fn egress(ctx: &SkBuffContext) -> i32 {
    let skb = ctx.skb.skb;
    if field!(skb, __sk_buff, ifindex, u32) == LOOPBACK_IFINDEX {
        return PASS;
    }
    let socket = field!(skb, __sk_buff, __bindgen_anon_2.sk, u64) as *mut bpf_sock;
    // SAFETY: not null, and the kernel finds no storage on anything but a full socket.
    if socket.is_null() || unsafe { CAPTURED.get(socket) }.is_none() {
        return PASS;
    }
    count(counter::GUARD_DROPPED);
    DROP
}
