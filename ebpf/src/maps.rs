//! The maps. Keys and values are described in `underpass-common`; sizes that an operator may want
//! otherwise are overridden when loading.

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{HashMap, LpmTrie, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use underpass_common::{
    Addr16, Captured, DeliveryKey, FlowEvent, FlowState, InboundKey, ListenerKey, LoopbackKey, LoopbackValue,
    OwnAddressKey, PodRow, counter,
};

use crate::storage::{ListenerMap, SocketStorage};

/// Rows are allocated as they come: a node has tens of pods, the limits allow thousands.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
pub static PODS: HashMap<u64, PodRow, 4096, ON_DEMAND> = HashMap::new();

#[btf_map]
pub static OWN_ADDRESSES: HashMap<OwnAddressKey, u8, 16384, ON_DEMAND> = HashMap::new();

#[btf_map]
pub static DESTINATIONS: HashMap<Addr16, u8, 262144, ON_DEMAND> = HashMap::new();

#[btf_map]
pub static RANGES: LpmTrie<Addr16, u8, 4096> = LpmTrie::new();

#[btf_map]
pub static LISTENERS: ListenerMap<ListenerKey, 16384> = ListenerMap::new();

#[btf_map]
pub static INBOUND: HashMap<InboundKey, u8, 65536, ON_DEMAND> = HashMap::new();

/// Written by the agent only. Cloned to the sockets that a listener accepts.
#[btf_map]
pub static AGENT_SOCKETS: SocketStorage<u32, { (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize }> =
    SocketStorage::new();

#[btf_map]
pub static CAPTURED: SocketStorage<Captured, ON_DEMAND> = SocketStorage::new();

#[btf_map]
pub static FLOW: SocketStorage<FlowState, ON_DEMAND> = SocketStorage::new();

#[btf_map]
pub static FLOWS: RingBuf<FlowEvent, 262144> = RingBuf::new();

#[btf_map]
pub static LOOPBACK_DESTINATIONS: HashMap<LoopbackKey, LoopbackValue, 65536, ON_DEMAND> = HashMap::new();

#[btf_map]
pub static DELIVERIES: HashMap<DeliveryKey, u8, 262144, ON_DEMAND> = HashMap::new();

#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { counter::COUNT as usize }> = PerCpuArray::new();

#[unsafe(no_mangle)]
pub static NETNS_COOKIE: Global<u64> = Global::new(0);

#[unsafe(no_mangle)]
pub static HAS_SET_RETVAL: Global<u8> = Global::new(0);

#[unsafe(no_mangle)]
pub static HAS_INGRESS_IFINDEX: Global<u8> = Global::new(0);

/// The row of an enrolled namespace.
#[inline(always)]
pub fn pod(netns: u64) -> Option<&'static PodRow> {
    // SAFETY: rows live in kernel memory that is freed after a grace period, and a program runs
    // inside one. The agent may overwrite a row meanwhile; every field is read once and stands alone.
    unsafe { PODS.get(netns) }
}

#[inline(always)]
pub fn is_own_address(netns: u64, address: Addr16) -> bool {
    OWN_ADDRESSES.get_ptr(OwnAddressKey { netns, address }).is_some()
}

/// What is known of a destination: see [`underpass_common::destination`].
#[inline(always)]
pub fn destination(address: Addr16) -> Option<u8> {
    // SAFETY: as in `pod`; one byte.
    unsafe { DESTINATIONS.get(address).copied() }
}

#[inline(always)]
pub fn in_mesh_range(address: Addr16) -> bool {
    RANGES.get(&Key::new(128, address)).is_some()
}
