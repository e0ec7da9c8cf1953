//! Server: which ports of which pods authorizations are for, and what holds there without any.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use time::OffsetDateTime;

use crate::model::workload::PodFacts;

use super::super::object::{LabelSelector, Object};
use super::super::resource::{DefectKind, ResourceRef};
use super::super::settings::InboundDefault;
use super::read::{Faults, Node};

#[derive(Debug)]
pub(super) struct Server {
    pub(super) resource: ResourceRef,
    pub(super) labels: BTreeMap<Arc<str>, Arc<str>>,
    pub(super) created: Option<OffsetDateTime>,
    /// None: it is for machines outside of the cluster.
    pods: Option<LabelSelector>,
    port: Port,
    pub(super) protocol: Protocol,
    pub(super) access: InboundDefault,
    /// Why it could not be understood: nobody is admitted to what it selects.
    pub(super) broken: Option<Arc<str>>,
}

#[derive(Debug)]
enum Port {
    Number(u16),
    Name(Arc<str>),
    /// It could not be read: any port may be meant.
    Any,
}

/// Which of a pod's ports a Server takes.
pub(super) enum Taken {
    Ports(Vec<u16>),
    /// All that no other takes.
    Rest,
}

/// What a Server says of the streams to its port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum Protocol {
    /// Found out per stream.
    #[default]
    #[serde(rename = "unknown")]
    Unknown,
    #[serde(rename = "HTTP/1")]
    Http1,
    #[serde(rename = "HTTP/2")]
    Http2,
    #[serde(rename = "gRPC")]
    Grpc,
    #[serde(rename = "opaque")]
    Opaque,
    #[serde(rename = "TLS")]
    Tls,
}

impl Protocol {
    /// Whether requests can be told apart at all.
    pub fn has_requests(self) -> bool {
        !matches!(self, Self::Opaque | Self::Tls)
    }
}

pub(super) const HOLDS: &str = "nobody is admitted to what it selects";

impl Server {
    pub(super) fn read(object: &Object, faults: &mut Faults) -> Self {
        // Their schemas do not have it, so the API server drops it.
        let early = matches!(&*object.version, "v1alpha1" | "v1beta1");
        let known = ["podSelector", "externalWorkloadSelector", "port", "proxyProtocol", "accessPolicy"];
        let fields = Node::spec(&object.spec).fields(&known, faults);
        let external = fields.get("externalWorkloadSelector").filter(|_| !early);
        let pods = match (fields.get("podSelector"), external) {
            (Some(pods), None) => Some(pods.selector(faults)),
            (None, Some(external)) => {
                external.selector(faults);
                None
            }
            (pods, external) => {
                let both = if external.is_some() {
                    "both podSelector and externalWorkloadSelector are there"
                } else {
                    "there is no podSelector"
                };
                faults.invalid("spec.podSelector", both);
                Some(pods.map(|pods| pods.selector(faults)).unwrap_or_default())
            }
        };
        let port = fields.required("port", faults).map_or(Port::Any, |node| Port::read(&node, faults));
        let protocol = match fields.get("proxyProtocol") {
            None => Protocol::Unknown,
            Some(node) => node.text(faults).map_or(Protocol::Unknown, |text| match text {
                "unknown" => Protocol::Unknown,
                "HTTP/1" => Protocol::Http1,
                "HTTP/2" => Protocol::Http2,
                "gRPC" => Protocol::Grpc,
                "opaque" => Protocol::Opaque,
                "TLS" => Protocol::Tls,
                _ => {
                    faults.invalid(&node.path, format_args!("{text:?} is no protocol"));
                    Protocol::Unknown
                }
            }),
        };
        let only_v1beta3 = matches!(&*object.version, "v1beta3");
        let access = match fields.get("accessPolicy").filter(|_| only_v1beta3) {
            None => InboundDefault::Deny,
            Some(node) => node.text(faults).map_or(InboundDefault::Deny, |text| {
                text.parse().unwrap_or_else(|e| {
                    faults.tell(DefectKind::Invalid, &node.path, format!("{e}; it counts as deny"));
                    InboundDefault::Deny
                })
            }),
        };
        if !only_v1beta3 && fields.get("accessPolicy").is_some() {
            let message = format!("{} has no such field, so it is not stored: deny holds", object.version);
            faults.tell(DefectKind::Invalid, &fields.path("accessPolicy"), message);
        }
        Self {
            resource: faults.resource.clone(),
            labels: object.meta.labels.clone(),
            created: object.created(),
            pods,
            port,
            protocol,
            access,
            broken: faults.broken(),
        }
    }

    /// None: the pod is not one of its.
    pub(super) fn takes(&self, pod: &PodFacts) -> Option<Taken> {
        if !self.pods.as_ref()?.selects(&pod.labels) {
            return None;
        }
        Some(match &self.port {
            Port::Number(port) => Taken::Ports(vec![*port]),
            Port::Name(name) => {
                let named = pod.ports.iter().filter(|port| port.name == *name);
                Taken::Ports(named.map(|port| port.port).collect())
            }
            Port::Any => Taken::Rest,
        })
    }
}

impl Server {
    /// Why it does not take a port of a pod. None: it would.
    pub(super) fn misses(&self, pod: &PodFacts, port: u16) -> Option<String> {
        let Some(pods) = &self.pods else { return Some("it is for machines outside of the cluster".into()) };
        if !pods.selects(&pod.labels) {
            return Some("podSelector: it does not select the pod".into());
        }
        match (&self.port, self.takes(pod)?) {
            (_, Taken::Rest) => None,
            (_, Taken::Ports(ports)) if ports.contains(&port) => None,
            (Port::Name(name), Taken::Ports(ports)) if ports.is_empty() => {
                Some(format!("port: no container calls one {name:?}"))
            }
            (Port::Name(name), Taken::Ports(ports)) => {
                Some(format!("port: {port} is not {name:?}, which is {ports:?}"))
            }
            (_, Taken::Ports(ports)) => Some(format!("port: {port} is not one of {ports:?}")),
        }
    }
}

impl Port {
    fn read(node: &Node<'_>, faults: &mut Faults) -> Self {
        let number = node.value().as_u64().and_then(|number| u16::try_from(number).ok());
        match (number, node.value().as_str()) {
            (Some(number @ 1..), _) => Self::Number(number),
            (_, Some(name)) if is_port_name(name) => Self::Name(name.into()),
            _ => {
                faults.invalid(&node.path, format_args!("{} is no port", node.value()));
                Self::Any
            }
        }
    }
}

/// As Kubernetes has it: with a letter in it, so that it never looks like a number.
fn is_port_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && name.bytes().any(|b| b.is_ascii_lowercase())
}
