//! What the kernel programs and the agent agree on: the names of maps, the shape of their keys and
//! values, the marks on packets, and the events that go up.
//!
//! Every type that crosses is `#[repr(C)]`, has no hidden padding (a key whose padding nobody wrote
//! does not match its equal), and has its layout asserted where it is declared. Whoever changes one of
//! them raises [`LAYOUT_VERSION`], which is part of the path where maps are pinned: an agent never
//! opens maps of another layout.
#![no_std]

mod addr;
mod event;
mod loopback;
mod map;
mod mark;
pub mod name;

pub use addr::Addr16;
pub use event::{FlowEvent, flow_direction};
pub use loopback::{LOOPBACK4_PREFIX, LOOPBACK6_PREFIX, LoopbackKey, LoopbackValue};
pub use map::{
    Captured, DeliveryKey, FlowState, InboundKey, ListenerKey, OwnAddressKey, PodRow, capture, counter,
    destination, inbound, listener, own_socket,
};
pub use mark::{CAPTURE_MARK, MARK_MASK, RETURN_MARK, RULE_MARK, RULE_MASK};

/// Raised with every change to a type of this crate or to a map's kind: maps of another version are
/// never opened.
pub const LAYOUT_VERSION: u32 = 1;

/// Declares that a type may be copied to and from a map, and what it must look like there.
macro_rules! crosses {
    ($type:ty, size $size:expr, align $align:expr $(, $field:ident at $offset:expr)* $(,)?) => {
        const _: () = {
            assert!(core::mem::size_of::<$type>() == $size);
            assert!(core::mem::align_of::<$type>() == $align);
            $(assert!(core::mem::offset_of!($type, $field) == $offset);)*
        };
        // SAFETY: `repr(C)`, integers and byte arrays only, and the assertions above leave no room
        // for padding, so every bit pattern is a value and every byte is initialised.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $type {}
    };
}
pub(crate) use crosses;
