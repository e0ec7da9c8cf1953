//! An agent's access log, as its JSON lines tell it.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

/// One connection's line.
#[derive(Clone, Debug)]
pub struct Line(Map<String, Value>);

/// Every whole line of the file; a file that is not there yet has none.
///
/// # Errors
/// A line is not a JSON object.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).map(Line).with_context(|| format!("access log line {line:?}")))
        .collect()
}

impl Line {
    /// A field as text; numbers too.
    pub fn get(&self, key: &str) -> Option<String> {
        match self.0.get(key)? {
            Value::String(s) => Some(s.clone()),
            other => Some(other.to_string()),
        }
    }

    /// Whether the field is there with exactly this value.
    pub fn is(&self, key: &str, value: &str) -> bool {
        self.get(key).is_some_and(|v| v == value)
    }

    pub fn number(&self, key: &str) -> Option<u64> {
        self.0.get(key)?.as_u64()
    }

    pub fn source_ip(&self) -> Option<IpAddr> {
        self.get("src.addr")?.parse::<SocketAddr>().ok().map(|a| a.ip().to_canonical())
    }

    pub fn cause(&self) -> String {
        self.get("cause").unwrap_or_default()
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&Value::Object(self.0.clone()).to_string())
    }
}
