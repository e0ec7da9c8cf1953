//! Where a pod's connection goes: a function of plain values.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rand::Rng;

use crate::model::workload::TunnelProtocol;
use crate::model::{AppAddr, Cause, LocalPod, NextHop, OriginalDst, Service, SpiffeId, Workload, ports};

use super::endpoints::{Endpoint, ServiceEntry};
use super::snapshot::Snapshot;
use super::state::UnknownDestinations;

/// The way to a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// In a tunnel.
    Hbone {
        next_hop: NextHop,
        /// The CONNECT authority: the pod's address and target port.
        target: AppAddr,
        /// The peer must prove one of these. Never empty, sorted.
        expected: Arc<[SpiffeId]>,
        /// The service that was dialled, if it was one.
        service: Option<Arc<Service>>,
        workload: Arc<Workload>,
    },
    /// In plain TCP.
    Plain {
        to: SocketAddr,
        service: Option<Arc<Service>>,
        /// None where nothing is known of the address.
        workload: Option<Arc<Workload>>,
        /// Whether the kernel may be taught that `to`'s address is to be left alone: only where that
        /// is the address that was dialled, and where not knowing it cannot mean plaintext to a pod
        /// of the mesh.
        learn: bool,
    },
    /// Nowhere; with the reason for the log.
    Refuse(Cause, String),
}

/// Workloads before services; services by address before services by range; what is neither is not
/// the mesh's, except inside its ranges, where [`UnknownDestinations`] decides.
pub fn route(snapshot: &Snapshot, from: &LocalPod, dialled: OriginalDst, rng: &mut impl Rng) -> Route {
    let ip = dialled.ip();
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
        return Route::Refuse(Cause::BadTarget, format!("{ip} is no address of another pod"));
    }
    if !snapshot.is_synced() {
        return Route::Refuse(Cause::NoEndpoint, "nothing is known of the mesh yet".into());
    }
    if let Some(workload) = snapshot.workload(ip) {
        return to_workload(snapshot, workload, ip, dialled.port());
    }
    if let Some(entry) = snapshot.service_entry_by_vip(ip, &from.namespace) {
        let client = snapshot.workload_of(from).map(|w| &**w);
        return to_service(entry, from, client, dialled, rng);
    }
    to_unknown(snapshot, ip, dialled.port())
}

fn to_workload(snapshot: &Snapshot, workload: &Arc<Workload>, ip: IpAddr, port: u16) -> Route {
    let to = SocketAddr::new(ip, port);
    match workload.protocol {
        TunnelProtocol::Hbone => hbone(to, snapshot.expected(workload), None, workload),
        TunnelProtocol::None => {
            Route::Plain { to, service: None, workload: Some(workload.clone()), learn: true }
        }
    }
}

fn to_service(
    entry: &ServiceEntry,
    from: &LocalPod,
    client: Option<&Workload>,
    dialled: OriginalDst,
    rng: &mut impl Rng,
) -> Route {
    let service = &entry.service;
    let refuse = |why: String| {
        let (namespace, host) = (&service.namespace, &service.hostname);
        Route::Refuse(Cause::NoEndpoint, format!("service {namespace}/{host} port {}: {why}", dialled.port()))
    };
    if !service.is_visible_to(&from.namespace) {
        return refuse("it is for clients of its own namespace only".into());
    }
    let Some(pool) = entry.pool(dialled.port()) else {
        return refuse("it has no such port".into());
    };
    let picked = pool
        .pick(&service.load_balancing, client, rng)
        .and_then(|endpoint| Some((endpoint, endpoint.address(dialled.ip())?)));
    let Some((Endpoint { workload, target_port, expected }, ip)) = picked else {
        return refuse(pool.why_empty());
    };
    let to = SocketAddr::new(ip, *target_port);
    match workload.protocol {
        TunnelProtocol::Hbone => hbone(to, expected.clone(), Some(service.clone()), workload),
        TunnelProtocol::None => Route::Plain {
            to,
            service: Some(service.clone()),
            workload: Some(workload.clone()),
            // The address that was dialled is the service's.
            learn: false,
        },
    }
}

fn to_unknown(snapshot: &Snapshot, ip: IpAddr, port: u16) -> Route {
    let to = SocketAddr::new(ip, port);
    let plain = |learn| Route::Plain { to, service: None, workload: None, learn };
    if !snapshot.in_mesh_ranges(ip) {
        return plain(true);
    }
    if ports::ALL.contains(&port) {
        // Whatever pod has the address, this is no port of an application in it.
        return own_port(to);
    }
    match snapshot.unknown_destinations() {
        // Not to be learned: a pod of the mesh may get the address at any time.
        UnknownDestinations::Passthrough => plain(false),
        UnknownDestinations::Refuse => Route::Refuse(
            Cause::NoEndpoint,
            format!("{ip} is in the mesh's ranges, but neither a workload's address nor a service's"),
        ),
    }
}

fn hbone(
    to: SocketAddr,
    expected: Arc<[SpiffeId]>,
    service: Option<Arc<Service>>,
    workload: &Arc<Workload>,
) -> Route {
    if ports::ALL.contains(&to.port()) {
        return own_port(to);
    }
    Route::Hbone {
        next_hop: NextHop(SocketAddr::new(to.ip(), ports::HBONE)),
        target: AppAddr(to),
        expected,
        service,
        workload: workload.clone(),
    }
}

fn own_port(to: SocketAddr) -> Route {
    Route::Refuse(
        Cause::Loop,
        format!("{to}: port {} is the agent's own in every pod of the mesh", to.port()),
    )
}
