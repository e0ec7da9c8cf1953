//! What the HTTP path needs of whoever knows the policies, and of whoever counts.

use http::StatusCode;
use tokio::sync::watch;

use crate::policy::linkerd::RouteFilters;
use crate::policy::{By, PathNormalization, Request, Verdict};

/// Judges the requests of one connection.
pub trait Judge: Send + Sync {
    /// Whether it decides what is delivered. One that does not is only asked for its [`Advice`], and the
    /// stream passes untouched, whatever it is.
    fn binding(&self) -> bool {
        true
    }

    /// By the policies of now.
    fn judge(&self, request: &Request<'_>) -> Ruling;

    /// About a stream that is not HTTP. One that is allowed is bytes from now on, for which the policies to come
    /// are asked as such.
    fn not_http(&self) -> Ruling;

    /// What policies that decide nothing make of a request, by the policies of now; without one, of a stream
    /// that is not HTTP.
    fn advise(&self, request: Option<&Request<'_>>) -> Advice;

    /// How paths are compared, and forwarded.
    fn normalization(&self) -> PathNormalization;

    /// Tells that policies changed: every open request is judged again.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// The answer about one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ruling {
    Allow {
        /// What allowed it, where something had to.
        by: Option<By>,
        /// What its route does with it.
        filters: RouteFilters,
    },
    Deny {
        by: Option<By>,
        /// One word, for metrics.
        cause: &'static str,
        /// For the log; the client never sees it.
        why: String,
    },
}

impl From<Verdict> for Ruling {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Allow { by } => {
                Self::Allow { by: by.into_iter().next(), filters: RouteFilters::default() }
            }
            Verdict::Deny { by, why } => Self::Deny { by, cause: why.cause(), why: why.to_string() },
        }
    }
}

/// What policies that decide nothing make of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advice {
    /// The answer with those in force that only run dry. None where there are none.
    pub would: Option<Verdict>,
    /// Those that ask for a trace and match.
    pub audited: Vec<By>,
}

impl Advice {
    pub fn is_nothing(&self) -> bool {
        self.would.is_none() && self.audited.is_empty()
    }
}

/// What advice is about.
#[derive(Clone, Copy, Debug)]
pub enum About<'a> {
    Request {
        method: &'a str,
        host: &'a str,
        path: &'a str,
    },
    /// One that would be refused because it cannot be judged.
    Unreadable {
        why: &'a str,
    },
    /// The stream, which is not HTTP.
    Stream,
}

/// Is told of every request once its answer is known.
pub trait Observer: Send + Sync {
    fn request(&self, seen: &Seen<'_>);

    /// The stream is none of requests, and is refused.
    fn refused(&self, ruling: &Ruling);

    fn advised(&self, about: About<'_>, advice: &Advice);
}

/// One request and what became of it.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    pub method: &'a str,
    pub host: &'a str,
    /// Normalised; as sent where it has no normal form.
    pub path: &'a str,
    /// What the client was told; none when its connection or stream was ended without an answer.
    pub status: Option<StatusCode>,
    pub became: Became<'a>,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Became<'a> {
    /// The application answered it, or broke off; or its route led it elsewhere.
    Allowed { by: Option<&'a By> },
    /// Policy refused it.
    Denied { by: Option<&'a By>, cause: &'static str, why: &'a str },
    /// Policy allowed it, changed, and forbids it now.
    Revoked,
    /// It is no request that could be judged.
    Refused { why: &'a str },
}
