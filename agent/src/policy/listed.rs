//! Values as policies list them: compared one by one, and told in few words.

use std::fmt;

use ipnet::IpNet;

use crate::model::cidr;

use super::explain::Given;
use super::matcher::strip_scheme;
use super::rules::{PathMatch, ServiceAccount, StringMatch};
use super::values::covers_unknown;

#[derive(Clone, Copy)]
pub(super) enum Listed<'a> {
    Strings(&'a [StringMatch]),
    /// With or without their scheme.
    Principals(&'a [StringMatch]),
    /// Without regard to case.
    Hosts(&'a [StringMatch]),
    Paths(&'a [PathMatch]),
    Nets(&'a [IpNet]),
    Ports(&'a [u16]),
    Accounts(&'a [ServiceAccount]),
}

impl Listed<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn len(&self) -> usize {
        match self {
            Self::Strings(values) | Self::Principals(values) | Self::Hosts(values) => values.len(),
            Self::Paths(values) => values.len(),
            Self::Nets(values) => values.len(),
            Self::Ports(values) => values.len(),
            Self::Accounts(values) => values.len(),
        }
    }

    /// Whether one of them fits. None: that is not known.
    pub(super) fn fit(&self, given: &Given<'_>) -> Option<bool> {
        Some(match (self, given) {
            (_, Given::Unknown) => return None,
            (Self::Strings(values), Given::Text(text)) => {
                values.iter().any(|value| fits(value, text, str::to_string))
            }
            (Self::Principals(values), Given::Text(text)) => {
                values.iter().any(|value| fits(value, text, |value| strip_scheme(value).to_string()))
            }
            (Self::Hosts(values), Given::Text(text)) => {
                values.iter().any(|value| fits(value, text, str::to_ascii_lowercase))
            }
            (Self::Paths(values), Given::Text(text)) => values.iter().any(|value| match value {
                PathMatch::String(value) => fits(value, text, str::to_string),
                PathMatch::Template(template) => {
                    std::str::from_utf8(text).is_ok_and(|path| template.matches(path))
                }
            }),
            (Self::Nets(nets), Given::Ip(ip)) if ip.is_unspecified() => {
                nets.iter().any(|net| covers_unknown(net, *ip))
            }
            (Self::Nets(nets), Given::Ip(ip)) => {
                nets.iter().any(|net| cidr::canonical(*net).contains(&ip.to_canonical()))
            }
            (Self::Ports(ports), Given::Port(port)) => ports.contains(port),
            (Self::Accounts(accounts), Given::Account(namespace, account)) => {
                accounts.iter().any(|a| *a.namespace == **namespace && *a.service_account == **account)
            }
            _ => false,
        })
    }
}

fn fits(value: &StringMatch, text: &[u8], form: impl Fn(&str) -> String) -> bool {
    match value {
        StringMatch::Exact(value) => text == form(value).as_bytes(),
        StringMatch::Prefix(value) => text.starts_with(form(value).as_bytes()),
        StringMatch::Suffix(value) => text.ends_with(form(value).as_bytes()),
        StringMatch::Presence => !text.is_empty(),
    }
}

impl fmt::Display for Listed<'_> {
    /// `[test, dev*, *end, *]`; of very many only some.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 8;
        let string = |value: &StringMatch| match value {
            StringMatch::Exact(text) if text.is_empty() => "\"\"".to_string(),
            StringMatch::Exact(text) => text.to_string(),
            StringMatch::Prefix(text) => format!("{text}*"),
            StringMatch::Suffix(text) => format!("*{text}"),
            StringMatch::Presence => "*".to_string(),
        };
        let mut told: Vec<String> = match self {
            Self::Strings(values) | Self::Principals(values) | Self::Hosts(values) => {
                values.iter().take(MOST).map(string).collect()
            }
            Self::Paths(values) => {
                let path = |value: &PathMatch| match value {
                    PathMatch::String(value) => string(value),
                    PathMatch::Template(template) => template.to_string(),
                };
                values.iter().take(MOST).map(path).collect()
            }
            Self::Nets(nets) => nets.iter().take(MOST).map(ToString::to_string).collect(),
            Self::Ports(ports) => ports.iter().take(MOST).map(ToString::to_string).collect(),
            Self::Accounts(accounts) => {
                let account = |a: &ServiceAccount| format!("{}/{}", a.namespace, a.service_account);
                accounts.iter().take(MOST).map(account).collect()
            }
        };
        if self.len() > MOST {
            told.push(format!("… {} in all", self.len()));
        }
        write!(f, "[{}]", told.join(", "))
    }
}
