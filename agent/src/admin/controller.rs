//! What a controller tells: the agents that follow it, readiness, metrics.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::response::IntoResponse;
use axum::routing::get;
use futures::future::BoxFuture;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::Admin;
use super::routes::{failed, readiness};
use crate::lifecycle::Pending;

/// Where the answers come from.
pub struct ControllerSources {
    /// JSON, or why there is none.
    pub agents: Box<dyn Fn() -> BoxFuture<'static, Result<Value, String>> + Send + Sync>,
    /// Prometheus' text, or why there is none.
    pub metrics: Box<dyn Fn() -> Result<String, String> + Send + Sync>,
    /// What readiness waits for; empty when ready.
    pub pending: Box<dyn Fn() -> Vec<Pending> + Send + Sync>,
}

impl Admin {
    /// Answers for a controller until `stop`.
    pub async fn serve_controller(self, sources: Arc<ControllerSources>, stop: CancellationToken) {
        let agents = {
            let sources = Arc::clone(&sources);
            get(async move || match (sources.agents)().await {
                Ok(agents) => axum::Json(agents).into_response(),
                Err(why) => failed(&why),
            })
        };
        let health = {
            let sources = Arc::clone(&sources);
            get(move || std::future::ready(readiness(&(sources.pending)())))
        };
        let metrics = {
            let route = get(move || std::future::ready(text(&sources)));
            Router::new().route("/metrics", route)
        };
        let state = Router::new().route("/agents", agents).merge(metrics.clone());
        let health = Router::new().route("/healthz/ready", health);
        self.serve_routers(state, health, metrics, stop).await;
    }
}

fn text(sources: &ControllerSources) -> axum::response::Response {
    const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    match (sources.metrics)() {
        Ok(text) => ([(header::CONTENT_TYPE, TEXT)], text).into_response(),
        Err(why) => failed(&why),
    }
}
