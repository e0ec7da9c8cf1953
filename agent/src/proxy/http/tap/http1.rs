//! Requests in HTTP/1.0 and 1.1, one after the other, and bodies passed over.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Uri, Version};

use super::super::Limits;
use super::{After, Heard};

#[derive(Default)]
pub(super) struct Http1 {
    /// Of lines that are not complete.
    held: Vec<u8>,
    at: At,
    /// After this request.
    then: Then,
}

#[derive(Clone, Copy, Default)]
enum At {
    #[default]
    Head,
    /// So much of a body is left.
    Body(u64),
    ChunkSize,
    /// So much of a chunk is left.
    Chunk(u64),
    ChunkEnd,
    Trailers,
}

#[derive(Clone, Copy, Default)]
enum Then {
    #[default]
    Request,
    /// One was asked for.
    Upgrade,
    Nothing,
}

impl Http1 {
    pub(super) fn read<'a>(
        &mut self,
        mut bytes: &'a [u8],
        limits: &Limits,
        hear: &mut dyn FnMut(Heard),
    ) -> After<'a> {
        while !bytes.is_empty() {
            if let At::Body(left) | At::Chunk(left) = &mut self.at {
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                bytes = &bytes[n..];
                *left -= n as u64;
                if *left > 0 {
                    break;
                }
                if matches!(self.at, At::Chunk(_)) {
                    self.at = At::ChunkEnd;
                } else if let Some(after) = self.end_of_request(bytes) {
                    return after;
                }
                continue;
            }
            let line_began = self.held.len();
            let is_line = self.take_line(&mut bytes);
            if self.held.len() > limits.head_bytes as usize {
                hear(Heard::Unreadable("a head, or a line of a body, is too long"));
                return After::Nothing;
            }
            if !is_line {
                break;
            }
            match self.line(line_began, limits, hear) {
                Err(why) => {
                    hear(Heard::Unreadable(why));
                    return After::Nothing;
                }
                Ok(true) => {
                    if let Some(after) = self.end_of_request(bytes) {
                        return after;
                    }
                }
                Ok(false) => {}
            }
        }
        After::Same
    }

    /// Whether a whole line is held now.
    fn take_line(&mut self, bytes: &mut &[u8]) -> bool {
        let end = bytes.iter().position(|b| *b == b'\n');
        let n = end.map_or(bytes.len(), |end| end + 1);
        self.held.extend_from_slice(&bytes[..n]);
        *bytes = &bytes[n..];
        end.is_some()
    }

    /// Whether the request ends with this line, which is the last that is held.
    fn line(
        &mut self,
        began: usize,
        limits: &Limits,
        hear: &mut dyn FnMut(Heard),
    ) -> Result<bool, &'static str> {
        // The line may have begun in what was held before.
        let began = self.held[..began].iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
        let line = self.held[began..].trim_ascii_end();
        match self.at {
            At::Head if !line.is_empty() => return Ok(false),
            // RFC 9112, 2.2: empty lines ahead of a request are to be ignored.
            At::Head if began == 0 => {}
            At::Head => {
                let parts = parse(&self.held, limits.fields)?;
                self.at = body(&parts)?;
                self.then = then(&parts);
                self.held = Vec::new();
                hear(Heard::Request(Box::new(parts)));
                return Ok(matches!(self.at, At::Body(0)));
            }
            At::ChunkSize => {
                self.at = match chunk_size(line).ok_or("a chunk without a size")? {
                    0 => At::Trailers,
                    size => At::Chunk(size),
                };
            }
            At::ChunkEnd if line.is_empty() => self.at = At::ChunkSize,
            At::ChunkEnd => return Err("a chunk is longer than its size"),
            At::Trailers => {
                let is_last = line.is_empty();
                self.held.clear();
                return Ok(is_last);
            }
            At::Body(_) | At::Chunk(_) => {}
        }
        self.held.clear();
        Ok(false)
    }

    fn end_of_request<'a>(&mut self, bytes: &'a [u8]) -> Option<After<'a>> {
        self.at = At::Head;
        match self.then {
            Then::Request => None,
            Then::Upgrade => Some(After::Switched(bytes)),
            Then::Nothing => Some(After::Nothing),
        }
    }
}

fn parse(head: &[u8], fields: usize) -> Result<Parts, &'static str> {
    let mut fields = vec![httparse::EMPTY_HEADER; fields];
    let mut parsed = httparse::Request::new(&mut fields);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err("a head that does not parse"),
        Err(httparse::Error::TooManyHeaders) => return Err("too many header fields"),
        Err(_) => return Err("a head that does not parse"),
    }
    let bad = "a head that does not parse";
    let mut request = Request::new(());
    *request.method_mut() =
        Method::from_bytes(parsed.method.unwrap_or_default().as_bytes()).map_err(|_| bad)?;
    *request.uri_mut() =
        parsed.path.unwrap_or_default().parse::<Uri>().map_err(|_| "a target that is none")?;
    *request.version_mut() = if parsed.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| bad)?;
        let value = HeaderValue::from_bytes(field.value).map_err(|_| bad)?;
        request.headers_mut().append(name, value);
    }
    Ok(request.into_parts().0)
}

/// RFC 9112, 6.3; what is not sound ends the reading, as nobody knows where the next request begins.
fn body(parts: &Parts) -> Result<At, &'static str> {
    let codings: Vec<_> = tokens(&parts.headers, header::TRANSFER_ENCODING).collect();
    if let Some(last) = codings.last() {
        let is_sound = parts.version == Version::HTTP_11 && last.eq_ignore_ascii_case("chunked");
        return if is_sound { Ok(At::ChunkSize) } else { Err("a transfer coding without an end") };
    }
    let mut length = None;
    for value in parts.headers.get_all(header::CONTENT_LENGTH) {
        let value = value.to_str().ok().filter(|value| value.bytes().all(|b| b.is_ascii_digit()));
        let value = value.and_then(|value| value.parse::<u64>().ok()).ok_or("a length that is none")?;
        if length.is_some_and(|length| length != value) {
            return Err("lengths that differ");
        }
        length = Some(value);
    }
    Ok(At::Body(length.unwrap_or(0)))
}

fn then(parts: &Parts) -> Then {
    let says = |option: &str| {
        tokens(&parts.headers, header::CONNECTION).any(|token| token.eq_ignore_ascii_case(option))
    };
    if parts.method == Method::CONNECT || parts.headers.contains_key(header::UPGRADE) && says("upgrade") {
        return Then::Upgrade;
    }
    let is_last = says("close") || parts.version == Version::HTTP_10 && !says("keep-alive");
    if is_last { Then::Nothing } else { Then::Request }
}

fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().map(|value| value.to_str().unwrap_or_default());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

fn chunk_size(line: &[u8]) -> Option<u64> {
    let size = line.split(|b| *b == b';').next()?.trim_ascii();
    let is_hex = !size.is_empty() && size.iter().all(u8::is_ascii_hexdigit);
    u64::from_str_radix(std::str::from_utf8(size).ok().filter(|_| is_hex)?, 16).ok()
}
