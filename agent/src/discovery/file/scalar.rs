//! Values that are written as one string, with complaints that quote what was written.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::cidr;
use crate::policy::{ServiceAccount, StringMatch};

/// An address without prefix length. IPv4-mapped IPv6 becomes IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip(pub IpAddr);

/// A range of addresses, or one alone. Host bits are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr(pub IpNet);

/// `name`, `prefix*`, `*suffix` or `*`, as in Istio's AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(pub StringMatch);

/// `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccountName(pub ServiceAccount);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScalarError {
    #[error("{0:?} is not an IP address")]
    Ip(String),
    #[error("{0:?} is neither an IP address nor a range such as 10.0.0.0/8 or fd00::/8")]
    Cidr(String),
    #[error("an empty string matches nothing; leave the value out, or write \"*\" for anything")]
    EmptyPattern,
    #[error("{0:?}: a * may only stand alone, at the beginning or at the end")]
    Pattern(String),
    #[error("a service account is written as namespace/name, not {0:?}")]
    ServiceAccount(String),
}

impl FromStr for Ip {
    type Err = ScalarError;

    fn from_str(s: &str) -> Result<Self, ScalarError> {
        let ip: IpAddr = s.parse().map_err(|_| ScalarError::Ip(s.into()))?;
        Ok(Self(ip.to_canonical()))
    }
}

impl FromStr for Cidr {
    type Err = ScalarError;

    fn from_str(s: &str) -> Result<Self, ScalarError> {
        let net = s.parse::<IpNet>().or_else(|_| s.parse::<IpAddr>().map(IpNet::from));
        Ok(Self(cidr::canonical(net.map_err(|_| ScalarError::Cidr(s.into()))?)))
    }
}

impl FromStr for Pattern {
    type Err = ScalarError;

    fn from_str(s: &str) -> Result<Self, ScalarError> {
        let bad = || ScalarError::Pattern(s.into());
        let literal = |part: &str| if part.contains('*') { Err(bad()) } else { Ok(Arc::from(part)) };
        Ok(Self(match s {
            "" => return Err(ScalarError::EmptyPattern),
            "*" => StringMatch::Presence,
            _ => match (s.strip_prefix('*'), s.strip_suffix('*')) {
                (Some(suffix), None) => StringMatch::Suffix(literal(suffix)?),
                (None, Some(prefix)) => StringMatch::Prefix(literal(prefix)?),
                (None, None) => StringMatch::Exact(literal(s)?),
                (Some(_), Some(_)) => return Err(bad()),
            },
        }))
    }
}

impl FromStr for ServiceAccountName {
    type Err = ScalarError;

    fn from_str(s: &str) -> Result<Self, ScalarError> {
        match s.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self(ServiceAccount { namespace: namespace.into(), service_account: name.into() }))
            }
            _ => Err(ScalarError::ServiceAccount(s.into())),
        }
    }
}

impl fmt::Display for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() { self.0.addr().fmt(f) } else { self.0.fmt(f) }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            StringMatch::Exact(s) => f.write_str(s),
            StringMatch::Prefix(s) => write!(f, "{s}*"),
            StringMatch::Suffix(s) => write!(f, "*{s}"),
            StringMatch::Presence => f.write_str("*"),
        }
    }
}

impl fmt::Display for ServiceAccountName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0.namespace, self.0.service_account)
    }
}

macro_rules! written_as_string {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                String::json_schema(generator)
            }
        }
    )*};
}

written_as_string!(Ip, Cidr, Pattern, ServiceAccountName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let exact = |s: &str| Ok(Pattern(StringMatch::Exact(s.into())));
        for (text, expected) in [
            ("*", Ok(Pattern(StringMatch::Presence))),
            ("shop", exact("shop")),
            ("shop*", Ok(Pattern(StringMatch::Prefix("shop".into())))),
            ("*/sa/web", Ok(Pattern(StringMatch::Suffix("/sa/web".into())))),
            ("", Err(ScalarError::EmptyPattern)),
            ("**", Err(ScalarError::Pattern("**".into()))),
            ("*a*", Err(ScalarError::Pattern("*a*".into()))),
            ("a*b", Err(ScalarError::Pattern("a*b".into()))),
            ("a*b*", Err(ScalarError::Pattern("a*b*".into()))),
            ("*a*b", Err(ScalarError::Pattern("*a*b".into()))),
        ] {
            assert_eq!(text.parse::<Pattern>(), expected, "{text:?}");
            if let Ok(pattern) = expected {
                assert_eq!(pattern.to_string(), text);
            }
        }
    }

    #[test]
    fn ranges() {
        for (text, expected) in [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            ("10.1.2.3/8", Some("10.0.0.0/8")),
            ("10.1.2.3", Some("10.1.2.3")),
            ("fd00::1", Some("fd00::1")),
            ("fd00::1/8", Some("fd00::/8")),
            ("::ffff:10.0.0.0/104", Some("10.0.0.0/8")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("10.0.0.0/33", None),
            ("10.0.0/8", None),
            ("10.0.0.0/", None),
            ("fd00::/129", None),
            ("", None),
        ] {
            assert_eq!(text.parse::<Cidr>().ok().map(|c| c.to_string()).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn service_accounts() {
        for (text, ok) in
            [("shop/web", true), ("web", false), ("/web", false), ("shop/", false), ("a/b/c", false)]
        {
            assert_eq!(text.parse::<ServiceAccountName>().is_ok(), ok, "{text:?}");
        }
    }
}
