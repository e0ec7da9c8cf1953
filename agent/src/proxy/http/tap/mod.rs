//! Requests that are told of and never refused: the client's bytes pass as they are, and are read on the side.
//!
//! What cannot be read is told of once, and passes. Nothing waits for what is read here, no more is held than
//! one head, and what a byte costs does not grow with those before it.

mod hpack;
mod http1;
mod http2;

use std::borrow::Cow;
use std::mem;

use http::request::Parts;

use super::detect::{MAX_LINE, Version, version};
use super::judge::About;
use super::{Service, shape};
use crate::policy::Request;
use crate::proxy::deliver::Watch;
use http1::Http1;
use http2::Http2;

/// Listens to the client of one connection.
pub struct Tap {
    service: Service,
    reading: Reading,
}

enum Reading {
    /// What came, while it is not clear what it is.
    First {
        came: Vec<u8>,
        /// A request has asked to go on in another protocol. Only the answer tells whether it does.
        may_switch: bool,
    },
    Http1(Http1),
    Http2(Box<Http2>),
    /// Nothing is read any more.
    Over,
}

/// What a reader comes upon.
enum Heard {
    Request(Box<Parts>),
    /// Where policy binds, the client would be refused here.
    Unreadable(&'static str),
}

/// What becomes of bytes that a reader leaves.
enum After<'a> {
    /// It has left none.
    Same,
    /// They may be another protocol's.
    Switched(&'a [u8]),
    Nothing,
}

impl Tap {
    pub fn new(service: Service) -> Self {
        Self { service, reading: Reading::First { came: Vec::new(), may_switch: false } }
    }

    /// The client says nothing more; what it said may be too little for a request.
    pub fn finish(&mut self) {
        let last = mem::replace(&mut self.reading, Reading::Over);
        if matches!(last, Reading::First { came, may_switch: false } if !came.is_empty()) {
            self.service.advise(About::Stream, None);
        }
    }

    /// Gives what the next reader is to read.
    fn read(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut reading = mem::replace(&mut self.reading, Reading::Over);
        let after = match &mut reading {
            Reading::First { came, may_switch } => {
                came.extend_from_slice(bytes);
                let (came, may_switch) = (mem::take(came), *may_switch);
                return self.detected(came, may_switch, bytes);
            }
            Reading::Http1(reader) => reader.read(bytes, &self.service.limits, &mut |heard| self.hear(heard)),
            Reading::Http2(reader) => reader.read(bytes, &self.service.limits, &mut |heard| self.hear(heard)),
            Reading::Over => After::Nothing,
        };
        match after {
            After::Same => self.reading = reading,
            After::Switched(rest) => {
                self.reading = Reading::First { came: Vec::new(), may_switch: true };
                return rest.to_vec();
            }
            After::Nothing => {}
        }
        Vec::new()
    }

    fn detected(&mut self, came: Vec<u8>, may_switch: bool, news: &[u8]) -> Vec<u8> {
        // What is longer is a line without end, until its end comes.
        let is_clear = came.len() <= SHORT || came.len() >= MAX_LINE || news.contains(&b'\n');
        match is_clear.then(|| version(&came)).flatten() {
            None => {
                self.reading = Reading::First { came, may_switch };
                return Vec::new();
            }
            Some(Ok(Version::Http1)) => self.reading = Reading::Http1(Http1::default()),
            Some(Ok(Version::Http2)) => self.reading = Reading::Http2(Box::default()),
            Some(Err(_)) => {
                // What was asked for was judged when it was.
                if !may_switch {
                    self.service.advise(About::Stream, None);
                }
                return Vec::new();
            }
        }
        came
    }

    fn hear(&self, heard: Heard) {
        let mut parts = match heard {
            Heard::Request(parts) => parts,
            Heard::Unreadable(why) => return self.service.advise(About::Unreadable { why }, None),
        };
        match shape::prepare(&mut parts, self.service.judge.normalization(), self.service.limits.fields) {
            Ok(asked) => {
                let request = asked.request();
                let Request { method, host, path, .. } = request;
                self.service.advise(About::Request { method, host, path }, Some(&request));
            }
            Err(bad) => self.service.advise(About::Unreadable { why: &bad.to_string() }, None),
        }
    }
}

impl Watch for Tap {
    fn bytes(&mut self, bytes: &[u8]) {
        let mut bytes = Cow::Borrowed(bytes);
        while !bytes.is_empty() {
            bytes = Cow::Owned(self.read(&bytes));
        }
    }
}

/// Longer than what the preface of HTTP/2 and most methods need.
const SHORT: usize = 64;

#[cfg(test)]
mod tests;
