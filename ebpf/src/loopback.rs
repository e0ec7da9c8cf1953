//! Capture where a namespace cannot have the rule: the connection goes to a loopback address and port
//! of its own, and the map remembers what it stands for until the socket closes or dials again.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_NOEXIST, bpf_sock_addr};
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::programs::SockAddrContext;
use underpass_common::{
    Addr16, Captured, LOOPBACK4_PREFIX, LOOPBACK6_PREFIX, LoopbackKey, LoopbackValue, capture,
};

use crate::addr::{Family, Words};
use crate::connect::{Dialled, Hook};
use crate::context::{self, set_field, store32};
use crate::maps::{CAPTURED, LOOPBACK_DESTINATIONS};

const GETPEERNAME_DONE: i32 = 1;

/// Below the range that a bind(0) draws from by default, above the well-known ports.
const FIRST_PORT: u16 = 0x4000;

/// How many ports are tried should another connection have the first.
const ATTEMPTS: u32 = 4;

/// Sends the dial to an address made of the socket's cookie and a port made of its number of dials, so
/// that two dials of one socket are two connections to the agent as well.
#[inline(always)]
pub fn redirect<H: Hook>(ctx: &SockAddrContext, captured: &mut Captured, dialled: Dialled) -> Result<(), ()> {
    // SAFETY: a valid context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let address = address_of(cookie, dialled.family);
    captured.loopback = address.addr();
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let turn = captured.dials.wrapping_add((cookie >> 23) as u32);
        captured.loopback_port = FIRST_PORT | (turn & 0x3fff) as u16;
        if LOOPBACK_DESTINATIONS.get_ptr(key_of(captured)).is_none() {
            H::write(ctx, address);
            write_port(ctx, captured.loopback_port);
            return Ok(());
        }
        captured.dials = captured.dials.wrapping_add(1);
        attempt += 1;
    }
    Err(())
}

/// Remembers what the address stands for. Just before the SYN leaves, and not in the connect hook: a
/// connect that fails in between (no port is free) would leave its row behind, because no close is
/// reported of it.
#[inline(always)]
pub fn announce(captured: &mut Captured) {
    let key = key_of(captured);
    let value = LoopbackValue { address: captured.address, port: captured.port, pad: [0; 3] };
    if LOOPBACK_DESTINATIONS.insert(key, value, BPF_NOEXIST.into()).is_ok() {
        captured.announced = 1;
    } else {
        // Full; or another connection has taken the address since `redirect` looked, and the agent could
        // mistake one for the other. Neither is known from here on, and what is not known is refused.
        let _ = LOOPBACK_DESTINATIONS.remove(key);
    }
}

/// The connection is over, or the socket dials another one.
#[inline(always)]
pub fn forget(captured: &mut Captured) {
    if captured.announced == 1 {
        let _ = LOOPBACK_DESTINATIONS.remove(key_of(captured));
        captured.announced = 0;
    }
}

#[inline(always)]
pub fn getpeername4(ctx: &SockAddrContext) -> i32 {
    if let Some((address, port)) = dialled_by(ctx) {
        write_v4(ctx, address);
        write_port(ctx, port);
    }
    GETPEERNAME_DONE
}

#[inline(always)]
pub fn getpeername6(ctx: &SockAddrContext) -> i32 {
    if let Some((address, port)) = dialled_by(ctx) {
        write_v6(ctx, address);
        write_port(ctx, port);
    }
    GETPEERNAME_DONE
}

#[inline(always)]
fn dialled_by(ctx: &SockAddrContext) -> Option<(Words, u16)> {
    let socket = context::dialling_socket(ctx)?;
    // SAFETY: `socket` is the context's own.
    let captured = unsafe { CAPTURED.get(socket) }?;
    (captured.mode == capture::LOOPBACK).then_some((Words::from_addr(captured.address), captured.port))
}

#[inline(always)]
fn address_of(cookie: u64, family: Family) -> Words {
    match family {
        Family::V4 => {
            let prefix = u32::from_be_bytes(LOOPBACK4_PREFIX);
            Words::v4((prefix | (cookie as u32 & 0x007f_ffff)).to_be())
        }
        Family::V6 => {
            let [a, b, c, d, e, f, g, h] = LOOPBACK6_PREFIX;
            Words([
                u32::from_ne_bytes([a, b, c, d]),
                u32::from_ne_bytes([e, f, g, h]),
                ((cookie >> 32) as u32).to_be(),
                (cookie as u32).to_be(),
            ])
        }
    }
}

#[inline(always)]
pub fn write_v4(ctx: &SockAddrContext, address: Words) {
    set_field!(ctx.sock_addr, bpf_sock_addr, user_ip4, address.0[3]);
}

#[inline(always)]
pub fn write_v6(ctx: &SockAddrContext, Words([a, b, c, d]): Words) {
    const IP6: usize = core::mem::offset_of!(bpf_sock_addr, user_ip6);
    store32::<IP6, _>(ctx.sock_addr, a);
    store32::<{ IP6 + 4 }, _>(ctx.sock_addr, b);
    store32::<{ IP6 + 8 }, _>(ctx.sock_addr, c);
    store32::<{ IP6 + 12 }, _>(ctx.sock_addr, d);
}

/// Network order, in the low 16 bits.
#[inline(always)]
fn write_port(ctx: &SockAddrContext, port: u16) {
    set_field!(ctx.sock_addr, bpf_sock_addr, user_port, u32::from(port.to_be()));
}

#[inline(always)]
fn key_of(captured: &Captured) -> LoopbackKey {
    let address: Addr16 = captured.loopback;
    LoopbackKey { netns: captured.netns, address, port: captured.loopback_port, pad: [0; 3] }
}
