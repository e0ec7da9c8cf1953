//! Whether a request is one of a route's, and how closely: of several routes the closest takes it.

use std::borrow::Cow;
use std::sync::Arc;

use http::HeaderName;
use regex::{Regex, RegexBuilder};

use super::super::request::Request;

/// What a route says of requests: all of it has to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestMatch {
    pub path: Path,
    pub method: Option<Arc<str>>,
    pub headers: Vec<(HeaderName, Text)>,
    pub queries: Vec<(Arc<str>, Text)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    Exact(Arc<str>),
    /// By whole segments; without a slash at its end.
    Prefix(Arc<str>),
    Pattern(Pattern),
    /// `/service/method`, by POST.
    Rpc {
        service: Option<Text>,
        method: Option<Text>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    Exact(Arc<str>),
    Pattern(Pattern),
}

/// In lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    Exact(Arc<str>),
    /// Any name that ends with a dot and this.
    Below(Arc<str>),
}

/// A regular expression that the whole text has to fit. It takes time in proportion to the text, whatever it is.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: Arc<str>,
    regex: Regex,
}

/// A compiled expression may take this much memory, and its lazily built tables this much more.
const PATTERN_SIZE: usize = 256 * 1024;

/// How closely a request is met. The greater wins: by the Gateway API's order of hosts, path, method, headers
/// and query parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Closeness {
    /// Characters of an exact name, then of any.
    host: (usize, usize),
    /// Exact before expression before prefix, then characters. An RPC with service and method is as good as
    /// exact, with a service alone is better than with a method alone.
    path: (usize, usize),
    method: bool,
    headers: usize,
    queries: usize,
}

impl Pattern {
    /// # Errors
    /// It is no expression, or takes too much memory.
    pub fn new(text: &str) -> Result<Self, regex::Error> {
        // Alone first: what closes more than it opens must not escape from the group.
        RegexBuilder::new(text).size_limit(PATTERN_SIZE).build()?;
        let whole = format!(r"\A(?:{text})\z");
        let regex =
            RegexBuilder::new(&whole).size_limit(PATTERN_SIZE).dfa_size_limit(PATTERN_SIZE).build()?;
        Ok(Self { text: text.into(), regex })
    }

    pub fn fits(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl Text {
    fn fits(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *text,
            Self::Pattern(pattern) => pattern.fits(text),
        }
    }
}

impl Path {
    pub(super) fn prefix(value: &str) -> Self {
        Self::Prefix(value.trim_end_matches('/').into())
    }

    pub(super) fn fits(&self, request: &Request<'_>) -> bool {
        self.closeness(request).is_some()
    }

    fn closeness(&self, request: &Request<'_>) -> Option<(usize, usize)> {
        let path = request.path;
        match self {
            Self::Exact(exact) => (**exact == *path).then_some((3, path.len())),
            Self::Pattern(pattern) => pattern.fits(path).then_some((2, path.len())),
            Self::Prefix(prefix) => {
                // Everything, the path of `OPTIONS *` too.
                if prefix.is_empty() {
                    return Some((1, 1));
                }
                let rest = path.strip_prefix(&**prefix)?;
                (rest.is_empty() || rest.starts_with('/')).then_some((1, prefix.len()))
            }
            Self::Rpc { service, method } => {
                if request.method != "POST" {
                    return None;
                }
                let (of_service, of_method) = path.strip_prefix('/')?.split_once('/')?;
                if of_method.contains('/') {
                    return None;
                }
                let fits = |wanted: &Option<Text>, given| wanted.as_ref().is_none_or(|text| text.fits(given));
                let closeness = match (service, method) {
                    (Some(_), Some(_)) => (3, path.len()),
                    (Some(_), None) => (2, of_service.len()),
                    (None, Some(_)) => (1, of_method.len()),
                    (None, None) => (1, 0),
                };
                (fits(service, of_service) && fits(method, of_method)).then_some(closeness)
            }
        }
    }
}

impl RequestMatch {
    pub(super) fn any() -> Self {
        Self { path: Path::prefix("/"), method: None, headers: Vec::new(), queries: Vec::new() }
    }

    pub(super) fn any_rpc() -> Self {
        Self { path: Path::Rpc { service: None, method: None }, ..Self::any() }
    }

    /// Whether it holds for every request.
    pub(super) fn is_any(&self) -> bool {
        *self == Self::any()
    }

    fn closeness(&self, request: &Request<'_>) -> Option<Closeness> {
        if self.method.as_ref().is_some_and(|method| **method != *request.method) {
            return None;
        }
        let path = self.path.closeness(request)?;
        let holds = self.headers.iter().all(|header| Self::sends(header, request))
            && self.queries.iter().all(|query| Self::asks(query, request));
        holds.then_some(Closeness {
            host: (0, 0),
            path,
            method: self.method.is_some(),
            headers: self.headers.len(),
            queries: self.queries.len(),
        })
    }

    /// Whether one of the values that a header has in the request fits.
    pub(super) fn sends((name, text): &(HeaderName, Text), request: &Request<'_>) -> bool {
        let mut values = request.headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.any(|value| text.fits(value))
    }

    pub(super) fn asks((name, text): &(Arc<str>, Text), request: &Request<'_>) -> bool {
        let mut pairs = query_pairs(request.query.unwrap_or_default());
        pairs.any(|(key, value)| *key == **name && text.fits(&value))
    }
}

/// How closely a request to `host` is met by one of a route's matches. Without hosts, every host is meant.
pub(super) fn closeness(
    hosts: &[Host],
    one: &RequestMatch,
    host: &str,
    request: &Request<'_>,
) -> Option<Closeness> {
    let found = one.closeness(request)?;
    let host = match hosts {
        [] => (0, 0),
        hosts => hosts.iter().filter_map(|one| one.closeness(host)).max()?,
    };
    Some(Closeness { host, ..found })
}

impl Host {
    pub(super) fn fits(&self, name: &str) -> bool {
        self.closeness(name).is_some()
    }

    fn closeness(&self, name: &str) -> Option<(usize, usize)> {
        match self {
            Self::Exact(exact) => (**exact == *name).then_some((exact.len(), exact.len())),
            Self::Below(parent) => {
                let front = name.strip_suffix(&**parent)?.strip_suffix('.')?;
                (!front.is_empty()).then_some((0, parent.len() + 2))
            }
        }
    }
}

/// Without port and final dot, in lower case.
pub(super) fn host_name(authority: &str) -> String {
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => authority,
    };
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// As forms write them: `&` between pairs, `+` for a space, `%XX` for a byte.
fn query_pairs(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(key), decoded(value))
    })
}

fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let digit = |offset| bytes.get(at + offset).and_then(|b| char::from(*b).to_digit(16));
        match (byte, digit(1), digit(2)) {
            (b'+', ..) => decoded.push(b' '),
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 2;
            }
            _ => decoded.push(*byte),
        }
        at += 1;
    }
    Cow::Owned(String::from_utf8_lossy(&decoded).into_owned())
}
