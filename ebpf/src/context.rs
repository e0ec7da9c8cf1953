//! Readers and writers for the contexts and sockets that our programs get.

use core::arch::asm;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{bpf_sk_lookup, bpf_sock, bpf_sock_addr, bpf_sock_ops};
use aya_ebpf::helpers::bpf_get_netns_cookie;
use aya_ebpf::helpers::generated::{bpf_getsockopt, bpf_setsockopt};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockOpsContext};

use crate::addr::Words;

pub const TCP: u32 = 6;
pub const AF_INET: u32 = 2;
pub const AF_INET6: u32 = 10;
/// lo has this index in every namespace.
pub const LOOPBACK_IFINDEX: u32 = 1;

const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
const SO_BINDTOIFINDEX: i32 = 62;

/// Reads one field: `field!(pointer: type, path, u32)`.
///
/// The kernel rewrites every access to a context or a socket and wants each at a constant offset from
/// the pointer it handed out. LLVM does not know that and, in all freedom, joins neighbouring loads into
/// a wider one and merges the ends of two branches into one load behind a computed pointer; `volatile`
/// does not stop the latter. An instruction of our own does.
macro_rules! field {
    ($pointer:expr, $type:ty, $($path:ident).+, u16) => {
        crate::context::load16::<{ core::mem::offset_of!($type, $($path).+) }, _>($pointer)
    };
    ($pointer:expr, $type:ty, $($path:ident).+, u32) => {
        crate::context::load32::<{ core::mem::offset_of!($type, $($path).+) }, _>($pointer)
    };
    ($pointer:expr, $type:ty, $($path:ident).+, u64) => {
        crate::context::load64::<{ core::mem::offset_of!($type, $($path).+) }, _>($pointer)
    };
}
pub(crate) use field;

macro_rules! loader {
    ($name:ident, $width:ty, $instruction:literal) => {
        #[inline(always)]
        pub fn $name<const OFFSET: usize, T>(pointer: *const T) -> $width {
            let value: u64;
            // SAFETY: the pointer is one that the kernel handed out (a context, a socket), and the
            // verifier checks what is read behind it.
            unsafe {
                asm!(
                    $instruction,
                    value = lateout(reg) value,
                    pointer = in(reg) pointer,
                    offset = const OFFSET,
                    options(nostack, readonly, preserves_flags),
                );
            }
            value as $width
        }
    };
}
loader!(load16, u16, "{value} = *(u16 *)({pointer} + {offset})");
loader!(load32, u32, "{value} = *(u32 *)({pointer} + {offset})");
loader!(load64, u64, "{value} = *(u64 *)({pointer} + {offset})");

/// Writes one 32-bit field of a context.
macro_rules! set_field {
    ($pointer:expr, $type:ty, $path:ident, $value:expr) => {
        crate::context::store32::<{ core::mem::offset_of!($type, $path) }, _>($pointer, $value)
    };
}
pub(crate) use set_field;

#[inline(always)]
pub fn store32<const OFFSET: usize, T>(pointer: *mut T, value: u32) {
    // SAFETY: as for the loads.
    unsafe {
        asm!(
            "*(u32 *)({pointer} + {offset}) = {value}",
            value = in(reg) u64::from(value),
            pointer = in(reg) pointer,
            offset = const OFFSET,
            options(nostack, preserves_flags),
        );
    }
}

/// Reads an address of four words: `words!(pointer, type, path)`.
macro_rules! words {
    ($pointer:expr, $type:ty, $path:ident) => {
        crate::addr::Words([
            crate::context::load32::<{ core::mem::offset_of!($type, $path) }, _>($pointer),
            crate::context::load32::<{ core::mem::offset_of!($type, $path) + 4 }, _>($pointer),
            crate::context::load32::<{ core::mem::offset_of!($type, $path) + 8 }, _>($pointer),
            crate::context::load32::<{ core::mem::offset_of!($type, $path) + 12 }, _>($pointer),
        ])
    };
}
pub(crate) use words;

/// The cookie of the namespace that the context's socket belongs to.
#[inline(always)]
pub fn netns_cookie(ctx: &impl EbpfContext) -> u64 {
    // SAFETY: a valid context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// The socket behind a connect or getpeername hook; `None` does not happen, but the verifier asks.
#[inline(always)]
pub fn dialling_socket(ctx: &SockAddrContext) -> Option<*mut bpf_sock> {
    let socket = field!(ctx.sock_addr, bpf_sock_addr, __bindgen_anon_1.sk, u64) as *mut bpf_sock;
    (!socket.is_null()).then_some(socket)
}

/// The full socket behind a sock_ops call.
#[inline(always)]
pub fn ops_socket(ctx: &SockOpsContext) -> Option<*mut bpf_sock> {
    let socket = field!(ctx.ops, bpf_sock_ops, __bindgen_anon_2.sk, u64) as *mut bpf_sock;
    (!socket.is_null()).then_some(socket)
}

/// The socket's mark changes within `mask` only: other bits are the application's.
#[inline(always)]
pub fn set_mark(ctx: &impl EbpfContext, mark: u32, mask: u32) -> Result<(), ()> {
    let mut value = 0u32;
    get_option(ctx, SO_MARK, &mut value)?;
    set_option(ctx, SO_MARK, (value & !mask) | mark)
}

/// Undoes SO_BINDTODEVICE. The kernel asks the current process for CAP_NET_RAW, as for the
/// application's own call (net/core/sock.c, `sock_bindtoindex_locked`).
#[inline(always)]
pub fn unbind_device(ctx: &impl EbpfContext) -> Result<(), ()> {
    set_option(ctx, SO_BINDTOIFINDEX, 0)
}

#[inline(always)]
fn get_option(ctx: &impl EbpfContext, name: i32, value: &mut u32) -> Result<(), ()> {
    // SAFETY: `value` is four bytes, as the kernel is told.
    match unsafe { bpf_getsockopt(ctx.as_ptr(), SOL_SOCKET, name, core::ptr::from_mut(value).cast(), 4) } {
        0 => Ok(()),
        _ => Err(()),
    }
}

#[inline(always)]
fn set_option(ctx: &impl EbpfContext, name: i32, mut value: u32) -> Result<(), ()> {
    // SAFETY: `value` is four bytes, as the kernel is told.
    match unsafe { bpf_setsockopt(ctx.as_ptr(), SOL_SOCKET, name, (&raw mut value).cast(), 4) } {
        0 => Ok(()),
        _ => Err(()),
    }
}

/// One end of a connection, as a context without a socket address tells it.
#[derive(Clone, Copy)]
pub struct End {
    pub address: Words,
    /// Host byte order.
    pub port: u16,
}

/// Local and remote end in a sock_ops context; `None` for other families than IP's.
#[inline(always)]
pub fn ops_ends(ctx: &SockOpsContext) -> Option<(End, End)> {
    type Ops = bpf_sock_ops;
    let ops = ctx.ops;
    let (local, remote) = match field!(ops, Ops, family, u32) {
        AF_INET => {
            (Words::v4(field!(ops, Ops, local_ip4, u32)), Words::v4(field!(ops, Ops, remote_ip4, u32)))
        }
        AF_INET6 => (words!(ops, Ops, local_ip6), words!(ops, Ops, remote_ip6)),
        _ => return None,
    };
    // The remote port fills 32 bits in network order, the local one is in host order.
    let local_port = field!(ops, Ops, local_port, u32) as u16;
    let remote_port = u32::from_be(field!(ops, Ops, remote_port, u32)) as u16;
    Some((End { address: local, port: local_port }, End { address: remote, port: remote_port }))
}

/// Local and remote end of a packet that looks for its socket.
#[inline(always)]
pub fn lookup_ends(ctx: &SkLookupContext) -> Option<(End, End)> {
    type Lookup = bpf_sk_lookup;
    let lookup = ctx.lookup;
    let (local, remote) = match field!(lookup, Lookup, family, u32) {
        AF_INET => (
            Words::v4(field!(lookup, Lookup, local_ip4, u32)),
            Words::v4(field!(lookup, Lookup, remote_ip4, u32)),
        ),
        AF_INET6 => (words!(lookup, Lookup, local_ip6), words!(lookup, Lookup, remote_ip6)),
        _ => return None,
    };
    let local_port = field!(lookup, Lookup, local_port, u32) as u16;
    let remote_port = u16::from_be(field!(lookup, Lookup, remote_port, u16));
    Some((End { address: local, port: local_port }, End { address: remote, port: remote_port }))
}
