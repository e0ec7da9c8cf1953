//! The CONNECT request: what the client's agent asks of the server's. Encoding and a strict parser,
//! without I/O.
//!
//! Only the target decides anything, so only the target is parsed strictly. Baggage, `forwarded` and
//! `traceparent` are what the peer says about itself: they may label a log line, they never prove.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use http::header::{FORWARDED, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, StatusCode, Uri};

use super::context::{Baggage, Forwarded, TraceParent};

/// One request, on either side. Headers that do not parse, or are too long, are absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    pub target: Target,
    pub baggage: Option<Baggage>,
    pub forwarded: Option<Forwarded>,
    pub trace: Option<TraceParent>,
    /// `x-forwarded-network`: which network the client is in. Gateways set it on the inner request of a
    /// doubly tunnelled connection; then the source is not to be looked up by address.
    pub network: Option<Arc<str>>,
}

/// Where the client's application wants to go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// A pod's address and target port; at a waypoint also a service's VIP and port. IPv4 is never
    /// written as v4-mapped IPv6 here.
    Address(SocketAddr),
    /// A service and its port, lower case: across networks.
    Host(Arc<str>, u16),
}

/// Why a request is answered with 400 and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    #[error("the method is not CONNECT")]
    Method,
    #[error("the request asks for another protocol by `:protocol`, or carries a scheme or a path")]
    NotPlainConnect,
    #[error("the authority is neither address:port nor hostname:port")]
    Authority,
}

impl Reject {
    pub fn status(self) -> StatusCode {
        StatusCode::BAD_REQUEST
    }
}

impl Connect {
    /// A request without any of the informational headers.
    pub fn to(target: Target) -> Self {
        Self { target, baggage: None, forwarded: None, trace: None, network: None }
    }

    /// As `h2` sends it: `:method` and `:authority` only, then the headers that are set.
    ///
    /// # Errors
    /// When a hostname target is not one ([`Target::from_str`] makes only good ones).
    pub fn encode(&self) -> Result<Request<()>, http::Error> {
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = Uri::builder().authority(self.target.to_string()).build()?;
        let headers = request.headers_mut();
        if let Some(baggage) = &self.baggage {
            headers.insert(BAGGAGE, baggage.header().clone());
        }
        if let Some(forwarded) = &self.forwarded {
            headers.insert(FORWARDED, once(&forwarded.to_string())?);
        }
        if let Some(trace) = &self.trace {
            headers.insert(TRACEPARENT, once(&trace.to_string())?);
        }
        if let Some(network) = &self.network {
            headers.insert(NETWORK, HeaderValue::from_str(network)?);
        }
        Ok(request)
    }
}

/// Reads what a peer sent. Never panics, whatever it is.
pub fn parse_request<T>(request: &Request<T>) -> Result<Connect, Reject> {
    if request.method() != Method::CONNECT {
        return Err(Reject::Method);
    }
    let uri = request.uri();
    let extended = request.extensions().get::<h2::ext::Protocol>().is_some();
    if extended || uri.scheme().is_some() || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(Reject::NotPlainConnect);
    }
    let authority = uri.authority().ok_or(Reject::Authority)?;
    let headers = request.headers();
    Ok(Connect {
        target: authority.as_str().parse()?,
        baggage: single(headers, &BAGGAGE).and_then(|v| Baggage::from_header(v.clone())),
        forwarded: single(headers, &FORWARDED).and_then(|v| v.to_str().ok()?.parse().ok()),
        trace: single(headers, &TRACEPARENT).and_then(|v| v.to_str().ok()?.parse().ok()),
        network: single(headers, &NETWORK).and_then(parse_network),
    })
}

pub(super) const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");

/// A header that is never the same twice would only push useful ones out of the peer's HPACK table.
fn once(value: &str) -> Result<HeaderValue, http::Error> {
    let mut value = HeaderValue::from_str(value)?;
    value.set_sensitive(true);
    Ok(value)
}

/// The header's value if it is there exactly once. Of two that contradict each other none is believed.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    if values.next().is_some() { None } else { Some(first) }
}

fn parse_network(value: &HeaderValue) -> Option<Arc<str>> {
    let text = value.to_str().ok()?;
    let ok = (1..=MAX_HOST).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    ok.then(|| text.into())
}

impl Target {
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(addr) => addr.port(),
            Self::Host(_, port) => *port,
        }
    }
}

impl FromStr for Target {
    type Err = Reject;

    /// `address:port`, `[v6 address]:port` or `hostname:port`, nothing around it.
    fn from_str(text: &str) -> Result<Self, Reject> {
        if text.len() > MAX_HOST + 8 {
            return Err(Reject::Authority);
        }
        let (host, port) = text.rsplit_once(':').ok_or(Reject::Authority)?;
        let port = parse_port(port)?;
        if let Some(v6) = host.strip_prefix('[') {
            // Ipv6Addr takes no zone, which would be our own link's name in somebody else's mouth.
            let v6 = v6.strip_suffix(']').ok_or(Reject::Authority)?;
            let ip: std::net::Ipv6Addr = v6.parse().map_err(|_| Reject::Authority)?;
            return Ok(Self::Address(SocketAddr::new(IpAddr::V6(ip).to_canonical(), port)));
        }
        if let Ok(ip) = host.parse::<std::net::Ipv4Addr>() {
            return Ok(Self::Address(SocketAddr::new(ip.into(), port)));
        }
        if is_hostname(host) {
            Ok(Self::Host(host.to_ascii_lowercase().into(), port))
        } else {
            Err(Reject::Authority)
        }
    }
}

/// Digits only, no leading zero, not 0: `u16::from_str` would take `+80` and `080`.
fn parse_port(text: &str) -> Result<u16, Reject> {
    let digits = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    if digits { text.parse().map_err(|_| Reject::Authority) } else { Err(Reject::Authority) }
}

/// RFC 1123 labels, with the underscores that Kubernetes' users write. The last label must not look like
/// a number, or resolvers would read `0x7f.1` and `127.1` as addresses.
pub(super) fn is_hostname(text: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let last = text.rsplit('.').next().unwrap_or("");
    (1..=MAX_HOST).contains(&text.len())
        && text.split('.').all(label)
        && last.starts_with(|c: char| c.is_ascii_alphabetic())
}

/// RFC 1035, 2.3.4.
const MAX_HOST: usize = 253;

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(addr) => addr.fmt(f),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// For the fuzz target: takes `data` for the authority and the headers of a request, one in a line, and
/// panics if parsing does, or if what was parsed does not survive being sent on.
#[doc(hidden)]
pub fn fuzz_request(data: &[u8]) {
    let mut lines = data.splitn(5, |b| *b == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let Ok(uri) = Uri::try_from(line()) else { return };
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = uri;
    for name in [BAGGAGE, FORWARDED, TRACEPARENT, NETWORK] {
        if let Ok(value) = HeaderValue::from_bytes(line()) {
            request.headers_mut().insert(name, value);
        }
    }
    let Ok(connect) = parse_request(&request) else { return };
    if let Some(baggage) = &connect.baggage {
        let fields = baggage.fields();
        assert_eq!(Baggage::new(&fields).fields(), fields, "baggage changes when written again");
    }
    let encoded = connect.encode();
    let again = encoded.as_ref().map(parse_request);
    assert!(matches!(&again, Ok(Ok(same)) if *same == connect), "{connect:?} comes back as {again:?}");
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
