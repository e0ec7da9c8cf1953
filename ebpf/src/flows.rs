//! Counts TCP connections of enrolled pods that were left alone, and reports each when it closes.

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TCP_LISTEN_CB, bpf_sock,
    bpf_sock_ops, bpf_tcp_sock,
};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::error;
use underpass_common::{DeliveryKey, FlowEvent, FlowState, capture, counter, flow_direction};

use crate::context::{self, field, load32};
use crate::count::count;
use crate::loopback;
use crate::maps::{AGENT_SOCKETS, CAPTURED, DELIVERIES, FLOW, FLOWS, is_own_address, pod};

/// What a sock_ops program returns; the reply, which the kernel reads for some calls, stays untouched.
const DONE: u32 = 1;

const FIN_WAIT2: u32 = 5;
const CLOSE: u32 = 7;
const CLOSE_WAIT: u32 = 8;
const LAST_ACK: u32 = 9;
const CLOSING: u32 = 11;

#[inline(always)]
pub fn sock_ops(ctx: &SockOpsContext) -> u32 {
    let op = field!(ctx.ops, bpf_sock_ops, op, u32);
    // Called for every connection and every retransmission timer of the node: the frequent calls that
    // do not concern us end here.
    if op != BPF_SOCK_OPS_TCP_CONNECT_CB
        && op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB
        && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB
        && op != BPF_SOCK_OPS_STATE_CB
        && op != BPF_SOCK_OPS_TCP_LISTEN_CB
    {
        return DONE;
    }
    let Some(socket) = context::ops_socket(ctx) else { return DONE };
    match op {
        BPF_SOCK_OPS_TCP_CONNECT_CB => dials(ctx, socket),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => begins(ctx, socket, flow_direction::OUTBOUND),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => begins(ctx, socket, flow_direction::INBOUND),
        BPF_SOCK_OPS_TCP_LISTEN_CB => listens(ctx, socket),
        _ => changes_state(ctx, socket),
    }
    DONE
}

/// Before the SYN leaves: announce the agent's dial to `steer`, and see to it that the close of what
/// holds a map row is heard of.
#[inline(always)]
fn dials(ctx: &SockOpsContext, socket: *mut bpf_sock) {
    // SAFETY: `socket` is the context's own.
    if let Some(captured) = unsafe { CAPTURED.get(socket) } {
        if captured.mode == capture::LOOPBACK {
            loopback::announce(captured);
            report_states(ctx);
        }
        return;
    }
    // SAFETY: as above.
    if unsafe { AGENT_SOCKETS.get(socket) }.is_none() {
        return;
    }
    let Some(key) = delivery_key(ctx) else { return };
    // From one own address to another: that speaks for itself. A dial to an address that is not the pod's
    // is announced too, for the pod's routes may bring it back.
    if is_own_address(key.netns, key.local) && is_own_address(key.netns, key.remote) {
        return;
    }
    if DELIVERIES.insert(key, 1, 0).is_err() {
        error!(ctx, "too many deliveries at once: one to namespace {} is judged as from outside", key.netns);
    }
    // Until it closes, and not only until it is established: the last step of a handshake with SYN
    // cookies looks for the listener again.
    report_states(ctx);
}

/// Asks to be told of the socket's states, beside what other programs have asked for.
#[inline(always)]
fn report_states(ctx: &SockOpsContext) {
    let flags = field!(ctx.ops, bpf_sock_ops, bpf_sock_ops_cb_flags, u32);
    let _ = ctx.set_cb_flags((flags | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
}

/// The connection of this socket of the agent's, seen from the other end.
#[inline(always)]
fn delivery_key(ctx: &SockOpsContext) -> Option<DeliveryKey> {
    let netns = context::netns_cookie(ctx);
    let (agent, application) = context::ops_ends(ctx)?;
    Some(DeliveryKey {
        netns,
        local: application.address.addr(),
        remote: agent.address.addr(),
        local_port: application.port,
        remote_port: agent.port,
        pad: 0,
    })
}

/// A captured socket that was disconnected and now listens would hand its mark down to what it
/// accepts.
#[inline(always)]
fn listens(ctx: &SockOpsContext, socket: *mut bpf_sock) {
    // SAFETY: `socket` is the context's own.
    if let Some(captured) = unsafe { CAPTURED.get(socket) } {
        if captured.mode == capture::MARK && context::set_mark(ctx, 0, captured.mark_mask).is_err() {
            return;
        }
        loopback::forget(captured);
        // SAFETY: as above.
        unsafe { CAPTURED.remove(socket) };
    }
}

#[inline(always)]
fn begins(ctx: &SockOpsContext, socket: *mut bpf_sock, direction: u8) {
    let netns = context::netns_cookie(ctx);
    let Some(row) = pod(netns) else { return };
    // SAFETY: `socket` is the context's own.
    if unsafe { AGENT_SOCKETS.get(socket).is_some() || CAPTURED.get(socket).is_some() } {
        return;
    }
    // The agent's delivery with the client's address. An application that forges this mark loses
    // nothing but a line of statistics.
    if direction == flow_direction::INBOUND
        && field!(socket, bpf_sock, mark, u32) & row.mark_mask == row.return_mark
    {
        return;
    }
    let Some((local, remote)) = context::ops_ends(ctx) else { return };
    if local.address.is_loopback()
        || remote.address.is_loopback()
        || is_own_address(netns, remote.address.addr())
    {
        return;
    }
    let mut state = FlowState {
        netns,
        // SAFETY: takes nothing.
        started: unsafe { bpf_ktime_get_ns() },
        received_at_fin: 0,
        direction,
        peer_fin: 0,
        pad: [0; 3],
    };
    // SAFETY: as above.
    if unsafe { FLOW.get_or_insert(socket, &mut state) }.is_some() {
        report_states(ctx);
    }
}

#[inline(always)]
fn changes_state(ctx: &SockOpsContext, socket: *mut bpf_sock) {
    const ARGS: usize = core::mem::offset_of!(bpf_sock_ops, __bindgen_anon_1.args);
    let old = load32::<ARGS, _>(ctx.ops);
    let new = load32::<{ ARGS + 4 }, _>(ctx.ops);
    // SAFETY: `socket` is the context's own.
    if let Some(flow) = unsafe { FLOW.get(socket) } {
        match new {
            CLOSE => {
                ends(ctx, socket, flow, old);
                // SAFETY: as above. The socket may be dialled again.
                unsafe { FLOW.remove(socket) };
            }
            CLOSE_WAIT | CLOSING => flow.peer_fin = 1,
            FIN_WAIT2 => flow.received_at_fin = bytes(socket).map_or(0, |(_, received)| received),
            _ => {}
        }
        return;
    }
    if new != CLOSE {
        return;
    }
    // SAFETY: as above.
    if let Some(captured) = unsafe { CAPTURED.get(socket) } {
        loopback::forget(captured);
        return;
    }
    // SAFETY: as above.
    if unsafe { AGENT_SOCKETS.get(socket) }.is_some()
        && let Some(key) = delivery_key(ctx)
    {
        let _ = DELIVERIES.remove(key);
    }
}

/// `bytes_acked` and `bytes_received` count the sequence numbers of SYN and FIN as well: the own SYN
/// when dialling, the own FIN once acknowledged, the peer's FIN once it came.
#[inline(always)]
fn ends(ctx: &SockOpsContext, socket: *mut bpf_sock, flow: &FlowState, old_state: u32) {
    let Some((acked, received)) = bytes(socket) else { return };
    let Some((local, remote)) = context::ops_ends(ctx) else { return };
    let own_syn = (flow.direction == flow_direction::OUTBOUND) as u64;
    let own_fin = (old_state == FIN_WAIT2 || old_state == CLOSING || old_state == LAST_ACK) as u64;
    // FIN_WAIT2 ends by the peer's FIN, which then is part of what came since; or by a timeout or a
    // reset, before which nothing need have come.
    let peer_fin = (flow.peer_fin == 1 || (old_state == FIN_WAIT2 && received > flow.received_at_fin)) as u64;
    let Some(mut entry) = FLOWS.reserve(0) else {
        count(counter::FLOWS_LOST);
        return;
    };
    entry.write(FlowEvent {
        netns: flow.netns,
        started: flow.started,
        // SAFETY: takes nothing.
        duration: unsafe { bpf_ktime_get_ns() }.wrapping_sub(flow.started),
        sent: acked.saturating_sub(own_syn + own_fin),
        received: received.saturating_sub(peer_fin),
        local: local.address.addr(),
        remote: remote.address.addr(),
        local_port: local.port,
        remote_port: remote.port,
        direction: flow.direction,
        pad: [0; 3],
    });
    entry.submit(0);
}

/// Acknowledged and received sequence numbers.
#[inline(always)]
fn bytes(socket: *mut bpf_sock) -> Option<(u64, u64)> {
    // SAFETY: `socket` is a context's own; the answer is null or a TCP socket.
    let tcp = unsafe { generated::bpf_tcp_sock(socket) };
    if tcp.is_null() {
        return None;
    }
    Some((field!(tcp, bpf_tcp_sock, bytes_acked, u64), field!(tcp, bpf_tcp_sock, bytes_received, u64)))
}
