//! What an operator may say about the kernel half.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where programs attach and where they are pinned. Agents that differ in `instance` live beside each
/// other on one kernel and never act on each other's pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// The folder for pins, on a bpffs. `/sys/fs/bpf` is mounted when it is not.
    pub pin_root: PathBuf,
    /// The name of this agent among those on the same kernel: letters, digits, `-` and `_`.
    pub instance: String,
    /// The cgroup v2 folder below which pods run; the root of the hierarchy when not given.
    pub cgroup: Option<PathBuf>,
    /// Messages of the kernel programs less severe than this are not even compiled in when they are
    /// loaded.
    pub log_level: LogLevel,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            pin_root: Path::new("/sys/fs/bpf/underpass").to_owned(),
            instance: "default".to_owned(),
            cgroup: None,
            log_level: LogLevel::Warn,
        }
    }
}

/// Severity of the kernel programs' own messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Off,
    Error,
    /// Connections that were refused because they could not be captured.
    Warn,
    /// Also connections that were refused because the agent was not listening.
    Info,
    /// Also every captured connection.
    Debug,
}

impl LogLevel {
    /// As aya-log's global wants it.
    pub(super) fn as_global(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::Error => log::Level::Error as u8,
            Self::Warn => log::Level::Warn as u8,
            Self::Info => log::Level::Info as u8,
            Self::Debug => log::Level::Debug as u8,
        }
    }
}
