//! The kernel programs, in the order in which a connection meets them.
//!
//! An application dials (`connect4`, `connect6`): the connection is left alone, captured, or refused.
//! A captured one loops over lo to `steer`, which hands it to the agent's listener; should it ever
//! turn to another interface, `egress_guard` drops it. What arrives from outside meets `steer` too.
//! `count_flows` counts what was left alone, and `post_bind*` keeps others off the agent's ports.
//!
//! All but `steer` are attached to a cgroup and see every namespace below it: they act on those that
//! are in `PODS`. `steer` is attached to one namespace and loaded once for each.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod addr;
mod bind;
mod connect;
mod context;
mod count;
mod flows;
mod guard;
mod loopback;
mod maps;
mod steer;
mod storage;

use aya_ebpf::macros::{cgroup_skb, cgroup_sock, cgroup_sock_addr, sk_lookup, sock_ops};
use aya_ebpf::programs::{SkBuffContext, SkLookupContext, SockAddrContext, SockContext, SockOpsContext};

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connect::connect4(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    connect::connect6(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    loopback::getpeername4(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    loopback::getpeername6(&ctx)
}

#[cgroup_skb(egress)]
pub fn egress_guard(ctx: SkBuffContext) -> i32 {
    guard::egress(&ctx)
}

#[sk_lookup]
pub fn steer(ctx: SkLookupContext) -> u32 {
    steer::steer(&ctx)
}

#[cgroup_sock(post_bind4)]
pub fn post_bind4(ctx: SockContext) -> i32 {
    bind::post_bind(&ctx)
}

#[cgroup_sock(post_bind6)]
pub fn post_bind6(ctx: SockContext) -> i32 {
    bind::post_bind(&ctx)
}

#[sock_ops]
pub fn count_flows(ctx: SockOpsContext) -> u32 {
    flows::sock_ops(&ctx)
}

/// Never reached: a panic path that the compiler could not remove makes the verifier refuse the
/// program, so nothing here may index, divide or unwrap.
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Several helpers are for programs under the GPL only; this one is dual-licensed for their sake.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
