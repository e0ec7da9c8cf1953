//! A request's head, brought to the one form that is judged and sent on.
//!
//! hyper has parsed it: framing (`Content-Length`, `Transfer-Encoding`) is sound or was refused, and is
//! written anew. Here is what it leaves open: which host, which path, and which fields are for us alone.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{Method, StatusCode, Uri, Version};

use crate::policy::{NotNormal, PathNormalization, Request, is_method, normalize};

/// What policies see of a request, kept for when it is judged again.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) host: String,
    pub(super) path: String,
    pub(super) query: Option<String>,
    pub(super) headers: HeaderMap,
}

impl Asked {
    pub(super) fn request(&self) -> Request<'_> {
        Request {
            method: self.method.as_str(),
            host: &self.host,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
        }
    }
}

/// Why a request is not judged at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Bad {
    #[error("a method that is not in capitals")]
    Method,
    #[error("no Host")]
    NoHost,
    #[error("several hosts, or ones that differ")]
    Hosts,
    #[error("a host that is none")]
    Host,
    #[error("{0}")]
    Path(#[from] NotNormal),
    #[error("a target that is neither a path nor an address")]
    Target,
    #[error("a Connection field that names what is not for one connection")]
    Connection,
    #[error("too many header fields")]
    Fields,
    #[error("CONNECT, which would carry requests that nobody judges")]
    Connect,
}

impl Bad {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Fields => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// Changes `parts` into what is sent on if it is allowed.
pub(super) fn prepare(parts: &mut Parts, how: PathNormalization, fields: usize) -> Result<Asked, Bad> {
    if parts.headers.len() > fields {
        return Err(Bad::Fields);
    }
    let is_websocket = parts.extensions.get::<hyper::ext::Protocol>().is_some();
    if parts.method == Method::CONNECT && !is_websocket {
        return Err(Bad::Connect);
    }
    if !is_method(parts.method.as_str()) {
        return Err(Bad::Method);
    }
    if parts.version < Version::HTTP_2 {
        only_for_us(&mut parts.headers)?;
    }
    let host = host(parts)?;
    let (path, query) = path(parts, how)?;
    // Extended CONNECT is the GET of a WebSocket in HTTP/2, and policies know it as that.
    let method = if is_websocket { Method::GET } else { parts.method.clone() };
    Ok(Asked { method, host, path, query, headers: parts.headers.clone() })
}

/// RFC 9112, 3.2: exactly one, except in HTTP/1.0; RFC 9113, 8.3.1: `:authority` and `Host` agree.
fn host(parts: &Parts) -> Result<String, Bad> {
    let mut fields = parts.headers.get_all(header::HOST).iter();
    let field = fields.next().map(|value| value.to_str().map_err(|_| Bad::Host)).transpose()?;
    if fields.next().is_some() {
        return Err(Bad::Hosts);
    }
    let target = parts.uri.authority().map(Authority::as_str);
    let host = match (target, field) {
        (Some(target), Some(field)) if !target.eq_ignore_ascii_case(field) => return Err(Bad::Hosts),
        (Some(target), _) => target,
        (None, Some(field)) => field,
        (None, None) if parts.version == Version::HTTP_10 => "",
        (None, None) => return Err(Bad::NoHost),
    };
    let is_host = host.is_empty() || host.parse::<Authority>().is_ok() && !host.contains('@');
    if is_host { Ok(host.to_owned()) } else { Err(Bad::Host) }
}

fn path(parts: &mut Parts, how: PathNormalization) -> Result<(String, Option<String>), Bad> {
    let Some(target) = parts.uri.path_and_query() else { return Err(Bad::Target) };
    let (sent, query) = (target.path(), target.query());
    let is_options = sent == "*" && parts.method == Method::OPTIONS;
    if !sent.starts_with('/') && !is_options {
        return Err(Bad::Target);
    }
    let path = normalize(sent, how)?.into_owned();
    let query = query.map(ToOwned::to_owned);
    if path != sent {
        let whole = match &query {
            Some(query) => format!("{path}?{query}"),
            None => path.clone(),
        };
        let whole = PathAndQuery::try_from(whole).map_err(|_| Bad::Target)?;
        let mut uri = parts.uri.clone().into_parts();
        uri.path_and_query = Some(whole);
        parts.uri = Uri::from_parts(uri).map_err(|_| Bad::Target)?;
    }
    Ok((path, query))
}

/// Takes out what `Connection` names (RFC 9110, 7.6.1), so that nothing is judged that is not sent on.
/// There is one connection to the application for each of the client's, so what is said of the connection
/// itself holds for both, and stays.
fn only_for_us(headers: &mut HeaderMap) -> Result<(), Bad> {
    let mut kept = Vec::new();
    let mut named = Vec::new();
    for value in headers.get_all(header::CONNECTION) {
        for option in value.to_str().map_err(|_| Bad::Connection)?.split(',').map(str::trim) {
            if OURS.iter().any(|ours| option.eq_ignore_ascii_case(ours)) {
                kept.push(option.to_ascii_lowercase());
            } else if !option.is_empty() {
                named.push(HeaderName::try_from(option).map_err(|_| Bad::Connection)?);
            }
        }
    }
    if named.iter().any(|name| NEVER.contains(name)) {
        return Err(Bad::Connection);
    }
    let is_foreign = !named.is_empty();
    for name in named.iter().chain(&[PROXY_CONNECTION, KEEP_ALIVE]) {
        headers.remove(name);
    }
    let te_before = headers.contains_key(header::TE);
    only_trailers(headers);
    let upgrade_before = headers.contains_key(header::UPGRADE);
    let upgrades = kept.iter().any(|option| option == "upgrade");
    if !upgrades || !is_upgrade_judged(headers) {
        headers.remove(header::UPGRADE);
        headers.remove("http2-settings");
    }
    let lost = |name: &HeaderName, before: bool| before && !headers.contains_key(name);
    let (no_te, no_upgrade) = (lost(&header::TE, te_before), lost(&header::UPGRADE, upgrade_before));
    if is_foreign || no_te || no_upgrade {
        kept.retain(|option| !(no_te && option == "te" || no_upgrade && option == "upgrade"));
        headers.remove(header::CONNECTION);
        if let Ok(value) = HeaderValue::try_from(kept.join(", "))
            && !kept.is_empty()
        {
            headers.insert(header::CONNECTION, value);
        }
    }
    Ok(())
}

/// The same of an answer. What switches protocols or closes is said to both ends alike.
pub(super) fn answer_only_for_us(headers: &mut HeaderMap) {
    let mut kept = Vec::new();
    let mut named = Vec::new();
    for value in headers.get_all(header::CONNECTION) {
        for option in value.to_str().unwrap_or_default().split(',').map(str::trim) {
            if OURS.iter().any(|ours| option.eq_ignore_ascii_case(ours)) {
                kept.push(option.to_owned());
            } else if let Ok(name) = HeaderName::try_from(option)
                && !NEVER.contains(&name)
            {
                named.push(name);
            }
        }
    }
    headers.remove(PROXY_CONNECTION);
    if named.is_empty() {
        return;
    }
    for name in named.into_iter().filter(|name| *name != KEEP_ALIVE) {
        headers.remove(name);
    }
    headers.remove(header::CONNECTION);
    if let Ok(value) = HeaderValue::try_from(kept.join(", "))
        && !kept.is_empty()
    {
        headers.insert(header::CONNECTION, value);
    }
}

const OURS: [&str; 4] = ["close", "keep-alive", "upgrade", "te"];
const NEVER: [HeaderName; 4] =
    [header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION];
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// Of `TE`, the one coding that we can carry.
fn only_trailers(headers: &mut HeaderMap) {
    let coding = |value: &HeaderValue| value.to_str().unwrap_or_default().to_ascii_lowercase();
    let all: Vec<String> = headers.get_all(header::TE).iter().map(coding).collect();
    let has = all.iter().flat_map(|value| value.split(',')).any(|coding| coding.trim() == "trailers");
    match all.as_slice() {
        [] => {}
        [one] if one == "trailers" => {}
        _ if has => drop(headers.insert(header::TE, HeaderValue::from_static("trailers"))),
        _ => drop(headers.remove(header::TE)),
    }
}

/// Not to a protocol that carries further requests, which nobody would judge.
fn is_upgrade_judged(headers: &HeaderMap) -> bool {
    let carries = |protocol: &str| {
        let name = protocol.trim().split('/').next().unwrap_or_default().to_ascii_lowercase();
        matches!(&*name, "" | "h2" | "h2c" | "h3" | "http" | "https" | "tls" | "connect-udp" | "connect-ip")
    };
    headers
        .get_all(header::UPGRADE)
        .iter()
        .all(|value| value.to_str().is_ok_and(|value| !value.split(',').any(carries)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_FIELDS: usize = 100;

    fn parts(version: Version, target: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().version(version).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn prepared(target: &str, headers: &[(&str, &str)]) -> Result<(Asked, Parts), Bad> {
        let mut parts = parts(Version::HTTP_11, target, headers);
        prepare(&mut parts, PathNormalization::Base, MAX_FIELDS).map(|asked| (asked, parts))
    }

    #[test]
    fn what_is_judged_is_what_is_sent_on() {
        let (asked, sent) = prepared("/a/../b?x=/../y", &[("host", "Shop:80")]).unwrap();
        assert_eq!((&*asked.path, asked.query.as_deref(), &*asked.host), ("/b", Some("x=/../y"), "Shop:80"));
        assert_eq!(sent.uri, "/b?x=/../y");
        let (asked, sent) = prepared("http://shop/./b", &[("host", "SHOP")]).unwrap();
        assert_eq!((&*asked.path, &*asked.host), ("/b", "shop"));
        assert_eq!(sent.uri, "http://shop/b");
    }

    #[test]
    fn hosts_must_agree() {
        for (target, headers, expected) in [
            ("/", &[][..], Bad::NoHost),
            ("/", &[("host", "a"), ("host", "a")], Bad::Hosts),
            ("http://a/", &[("host", "b")], Bad::Hosts),
            ("http://a:80/", &[("host", "a")], Bad::Hosts),
            ("/", &[("host", "a b")], Bad::Host),
            ("/", &[("host", "a/b")], Bad::Host),
            ("/", &[("host", "a@b")], Bad::Host),
            ("/", &[("host", "a, b")], Bad::Host),
            ("http://x@a/", &[], Bad::Host),
        ] {
            assert_eq!(prepared(target, headers).err(), Some(expected), "{target} {headers:?}");
        }
        let mut old = parts(Version::HTTP_10, "/", &[]);
        assert_eq!(
            prepare(&mut old, PathNormalization::Base, MAX_FIELDS).map(|asked| asked.host),
            Ok(String::new())
        );
    }

    #[test]
    fn fields_of_one_connection_are_not_sent_on() {
        let headers = [
            ("host", "a"),
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "gzip, Trailers"),
            ("x-kept", "1"),
        ];
        let (asked, sent) = prepared("/", &headers).unwrap();
        let names: Vec<_> = sent.headers.keys().map(HeaderName::as_str).collect();
        for name in ["x-secret", "keep-alive", "proxy-connection"] {
            assert!(!names.contains(&name), "{name}");
            assert!(!asked.headers.contains_key(name), "{name} is judged");
        }
        assert_eq!(sent.headers["connection"], "close");
        assert_eq!(sent.headers["te"], "trailers");
        assert_eq!(sent.headers["x-kept"], "1");
        for bad in ["host", "close, Content-Length", "transfer-encoding", "a b", "connection"] {
            let refused = prepared("/", &[("host", "a"), ("connection", bad)]);
            assert_eq!(refused.err(), Some(Bad::Connection), "{bad}");
        }
    }

    #[test]
    fn only_upgrades_that_carry_no_requests_are_sent_on() {
        for (upgrade, connection, kept) in [
            ("websocket", "Upgrade", true),
            ("SPDY/3.1", "upgrade", true),
            ("websocket", "keep-alive", false),
            ("h2c", "Upgrade, HTTP2-Settings", false),
            ("websocket, h2c", "Upgrade", false),
            ("HTTP/2.0", "Upgrade", false),
            ("TLS/1.2", "Upgrade", false),
            ("", "Upgrade", false),
        ] {
            let headers =
                [("host", "a"), ("connection", connection), ("upgrade", upgrade), ("http2-settings", "AAM")];
            let (_, sent) = prepared("/", &headers).unwrap();
            assert_eq!(sent.headers.contains_key("upgrade"), kept, "{upgrade}");
            let connection = sent.headers.get("connection").map_or("", |v| v.to_str().unwrap());
            assert_eq!(connection.to_ascii_lowercase().contains("upgrade"), kept, "{upgrade}: {connection}");
            assert!(kept || !sent.headers.contains_key("http2-settings"), "{upgrade}");
        }
    }

    #[test]
    fn targets_that_cannot_be_judged_are_refused() {
        for (target, expected) in [
            ("/a%00b", Bad::Path(NotNormal::Nul)),
            ("/.%%32e/", Bad::Path(NotNormal::Twice)),
            ("*", Bad::Target),
            ("shop:80", Bad::Target),
        ] {
            let headers = [("host", "shop:80")];
            assert_eq!(prepared(target, &headers).err(), Some(expected), "{target}");
        }
        let mut connect = parts(Version::HTTP_11, "shop:80", &[("host", "shop:80")]);
        connect.method = Method::CONNECT;
        assert_eq!(prepare(&mut connect, PathNormalization::Base, MAX_FIELDS).err(), Some(Bad::Connect));
        for method in ["delete", "Get", "gET", "m-search"] {
            let mut lower = parts(Version::HTTP_11, "/", &[("host", "a")]);
            lower.method = method.parse().unwrap();
            let refused = prepare(&mut lower, PathNormalization::Base, MAX_FIELDS);
            assert_eq!(refused.err(), Some(Bad::Method), "{method}");
        }
        let many: Vec<(String, &str)> = (0..=MAX_FIELDS).map(|n| (format!("x-{n}"), "")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (&**name, *value)).collect();
        assert_eq!(prepared("/", &many).err(), Some(Bad::Fields));
    }
}
