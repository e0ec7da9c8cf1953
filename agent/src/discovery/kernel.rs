//! What the kernel's maps should say of destinations while a snapshot is current.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::workload::TunnelProtocol;
use crate::model::{Destination, cidr};

use super::snapshot::Snapshot;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelDestinations {
    /// Addresses of which something is known; they win over `ranges`.
    pub known: BTreeMap<IpAddr, Destination>,
    /// Where everything else is captured: the mesh's ranges, and services' that are not single
    /// addresses. Outside of them everything else is left alone.
    pub ranges: Vec<IpNet>,
}

impl Snapshot {
    /// Addresses that are both a workload's and a service's follow the workload, as routing does.
    pub fn kernel_destinations(&self) -> KernelDestinations {
        let mut known = BTreeMap::new();
        let mut ranges: BTreeSet<IpNet> = self.mesh_ranges().iter().copied().collect();
        for vip in self.services().flat_map(|service| &service.vips).map(|vip| cidr::canonical(*vip)) {
            if vip.prefix_len() == vip.max_prefix_len() {
                known.insert(vip.addr(), Destination::Capture);
            } else {
                ranges.insert(vip);
            }
        }
        for (ip, workload) in self.addresses() {
            let destination = match workload.protocol {
                TunnelProtocol::Hbone => Destination::Capture,
                TunnelProtocol::None => Destination::Leave,
            };
            known.insert(ip, destination);
        }
        KernelDestinations { known, ranges: ranges.into_iter().collect() }
    }
}
