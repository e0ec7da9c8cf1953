//! A Pod, as the workload that policy sees.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::Value;

use super::text;
use crate::model::workload::{ContainerPort, HttpProbe, NetworkMode, PodFacts, TunnelProtocol};
use crate::model::{SpiffeId, TrustDomain, Workload};
use crate::policy::{Meta, Object};

pub(super) fn workload(
    pod: &Object,
    namespace: Option<&Meta>,
    trust_domain: &TrustDomain,
) -> Result<Workload, String> {
    let Meta { namespace: ns, name, .. } = &pod.meta;
    let account = text(&pod.spec, "serviceAccountName")
        .or_else(|| text(&pod.spec, "serviceAccount"))
        .unwrap_or_else(|| "default".into());
    let identity = SpiffeId::new(trust_domain.clone(), ns, &account).map_err(|e| e.to_string())?;
    let mut workload = Workload::new(&format!("Kubernetes//Pod/{ns}/{name}"), ns, name, identity);
    workload.addresses = addresses(&pod.status)?;
    workload.node = text(&pod.spec, "nodeName").unwrap_or_default();
    if pod.spec.get("hostNetwork").and_then(Value::as_bool) == Some(true) {
        workload.network_mode = NetworkMode::HostNetwork;
    }
    if !is_of_mesh(&pod.meta).or_else(|| namespace.and_then(is_of_mesh)).unwrap_or(true) {
        workload.protocol = TunnelProtocol::None;
    }
    let containers = Containers::of(&pod.spec);
    workload.facts = PodFacts {
        labels: pod.meta.labels.clone(),
        annotations: annotations(&pod.meta),
        ports: containers.ports()?,
        probes: containers.probes(),
        waypoint: waypoint(&pod.meta, ns).or_else(|| namespace.and_then(|meta| waypoint(meta, ns))),
    };
    Ok(workload)
}

fn addresses(status: &Value) -> Result<Vec<IpAddr>, String> {
    let mut addresses = Vec::new();
    let listed = status.get("podIPs").and_then(Value::as_array).into_iter().flatten();
    let all = text(status, "podIP").into_iter().chain(listed.filter_map(|item| text(item, "ip")));
    for ip in all.filter(|ip| !ip.is_empty()) {
        let ip: IpAddr = ip.parse().map_err(|_| format!("status.podIP: {ip:?} is no address"))?;
        if !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    Ok(addresses)
}

/// The annotations that policy reads.
fn annotations(meta: &Meta) -> BTreeMap<Arc<str>, Arc<str>> {
    let ours = |key: &str| key.starts_with("config.linkerd.io/") || key.starts_with("underpass.io/");
    let own = meta.annotations.iter().filter(|(key, _)| ours(key));
    own.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// What its own labels say; none where they say nothing. Our label counts for more than Istio's.
fn is_of_mesh(meta: &Meta) -> Option<bool> {
    let says = |key: &str| meta.labels.get(key).map(|value| !matches!(&**value, "none" | "disabled"));
    says("underpass.io/mesh").or_else(|| says("istio.io/dataplane-mode"))
}

/// The waypoint that Istio's labels name; `none` is none.
fn waypoint(meta: &Meta, own: &str) -> Option<Arc<str>> {
    let name = meta.labels.get("istio.io/use-waypoint").filter(|name| ***name != *"none")?;
    let namespace = meta.labels.get("istio.io/use-waypoint-namespace").map_or(own, |namespace| namespace);
    Some(format!("{namespace}/{name}").into())
}

/// The containers that run beside each other: those of the pod, and init containers that stay.
struct Containers<'a>(Vec<&'a Value>);

impl<'a> Containers<'a> {
    fn of(spec: &'a Value) -> Self {
        let list = |key| spec.get(key).and_then(Value::as_array).into_iter().flatten();
        let stays = |container: &&Value| text(container, "restartPolicy").as_deref() == Some("Always");
        Self(list("containers").chain(list("initContainers").filter(stays)).collect())
    }

    fn ports(&self) -> Result<Vec<ContainerPort>, String> {
        let mut ports = Vec::new();
        for port in self.0.iter().flat_map(|c| c.get("ports").and_then(Value::as_array).into_iter().flatten())
        {
            if text(port, "protocol").is_some_and(|protocol| *protocol != *"TCP") {
                continue;
            }
            let number = port.get("containerPort").and_then(Value::as_u64);
            let number = number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
            let number =
                number.ok_or_else(|| format!("ports: {port} has no containerPort from 1 to 65535"))?;
            ports.push(ContainerPort { name: text(port, "name").unwrap_or_default(), port: number });
        }
        Ok(ports)
    }

    fn probes(&self) -> Vec<HttpProbe> {
        let mut probes = Vec::new();
        for container in &self.0 {
            for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
                let get = container.get(kind).and_then(|probe| probe.get("httpGet"));
                let Some(get) = get else { continue };
                let Some(port) = self.port_of(container, get.get("port")) else { continue };
                let path = text(get, "path").unwrap_or_else(|| "/".into());
                let path = path.split(['?', '#']).next().unwrap_or_default().into();
                let probe = HttpProbe { port, path };
                if !probes.contains(&probe) {
                    probes.push(probe);
                }
            }
        }
        probes
    }

    fn port_of(&self, container: &Value, port: Option<&Value>) -> Option<u16> {
        let port = port?;
        if let Some(number) = port.as_u64().or_else(|| port.as_str()?.parse().ok()) {
            return u16::try_from(number).ok().filter(|port| *port > 0);
        }
        let named = |c: &Value| {
            let ports = c.get("ports")?.as_array()?;
            let found = ports.iter().find(|p| p.get("name") == Some(port))?;
            found.get("containerPort")?.as_u64().and_then(|n| u16::try_from(n).ok())
        };
        named(container)
    }
}
