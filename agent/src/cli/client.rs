//! Asks a running agent over its admin socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::de::DeserializeOwned;
use serde_json::Value;

#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error(
        "no agent answers at {}: {source}; start one with `underpass agent --config FILE`, or name its socket with --socket",
        path.display()
    )]
    Absent { path: PathBuf, source: io::Error },
    #[error("connect to {} failed: {source}; only the agent's own user may ask it: try again as root", path.display())]
    Forbidden { path: PathBuf, source: io::Error },
    #[error("{call} {} failed: {source}; the agent may have stopped or hang: look at its log", path.display())]
    Io { call: &'static str, path: PathBuf, source: io::Error },
    #[error("the agent at {} gave no proper answer ({why}); is it an agent, and of this version?", path.display())]
    Nonsense { path: PathBuf, why: String },
    #[error("the agent answered {status}: {why}")]
    Refused { status: u16, why: String },
}

/// Sends one request and reads its JSON answer.
pub(super) fn ask(socket: &Path, method: &str, path: &str, body: &str) -> Result<Value, ClientError> {
    send(socket, &format!("{method} {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
}

/// Asks a question that is written in JSON.
pub(super) fn post_json(socket: &Path, path: &str, body: &str) -> Result<Value, ClientError> {
    let length = body.len();
    let head = "Content-Type: application/json\r\n";
    send(socket, &format!("POST {path} HTTP/1.0\r\n{head}Content-Length: {length}\r\n\r\n{body}"))
}

/// What an answer says to those who know its form.
pub(super) fn understood<T: DeserializeOwned>(answer: Value) -> anyhow::Result<T> {
    serde_json::from_value(answer).context("the agent's answer is not understood; is it of this version?")
}

/// HTTP/1.0: the answer is not chunked, and ends with the connection.
fn send(socket: &Path, request: &str) -> Result<Value, ClientError> {
    let io = |call| move |source| ClientError::Io { call, path: socket.into(), source };
    let mut stream = connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(io("setting a timeout for"))?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(io("setting a timeout for"))?;
    stream.write_all(request.as_bytes()).map_err(io("writing to"))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(io("reading from"))?;
    understand(&answer).map_err(|why| ClientError::Nonsense { path: socket.into(), why })?
}

const PATIENCE: Duration = Duration::from_secs(30);

fn connect(path: &Path) -> Result<UnixStream, ClientError> {
    UnixStream::connect(path).map_err(|source| not_connected(path.to_owned(), source))
}

pub(super) fn not_connected(path: PathBuf, source: io::Error) -> ClientError {
    match source.kind() {
        io::ErrorKind::PermissionDenied => ClientError::Forbidden { path, source },
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::Absent { path, source },
        _ => ClientError::Io { call: "connecting to", path, source },
    }
}

/// The outer error says why the answer is none.
fn understand(answer: &[u8]) -> Result<Result<Value, ClientError>, String> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or("its headers do not end")?;
    let head = std::str::from_utf8(&answer[..end]).map_err(|e| e.to_string())?;
    let status = head.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse::<u16>().ok());
    let status =
        status.ok_or_else(|| format!("it begins with {:?}", head.lines().next().unwrap_or_default()))?;
    let body = &answer[end + 4..];
    if status == 200 {
        return serde_json::from_slice(body).map(Ok).map_err(|e| format!("its JSON does not parse: {e}"));
    }
    let why =
        serde_json::from_slice::<Value>(body).ok().and_then(|v| Some(v.get("error")?.as_str()?.to_owned()));
    let why = why.unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned());
    Ok(Err(ClientError::Refused { status, why }))
}
