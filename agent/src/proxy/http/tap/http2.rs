//! Requests in HTTP/2: the header blocks of a client, whatever else its frames carry.

use bytes::Bytes;
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Method, Request, Uri, Version};

use super::super::Limits;
use super::super::detect::PREFACE;
use super::hpack::Decoder;
use super::{After, Heard};

pub(super) struct Http2 {
    at: At,
    decoder: Decoder,
    /// A header block that is not complete, if there is one.
    block: Option<Vec<u8>>,
}

enum At {
    /// So much is left of what is passed over: the preface, or a frame that carries no headers.
    Pass(u64),
    /// The head of a frame, as far as it came.
    Head(Vec<u8>),
    /// A frame that carries headers.
    Headers { frame: Frame, payload: Vec<u8> },
}

#[derive(Clone, Copy)]
struct Frame {
    len: usize,
    kind: u8,
    flags: u8,
}

impl Default for Http2 {
    fn default() -> Self {
        Self { at: At::Pass(PREFACE.len() as u64), decoder: Decoder::default(), block: None }
    }
}

impl Http2 {
    pub(super) fn read<'a>(
        &mut self,
        mut bytes: &'a [u8],
        limits: &Limits,
        hear: &mut dyn FnMut(Heard),
    ) -> After<'a> {
        let most = limits.head_bytes as usize;
        while !bytes.is_empty() {
            let next = match &mut self.at {
                At::Pass(left) => {
                    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    bytes = &bytes[n..];
                    *left -= n as u64;
                    (*left == 0).then(|| Ok(At::Head(Vec::new())))
                }
                At::Head(head) => {
                    take(head, FRAME_HEAD, &mut bytes);
                    Frame::of(head).map(|frame| frame.begins(self.block.as_ref(), most))
                }
                At::Headers { frame, payload } => {
                    take(payload, frame.len, &mut bytes);
                    let (frame, is_whole) = (*frame, payload.len() == frame.len);
                    is_whole
                        .then(|| std::mem::take(payload))
                        .map(|payload| self.headers(frame, &payload, most, hear))
                }
            };
            match next {
                Some(Ok(at)) => self.at = at,
                Some(Err(why)) => {
                    hear(Heard::Unreadable(why));
                    return After::Nothing;
                }
                None => {}
            }
        }
        After::Same
    }

    fn headers(
        &mut self,
        frame: Frame,
        payload: &[u8],
        most: usize,
        hear: &mut dyn FnMut(Heard),
    ) -> Result<At, &'static str> {
        let mut block = self.block.take().unwrap_or_default();
        block.extend_from_slice(frame.fragment(payload)?);
        if frame.flags & END_HEADERS == 0 {
            self.block = Some(block);
            return Ok(At::Head(Vec::new()));
        }
        let fields = self.decoder.decode(&block, most)?;
        // Trailers have none of those.
        if fields.first().is_some_and(|(name, _)| name.starts_with(b":")) {
            hear(match parts(fields) {
                Some(parts) => Heard::Request(Box::new(parts)),
                // Of one stream: the connection goes on.
                None => Heard::Unreadable("a malformed request"),
            });
        }
        Ok(At::Head(Vec::new()))
    }
}

/// Up to `whole` bytes.
fn take(to: &mut Vec<u8>, whole: usize, bytes: &mut &[u8]) {
    let n = (whole - to.len()).min(bytes.len());
    to.extend_from_slice(&bytes[..n]);
    *bytes = &bytes[n..];
}

impl Frame {
    fn of(head: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, ..] = *<&[u8; FRAME_HEAD]>::try_from(head).ok()?;
        Some(Self { len: u32::from_be_bytes([0, a, b, c]) as usize, kind, flags })
    }

    /// A header block is in frames that follow each other (RFC 9113, 6.10).
    fn begins(self, block: Option<&Vec<u8>>, most: usize) -> Result<At, &'static str> {
        match (self.kind, block) {
            (HEADERS, None) | (CONTINUATION, Some(_)) => {}
            (CONTINUATION, None) | (_, Some(_)) => return Err("a header block that is no whole"),
            (_, None) if self.len == 0 => return Ok(At::Head(Vec::new())),
            (_, None) => return Ok(At::Pass(self.len as u64)),
        }
        if self.len + block.map_or(0, Vec::len) > most {
            return Err("a head is too long");
        }
        Ok(At::Headers { frame: self, payload: Vec::new() })
    }

    /// What of the payload is the header block's (RFC 9113, 6.2).
    fn fragment(self, mut payload: &[u8]) -> Result<&[u8], &'static str> {
        if self.kind == CONTINUATION {
            return Ok(payload);
        }
        let mut padding = 0;
        if self.flags & PADDED != 0 {
            let (first, rest) = payload.split_first().ok_or(SHORT)?;
            (padding, payload) = (usize::from(*first), rest);
        }
        if self.flags & PRIORITY != 0 {
            payload = payload.get(5..).ok_or(SHORT)?;
        }
        payload.len().checked_sub(padding).and_then(|end| payload.get(..end)).ok_or(SHORT)
    }
}

fn parts(fields: Vec<(Bytes, Bytes)>) -> Option<Parts> {
    let mut request = Request::new(());
    *request.version_mut() = Version::HTTP_2;
    let (mut method, mut scheme, mut authority, mut path) = (None, None, None, None);
    for (name, value) in fields {
        let slot = match &*name {
            b":method" => &mut method,
            b":scheme" => &mut scheme,
            b":authority" => &mut authority,
            b":path" => &mut path,
            b":protocol" => {
                request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
                continue;
            }
            name => {
                let value = HeaderValue::from_maybe_shared(value).ok()?;
                request.headers_mut().append(HeaderName::from_lowercase(name).ok()?, value);
                continue;
            }
        };
        // Each once.
        if slot.replace(value).is_some() {
            return None;
        }
    }
    *request.method_mut() = Method::from_bytes(&method?).ok()?;
    let mut uri = http::uri::Parts::default();
    if let Some(path) = path {
        uri.path_and_query = Some(PathAndQuery::from_maybe_shared(path).ok()?);
    }
    if let Some(authority) = authority.filter(|authority| !authority.is_empty()) {
        uri.authority = Some(Authority::from_maybe_shared(authority).ok()?);
        // One without the other is no URI; CONNECT has neither scheme nor path.
        if uri.path_and_query.is_some() {
            uri.scheme = scheme.as_deref().map_or(Ok(Scheme::HTTP), Scheme::try_from).ok();
        }
    }
    *request.uri_mut() = Uri::from_parts(uri).ok()?;
    Some(request.into_parts().0)
}

const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;
const SHORT: &str = "a frame that is shorter than what it says it carries";
