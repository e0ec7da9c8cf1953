//! What we answer ourselves. Nothing in it tells which policy, or whether there is anything at the path.

use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode, Uri, Version};

use super::body::Answer;

/// 403; to a gRPC client, its own PERMISSION_DENIED in a response without a body.
pub(super) fn denied(request: &HeaderMap) -> Response<Answer> {
    if is_grpc(request) {
        let mut response = Response::new(Answer::empty());
        let kind = request.get(header::CONTENT_TYPE).cloned();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, kind.unwrap_or(HeaderValue::from_static(GRPC)));
        headers.extend(denied_trailers());
        return response;
    }
    text(StatusCode::FORBIDDEN, DENIED)
}

/// For a request that is no request; the status says what is wrong with it.
pub(super) fn bad(status: StatusCode) -> Response<Answer> {
    text(status, status.canonical_reason().unwrap_or_default())
}

/// Where the request has to go instead.
pub(super) fn redirect(status: StatusCode, location: &Uri) -> Option<Response<Answer>> {
    let mut response = Response::new(Answer::empty());
    *response.status_mut() = status;
    response.headers_mut().insert(header::LOCATION, location.to_string().try_into().ok()?);
    Some(response)
}

/// What ends a gRPC stream that has begun.
pub(super) fn denied_trailers() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("7"));
    trailers.insert("grpc-message", HeaderValue::from_static(DENIED));
    trailers
}

pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| {
        kind.len() >= GRPC.len() && kind[..GRPC.len()].eq_ignore_ascii_case(GRPC.as_bytes())
    })
}

/// The rest of the client's connection is not worth having.
pub(super) fn and_close(response: &mut Response<Answer>, version: Version) {
    if version < Version::HTTP_2 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

fn text(status: StatusCode, text: &str) -> Response<Answer> {
    let mut response = Response::new(Answer::text(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// Whole, for a client whose head never ended.
pub(super) const TIMED_OUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

const GRPC: &str = "application/grpc";
const DENIED: &str = "denied by policy";
