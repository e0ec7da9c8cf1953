//! What a client speaks, by its first bytes.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

/// A version of HTTP that requests can be judged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
}

/// Why there is nothing to judge.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotHttp {
    #[error("the client ended before its first request")]
    Nothing,
    #[error("the client sent nothing that begins a request in {0:?}")]
    Silent(Duration),
    #[error("the client speaks TLS, which policies on requests cannot see into")]
    Tls,
    #[error("the client's first bytes are no HTTP request")]
    Other,
    #[error("{0}")]
    Broken(#[from] io::Error),
}

/// Reads until it is clear what the client speaks; what was read is in `read`.
pub(super) async fn detect(
    client: &mut (impl AsyncRead + Unpin),
    read: &mut BytesMut,
    limit: Duration,
) -> Result<Version, NotHttp> {
    let reading = async {
        loop {
            if let Some(known) = version(read) {
                return known;
            }
            if client.read_buf(read).await? == 0 {
                return Err(if read.is_empty() { NotHttp::Nothing } else { NotHttp::Other });
            }
        }
    };
    timeout(limit, reading).await.map_err(|_| NotHttp::Silent(limit))?
}

/// `None` while it can still be both something and nothing.
pub(super) fn version(bytes: &[u8]) -> Option<Result<Version, NotHttp>> {
    if bytes.starts_with(PREFACE) {
        return Some(Ok(Version::Http2));
    }
    if PREFACE.starts_with(bytes) {
        return None;
    }
    if bytes.starts_with(&[0x16, 0x03]) {
        return Some(Err(NotHttp::Tls));
    }
    // RFC 9112, 2.2: empty lines ahead of a request are to be ignored.
    let start = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(bytes.len());
    let line = &bytes[start..];
    let line = &line[..line.len().min(MAX_LINE)];
    // How the bytes are cut must not make a difference: what no longer can be a request's is none, whatever follows.
    match line.iter().position(|b| *b == b'\n') {
        _ if start > MAX_EMPTY => Some(Err(NotHttp::Other)),
        Some(end) if is_request_line(&line[..end]) => Some(Ok(Version::Http1)),
        Some(_) => Some(Err(NotHttp::Other)),
        None if !may_be_request_line(line) => Some(Err(NotHttp::Other)),
        // Too long for a request line or not: whoever reads the whole request says so to the client.
        None if line.len() >= MAX_LINE => Some(Ok(Version::Http1)),
        None => None,
    }
}

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(super) const MAX_LINE: usize = 16 * 1024;
const MAX_METHOD: usize = 64;
const MAX_EMPTY: usize = 8;

fn is_request_line(line: &[u8]) -> bool {
    let end = line.iter().rposition(|b| !matches!(b, b' ' | b'\r')).map_or(0, |last| last + 1);
    let line = &line[..end];
    let version = line.rsplit(|b| *b == b' ').next().unwrap_or_default();
    may_be_request_line(line) && line.len() > version.len() && version.starts_with(b"HTTP/")
}

/// As far as it goes: a method, a space, and what is no control character.
fn may_be_request_line(line: &[u8]) -> bool {
    let method = line.iter().position(|b| *b == b' ').unwrap_or(line.len());
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    let is_visible = |b: &u8| !b.is_ascii_control() || *b == b'\r';
    method <= MAX_METHOD
        && (method > 0 || line.is_empty())
        && line[..method].iter().all(is_token)
        && line[method..].iter().all(is_visible)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_and_no_more_of_them_than_needed() {
        let long = [&b"GET /"[..], &[b'a'; MAX_LINE]].concat();
        let table: [(&[u8], Option<Option<Version>>); 26] = [
            (b"", None),
            (b"P", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", None),
            (PREFACE, Some(Some(Version::Http2))),
            (b"PRI * HTTP/2.0\r\n\r\nXX", Some(Some(Version::Http1))),
            (b"PUT", None),
            (b"GET / HTTP/1.1", None),
            (b"GET / HTTP/1.1\r\n", Some(Some(Version::Http1))),
            (b"GET / HTTP/1.0\n", Some(Some(Version::Http1))),
            (b"\r\nGET / HTTP/1.1\r\n", Some(Some(Version::Http1))),
            (b"\r\n\r\n\r\n\r\n\r\n\r\n", Some(None)),
            (b"\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\n", Some(None)),
            (b"GET / HTTP/1.1\x0c\r\n", Some(None)),
            (b"FROBNICATE http://a/ HTTP/1.1\r\n", Some(Some(Version::Http1))),
            (&long, Some(Some(Version::Http1))),
            (b"GET key\r\n", Some(None)),
            (b"HTTP/1.1\r\n", Some(None)),
            (b"GET /\r\n", Some(None)),
            (b"*1\r\n$4\r\nPING\r\n", Some(None)),
            (b"EHLO mail.example\r\n", Some(None)),
            (b"SSH-2.0-client\r\n", Some(None)),
            (&[0x16, 0x03, 0x01, 0x02], Some(None)),
            (&[0, 0, 0, 8, 4, 210, 22, 47], Some(None)),
            (b"GET /\0 HTTP/1.1", Some(None)),
            (b" GET / HTTP/1.1\r\n", Some(None)),
            (&[b'A'; MAX_METHOD + 1], Some(None)),
        ];
        for (bytes, expected) in table {
            let told = version(bytes).map(Result::ok);
            assert_eq!(told, expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}
