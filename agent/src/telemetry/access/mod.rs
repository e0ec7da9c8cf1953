//! The access log: one line for each connection, with Istio ztunnel's fields and some of our own.
//!
//! A line is formatted straight into a buffer that its thread keeps: this runs once for every
//! connection, and in ztunnel a fifth to a third of the rate of new connections is spent here.

pub(super) mod clock;
mod json;
mod text;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::{Cause, ClientAddr, ConnectionId, Direction, NextHop, OriginalDst, Service};

use super::record::End;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Tab-separated time, level, scope and message, then `key=value` pairs, as Istio's ztunnel prints.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// Everything that a line can say.
pub(super) struct Line<'a> {
    pub(super) id: ConnectionId,
    pub(super) direction: Direction,
    pub(super) source: End<'a>,
    pub(super) destination: End<'a>,
    pub(super) client: ClientAddr,
    pub(super) original: OriginalDst,
    pub(super) next_hop: Option<NextHop>,
    pub(super) hbone_addr: Option<SocketAddr>,
    pub(super) service: Option<&'a Service>,
    pub(super) policy: Option<&'a str>,
    pub(super) rule: Option<u32>,
    pub(super) reason: Option<&'static str>,
    pub(super) phase: Option<&'static str>,
    pub(super) dry_run: Option<&'a str>,
    pub(super) audit: Option<&'a str>,
    pub(super) exception: Option<&'a str>,
    pub(super) trace: Option<u128>,
    pub(super) established: bool,
    /// Client to server.
    pub(super) sent: u64,
    /// Server to client.
    pub(super) received: u64,
    pub(super) duration: Duration,
    pub(super) now: SystemTime,
    pub(super) cause: Cause,
    pub(super) detail: Option<&'a str>,
}

/// Formats the line, newline included, and lends it to `use_it`.
pub(super) fn with_line(format: Format, line: &Line<'_>, use_it: impl FnOnce(&[u8])) {
    thread_local! {
        static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    // A record that is dropped while its thread ends finds the thread's buffer gone.
    let mut scratch = SCRATCH.try_with(RefCell::take).unwrap_or_default();
    scratch.clear();
    match format {
        Format::Json => write(line, &mut json::Json(&mut scratch)),
        Format::Text => write(line, &mut text::Text(&mut scratch)),
    }
    use_it(&scratch);
    let _ = SCRATCH.try_with(|kept| kept.replace(scratch));
}

/// A format of the line. Values that may come from a peer go through `string`, which escapes.
trait Sink {
    fn begin(&mut self, now: SystemTime, level: &'static str, message: &'static str);
    fn string(&mut self, key: &'static str, value: &str);
    /// As `string`, for a value made by us out of characters that need no escape.
    fn token(&mut self, key: &'static str, value: &dyn std::fmt::Display);
    fn addr(&mut self, key: &'static str, value: SocketAddr);
    fn number(&mut self, key: &'static str, value: u64);
    fn millis(&mut self, key: &'static str, value: u64);
    fn end(&mut self);
}

fn write(line: &Line<'_>, to: &mut impl Sink) {
    let (level, message) = line.level();
    to.begin(line.now, level, message);
    to.number("connection", line.id.0);
    let end = |to: &mut dyn FnMut(&'static str, &str), keys: [&'static str; 2], end: &End<'_>| {
        for (key, value) in keys.into_iter().zip([end.name(), end.namespace()]) {
            if let Some(value) = value {
                to(key, value);
            }
        }
    };
    if let Some(trace) = line.trace {
        to.token("trace_id", &format_args!("{trace:032x}"));
    }
    to.addr("src.addr", line.client.0);
    end(&mut |k, v| to.string(k, v), ["src.workload", "src.namespace"], &line.source);
    if let Some(identity) = line.source.identity {
        to.token("src.identity", identity);
    }
    if let Some(cluster) = line.source.cluster() {
        to.string("src.cluster", cluster);
    }
    let reached = line.next_hop.map_or(line.original.0, |hop| hop.0);
    to.addr("dst.addr", reached);
    if let Some(target) = line.hbone_addr {
        to.addr("dst.hbone_addr", target);
    }
    if reached != line.original.0 {
        to.addr("dst.original_addr", line.original.0);
    }
    if let Some(service) = line.service {
        to.string("dst.service", &service.hostname);
    }
    end(&mut |k, v| to.string(k, v), ["dst.workload", "dst.namespace"], &line.destination);
    if let Some(identity) = line.destination.identity {
        to.token("dst.identity", identity);
    }
    if let Some(cluster) = line.destination.cluster() {
        to.string("dst.cluster", cluster);
    }
    to.string("direction", line.direction.as_str());
    let (sent, received) = line.bytes_of_our_side();
    to.number("bytes_sent", sent);
    to.number("bytes_recv", received);
    to.millis("duration", u64::try_from(line.duration.as_millis()).unwrap_or(u64::MAX));
    if let Some(verdict) = line.verdict() {
        to.string("verdict", verdict);
    }
    if let Some(policy) = line.policy {
        to.string("policy", policy);
    }
    if let Some(rule) = line.rule {
        to.number("rule", u64::from(rule));
    }
    if let Some(reason) = line.reason {
        to.string("reason", reason);
    }
    if let Some(phase) = line.phase {
        to.string("phase", phase);
    }
    if let Some(would) = line.dry_run {
        to.string("dry_run", clip(would));
    }
    if let Some(matching) = line.audit {
        to.string("audit", matching);
    }
    if let Some(exception) = line.exception {
        to.string("exception", exception);
    }
    to.string("cause", line.cause.as_str());
    if let Some(detail) = line.detail {
        to.string("error", clip(detail));
    } else if !line.cause.is_success() {
        to.string("error", line.cause.as_str());
    }
    to.end();
}

/// More of an error than this is not read by anybody, and a peer may have chosen its length.
const MAX_DETAIL: usize = 1024;

fn clip(detail: &str) -> &str {
    let boundary = (0..=MAX_DETAIL.min(detail.len())).rev().find(|at| detail.is_char_boundary(*at));
    &detail[..boundary.unwrap_or(0)]
}

impl Line<'_> {
    /// Level and message, as ztunnel has them: a connection that we turn away before anything
    /// flowed is a warning, any other that did not end well an error.
    fn level(&self) -> (&'static str, &'static str) {
        if self.cause.is_success() {
            ("info", "connection complete")
        } else if !self.established && refused_by_us(self.cause) {
            ("warn", "connection failed")
        } else {
            ("error", "connection complete")
        }
    }

    /// Absent when it failed before anybody decided.
    fn verdict(&self) -> Option<&'static str> {
        if refused_by_us(self.cause) || matches!(self.cause, Cause::DeniedByPeer | Cause::PolicyRevoked) {
            Some("deny")
        } else if self.established {
            Some("allow")
        } else {
            None
        }
    }

    /// Istio's log counts from the reporting pod's side, its metrics from the server's.
    fn bytes_of_our_side(&self) -> (u64, u64) {
        match self.direction {
            Direction::Outbound => (self.sent, self.received),
            Direction::Inbound => (self.received, self.sent),
        }
    }
}

fn refused_by_us(cause: Cause) -> bool {
    matches!(
        cause,
        Cause::PolicyDenied
            | Cause::NotHttp
            | Cause::BadTarget
            | Cause::BadRequest
            | Cause::Loop
            | Cause::SpoofedSource
    )
}

/// Decimal digits without the formatting machinery.
fn push_number(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn push_addr(out: &mut Vec<u8>, addr: SocketAddr) {
    match addr {
        SocketAddr::V4(v4) => {
            for (i, octet) in v4.ip().octets().into_iter().enumerate() {
                if i > 0 {
                    out.push(b'.');
                }
                push_number(out, u64::from(octet));
            }
            out.push(b':');
            push_number(out, u64::from(v4.port()));
        }
        SocketAddr::V6(_) => push_display(out, &addr),
    }
}

fn push_display(out: &mut Vec<u8>, value: &dyn std::fmt::Display) {
    use std::io::Write;
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{value}");
}

#[cfg(test)]
mod tests;
