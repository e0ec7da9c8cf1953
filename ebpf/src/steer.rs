//! A packet looks for its listener in one enrolled namespace: captured connections over lo, and
//! whatever comes from outside.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sk_lookup;
use aya_ebpf::helpers::generated::bpf_sk_assign;
use aya_ebpf::programs::SkLookupContext;
use underpass_common::{
    DeliveryKey, InboundKey, LOOPBACK4_PREFIX, LOOPBACK6_PREFIX, ListenerKey, PodRow, capture, counter,
    inbound, listener,
};

use crate::addr::{Family, Words};
use crate::context::{self, End, LOOPBACK_IFINDEX, TCP, field};
use crate::count::count;
use crate::maps::{DELIVERIES, HAS_INGRESS_IFINDEX, INBOUND, LISTENERS, NETNS_COOKIE, is_own_address, pod};

const DROP: u32 = 0;
const PASS: u32 = 1;

#[inline(always)]
pub fn steer(ctx: &SkLookupContext) -> u32 {
    if field!(ctx.lookup, bpf_sk_lookup, protocol, u32) != TCP {
        return PASS;
    }
    let netns = NETNS_COOKIE.load();
    let Some(row) = pod(netns) else { return PASS };
    let Some((local, remote)) = context::lookup_ends(ctx) else { return PASS };
    if is_from_inside(ctx, netns, local, remote) {
        from_inside(ctx, netns, row, local, remote)
    } else {
        from_outside(ctx, netns, row, local)
    }
}

/// Whether the packet was sent in this namespace.
///
/// The interface alone does not tell: a packet to an address of eth0 shows eth0's index, also when it
/// comes from inside over lo (the index is that of the route, net/ipv4/route.c `ip_route_output_key`).
/// There the source is an own address, or the packet is the agent's delivery and announced as such.
/// Nobody outside gains by claiming an own address: the answer never leaves.
#[inline(always)]
fn is_from_inside(ctx: &SkLookupContext, netns: u64, local: End, remote: End) -> bool {
    remote.address.is_loopback()
        || is_own_address(netns, remote.address.addr())
        // Since 5.17 (f89315650ba3). What it adds is captured connections with a forged source; on
        // older kernels those are judged as if they came from outside.
        || (HAS_INGRESS_IFINDEX.load() == 1
            && field!(ctx.lookup, bpf_sk_lookup, ingress_ifindex, u32) == LOOPBACK_IFINDEX)
        || is_delivery(netns, local, remote)
}

#[inline(always)]
fn is_delivery(netns: u64, local: End, remote: End) -> bool {
    let key = DeliveryKey {
        netns,
        local: local.address.addr(),
        remote: remote.address.addr(),
        local_port: local.port,
        remote_port: remote.port,
        pad: 0,
    };
    DELIVERIES.get_ptr(key).is_some()
}

/// The pod's own loopback and the agent's dials pass; what else is addressed to somebody else was
/// captured. (A pod may route any address to itself: the agent's dial to it would come back to the agent,
/// which would dial again, and so on.)
#[inline(always)]
fn from_inside(ctx: &SkLookupContext, netns: u64, row: &PodRow, local: End, remote: End) -> u32 {
    let captured = match row.capture {
        capture::MARK => {
            !local.address.is_loopback()
                && !is_own_address(netns, local.address.addr())
                && !is_delivery(netns, local, remote)
        }
        capture::LOOPBACK => is_loopback_capture(local.address),
        _ => false,
    };
    if captured { assign(ctx, netns, listener::OUTBOUND, local) } else { PASS }
}

#[inline(always)]
fn from_outside(ctx: &SkLookupContext, netns: u64, row: &PodRow, local: End) -> u32 {
    if local.port == row.hbone_port {
        // Not left to whoever has bound the port: someone may have had it before enrolment.
        return assign(ctx, netns, listener::HBONE, local);
    }
    // SAFETY: one byte of a row that is freed after the grace period in which this runs.
    let action = unsafe { INBOUND.get(InboundKey::new(netns, local.port)) }.copied();
    match action.unwrap_or(row.inbound_default) {
        inbound::PASS => PASS,
        inbound::STEER => assign(ctx, netns, listener::PLAINTEXT, local),
        _ => {
            count(counter::INBOUND_DROPPED);
            DROP
        }
    }
}

/// Gives the packet to one of the agent's listeners; dropped when that is away.
#[inline(always)]
fn assign(ctx: &SkLookupContext, netns: u64, kind: u32, local: End) -> u32 {
    let family = if local.address.family() == Family::V4 { 4 } else { 6 };
    let assigned = LISTENERS.with(&ListenerKey { netns, kind, family }, |socket| {
        // SAFETY: a valid context, and a socket that the map holds a reference to.
        unsafe { bpf_sk_assign(ctx.as_ptr().cast(), socket.cast(), 0) }
    });
    if assigned == Some(0) {
        return PASS;
    }
    count(counter::NO_LISTENER_DROPPED);
    DROP
}

#[inline(always)]
fn is_loopback_capture(address: Words) -> bool {
    let [w0, w1, _, w3] = address.0;
    match address.family() {
        Family::V4 => {
            let mask = 0xff80_0000;
            u32::from_be(w3) & mask == u32::from_be_bytes(LOOPBACK4_PREFIX)
        }
        Family::V6 => {
            let [a, b, c, d, e, f, g, h] = LOOPBACK6_PREFIX;
            w0 == u32::from_ne_bytes([a, b, c, d]) && w1 == u32::from_ne_bytes([e, f, g, h])
        }
    }
}
