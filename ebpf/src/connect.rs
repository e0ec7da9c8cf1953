//! An application dials: leave the connection alone, capture it, or refuse it.

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::bpf_set_retval;
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::{debug, info, warn};
use underpass_common::{Addr16, Captured, ListenerKey, PodRow, capture, counter, destination, listener};

use crate::addr::{Family, Words};
use crate::context::{self, TCP, field, words};
use crate::count::count;
use crate::loopback;
use crate::maps::{
    AGENT_SOCKETS, CAPTURED, HAS_SET_RETVAL, LISTENERS, destination, in_mesh_range, is_own_address, pod,
};

const REFUSE: i32 = 0;
const ALLOW: i32 = 1;

const ECONNREFUSED: i32 = 111;
const TCP_LISTEN: u32 = 10;

/// The hook that an address came to, which is the only one it may be changed in: an IPv6 socket's hook
/// has sixteen bytes also for a v4-mapped dial.
pub trait Hook {
    fn write(ctx: &SockAddrContext, address: Words);
}

pub struct Connect4;
pub struct Connect6;

impl Hook for Connect4 {
    #[inline(always)]
    fn write(ctx: &SockAddrContext, address: Words) {
        loopback::write_v4(ctx, address);
    }
}

impl Hook for Connect6 {
    #[inline(always)]
    fn write(ctx: &SockAddrContext, address: Words) {
        loopback::write_v6(ctx, address);
    }
}

/// Where the application wants to go.
#[derive(Clone, Copy)]
pub struct Dialled {
    pub address: Words,
    /// Host byte order.
    pub port: u16,
    /// Of the packets: a v4-mapped address on an IPv6 socket makes IPv4.
    pub family: Family,
}

#[inline(always)]
pub fn connect4(ctx: &SockAddrContext) -> i32 {
    let address = Words::v4(field!(ctx.sock_addr, bpf_sock_addr, user_ip4, u32));
    connect::<Connect4>(ctx, address)
}

#[inline(always)]
pub fn connect6(ctx: &SockAddrContext) -> i32 {
    connect::<Connect6>(ctx, words!(ctx.sock_addr, bpf_sock_addr, user_ip6))
}

#[inline(always)]
fn connect<H: Hook>(ctx: &SockAddrContext, address: Words) -> i32 {
    // UDP connects come here too. MPTCP's first subflow and fast open come as TCP.
    if field!(ctx.sock_addr, bpf_sock_addr, protocol, u32) != TCP {
        return ALLOW;
    }
    let Some(socket) = context::dialling_socket(ctx) else { return REFUSE };
    let netns = context::netns_cookie(ctx);
    let Some(row) = pod(netns) else { return leave_alone(ctx, socket) };
    // SAFETY: `socket` is the context's own.
    if unsafe { AGENT_SOCKETS.get(socket) }.is_some() {
        return ALLOW;
    }
    let addr = address.addr();
    if row.capture == capture::NONE
        || address.is_loopback()
        || is_own_address(netns, addr)
        || !belongs_to_mesh(addr)
    {
        return leave_alone(ctx, socket);
    }
    let port = u16::from_be(field!(ctx.sock_addr, bpf_sock_addr, user_port, u32) as u16);
    capture::<H>(ctx, socket, netns, row, Dialled { address, port, family: address.family() })
}

/// What is unknown inside the mesh's ranges counts as the mesh's: the agent decides, and teaches.
#[inline(always)]
fn belongs_to_mesh(addr: Addr16) -> bool {
    match destination(addr) {
        Some(destination::LEAVE) => false,
        Some(_) => true,
        None => in_mesh_range(addr),
    }
}

/// A socket may have been captured when it dialled before (connect() to AF_UNSPEC and again, or a
/// pod that has left the mesh since): what we did to it must not outlive that connection.
#[inline(always)]
fn leave_alone(ctx: &SockAddrContext, socket: *mut bpf_sock) -> i32 {
    // SAFETY: `socket` is the context's own.
    let Some(captured) = (unsafe { CAPTURED.get(socket) }) else { return ALLOW };
    if captured.mode == capture::MARK && context::set_mark(ctx, 0, captured.mark_mask).is_err() {
        return REFUSE;
    }
    loopback::forget(captured);
    // SAFETY: as above.
    unsafe { CAPTURED.remove(socket) };
    ALLOW
}

#[inline(always)]
fn capture<H: Hook>(
    ctx: &SockAddrContext,
    socket: *mut bpf_sock,
    netns: u64,
    row: &PodRow,
    dialled: Dialled,
) -> i32 {
    if !is_listening(netns, dialled.family) {
        info!(ctx, "refused a connection from namespace {}: the agent does not listen there", netns);
        count(counter::REFUSED_NO_LISTENER);
        return refuse();
    }
    // A device goes before the rule, so the connection would leave in plaintext.
    if field!(socket, bpf_sock, bound_dev_if, u32) != 0 && context::unbind_device(ctx).is_err() {
        warn!(ctx, "refused a connection from namespace {}: its socket is bound to a device", netns);
        count(counter::REFUSED_UNCAPTURABLE);
        return refuse();
    }
    if redirect::<H>(ctx, socket, netns, row, dialled).is_err() {
        warn!(ctx, "refused a connection from namespace {}: it could not be captured", netns);
        count(counter::REFUSED_UNCAPTURABLE);
        return refuse();
    }
    debug!(ctx, "captured a connection from namespace {} to port {}", netns, dialled.port);
    count(counter::CAPTURED);
    ALLOW
}

/// The storage comes first: from then on the guard lets nothing of this socket out, whatever happens
/// to the mark.
#[inline(always)]
fn redirect<H: Hook>(
    ctx: &SockAddrContext,
    socket: *mut bpf_sock,
    netns: u64,
    row: &PodRow,
    dialled: Dialled,
) -> Result<(), ()> {
    let mut fresh = Captured {
        netns,
        address: dialled.address.addr(),
        port: dialled.port,
        mode: row.capture,
        family: if dialled.family == Family::V4 { 4 } else { 6 },
        dials: 0,
        loopback: Addr16([0; 16]),
        loopback_port: 0,
        announced: 0,
        pad: 0,
        mark_mask: row.mark_mask,
    };
    // SAFETY: `socket` is the context's own.
    let captured = unsafe { CAPTURED.get_or_insert(socket, &mut fresh) }.ok_or(())?;
    loopback::forget(captured);
    captured.netns = fresh.netns;
    captured.address = fresh.address;
    captured.port = fresh.port;
    captured.mode = fresh.mode;
    captured.family = fresh.family;
    captured.mark_mask = fresh.mark_mask;
    captured.dials = captured.dials.wrapping_add(1);
    if row.capture == capture::LOOPBACK {
        loopback::redirect::<H>(ctx, captured, dialled)
    } else {
        context::set_mark(ctx, row.mark, row.mark_mask)
    }
}

#[inline(always)]
fn is_listening(netns: u64, family: Family) -> bool {
    let family = if family == Family::V4 { 4 } else { 6 };
    let key = ListenerKey { netns, kind: listener::OUTBOUND, family };
    LISTENERS.with(&key, |listener| field!(listener, bpf_sock, state, u32) == TCP_LISTEN).unwrap_or(false)
}

/// Refused at once. Where the kernel lets a hook choose (6.1) the application reads ECONNREFUSED,
/// elsewhere EPERM.
#[inline(always)]
fn refuse() -> i32 {
    if HAS_SET_RETVAL.load() == 1 {
        // SAFETY: takes a number.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
    }
    REFUSE
}
