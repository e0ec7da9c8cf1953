//! The `services` section.

use std::collections::{BTreeMap, HashMap};

use super::Converter;
use crate::discovery::file::document::{self as written, HealthPolicy};
use crate::discovery::yaml::Path;
use crate::model::workload::{LoadBalancing, PortMapping};
use crate::model::{Service, ports};

impl Converter {
    pub(super) fn services(&mut self, services: Vec<written::Service>) -> Vec<Service> {
        let mut seen = HashMap::new();
        let mut ranges = HashMap::new();
        let mut converted = Vec::with_capacity(services.len());
        for (at, service) in services.into_iter().enumerate() {
            let path = Path::default().key("services").index(at);
            let service = self.service(&path, service);
            let key = service.key();
            if let Some(first) = seen.insert(key.clone(), at) {
                self.errors.add(path.key("hostname"), format!("services[{first}] is {key:?} already"));
            }
            for (n, vip) in service.vips.iter().enumerate() {
                let path = path.key("vips").index(n);
                if vip.prefix_len() == vip.max_prefix_len() {
                    self.check_address(&path, vip.addr());
                    let network = self.network.clone();
                    self.claim(&path, &network, vip.addr(), format!("services[{at}] ({key})"));
                } else if let Some(first) = ranges.insert(*vip, at) {
                    self.errors.add(path, format!("{vip} already belongs to services[{first}]"));
                }
            }
            converted.push(service);
        }
        converted
    }

    fn service(&mut self, path: &Path, service: written::Service) -> Service {
        self.check_name(path.key("namespace"), &service.namespace);
        self.check_name(path.key("hostname"), &service.hostname);
        if let Some(name) = &service.name {
            self.check_name(path.key("name"), name);
        }
        let first_label = service.hostname.split('.').next().unwrap_or_default();
        Service {
            name: service.name.as_deref().unwrap_or(first_label).into(),
            namespace: service.namespace.into(),
            hostname: service.hostname.to_ascii_lowercase().into(),
            vips: service.vips.into_iter().map(|vip| vip.0).collect(),
            ports: self.port_mappings(&path.key("ports"), &service.ports, true),
            subject_alt_names: service.subject_alt_names,
            allow_unhealthy: service.load_balancing.health_policy == HealthPolicy::AllowAll,
            load_balancing: LoadBalancing {
                mode: service.load_balancing.mode,
                routing_preference: service.load_balancing.routing_preference,
            },
            canonical: service.canonical,
            visibility: service.visibility,
        }
    }

    /// `named` allows target port 0, which leaves it to the endpoint.
    pub(super) fn port_mappings(
        &mut self,
        path: &Path,
        ports: &BTreeMap<u16, u16>,
        named: bool,
    ) -> Vec<PortMapping> {
        for (service_port, target_port) in ports {
            let path = path.key(service_port.to_string());
            self.check_port(path.clone(), *service_port);
            if !named {
                self.check_port(path.clone(), *target_port);
            }
            if ports::ALL.contains(target_port) {
                self.errors.add(path, format!("target port {target_port} is the agent's own in every pod"));
            }
        }
        ports.iter().map(|(s, t)| PortMapping { service_port: *s, target_port: *t }).collect()
    }
}
