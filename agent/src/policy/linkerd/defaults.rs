//! What a namespace or a pod says in annotations about ports that no Server takes.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::super::resource::{Defect, DefectKind, Kind, ResourceRef};
use super::super::settings::InboundDefault;

/// Pods say them for themselves; what a pod does not say its namespace says for it.
pub const ANNOTATIONS: [&str; 4] = [DEFAULT_POLICY, REQUIRE_IDENTITY, OPAQUE, SKIP];

const DEFAULT_POLICY: &str = "config.linkerd.io/default-inbound-policy";
const REQUIRE_IDENTITY: &str = "config.linkerd.io/proxy-require-identity-inbound-ports";
const OPAQUE: &str = "config.linkerd.io/opaque-ports";
/// Nothing that the agent could go by: there is no proxy in the pod that a port could be led around.
const SKIP: &str = "config.linkerd.io/skip-inbound-ports";

type Annotations = BTreeMap<Arc<str>, Arc<str>>;

/// What holds on a pod's ports that no Server takes.
pub(super) struct Defaults {
    pub(super) access: InboundDefault,
    /// Where it is said; empty is the mesh.
    pub(super) namespace: Arc<str>,
    /// Why it could not be understood; `access` is deny then.
    pub(super) broken: Option<Arc<str>>,
    /// Where only clients of the mesh are admitted, whatever `access` says.
    pub(super) with_identity: Ports,
    /// Where requests are not looked at, those of probes neither.
    pub(super) opaque: Ports,
}

/// Sorted by nothing, overlapping or not.
#[derive(Default)]
pub(super) struct Ports(Vec<RangeInclusive<u16>>);

impl Ports {
    pub(super) fn all() -> Self {
        Self(vec![1..=u16::MAX])
    }

    pub(super) fn contain(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }

    pub(super) fn are_all(&self) -> bool {
        self.0.iter().any(|range| *range.start() <= 1 && *range.end() == u16::MAX)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u16> {
        self.0.iter().cloned().flatten()
    }

    /// `80,443,9000-9010`
    fn read(text: &str) -> Option<Self> {
        let port = |text: &str| text.trim().parse().ok().filter(|port| *port != 0);
        let mut ranges = Vec::new();
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let range = port(from)?..=port(to)?;
            if range.is_empty() {
                return None;
            }
            ranges.push(range);
        }
        Some(Self(ranges))
    }
}

impl Defaults {
    pub(super) fn read(
        mesh: InboundDefault,
        namespace: &Arc<str>,
        of_namespace: Option<&Annotations>,
        of_pod: &Annotations,
        defects: &mut Vec<Defect>,
    ) -> Self {
        let get = |key| of_pod.get(key).or_else(|| of_namespace?.get(key));
        let mut defaults = Self {
            access: mesh,
            namespace: "".into(),
            broken: None,
            with_identity: Ports::default(),
            opaque: Ports::default(),
        };
        if let Some(text) = get(DEFAULT_POLICY) {
            defaults.namespace = namespace.clone();
            defaults.access = text.parse().unwrap_or_else(|e: String| {
                defaults.broken = Some(format!("{DEFAULT_POLICY}: {e}").into());
                let message = format!("{e}; nobody is admitted");
                defects.push(defect(namespace, DEFAULT_POLICY, DefectKind::Invalid, message));
                InboundDefault::Deny
            });
        }
        let mut ports = |key| match get(key) {
            None => Ports::default(),
            Some(text) => Ports::read(text).unwrap_or_else(|| {
                let message = format!("{text:?} is no list of ports; it counts for all of them");
                defects.push(defect(namespace, key, DefectKind::Invalid, message));
                Ports::all()
            }),
        };
        defaults.with_identity = ports(REQUIRE_IDENTITY);
        defaults.opaque = ports(OPAQUE);
        if let Some(text) = get(SKIP).filter(|text| !text.trim().is_empty()) {
            let message =
                format!("policy and mutual TLS hold on ports {text} too: none is led around the agent");
            defects.push(defect(namespace, SKIP, DefectKind::Unsupported, message));
        }
        defaults
    }
}

pub(super) fn with_identity(access: InboundDefault) -> InboundDefault {
    match access {
        InboundDefault::AllUnauthenticated => InboundDefault::AllAuthenticated,
        InboundDefault::ClusterUnauthenticated => InboundDefault::ClusterAuthenticated,
        access => access,
    }
}

fn defect(namespace: &Arc<str>, key: &str, kind: DefectKind, message: String) -> Defect {
    let resource =
        ResourceRef { kind: Kind::LinkerdDefault, namespace: namespace.clone(), name: "annotation".into() };
    let field = format!("metadata.annotations[{key}]");
    Defect { resource, field, kind, message }
}
