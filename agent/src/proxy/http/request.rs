//! One request: brought to its form → judged → sent on, and its answer carried back.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::poll_fn;
use http::header::{self, HeaderValue};
use http::uri::Scheme;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::{Body, Incoming};
use hyper::client::conn;
use hyper::upgrade::OnUpgrade;
use tokio::sync::Mutex;

use super::body::{Answer, Broken, Upload};
use super::judge::{About, Became, Ruling, Seen};
use super::open::Serving;
use super::shape::{self, Bad};
use super::{Connection, answer, expect, upgrade};
use crate::model::Cause;
use crate::policy;
use crate::policy::linkerd::{NoLocation, RouteFilters};

/// The connection to the application.
pub(super) enum Application {
    Http1(Mutex<conn::http1::SendRequest<Upload>>),
    Http2(conn::http2::SendRequest<Upload>),
}

impl Application {
    async fn send(&self, request: Request<Upload>) -> Result<Response<Incoming>, Broken> {
        match self {
            Self::Http1(sender) => {
                let mut sender = sender.lock().await;
                sender.ready().await.map_err(Broken::Carried)?;
                sender.send_request(request).await.map_err(Broken::Carried)
            }
            Self::Http2(sender) => sender.clone().try_send_request(request).await.map_err(|mut e| {
                if e.take_message().is_some() { Broken::unsent() } else { Broken::Carried(e.into_error()) }
            }),
        }
    }
}

pub(super) async fn handle(
    connection: Arc<Connection>,
    application: Arc<Application>,
    mut request: Request<Incoming>,
) -> Result<Response<Answer>, Broken> {
    connection.phase.request_began();
    let upgrade = request.extensions().get::<OnUpgrade>().is_some().then(|| hyper::upgrade::on(&mut request));
    let service = &connection.service;
    let (mut parts, body) = request.into_parts();
    let asked = match shape::prepare(&mut parts, service.judge.normalization(), service.limits.fields) {
        Ok(asked) => Arc::new(asked),
        Err(bad) => {
            let response = refuse(&connection, &parts, bad);
            connection.phase.request_ended();
            return Ok(response);
        }
    };
    let (method, host, path) = (asked.method.as_str(), &*asked.host, &*asked.path);
    let seen = |status, became| {
        service.observer.request(&Seen { method, host, path, status, became });
    };
    service.advise(About::Request { method, host, path }, Some(&asked.request()));
    // Entered before it is judged, as connections are: a change between the two is seen by one of them.
    let serving = connection.requests.enter(Arc::clone(&asked), connection.phase.clone());
    let (by, filters) = match service.judge.judge(&asked.request()) {
        Ruling::Allow { by, filters } => (by, filters),
        Ruling::Deny { by, cause, why } => {
            let mut response = answer::denied(&asked.headers);
            if !drained(body, &parts).await {
                answer::and_close(&mut response, parts.version);
            }
            seen(Some(response.status()), Became::Denied { by: by.as_ref(), cause, why: &why });
            return Ok(response);
        }
    };
    let allowed = Became::Allowed { by: by.as_ref() };
    if let Some(answer) = led_elsewhere(&filters, &asked.request(), &parts) {
        let why = answer.as_ref().err().map(ToString::to_string);
        let became = why.as_deref().map_or(allowed, |why| Became::Refused { why });
        let mut response = answer.unwrap_or_else(|_| answer::bad(StatusCode::BAD_REQUEST));
        if !drained(body, &parts).await {
            answer::and_close(&mut response, parts.version);
        }
        seen(Some(response.status()), became);
        return Ok(response);
    }
    filters.change_request(&mut parts.headers);
    let is_upgrade =
        upgrade.is_some() && (parts.headers.contains_key(header::UPGRADE) || parts.method == Method::CONNECT);
    let version = parts.version;
    if version == Version::HTTP_2 && parts.uri.authority().is_none() {
        // h2 wants an authority, or a request that came by HTTP/1.
        parts.version = Version::HTTP_11;
    }
    let is_grpc = version == Version::HTTP_2 && answer::is_grpc(&asked.headers);
    let mut request = Request::from_parts(parts, ());
    let gate = if version == Version::HTTP_11 { expect::gate(&mut request) } else { None };
    let request = request.map(|()| Upload::new(body, gate, filters.clone(), Arc::clone(&serving)));
    let sent = tokio::select! {
        sent = application.send(request) => sent,
        () = serving.revoked.cancelled() => {
            let mut response = answer::denied(&asked.headers);
            answer::and_close(&mut response, version);
            revoked(&connection, version);
            seen(Some(response.status()), Became::Revoked);
            return Ok(response);
        }
    };
    let upgrade = is_upgrade.then_some(upgrade).flatten();
    match sent.and_then(|response| carry(&connection, response, version, upgrade, is_grpc, filters, serving))
    {
        Ok(response) => {
            seen(Some(response.status()), allowed);
            Ok(response)
        }
        Err(broken) => {
            if version < Version::HTTP_2 {
                connection.fail(Cause::ServerReset, &broken);
            }
            seen(None, allowed);
            Err(broken)
        }
    }
}

/// The answer to a request whose route has it go elsewhere.
fn led_elsewhere(
    filters: &RouteFilters,
    asked: &policy::Request<'_>,
    parts: &http::request::Parts,
) -> Option<Result<Response<Answer>, NoLocation>> {
    let scheme = parts.uri.scheme().unwrap_or(&Scheme::HTTP);
    match filters.redirect(asked, scheme) {
        Ok(None) => None,
        Ok(Some((status, location))) => Some(answer::redirect(status, &location).ok_or(NoLocation)),
        Err(e) => Some(Err(e)),
    }
}

/// In HTTP/1 the request is all that the connection has.
fn revoked(connection: &Connection, version: Version) {
    if version < Version::HTTP_2 {
        connection.fail(Cause::PolicyRevoked, "its request is no longer allowed");
    }
}

fn refuse(connection: &Connection, parts: &http::request::Parts, bad: Bad) -> Response<Answer> {
    let mut response = answer::bad(bad.status());
    answer::and_close(&mut response, parts.version);
    connection.service.observer.request(&Seen {
        method: parts.method.as_str(),
        host: parts.headers.get(header::HOST).and_then(|v| v.to_str().ok()).unwrap_or_default(),
        path: parts.uri.path(),
        status: Some(response.status()),
        became: Became::Refused { why: &bad.to_string() },
    });
    response
}

fn carry(
    connection: &Arc<Connection>,
    mut response: Response<Incoming>,
    version: Version,
    upgrade: Option<OnUpgrade>,
    is_grpc: bool,
    filters: RouteFilters,
    serving: Arc<Serving>,
) -> Result<Response<Answer>, Broken> {
    let switches = match version {
        Version::HTTP_2 => upgrade.is_some() && response.status() == StatusCode::OK,
        _ => response.status() == StatusCode::SWITCHING_PROTOCOLS,
    };
    if switches {
        // An application that switches unasked would be heard by a client that speaks HTTP.
        let client = upgrade.ok_or_else(Broken::unsent)?;
        let application = hyper::upgrade::on(&mut response);
        upgrade::join(connection, client, application, Arc::clone(&serving), version);
    }
    if version < Version::HTTP_2 {
        shape::answer_only_for_us(response.headers_mut());
        *response.version_mut() = Version::HTTP_11;
    }
    filters.change_response(response.headers_mut());
    let claimed = (response.status() == StatusCode::NOT_MODIFIED)
        .then(|| response.headers().get(header::CONTENT_LENGTH).and_then(length))
        .flatten();
    let on_revoked = {
        let connection = Arc::clone(connection);
        move || revoked(&connection, version)
    };
    Ok(response.map(|body| Answer::theirs(body, is_grpc, claimed, filters, serving, on_revoked)))
}

fn length(value: &HeaderValue) -> Option<u64> {
    value.to_str().ok()?.parse().ok()
}

/// Whether the client's next request can be read: its body was, as far as it is worth it.
async fn drained(mut body: Incoming, parts: &http::request::Parts) -> bool {
    if parts.version == Version::HTTP_2 || body.is_end_stream() {
        return true;
    }
    if expect::is_expected(&parts.headers) || body.size_hint().lower() > MOST_DRAINED {
        return false;
    }
    let draining = async {
        let mut left = MOST_DRAINED;
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            let Ok(frame) = frame else { return false };
            let len = frame.data_ref().map_or(0, |data| data.len() as u64);
            if len > left {
                return false;
            }
            left -= len;
        }
        true
    };
    tokio::time::timeout(DRAIN_TIME, draining).await.unwrap_or(false)
}

const MOST_DRAINED: u64 = 64 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(2);
