//! One call of the API server, and what to do when it fails.

use std::fmt::{self, Write};
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use hyper::body::Body as _;
use kube::client::Body;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::Cluster;
use crate::model::spiffe::shorten;

/// What is asked.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) verb: Verb,
    /// Empty for the core group.
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) resource: &'static str,
    /// `None` for what is in no namespace.
    pub(super) namespace: Option<String>,
    /// `None` for all of them.
    pub(super) name: Option<String>,
    pub(super) query: Vec<(&'static str, String)>,
    /// Names and versions only, and nothing of what is inside.
    pub(super) metadata_only: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    List,
    Watch,
    Create,
    Patch,
}

impl Call {
    pub(super) fn core(verb: Verb, resource: &'static str) -> Self {
        let (namespace, name, query) = (None, None, Vec::new());
        Self { verb, group: "", version: "v1", resource, namespace, name, query, metadata_only: false }
    }

    pub(super) fn of(self, group: &'static str, version: &'static str) -> Self {
        Self { group, version, ..self }
    }

    pub(super) fn within(self, namespace: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), ..self }
    }

    pub(super) fn named(self, name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..self }
    }

    pub(super) fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.query.push((key, value.into()));
        self
    }

    fn uri(&self) -> String {
        let mut uri = match self.group {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        };
        if let Some(namespace) = &self.namespace {
            uri += &format!("/namespaces/{}", escaped(namespace));
        }
        uri += &format!("/{}", self.resource);
        let mut query: Vec<(&str, &str)> =
            self.query.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let selected = self.name.as_ref().map(|name| format!("metadata.name={name}"));
        match (self.verb, &self.name) {
            (Verb::Get | Verb::Patch, Some(name)) => uri += &format!("/{}", escaped(name)),
            // One alone can be listed and watched too, and be all that is allowed.
            (Verb::List | Verb::Watch, _) => query.extend(selected.as_deref().map(|s| ("fieldSelector", s))),
            // A new one is posted to all of them.
            _ => {}
        }
        for (at, (key, value)) in query.into_iter().enumerate() {
            let _ = write!(uri, "{}{key}={}", if at == 0 { '?' } else { '&' }, escaped(value));
        }
        uri
    }

    /// What has to be allowed for it.
    fn rule(&self) -> String {
        let (role, place) = match &self.namespace {
            Some(namespace) => ("Role", format!(" in {namespace}")),
            None => ("ClusterRole", String::new()),
        };
        // `create` cannot be limited to a name.
        let names = match &self.name {
            Some(name) if self.verb != Verb::Create => format!(", resourceNames [{name}]"),
            _ => String::new(),
        };
        format!(
            "a {role}{place} has to allow apiGroups [{:?}], resources [{}]{names}, verbs [{}]",
            self.group,
            self.resource,
            self.verb.word()
        )
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb.word(), self.resource)?;
        match (&self.namespace, &self.name) {
            (None, None) => Ok(()),
            (None, Some(name)) => write!(f, " {name}"),
            (Some(namespace), None) => write!(f, " of {namespace}"),
            (Some(namespace), Some(name)) => write!(f, " {namespace}/{name}"),
        }
    }
}

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Patch => "patch",
        }
    }

    fn method(self) -> http::Method {
        match self {
            Self::Get | Self::List | Self::Watch => http::Method::GET,
            Self::Create => http::Method::POST,
            Self::Patch => http::Method::PATCH,
        }
    }
}

/// Why a call came to nothing. The text names the call and the next step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// There is no such object.
    #[error("{0}")]
    Absent(String),
    /// It was changed since it was read, or is there already.
    #[error("{0}")]
    Conflict(String),
    /// What was seen last is too long ago to go on from there.
    #[error("{0}")]
    TooOld(String),
    #[error("{0}")]
    Failed(String),
}

impl Cluster {
    /// The whole answer, as text.
    pub(super) async fn text(
        &self,
        call: &Call,
        body: Option<Zeroizing<Vec<u8>>>,
    ) -> Result<Zeroizing<Vec<u8>>, CallError> {
        let patience = self.patience.answer;
        let asked = async { whole(call, self.send(call, body).await?).await };
        let late = |_| {
            Err(CallError::Failed(format!(
                "{call}: the API server did not answer within {patience:?}: is it up, and can it be reached from here?"
            )))
        };
        tokio::time::timeout(patience, asked).await.unwrap_or_else(late)
    }

    /// The answer to what is no secret.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        call: &Call,
        body: Option<&serde_json::Value>,
    ) -> Result<T, CallError> {
        let body = body.map(|body| Zeroizing::new(body.to_string().into_bytes()));
        let text = self.text(call, body).await?;
        // Of the error only the place: the answer to a review has the token in it.
        serde_json::from_slice(&text).map_err(|e| {
            let place = (e.classify(), e.line(), e.column());
            CallError::Failed(format!("{call}: the answer does not parse ({place:?}): is it an API server?"))
        })
    }

    /// An answer that was not refused. Waits and tries again as often as the server is too busy.
    pub(super) async fn send(
        &self,
        call: &Call,
        body: Option<Zeroizing<Vec<u8>>>,
    ) -> Result<Response<Body>, CallError> {
        loop {
            let answer = self.client.send(request(call, body.as_deref())?).await;
            let answer = answer.map_err(|e| {
                let why = shorten(&chain(&e));
                CallError::Failed(format!(
                    "{call}: {why}: is the API server up, and can it be reached from here?"
                ))
            })?;
            if answer.status().is_success() {
                return Ok(answer);
            }
            if answer.status() != StatusCode::TOO_MANY_REQUESTS {
                return Err(refused(call, answer).await);
            }
            let asked = answer.headers().get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
            // Nothing was done. Bounded by how long the caller waits.
            tokio::time::sleep(Duration::from_secs(asked.unwrap_or(1).clamp(1, 60))).await;
        }
    }
}

fn request(call: &Call, body: Option<&Vec<u8>>) -> Result<Request<Body>, CallError> {
    let accept = match (call.metadata_only, call.verb) {
        (false, _) => "application/json",
        (true, Verb::List) => "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
        (true, _) => "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
    };
    let mut request =
        Request::builder().method(call.verb.method()).uri(call.uri()).header(header::ACCEPT, accept);
    if body.is_some() {
        let kind = if call.verb == Verb::Patch { "application/merge-patch+json" } else { "application/json" };
        request = request.header(header::CONTENT_TYPE, kind);
    }
    let body = body.map_or_else(Body::empty, |body| Body::from(body.clone()));
    request.body(body).map_err(|e| CallError::Failed(format!("{call}: {e}")))
}

async fn whole(call: &Call, answer: Response<Body>) -> Result<Zeroizing<Vec<u8>>, CallError> {
    let mut body = answer.into_body();
    // All at once, or growing would leave copies of a key behind.
    let mut text = Zeroizing::new(Vec::with_capacity(FIRST));
    while let Some(part) =
        next_part(&mut body).await.map_err(|why| CallError::Failed(format!("{call}: {why}")))?
    {
        if text.len() + part.len() > text.capacity() {
            let mut wider = Zeroizing::new(Vec::with_capacity((text.len() + part.len()) * 2));
            wider.extend_from_slice(&text);
            text = wider;
        }
        if text.len() + part.len() > MOST {
            return Err(CallError::Failed(format!("{call}: the answer has more than {MOST} bytes")));
        }
        text.extend_from_slice(&part);
    }
    Ok(text)
}

/// What comes next of a body; `None` at its end.
pub(super) async fn next_part(body: &mut Body) -> Result<Option<Bytes>, String> {
    loop {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        match frame {
            None => return Ok(None),
            Some(Err(e)) => return Err(shorten(&format!("the answer broke off: {}", chain(&e)))),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// `Status` of Kubernetes, as far as it is of use.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) kind: String,
    pub(super) message: String,
    pub(super) reason: String,
    pub(super) code: u16,
}

async fn refused(call: &Call, answer: Response<Body>) -> CallError {
    let code = answer.status();
    let text = whole(call, answer).await.unwrap_or_default();
    let status: Status = serde_json::from_slice(&text).unwrap_or_default();
    // A path that the server knows nothing of is answered with plain text.
    let known = status.kind == "Status";
    verdict(call, code, &status.message, known)
}

pub(super) fn verdict(call: &Call, code: StatusCode, message: &str, known: bool) -> CallError {
    let message = if message.is_empty() { String::new() } else { format!(": {}", shorten(message)) };
    let said = format!("{call}: {code}{message}");
    match code {
        StatusCode::NOT_FOUND if known => CallError::Absent(said),
        StatusCode::NOT_FOUND => CallError::Failed(format!(
            "{said}; the API server does not serve {}/{}: is it one, and of a version that has it, with its feature gate on?",
            call.group, call.version
        )),
        StatusCode::CONFLICT => CallError::Conflict(said),
        StatusCode::GONE => CallError::TooOld(said),
        StatusCode::UNAUTHORIZED => CallError::Failed(format!(
            "{said}; the token or certificate is not accepted: has it expired, or is it of another cluster?"
        )),
        StatusCode::FORBIDDEN => CallError::Failed(format!("{said}; {}{}", call.rule(), attests(call))),
        _ => CallError::Failed(said),
    }
}

/// A bundle with a signer needs more than a right on bundles.
fn attests(call: &Call) -> &'static str {
    match (call.resource, call.verb) {
        ("clustertrustbundles", Verb::Create | Verb::Patch) => {
            ", and for its signer resources [signers], resourceNames [the signer's name], verbs [attest]"
        }
        _ => "",
    }
}

/// An error with what caused it: that is where the reason stands.
fn chain(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !said.contains(&text) {
            said += &format!(": {text}");
        }
        source = cause.source();
    }
    said
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b if b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'~') => {
                out.push(char::from(b))
            }
            b => {
                let _ = write!(out, "%{b:02X}");
            }
        }
    }
    out
}

/// A secret has a megabyte at most, a third more in base64.
const FIRST: usize = 2 << 20;
/// A page of pods has a few megabytes.
const MOST: usize = 64 << 20;
