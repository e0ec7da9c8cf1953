//! The vocabulary that every other module speaks. Plain values, no I/O.

pub mod addr;
pub mod cause;
pub mod cidr;
pub mod connection;
pub mod inbound;
pub mod outbound;
pub mod pod;
pub mod ports;
pub mod spiffe;
pub mod units;
pub mod workload;

pub use addr::{AppAddr, ClientAddr, NetnsCookie, NextHop, OriginalDst};
pub use cause::Cause;
pub use cidr::CidrTable;
pub use connection::{ConnectionId, Direction};
pub use inbound::{InboundAction, InboundPlan};
pub use outbound::Destination;
pub use pod::{LocalPod, PodUid};
pub use spiffe::{SpiffeId, TrustDomain};
pub use workload::{MtlsMode, Service, Workload};
