//! Which mutual TLS mode holds for a workload's port: port before workload before namespace before mesh.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::model::MtlsMode;
use crate::model::workload::WorkloadMtls;

/// The two outer levels, of which the mesh's is always set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MtlsDefaults {
    pub mesh: MtlsMode,
    pub namespaces: BTreeMap<Arc<str>, MtlsMode>,
}

impl MtlsDefaults {
    pub fn resolve(&self, namespace: &str, own: &WorkloadMtls) -> EffectiveMtls {
        let (mode, origin) = match (own.mode, self.namespaces.get(namespace)) {
            (Some(mode), _) => (mode, MtlsOrigin::Workload),
            (None, Some(mode)) => (*mode, MtlsOrigin::Namespace),
            (None, None) => (self.mesh, MtlsOrigin::Mesh),
        };
        EffectiveMtls { mode, origin, ports: own.ports.clone() }
    }
}

impl Default for MtlsDefaults {
    fn default() -> Self {
        Self { mesh: MtlsMode::Permissive, namespaces: BTreeMap::new() }
    }
}

/// What holds for one workload, and which level said so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EffectiveMtls {
    pub mode: MtlsMode,
    pub origin: MtlsOrigin,
    pub ports: BTreeMap<u16, MtlsMode>,
}

impl EffectiveMtls {
    /// The mode for the application's port.
    pub fn on_port(&self, port: u16) -> (MtlsMode, MtlsOrigin) {
        match self.ports.get(&port) {
            Some(mode) => (*mode, MtlsOrigin::Port),
            None => (self.mode, self.origin),
        }
    }
}

/// The level at which a mode was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MtlsOrigin {
    Mesh,
    Namespace,
    Workload,
    Port,
}

impl fmt::Display for MtlsOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mesh => "mesh",
            Self::Namespace => "namespace",
            Self::Workload => "workload",
            Self::Port => "port",
        })
    }
}
