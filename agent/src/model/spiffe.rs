//! SPIFFE ids as the mesh writes them: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
//!
//! Grammar and limits: the SPIFFE-ID standard, sections 2.1 to 2.3.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// At most 255 bytes of `[a-z0-9._-]`, not empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    #[error("a SPIFFE id is at most 2048 bytes long, this one has {0}")]
    TooLong(usize),
    #[error("a SPIFFE id begins with spiffe://")]
    Scheme,
    #[error("a trust domain is 1 to 255 of a-z, 0-9, '.', '-' and '_', not {0:?}")]
    TrustDomain(String),
    #[error("a workload's path is /ns/<namespace>/sa/<service account>, not {0:?}")]
    Path(String),
    #[error(
        "a path segment is made of a-z, A-Z, 0-9, '.', '-' and '_', and is neither empty nor . nor .., not {0:?}"
    )]
    Segment(String),
}

impl TrustDomain {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SpiffeId {
    pub fn new(
        trust_domain: TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeError> {
        check_segment(namespace)?;
        check_segment(service_account)?;
        let id = Self { trust_domain, namespace: namespace.into(), service_account: service_account.into() };
        let len = id.to_string().len();
        if len > MAX_LEN { Err(SpiffeError::TooLong(len)) } else { Ok(id) }
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

const MAX_LEN: usize = 2048;

impl FromStr for TrustDomain {
    type Err = SpiffeError;

    fn from_str(s: &str) -> Result<Self, SpiffeError> {
        let ok = (1..=255).contains(&s.len())
            && s.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'));
        if ok { Ok(Self(s.into())) } else { Err(SpiffeError::TrustDomain(s.into())) }
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(s: &str) -> Result<Self, SpiffeError> {
        if s.len() > MAX_LEN {
            return Err(SpiffeError::TooLong(s.len()));
        }
        let rest = s.strip_prefix("spiffe://").ok_or(SpiffeError::Scheme)?;
        let (domain, path) = rest.split_once('/').ok_or_else(|| SpiffeError::Path(String::new()))?;
        let trust_domain = domain.parse()?;
        let parts: Vec<&str> = path.split('/').collect();
        match parts[..] {
            ["ns", namespace, "sa", account] => Self::new(trust_domain, namespace, account),
            _ => Err(SpiffeError::Path(format!("/{path}"))),
        }
    }
}

fn check_segment(s: &str) -> Result<(), SpiffeError> {
    let ok = !matches!(s, "" | "." | "..")
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    if ok { Ok(()) } else { Err(SpiffeError::Segment(s.into())) }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for TrustDomain {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TrustDomain {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}
