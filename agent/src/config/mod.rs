//! The agent's configuration: one YAML file, every field with a default.
//!
//! A module that has settings of its own defines them; the sections here hold the rest, and `app`
//! hands each module its part. `deploy/examples/agent.yaml` is [`example`]'s text.

mod check;
mod controller;
mod example;
mod sections;

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use controller::ControllerConfig;
pub use example::example;
pub use sections::{
    Capture, CapturePreference, Certificates, Controller, Discovery, Embedded, Http, IssuerKind, Istio,
    Keepalive, Node, Proxy, Spire, Tls, Tunnel,
};

use crate::admin::AdminConfig;
use crate::discovery::yaml::{self, Invalid};
use crate::telemetry::TelemetryConfig;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Config {
    /// The machine that this agent serves.
    pub node: Node,
    /// The kernel programs.
    pub bpf: crate::bpf::Config,
    /// How pods' outgoing connections come to the agent.
    pub capture: Capture,
    /// What the mesh consists of.
    pub discovery: Discovery,
    /// Who issues the certificates of this node's pods.
    pub certificates: Certificates,
    /// The cryptography of tunnels, of calls to issuers, and of the controller.
    pub tls: Tls,
    /// The HTTP/2 tunnels between agents (HBONE).
    pub tunnel: Tunnel,
    /// The data path.
    pub proxy: Proxy,
    /// Logs and metrics.
    pub telemetry: TelemetryConfig,
    /// How operators and the node's supervisor ask the agent.
    pub admin: AdminConfig,
}

/// What the surroundings inject; a field of the file wins over it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `NODE_NAME`, by which a DaemonSet tells the pod where it runs.
    pub node_name: Option<String>,
    /// `POD_NAMESPACE` and `POD_NAME`, as namespace/name.
    pub pod: Option<String>,
    /// `SERVICE_ACCOUNT`.
    pub service_account: Option<String>,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Names the file, and line, column and field of what is wrong with it.
    pub fn read(path: &Path, environment: &Environment) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
        Self::parse(&text, environment)
            .map_err(|invalid| ConfigError::Invalid { path: path.to_path_buf(), invalid })
    }

    /// As [`Config::read`], of the text itself. Never panics, whatever the text.
    pub fn parse(text: &str, environment: &Environment) -> Result<Self, Invalid> {
        let mut config: Self = yaml::read(text)?;
        check::check(&config).into_result(text)?;
        let node = &mut config.node;
        for (field, injected) in [
            (&mut node.name, &environment.node_name),
            (&mut node.pod, &environment.pod),
            (&mut node.service_account, &environment.service_account),
        ] {
            if field.is_empty() {
                *field = injected.clone().unwrap_or_default();
            }
        }
        Ok(config)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}: {source}; pass its path with --config", .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration {} is refused: {}", .path.display(), in_file(.path, .invalid))]
    Invalid { path: PathBuf, invalid: Invalid },
}

fn in_file(path: &Path, invalid: &Invalid) -> String {
    let lines: Vec<String> =
        invalid.problems.iter().map(|problem| format!("{}:{problem}", path.display())).collect();
    lines.join("; ")
}

#[cfg(test)]
mod mesh_example;
#[cfg(test)]
mod tests;
