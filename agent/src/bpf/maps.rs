//! The maps with their types, and what the agent writes into them.

use std::collections::{BTreeMap, HashMap as StdHashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray, SockHash};
use aya::{Ebpf, Pod};
use ipnet::IpNet;
use underpass_common::{
    Addr16, DeliveryKey, InboundKey, ListenerKey, LoopbackKey, LoopbackValue, OwnAddressKey, PodRow,
    destination, inbound, name,
};

use super::{BpfError, Destination};
use crate::model::{InboundAction, InboundPlan, NetnsCookie};

/// Every map that only this side's calls change. One lock around all of them: a change is a few
/// system calls, and nothing on a connection's path needs it.
pub(super) struct Maps {
    pods: HashMap<MapData, u64, PodRow>,
    own_addresses: HashMap<MapData, OwnAddressKey, u8>,
    destinations: HashMap<MapData, Addr16, u8>,
    ranges: LpmTrie<MapData, Addr16, u8>,
    listeners: SockHash<MapData, ListenerKey>,
    inbound: HashMap<MapData, InboundKey, u8>,
    loopback: HashMap<MapData, LoopbackKey, LoopbackValue>,
    deliveries: HashMap<MapData, DeliveryKey, u8>,
    counters: PerCpuArray<MapData, u64>,
}

impl Maps {
    /// Takes them out of a loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        Ok(Self {
            pods: take(ebpf, name::map::PODS)?,
            own_addresses: take(ebpf, name::map::OWN_ADDRESSES)?,
            destinations: take(ebpf, name::map::DESTINATIONS)?,
            ranges: take(ebpf, name::map::RANGES)?,
            listeners: take(ebpf, name::map::LISTENERS)?,
            inbound: take(ebpf, name::map::INBOUND)?,
            loopback: take(ebpf, name::map::LOOPBACK_DESTINATIONS)?,
            deliveries: take(ebpf, name::map::DELIVERIES)?,
            counters: take(ebpf, name::map::COUNTERS)?,
        })
    }

    pub(super) fn pod(&self, pod: NetnsCookie) -> Result<Option<PodRow>, BpfError> {
        match self.pods.get(&pod.0, 0) {
            Ok(row) => Ok(Some(row)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(e) => Err(failed("lookup", name::map::PODS, e)),
        }
    }

    pub(super) fn set_pod(&mut self, pod: NetnsCookie, row: PodRow) -> Result<(), BpfError> {
        self.pods.insert(pod.0, row, 0).map_err(|e| failed("update", name::map::PODS, e))
    }

    pub(super) fn pods(&self) -> Result<Vec<NetnsCookie>, BpfError> {
        self.pods
            .keys()
            .map(|key| key.map(NetnsCookie).map_err(|e| failed("iterate", name::map::PODS, e)))
            .collect()
    }

    /// New addresses first: an address that is missing for a moment would be captured.
    pub(super) fn set_own_addresses(&mut self, pod: NetnsCookie, own: &[IpAddr]) -> Result<(), BpfError> {
        let wanted: StdHashMap<OwnAddressKey, u8> =
            own.iter().map(|ip| (OwnAddressKey { netns: pod.0, address: Addr16::from_ip(*ip) }, 1)).collect();
        replace(&mut self.own_addresses, name::map::OWN_ADDRESSES, &wanted, |key| key.netns == pod.0)
    }

    pub(super) fn set_listener(
        &mut self,
        key: ListenerKey,
        socket: Option<BorrowedFd<'_>>,
    ) -> Result<(), BpfError> {
        let result = match socket {
            Some(socket) => self.listeners.insert(key, socket.as_raw_fd(), 0),
            None => self.listeners.remove(&key),
        };
        result.or_else(ignore_missing).map_err(|e| failed("update", name::map::LISTENERS, e))
    }

    /// A plan that cannot be written in full leaves nothing that passes by the former one: the default
    /// is to drop then, and rows that differ from the plan are gone.
    pub(super) fn set_inbound(&mut self, pod: NetnsCookie, plan: &InboundPlan) -> Result<(), BpfError> {
        let row = self.pod(pod)?.ok_or(BpfError::NotEnrolled(pod))?;
        let wanted: StdHashMap<InboundKey, u8> = plan
            .ports
            .iter()
            .map(|(port, action)| (InboundKey::new(pod.0, *port), action_value(*action)))
            .collect();
        let written = self.write_inbound(pod, row, &wanted, action_value(plan.default));
        if written.is_err() {
            let _ = self.set_pod(pod, PodRow { inbound_default: inbound::DROP, ..row });
            // Neither changing a row that is there nor removing one takes memory.
            let differing = self.inbound.iter().filter_map(Result::ok);
            let differing =
                differing.filter(|(key, value)| key.netns == pod.0 && wanted.get(key) != Some(value));
            let differing: Vec<InboundKey> = differing.map(|(key, _)| key).collect();
            for key in differing {
                let _ = self.inbound.remove(&key);
            }
        }
        written
    }

    /// Rows before the default, so that a plan that opens ports under a default of drop never drops
    /// what it opens, and one that closes them under a default of pass never passes what it closes.
    fn write_inbound(
        &mut self,
        pod: NetnsCookie,
        row: PodRow,
        wanted: &StdHashMap<InboundKey, u8>,
        default: u8,
    ) -> Result<(), BpfError> {
        let stale = update(&mut self.inbound, name::map::INBOUND, wanted, |key| key.netns == pod.0)?;
        self.set_pod(pod, PodRow { inbound_default: default, ..row })?;
        remove(&mut self.inbound, name::map::INBOUND, stale)
    }

    /// Forgets a pod. The row goes first: nothing acts on the others without it.
    pub(super) fn forget(&mut self, pod: NetnsCookie) -> Result<(), BpfError> {
        self.pods.remove(&pod.0).or_else(ignore_missing).map_err(|e| failed("delete", name::map::PODS, e))?;
        for kind in KINDS {
            for family in [4, 6] {
                self.set_listener(ListenerKey { netns: pod.0, kind, family }, None)?;
            }
        }
        replace(&mut self.inbound, name::map::INBOUND, &StdHashMap::new(), |key| key.netns == pod.0)?;
        replace(&mut self.own_addresses, name::map::OWN_ADDRESSES, &StdHashMap::new(), |key| {
            key.netns == pod.0
        })?;
        replace(&mut self.loopback, name::map::LOOPBACK_DESTINATIONS, &StdHashMap::new(), |key| {
            key.netns == pod.0
        })?;
        replace(&mut self.deliveries, name::map::DELIVERIES, &StdHashMap::new(), |key| key.netns == pod.0)
    }

    /// New ranges first: a gap would be plaintext.
    pub(super) fn set_ranges(&mut self, ranges: &[IpNet]) -> Result<(), BpfError> {
        let wanted: HashSet<(u32, Addr16)> = ranges.iter().map(|range| range_key(*range)).collect();
        let mut present = HashSet::new();
        for key in self.ranges.keys() {
            let key = key.map_err(|e| failed("iterate", name::map::RANGES, e))?;
            present.insert((key.prefix_len(), key.data()));
        }
        for (length, address) in wanted.difference(&present) {
            self.ranges
                .insert(&Key::new(*length, *address), 1, 0)
                .map_err(|e| failed("update", name::map::RANGES, e))?;
        }
        for (length, address) in present.difference(&wanted) {
            self.ranges
                .remove(&Key::new(*length, *address))
                .or_else(ignore_missing)
                .map_err(|e| failed("delete", name::map::RANGES, e))?;
        }
        Ok(())
    }

    pub(super) fn set_destinations(&mut self, known: &BTreeMap<IpAddr, Destination>) -> Result<(), BpfError> {
        let wanted = known.iter().map(|(ip, d)| (Addr16::from_ip(*ip), destination_value(*d))).collect();
        replace(&mut self.destinations, name::map::DESTINATIONS, &wanted, |_| true)
    }

    pub(super) fn teach(&mut self, address: IpAddr, destination: Destination) -> Result<(), BpfError> {
        self.destinations
            .insert(Addr16::from_ip(address), destination_value(destination), 0)
            .map_err(|e| failed("update", name::map::DESTINATIONS, e))
    }

    /// Rows that come and go with connections.
    pub(super) fn connection_rows(&self) -> Result<usize, BpfError> {
        Ok(self.loopback.keys().count() + self.deliveries.keys().count())
    }

    /// The sum of a counter over all CPUs.
    pub(super) fn counter(&self, index: u32) -> Result<u64, BpfError> {
        let values = self.counters.get(&index, 0).map_err(|e| failed("lookup", name::map::COUNTERS, e))?;
        Ok(values.iter().sum())
    }
}

const KINDS: [u32; 3] = [
    underpass_common::listener::OUTBOUND,
    underpass_common::listener::PLAINTEXT,
    underpass_common::listener::HBONE,
];

/// Makes the part of a map that `ours` names equal to `wanted`: writes first, removals last.
fn replace<K: Pod + Eq + std::hash::Hash, V: Pod + PartialEq>(
    map: &mut HashMap<MapData, K, V>,
    name: &'static str,
    wanted: &StdHashMap<K, V>,
    ours: impl Fn(&K) -> bool,
) -> Result<(), BpfError> {
    let stale = update(map, name, wanted, ours)?;
    remove(map, name, stale)
}

/// Writes what differs, and returns the keys that are too many.
fn update<K: Pod + Eq + std::hash::Hash, V: Pod + PartialEq>(
    map: &mut HashMap<MapData, K, V>,
    name: &'static str,
    wanted: &StdHashMap<K, V>,
    ours: impl Fn(&K) -> bool,
) -> Result<Vec<K>, BpfError> {
    let mut present = StdHashMap::new();
    // A program may delete a row while we walk: the walk then ends early or repeats, and a row that it
    // missed is written again.
    for item in map.iter() {
        let (key, value) = item.map_err(|e| failed("iterate", name, e))?;
        if ours(&key) {
            present.insert(key, value);
        }
    }
    for (key, value) in wanted {
        if present.get(key) != Some(value) {
            map.insert(key, value, 0).map_err(|e| failed("update", name, e))?;
        }
    }
    Ok(present.into_keys().filter(|key| !wanted.contains_key(key)).collect())
}

fn remove<K: Pod, V: Pod>(
    map: &mut HashMap<MapData, K, V>,
    name: &'static str,
    keys: Vec<K>,
) -> Result<(), BpfError> {
    for key in keys {
        map.remove(&key).or_else(ignore_missing).map_err(|e| failed("delete", name, e))?;
    }
    Ok(())
}

fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, BpfError> {
    let map = ebpf.take_map(name).ok_or_else(|| BpfError::Object(format!("it has no map {name}")))?;
    T::try_from(map).map_err(|e| BpfError::Object(format!("map {name}: {e}")))
}

fn range_key(range: IpNet) -> (u32, Addr16) {
    let mapped = if range.addr().is_ipv4() { 96 } else { 0 };
    (u32::from(range.prefix_len()) + mapped, Addr16::from_ip(range.network()))
}

fn destination_value(destination: Destination) -> u8 {
    match destination {
        Destination::Leave => destination::LEAVE,
        Destination::Capture => destination::CAPTURE,
    }
}

fn action_value(action: InboundAction) -> u8 {
    match action {
        InboundAction::Drop => inbound::DROP,
        InboundAction::Pass => inbound::PASS,
        InboundAction::Steer => inbound::STEER,
    }
}

fn ignore_missing(error: MapError) -> Result<(), MapError> {
    match &error {
        MapError::KeyNotFound | MapError::ElementNotFound => Ok(()),
        MapError::SyscallError(e) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        _ => Err(error),
    }
}

/// An error of aya's maps in our words.
pub(super) fn failed(call: &'static str, map: &'static str, error: MapError) -> BpfError {
    let source = match error {
        MapError::SyscallError(e) => e.io_error,
        MapError::IoError(e) => e,
        other => io::Error::other(other.to_string()),
    };
    match source.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC) => BpfError::Full { map },
        _ => BpfError::Call { call, object: format!("map {map}"), source },
    }
}

/// The descriptor of any map that our object has.
pub(super) fn fd(map: &Map) -> Option<BorrowedFd<'_>> {
    let data: &MapData = match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::PerCpuArray(data)
        | Map::RingBuf(data)
        | Map::SkStorage(data)
        | Map::SockHash(data) => data,
        _ => return None,
    };
    Some(data.fd().as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_both_families_are_keys_of_one_trie() {
        for (range, length, network) in [
            ("10.96.0.0/12", 108, "10.96.0.0"),
            ("10.96.7.9/12", 108, "10.96.0.0"),
            ("0.0.0.0/0", 96, "0.0.0.0"),
            ("fd00:1::/32", 32, "fd00:1::"),
            ("::/0", 0, "::"),
        ] {
            let expected = (length, Addr16::from_ip(network.parse().unwrap()));
            assert_eq!(range_key(range.parse().unwrap()), expected, "{range}");
        }
    }
}
