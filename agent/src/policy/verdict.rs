//! The answer about a connection or a request, with what decided it.

use std::fmt;
use std::sync::Arc;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::mtls::MtlsOrigin;
use super::resource::{Kind, ResourceRef};

/// What decided.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct By {
    pub resource: Arc<ResourceRef>,
    /// Counted from 0; none where it was the resource as a whole.
    pub rule: Option<u32>,
}

impl By {
    /// A resource as a whole.
    pub fn whole(resource: Arc<ResourceRef>) -> Self {
        Self { resource, rule: None }
    }

    /// As logs have it: the resource by name, and which of its rules.
    pub fn named(&self) -> (Arc<str>, Option<u32>) {
        (self.resource.to_string().into(), self.rule)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allow {
        /// What allowed it: one for each system in which something had to, and the exception that it rests on.
        by: Vec<By>,
    },
    Deny {
        /// What refused it, where it was one resource.
        by: Option<By>,
        why: Why,
    },
}

impl Verdict {
    pub fn is_allow(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }

    /// The exception without which mutual TLS would have been asked for.
    pub fn exception(&self) -> Option<&Arc<ResourceRef>> {
        let Self::Allow { by } = self else { return None };
        by.iter().map(|by| &by.resource).find(|resource| resource.kind == Kind::PlaintextException)
    }

    /// Without the resource, where that is told beside it.
    pub fn reason(&self) -> String {
        match self {
            Self::Deny { why, .. } => why.to_string(),
            Self::Allow { .. } => self.to_string(),
        }
    }

    /// The one that decided; of several that had to allow it the first.
    pub fn by(&self) -> Option<&By> {
        match self {
            Self::Allow { by } => by.first(),
            Self::Deny { by, .. } => by.as_ref(),
        }
    }
}

/// What can be said of a connection when nothing of it was read yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Whatever is requested.
    Allow(Verdict),
    /// Whatever is requested.
    Deny(Verdict),
    /// Each request has to be judged by itself.
    PerRequest,
}

/// Why a connection or a request is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// A DENY policy matches.
    DenyMatched,
    /// There are this many ALLOW policies, and none matches.
    NoAllowMatched(usize),
    /// It is plaintext, and the mode set at this level is STRICT.
    Strict(MtlsOrigin),
    /// The workload names a policy that nobody has sent.
    UnknownPolicy,
    /// The policy could not be understood.
    Defective(Arc<str>),
    /// The pod's own workload is not known, and with it which policies apply.
    UnknownWorkload,
    /// Policies look at requests, and what is sent is not HTTP.
    NotHttp,
    /// No policy allows it by name, and the default stance does not either.
    DefaultDeny,
    /// Linkerd: no authorization of the Server or route admits the client.
    Unauthorized,
    /// Linkerd: the Server has routes, and none matches the request.
    NoRoute,
    /// It is no request that could be judged.
    BadRequest(Arc<str>),
}

impl Why {
    /// One word, for logs and metrics.
    pub fn cause(&self) -> &'static str {
        match self {
            Self::DenyMatched => "deny_matched",
            Self::NoAllowMatched(_) => "no_allow_matched",
            Self::Strict(..) => "strict_mtls",
            Self::UnknownPolicy => "unknown_policy",
            Self::Defective(_) => "defective_policy",
            Self::UnknownWorkload => "unknown_workload",
            Self::NotHttp => "not_http",
            Self::DefaultDeny => "default_deny",
            Self::Unauthorized => "unauthorized",
            Self::NoRoute => "no_route",
            Self::BadRequest(_) => "bad_request",
        }
    }
}

impl Serialize for Verdict {
    /// `{"verdict": "deny", "cause": "deny_matched", "by": ["…#0"], "message": "denied by …"}`
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("verdict", if self.is_allow() { "allow" } else { "deny" })?;
        let by: Vec<&By> = match self {
            Self::Allow { by } => by.iter().collect(),
            Self::Deny { by, why } => {
                map.serialize_entry("cause", why.cause())?;
                by.iter().collect()
            }
        };
        map.serialize_entry("by", &by.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        map.serialize_entry("message", &self.to_string())?;
        map.end()
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rule {
            Some(rule) => write!(f, "{}#{rule}", self.resource),
            None => self.resource.fmt(f),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow { by } => {
                let Some((first, others)) = by.split_first() else {
                    return f.write_str("allowed: no ALLOW policy applies");
                };
                write!(f, "allowed by policy {first}")?;
                others.iter().try_for_each(|other| write!(f, " and {other}"))
            }
            Self::Deny { by: Some(policy), why } => write!(f, "denied by policy {policy}: {why}"),
            Self::Deny { by: None, why } => write!(f, "denied: {why}"),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DenyMatched => f.write_str("its DENY rules match"),
            Self::NoAllowMatched(n) => write!(f, "none of {n} ALLOW policies matches"),
            Self::Strict(origin) => {
                write!(f, "plaintext, and mutual TLS is STRICT (set for the {origin})")
            }
            Self::UnknownPolicy => f.write_str("the workload names it, but it is not known"),
            Self::Defective(defect) => write!(f, "it could not be understood: {defect}"),
            Self::UnknownWorkload => f.write_str("the destination's own workload is not known"),
            Self::NotHttp => f.write_str("policies look at requests here, and this is not HTTP"),
            Self::DefaultDeny => f.write_str("no policy allows it, and the default stance does not"),
            Self::Unauthorized => f.write_str("none of its authorizations admits the client"),
            Self::NoRoute => f.write_str("none of its routes matches the request"),
            Self::BadRequest(why) => write!(f, "it is refused with 400 before it is judged: {why}"),
        }
    }
}
