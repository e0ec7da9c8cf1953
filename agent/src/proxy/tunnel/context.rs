//! The informational headers of a CONNECT: W3C baggage and traceparent, and RFC 7239's `forwarded`, in
//! the shape that Istio's ztunnel writes and reads.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use http::HeaderValue;
use rand::Rng;

use super::request::is_hostname;

/// Who a workload says it is. Held as the header's bytes: written once for a pod, read only when asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Baggage(HeaderValue);

/// What baggage can say; empty is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BaggageFields<'a> {
    pub cluster: &'a str,
    pub namespace: &'a str,
    pub workload_type: &'a str,
    pub workload: &'a str,
    pub service: &'a str,
    pub revision: &'a str,
    pub region: &'a str,
    pub zone: &'a str,
}

impl Baggage {
    /// Leaves out what is empty and what baggage cannot carry. `workload_type` is one of
    /// `deployment`, `cronjob`, `pod` and `job`; with another one the workload is left out.
    pub fn new(fields: &BaggageFields<'_>) -> Self {
        let workload = WORKLOAD_KEYS.iter().find(|(kind, _)| *kind == fields.workload_type);
        let pairs = [
            ("k8s.cluster.name", fields.cluster),
            ("k8s.namespace.name", fields.namespace),
            workload.map_or(("", ""), |(_, key)| (*key, fields.workload)),
            ("service.name", fields.service),
            ("service.version", fields.revision),
            ("cloud.region", fields.region),
            ("cloud.availability_zone", fields.zone),
        ];
        let mut text = String::new();
        for (key, value) in pairs.into_iter().filter(|(_, v)| is_value(v)) {
            let comma = if text.is_empty() { "" } else { "," };
            let _ = write!(text, "{comma}{key}={value}");
        }
        // Values are visible ASCII, so this is a header value.
        Self(HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("")))
    }

    /// `None` when it is too long to be worth keeping, or no text.
    pub(super) fn from_header(value: HeaderValue) -> Option<Self> {
        let ok = value.len() <= MAX_BAGGAGE && value.to_str().is_ok();
        ok.then_some(Self(value))
    }

    pub(super) fn header(&self) -> &HeaderValue {
        &self.0
    }

    /// Of a key that is given twice the first counts; unknown keys and members without `=` are skipped,
    /// properties (after `;`) too.
    pub fn fields(&self) -> BaggageFields<'_> {
        let mut fields = BaggageFields::default();
        for member in self.0.to_str().unwrap_or("").split(',').take(MAX_MEMBERS) {
            let member = member.split(';').next().unwrap_or("");
            let Some((key, value)) = member.split_once('=') else { continue };
            let (key, value) = (key.trim(), value.trim());
            if !is_value(value) {
                continue;
            }
            if let Some((kind, _)) = WORKLOAD_KEYS.iter().find(|(_, k)| *k == key) {
                if fields.workload.is_empty() {
                    (fields.workload_type, fields.workload) = (kind, value);
                }
                continue;
            }
            let slot = match key {
                "k8s.cluster.name" => &mut fields.cluster,
                "k8s.namespace.name" => &mut fields.namespace,
                "service.name" => &mut fields.service,
                "service.version" => &mut fields.revision,
                "cloud.region" => &mut fields.region,
                "cloud.availability_zone" => &mut fields.zone,
                _ => continue,
            };
            if slot.is_empty() {
                *slot = value;
            }
        }
        fields
    }
}

const WORKLOAD_KEYS: [(&str, &str); 4] = [
    ("deployment", "k8s.deployment.name"),
    ("cronjob", "k8s.cronjob.name"),
    ("pod", "k8s.pod.name"),
    ("job", "k8s.job.name"),
];

const MAX_BAGGAGE: usize = 8192;
const MAX_MEMBERS: usize = 64;

/// W3C baggage's `baggage-octet`, and not longer than any Kubernetes name or label.
fn is_value(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b',' | b';' | b'\\' | b'='))
}

/// `for="address:port";host=service`, RFC 7239 with exactly these two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// The client's address as its agent saw it.
    pub client: SocketAddr,
    /// The service that the client addressed, lower case.
    pub host: Option<Arc<str>>,
}

impl FromStr for Forwarded {
    type Err = Unreadable;

    /// The first element only; other parameters are skipped.
    fn from_str(text: &str) -> Result<Self, Unreadable> {
        if text.len() > MAX_FORWARDED {
            return Err(Unreadable);
        }
        let (mut client, mut host) = (None, None);
        for pair in text.split(',').next().unwrap_or("").split(';') {
            let Some((key, value)) = pair.split_once('=') else { continue };
            let value = value.trim();
            let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
            if key.trim().eq_ignore_ascii_case("for") && client.is_none() {
                let addr: SocketAddr = value.parse().map_err(|_| Unreadable)?;
                client = Some(SocketAddr::new(addr.ip().to_canonical(), addr.port()));
            } else if key.trim().eq_ignore_ascii_case("host") && host.is_none() && is_hostname(value) {
                host = Some(value.to_ascii_lowercase().into());
            }
        }
        Ok(Self { client: client.ok_or(Unreadable)?, host })
    }
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "for=\"{}\"", self.client)?;
        if let Some(host) = &self.host {
            write!(f, ";host={host}")?;
        }
        Ok(())
    }
}

const MAX_FORWARDED: usize = 1024;

/// W3C trace context, version 00, never sampled: it joins the log lines of both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    trace: u128,
    span: u64,
}

impl TraceParent {
    pub fn random(rng: &mut impl Rng) -> Self {
        // Zero means "invalid" in both places.
        Self { trace: rng.random_range(1..=u128::MAX), span: rng.random_range(1..=u64::MAX) }
    }

    /// 32 hex digits in logs (`{:032x}`).
    pub fn trace_id(self) -> u128 {
        self.trace
    }
}

impl FromStr for TraceParent {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        let parts: Vec<&str> = text.splitn(5, '-').collect();
        let [_version, trace, span, flags] = parts[..] else { return Err(Unreadable) };
        let hex =
            |s: &str, len: usize| s.len() == len && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !text.starts_with("00-") || !hex(trace, 32) || !hex(span, 16) || !hex(flags, 2) {
            return Err(Unreadable);
        }
        let trace = u128::from_str_radix(trace, 16).map_err(|_| Unreadable)?;
        let span = u64::from_str_radix(span, 16).map_err(|_| Unreadable)?;
        if trace == 0 || span == 0 { Err(Unreadable) } else { Ok(Self { trace, span }) }
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-00", self.trace, self.span)
    }
}

/// A header that says nothing we understand: it is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not in the expected form")]
pub struct Unreadable;
