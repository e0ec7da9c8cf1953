//! HTTP/1.1, as little of it as an unsuspecting application needs.

use std::io::{self, BufRead, BufReader, Read, Write};

use super::server::{Conn, Handler};

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
}

/// One request on a connection that may be used again; `body` empty makes it a GET, else a POST.
pub fn request(
    stream: &mut (impl Read + Write),
    host: &str,
    path: &str,
    body: &[u8],
) -> io::Result<Response> {
    let method = if body.is_empty() { "GET" } else { "POST" };
    ask(stream, &format!("{method} {path} HTTP/1.1\r\nHost: {host}"), body)
}

/// As [`request`], with the head as it is given: first line and headers, without the length.
pub fn ask(stream: &mut (impl Read + Write), head: &str, body: &[u8]) -> io::Result<Response> {
    let head = format!("{head}\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut reader = BufReader::new(stream);
    let (first, headers) = head_of(&mut reader)?;
    let status = first.split(' ').nth(1).and_then(|s| s.parse().ok());
    let status = status.ok_or_else(|| malformed(&first))?;
    let body = body_of(&mut reader, &headers)?;
    Ok(Response { status, headers, body })
}

/// Answers every request with 200 and `answer`, or with the request's own body when it has one, and names
/// the peer in `X-Peer`.
pub fn serve(answer: &'static str) -> impl Handler {
    move |conn: &mut Conn| {
        let mut reader = BufReader::new(conn.stream.try_clone()?);
        loop {
            let headers = match head_of(&mut reader) {
                Ok((_, headers)) => headers,
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(e) => return Err(e),
            };
            let asked = body_of(&mut reader, &headers)?;
            let body = if asked.is_empty() { answer.as_bytes() } else { &asked };
            let head =
                format!("HTTP/1.1 200 OK\r\nX-Peer: {}\r\nContent-Length: {}\r\n\r\n", conn.peer, body.len());
            conn.stream.write_all(&[head.as_bytes(), body].concat())?;
        }
    }
}

/// Says yes to an upgrade, and then sends back whatever comes, as a WebSocket that knows no frames would.
pub fn upgrade(conn: &mut Conn) -> io::Result<()> {
    let mut reader = BufReader::new(conn.stream.try_clone()?);
    head_of(&mut reader)?;
    let yes = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    conn.stream.write_all(yes.as_bytes())?;
    let mut bytes = [0; 1024];
    loop {
        match reader.read(&mut bytes)? {
            0 => return Ok(()),
            n => conn.stream.write_all(&bytes[..n])?,
        }
    }
}

type Head = (String, Vec<(String, String)>);

fn head_of(reader: &mut impl BufRead) -> io::Result<Head> {
    let first = line(reader)?;
    let mut headers = vec![];
    loop {
        let line = line(reader)?;
        if line.is_empty() {
            return Ok((first, headers));
        }
        let (name, value) = line.split_once(':').ok_or_else(|| malformed(&line))?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
}

fn body_of(reader: &mut impl Read, headers: &[(String, String)]) -> io::Result<Vec<u8>> {
    let length = headers.iter().find(|(n, _)| n.eq_ignore_ascii_case("content-length"));
    let length = length.map_or(Ok(0), |(_, v)| v.parse::<usize>().map_err(|_| malformed(v)))?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(body)
}

fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not HTTP/1.1: {what:?}"))
}
