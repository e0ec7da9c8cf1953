//! The `workloads` section.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::Converter;
use crate::discovery::file::document::{self as written, Protocol};
use crate::discovery::yaml::Path;
use crate::model::workload::{
    ContainerPort, HttpProbe, Locality, NetworkMode, PodFacts, PortMapping, TunnelProtocol, WorkloadMtls,
};
use crate::model::{Service, Workload};
use crate::policy::Policy;

impl Converter {
    pub(super) fn workloads(
        &mut self,
        workloads: Vec<written::Workload>,
        services: &[Service],
        policies: &[Policy],
    ) -> Vec<Workload> {
        let services: HashMap<String, &Service> = services.iter().map(|s| (s.key(), s)).collect();
        let policies: HashSet<Arc<str>> = policies.iter().map(Policy::key).collect();
        let mut seen = HashMap::new();
        let mut converted = Vec::with_capacity(workloads.len());
        for (at, workload) in workloads.into_iter().enumerate() {
            let path = Path::default().key("workloads").index(at);
            self.check_references(&path, &workload, &services, &policies);
            let Some(workload) = self.workload(&path, workload) else { continue };
            if let Some(first) = seen.insert(workload.uid.clone(), at) {
                let uid = &workload.uid;
                self.errors.add(path.key("uid"), format!("workloads[{first}] has the uid {uid:?} already"));
            }
            self.check_addresses(&path, at, &workload);
            converted.push(workload);
        }
        converted
    }

    /// None after a complaint.
    fn workload(&mut self, path: &Path, w: written::Workload) -> Option<Workload> {
        self.check_name(path.key("name"), &w.name);
        self.check_name(path.key("namespace"), &w.namespace);
        let identity = self.identity(path, w.trust_domain, &w.namespace, &w.service_account)?;
        let uid = w.uid.unwrap_or_else(|| format!("{}//Pod/{}/{}", w.cluster_id, w.namespace, w.name));
        if uid.is_empty() {
            self.errors.add(path.key("uid"), "must not be empty");
        }
        let workload_name = w.workload_name.unwrap_or_else(|| w.name.clone());
        Some(Workload {
            uid: uid.into(),
            namespace: w.namespace.into(),
            identity,
            addresses: w.workload_ips.into_iter().map(|ip| ip.0).collect(),
            network: w.network.map_or_else(|| self.network.clone(), Arc::from),
            protocol: match w.protocol {
                Protocol::Hbone => TunnelProtocol::Hbone,
                Protocol::Tcp => TunnelProtocol::None,
            },
            network_mode: w.network_mode,
            node: w.node.into(),
            cluster: w.cluster_id.into(),
            canonical_name: w.canonical_name.as_deref().unwrap_or(&workload_name).into(),
            canonical_revision: w.canonical_revision.into(),
            workload_type: w.workload_type,
            workload_name: workload_name.into(),
            locality: Locality {
                region: w.locality.region.into(),
                zone: w.locality.zone.into(),
                subzone: w.locality.subzone.into(),
            },
            health: w.status,
            capacity: w.capacity,
            services: self.memberships(&path.key("services"), w.services),
            policies: w.authorization_policies.into_iter().map(Arc::from).collect(),
            mtls: WorkloadMtls { mode: w.mtls.mode, ports: w.mtls.ports },
            name: w.name.into(),
            facts: PodFacts {
                labels: texts(w.labels),
                annotations: texts(w.annotations),
                ports: w
                    .ports
                    .into_iter()
                    .map(|p| ContainerPort { name: p.name.into(), port: p.port })
                    .collect(),
                probes: w
                    .probes
                    .into_iter()
                    .map(|p| HttpProbe { port: p.port, path: p.path.into() })
                    .collect(),
                waypoint: w.waypoint.map(Into::into),
            },
        })
    }

    fn memberships(
        &mut self,
        path: &Path,
        services: BTreeMap<String, BTreeMap<u16, u16>>,
    ) -> BTreeMap<Arc<str>, Vec<PortMapping>> {
        let mut memberships = BTreeMap::new();
        for (written, ports) in services {
            let path = path.key(&written);
            let mappings = self.port_mappings(&path, &ports, false);
            if memberships.insert(Arc::from(Self::service_key(&written)), mappings).is_some() {
                self.errors.add(path, "the same service is there twice: capitals make no difference");
            }
        }
        memberships
    }

    fn check_references(
        &mut self,
        path: &Path,
        workload: &written::Workload,
        services: &HashMap<String, &Service>,
        policies: &HashSet<Arc<str>>,
    ) {
        for (key, ports) in &workload.services {
            let path = path.key("services").key(key);
            if !self.check_key(path.clone(), key) {
                continue;
            }
            let Some(service) = services.get(&Self::service_key(key)) else {
                self.errors.add(path, format!("there is no service {key:?}"));
                continue;
            };
            let unknown = |port: &&u16| !service.ports.iter().any(|mapping| mapping.service_port == **port);
            for port in ports.keys().filter(unknown) {
                self.warnings.add(path.key(port.to_string()), format!("service {key:?} has no port {port}"));
            }
        }
        for (at, key) in workload.authorization_policies.iter().enumerate() {
            let path = path.key("authorizationPolicies").index(at);
            if self.check_key(path.clone(), key) && !policies.contains(key.as_str()) {
                self.warnings
                    .add(path, format!("there is no policy {key:?}: nobody may connect to the workload"));
            }
        }
        for port in workload.mtls.ports.keys() {
            self.check_port(path.key("mtls").key("ports").key(port.to_string()), *port);
        }
    }

    fn check_addresses(&mut self, path: &Path, at: usize, workload: &Workload) {
        for (n, ip) in workload.addresses.iter().enumerate() {
            let path = path.key("workloadIps").index(n);
            self.check_address(&path, *ip);
            // Those of one node share its addresses.
            if workload.network_mode == NetworkMode::Standard {
                let holder = format!("workloads[{at}] ({}/{})", workload.namespace, workload.name);
                self.claim(&path, &workload.network, *ip, holder);
            }
        }
    }
}

fn texts(written: BTreeMap<String, String>) -> BTreeMap<Arc<str>, Arc<str>> {
    written.into_iter().map(|(key, value)| (key.into(), value.into())).collect()
}
