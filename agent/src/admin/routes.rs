//! The paths.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use serde_json::json;

use super::Sources;
use crate::discovery::ask::Asked;
use crate::lifecycle::Pending;

/// The Unix socket's.
pub(super) fn state(sources: &Arc<Sources>) -> Router {
    Router::new()
        .route("/status", get(|s: Shared| json(s, Sources::status)))
        .route("/workloads", get(|s: Shared| json(s, Sources::workloads)))
        .route("/services", get(|s: Shared| json(s, Sources::services)))
        .route("/policies", get(|s: Shared| json(s, Sources::policies)))
        .route("/pods", get(|s: Shared| json(s, Sources::pods)))
        .route("/certificates", get(|s: Shared| json(s, |s| (s.certificates)())))
        .route("/trust", get(|s: Shared| json(s, |s| (s.trust)())))
        .route("/connections", get(|s: Shared| json(s, |s| s.telemetry.connections())))
        .route("/observed", get(|s: Shared| json(s, Sources::observed)))
        .route("/config", get(|s: Shared| json(s, |s| s.config.clone())))
        .route("/analyze", get(|s: Shared| json(s, |s| s.store.current().analyze())))
        .route("/phases", get(|s: Shared| json(s, |s| s.store.current().phases())))
        .route("/exceptions", get(|s: Shared| json(s, Sources::exceptions)))
        .route("/why", post(why))
        .route("/log", get(log_filter).put(set_log_filter))
        .route("/metrics", get(metrics_text))
        .layer(DefaultBodyLimit::max(MAX_FILTER))
        .with_state(Arc::clone(sources))
}

pub(super) fn health(sources: &Arc<Sources>) -> Router {
    Router::new().route("/healthz/ready", get(ready)).with_state(Arc::clone(sources))
}

pub(super) fn metrics(sources: &Arc<Sources>) -> Router {
    Router::new()
        .route("/metrics", get(metrics_text))
        // The path in Istio's scrape annotations.
        .route("/stats/prometheus", get(metrics_text))
        .with_state(Arc::clone(sources))
}

const MAX_FILTER: usize = 4096;

type Shared = State<Arc<Sources>>;

/// The agent is ready, or the reasons why it is not, one a line.
async fn ready(State(sources): Shared) -> Response {
    readiness(&sources.readiness.pending())
}

pub(super) fn readiness(pending: &[Pending]) -> Response {
    if pending.is_empty() {
        return "ready\n".into_response();
    }
    let mut text = String::from("not ready\n");
    for guard in pending {
        let colon = if guard.reason.is_empty() { "" } else { ": " };
        text += &format!("{}{colon}{} ({} s)\n", guard.name, guard.reason.escape_debug(), guard.seconds);
    }
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn metrics_text(State(sources): Shared) -> Response {
    const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    match off_the_runtime(move || sources.telemetry.metrics_text()).await {
        Some(Ok(text)) => ([(header::CONTENT_TYPE, TEXT)], text).into_response(),
        Some(Err(e)) => failed(&e.to_string()),
        None => failed("rendering the metrics panicked"),
    }
}

/// The body is the question.
async fn why(State(sources): Shared, asked: axum::Json<Asked>) -> Response {
    match off_the_runtime(move || sources.store.current().answer(&asked)).await {
        Some(Ok(answer)) => axum::Json(answer).into_response(),
        Some(Err(e)) => {
            (StatusCode::BAD_REQUEST, axum::Json(json!({ "error": e.to_string() }))).into_response()
        }
        None => failed("answering the question panicked"),
    }
}

async fn log_filter(State(sources): Shared) -> Response {
    axum::Json(json!({ "filter": sources.log.filter() })).into_response()
}

/// The body is the filter.
async fn set_log_filter(State(sources): Shared, filter: String) -> Response {
    match sources.log.set_filter(filter.trim()) {
        Ok(()) => {
            tracing::info!(filter = filter.trim(), "log filter changed through the admin socket");
            log_filter(State(sources)).await
        }
        Err(e) => (StatusCode::BAD_REQUEST, error_body(&e.to_string())).into_response(),
    }
}

async fn json<T: Serialize>(
    State(sources): Shared,
    make: impl FnOnce(&Sources) -> T + Send + 'static,
) -> Response {
    const JSON: HeaderValue = HeaderValue::from_static("application/json");
    match off_the_runtime(move || serde_json::to_vec(&make(&sources))).await {
        Some(Ok(body)) => ([(header::CONTENT_TYPE, JSON)], body).into_response(),
        Some(Err(e)) => failed(&e.to_string()),
        None => failed("rendering this state panicked"),
    }
}

/// A large mesh takes a while to render, and connections share the runtime's threads.
async fn off_the_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

pub(super) fn failed(why: &str) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, error_body(why)).into_response()
}

fn error_body(why: &str) -> axum::Json<serde_json::Value> {
    axum::Json(json!({ "error": why }))
}
