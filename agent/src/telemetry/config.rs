//! The `log`, `accessLog` and `metrics` parts of the agent's configuration.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Format, TelemetryError};
use crate::model::units;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct TelemetryConfig {
    pub log: LogConfig,
    pub access_log: AccessLogConfig,
    pub metrics: MetricsConfig,
}

/// The process's own log; it goes to standard error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LogConfig {
    /// Levels by module, as `RUST_LOG` has them: `info`, or `info,underpass::proxy=debug`.
    pub filter: String,
    /// `text` or `json`.
    pub format: Format,
}

/// One line for each connection, written when it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct AccessLogConfig {
    /// Whether it is written at all.
    pub enabled: bool,
    /// `text` or `json`.
    pub format: Format,
    /// A file to append to; `-` is standard output.
    pub path: PathBuf,
    /// Bytes that may wait for the log's reader before new connections wait too; connections that are
    /// already open may fill as much again.
    #[serde(with = "units::bytes")]
    #[schemars(with = "String")]
    pub buffer: u32,
}

/// Metrics for Prometheus, named and labelled as Istio's TCP metrics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MetricsConfig {
    /// A label set of Istio's TCP metrics that no connection has used for this long is dropped.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub evict_after: Duration,
    /// At most this many label sets are kept; beyond, connections count under `unknown` labels.
    pub max_label_sets: usize,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { filter: "info".into(), format: Format::Text }
    }
}

impl Default for AccessLogConfig {
    fn default() -> Self {
        Self { enabled: true, format: Format::Text, path: "-".into(), buffer: 4 << 20 }
    }
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { evict_after: Duration::from_secs(15 * 60), max_label_sets: 10_000 }
    }
}

impl AccessLogConfig {
    pub(super) fn open(&self) -> Result<File, TelemetryError> {
        let opened = if self.path == Path::new("-") { standard_output() } else { append_to(&self.path) };
        let path = || self.path.display().to_string();
        opened.map_err(|source| TelemetryError::OpenAccessLog { path: path(), source })
    }
}

/// Not `std::io::Stdout`, whose line buffer and lock would cost a second copy of every line.
fn standard_output() -> io::Result<File> {
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}
