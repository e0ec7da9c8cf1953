//! The line as one JSON object.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::SystemTime;

use super::clock::push_rfc3339;
use super::{Sink, push_addr, push_display, push_number};
use crate::telemetry::escape::push_escaped;

pub(super) struct Json<'b>(pub(super) &'b mut Vec<u8>);

impl Json<'_> {
    fn key(&mut self, key: &'static str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn quoted(&mut self, key: &'static str, value: impl FnOnce(&mut Vec<u8>)) {
        self.key(key);
        self.0.push(b'"');
        value(self.0);
        self.0.push(b'"');
    }
}

impl Sink for Json<'_> {
    fn begin(&mut self, now: SystemTime, level: &'static str, message: &'static str) {
        self.0.extend_from_slice(b"{\"level\":\"");
        self.0.extend_from_slice(level.as_bytes());
        self.0.extend_from_slice(b"\",\"time\":\"");
        push_rfc3339(self.0, now);
        self.0.extend_from_slice(b"\",\"scope\":\"access\",\"message\":\"");
        self.0.extend_from_slice(message.as_bytes());
        self.0.push(b'"');
    }

    fn string(&mut self, key: &'static str, value: &str) {
        self.quoted(key, |out| push_escaped(out, value));
    }

    fn token(&mut self, key: &'static str, value: &dyn Display) {
        self.quoted(key, |out| push_display(out, value));
    }

    fn addr(&mut self, key: &'static str, value: SocketAddr) {
        self.quoted(key, |out| push_addr(out, value));
    }

    fn number(&mut self, key: &'static str, value: u64) {
        self.key(key);
        push_number(self.0, value);
    }

    fn millis(&mut self, key: &'static str, value: u64) {
        self.quoted(key, |out| {
            push_number(out, value);
            out.extend_from_slice(b"ms");
        });
    }

    fn end(&mut self) {
        self.0.extend_from_slice(b"}\n");
    }
}
