//! From what is written to the internal model, with everything that types cannot check.

mod pods;
mod policies;
mod resources;
mod services;
mod workloads;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::discovery::State;
use crate::discovery::yaml::{Complaints, Path};
use crate::model::{SpiffeId, TrustDomain};
use crate::policy::{MtlsDefaults, Resources};

use super::document::{Document, Mesh};

pub(super) struct Converted {
    pub(super) state: State,
    /// With any of these the state must not be used.
    pub(super) errors: Complaints,
    pub(super) warnings: Complaints,
}

/// `before`: the resources of the state that this one takes the place of.
pub(super) fn convert(document: Document, before: Option<&Resources>) -> Converted {
    let mut c = Converter::new(&document.mesh);
    c.check_mesh(&document.mesh);
    let services = c.services(document.services);
    let policies = c.policies(document.policies);
    let workloads = c.workloads(document.workloads, &services, &policies);
    c.check_selectors(&policies, &workloads);
    let local_pods = c.local_pods(document.local_pods, &workloads);
    let Mesh { ranges, unknown_destinations, mtls, namespace_mtls, policy, trust_domain, .. } = document.mesh;
    let resources = c.resources(document.resources, policy.settings(trust_domain), before);
    let namespaces = namespace_mtls.into_iter().map(|(namespace, mode)| (namespace.into(), mode)).collect();
    let state = State {
        trust_domain: c.trust_domain,
        network: c.network,
        ranges: ranges.into_iter().map(|range| range.0).collect(),
        unknown: unknown_destinations,
        mtls: MtlsDefaults { mesh: mtls, namespaces },
        workloads,
        services,
        policies,
        policy_defects: Vec::new(),
        resources: Some(Arc::new(resources)),
        local_pods,
    };
    Converted { state, errors: c.errors, warnings: c.warnings }
}

/// What several sections need of each other while they are converted.
struct Converter {
    trust_domain: TrustDomain,
    network: Arc<str>,
    errors: Complaints,
    warnings: Complaints,
    /// Who claims an address, by network.
    claims: HashMap<(Arc<str>, IpAddr), String>,
}

impl Converter {
    fn new(mesh: &Mesh) -> Self {
        Self {
            trust_domain: mesh.trust_domain.clone(),
            network: mesh.network.as_str().into(),
            errors: Complaints::default(),
            warnings: Complaints::default(),
            claims: HashMap::new(),
        }
    }

    fn check_mesh(&mut self, mesh: &Mesh) {
        let path = Path::default().key("mesh").key("namespaceMtls");
        for namespace in mesh.namespace_mtls.keys().filter(|namespace| namespace.is_empty()) {
            self.errors.add(path.key(namespace), "a namespace has a name");
        }
    }

    /// Notes that `holder` has an address; two in one network cannot.
    fn claim(&mut self, path: &Path, network: &Arc<str>, ip: IpAddr, holder: String) {
        if let Some(other) = self.claims.get(&(network.clone(), ip)) {
            self.errors.add(path.clone(), format!("{ip} already belongs to {other}"));
            return;
        }
        self.claims.insert((network.clone(), ip), holder);
    }

    /// Of a single host, that others can dial.
    fn check_address(&mut self, path: &Path, ip: IpAddr) {
        let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || broadcast {
            self.errors.add(path.clone(), format!("{ip} is no address that others can dial"));
        }
    }

    fn check_name(&mut self, path: Path, value: &str) {
        if value.is_empty() {
            self.errors.add(path, "must not be empty");
        } else if value.contains(['/', '*']) || value.contains(char::is_whitespace) {
            self.errors.add(path, format!("{value:?} is no name: it has a '/', a '*' or a blank in it"));
        }
    }

    /// `namespace/name`, both with something in them.
    fn check_key(&mut self, path: Path, value: &str) -> bool {
        let ok =
            value.split_once('/').is_some_and(|(a, b)| !a.is_empty() && !b.is_empty() && !b.contains('/'));
        if !ok {
            self.errors.add(path, format!("is written as namespace/name, not {value:?}"));
        }
        ok
    }

    /// As [`crate::model::Service::key`] is: host names are compared in lower case everywhere.
    fn service_key(key: &str) -> String {
        match key.split_once('/') {
            Some((namespace, host)) => format!("{namespace}/{}", host.to_ascii_lowercase()),
            None => key.to_owned(),
        }
    }

    fn check_port(&mut self, path: Path, port: u16) {
        if port == 0 {
            self.errors.add(path, "0 is no port");
        }
    }

    /// Complains at the service account; a namespace that is no name has been complained about.
    fn identity(
        &mut self,
        path: &Path,
        trust_domain: Option<TrustDomain>,
        namespace: &str,
        service_account: &str,
    ) -> Option<SpiffeId> {
        let trust_domain = trust_domain.unwrap_or_else(|| self.trust_domain.clone());
        match SpiffeId::new(trust_domain, namespace, service_account) {
            Ok(id) => Some(id),
            Err(error) => {
                self.errors.add(path.key("serviceAccount"), error.to_string());
                None
            }
        }
    }
}
