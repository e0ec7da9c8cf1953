//! What an operator, a kubelet and Prometheus ask the agent.
//!
//! State goes out as JSON over a Unix socket that only root may open; readiness and metrics go out over
//! TCP, where anybody on the network may ask, so nothing else is there.

mod controller;
mod routes;
mod server;
mod sources;
mod unix;
pub mod views;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use controller::ControllerSources;
pub use sources::Sources;
use unix::UnixSocket;
pub use unix::remove_stale as remove_stale_socket;

/// How operators and the node's supervisor ask the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct AdminConfig {
    /// The Unix socket of the operator's commands (`underpass status` and its sisters). Two agents
    /// need two.
    pub socket: PathBuf,
    /// Where /healthz/ready answers; null for nowhere. `[::]` takes IPv4 too.
    pub health_address: Option<SocketAddr>,
    /// Where /metrics answers; null for nowhere. May be the same as healthAddress.
    pub metrics_address: Option<SocketAddr>,
}

/// Where the agent's socket is when nobody says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/underpass/admin.sock";

impl Default for AdminConfig {
    fn default() -> Self {
        let any = |port| SocketAddr::from(([0u16; 8], port));
        // Istio's ports, so that its dashboards and scrape configurations fit.
        Self {
            socket: DEFAULT_SOCKET.into(),
            health_address: Some(any(15021)),
            metrics_address: Some(any(15020)),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error(
        "an agent answers at {0}, or a controller: stop it, or use another admin.socket (an agent another bpf.instance, too)"
    )]
    InUse(PathBuf),
    #[error("{0} exists and is not a socket; move it away, or set admin.socket elsewhere")]
    NotASocket(PathBuf),
    #[error(
        "cannot {call} {path}: {source}; the agent needs a folder of its own there, such as /run/underpass"
    )]
    Socket { call: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "cannot listen on {address} for {what}: {source}; set admin.{what}Address to a free address, or to null"
    )]
    Listen { what: &'static str, address: SocketAddr, source: io::Error },
}

/// Everything that the agent's administration listens on, before it answers.
pub struct Admin {
    socket: UnixSocket,
    health: Option<TcpListener>,
    metrics: Option<TcpListener>,
}

impl Admin {
    /// Opens the listeners. Needs a Tokio runtime.
    pub async fn bind(config: &AdminConfig) -> Result<Self, AdminError> {
        let socket = UnixSocket::bind(&config.socket)?;
        let health = listen("health", config.health_address).await?;
        // One address may serve both.
        let metrics = if config.metrics_address == config.health_address && fixed(config.health_address) {
            None
        } else {
            listen("metrics", config.metrics_address).await?
        };
        Ok(Self { socket, health, metrics })
    }

    /// Where `/healthz/ready` answers, with the port that the kernel chose if none was asked for.
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.health.as_ref().and_then(|l| l.local_addr().ok())
    }

    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().or(self.health.as_ref()).and_then(|l| l.local_addr().ok())
    }

    /// Answers until `stop`, which should be the last thing to be cancelled: readiness and state matter
    /// most while the agent drains.
    pub async fn serve(self, sources: Arc<Sources>, stop: CancellationToken) {
        let (health, metrics) = (routes::health(&sources), routes::metrics(&sources));
        self.serve_routers(routes::state(&sources), health, metrics, stop).await;
    }

    async fn serve_routers(
        self,
        state: axum::Router,
        health: axum::Router,
        metrics: axum::Router,
        stop: CancellationToken,
    ) {
        let (on_health, on_metrics) = match (self.health, self.metrics) {
            (Some(both), None) => (Some((both, health.merge(metrics))), None),
            (apart, other) => (apart.map(|l| (l, health)), other.map(|l| (l, metrics))),
        };
        tokio::join!(
            server::serve(self.socket, state, stop.clone()),
            serve_tcp(on_health, stop.clone()),
            serve_tcp(on_metrics, stop),
        );
    }
}

async fn serve_tcp(on: Option<(TcpListener, axum::Router)>, stop: CancellationToken) {
    if let Some((listener, router)) = on {
        server::serve(listener, router, stop).await;
    }
}

/// Port 0 gives two listeners two ports.
fn fixed(address: Option<SocketAddr>) -> bool {
    address.is_some_and(|a| a.port() != 0)
}

async fn listen(what: &'static str, address: Option<SocketAddr>) -> Result<Option<TcpListener>, AdminError> {
    let Some(address) = address else { return Ok(None) };
    let mut listener = TcpListener::bind(address).await;
    if listener.is_err() && address.ip() == Ipv6Addr::UNSPECIFIED && !has_ipv6() {
        listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await;
    }
    listener.map(Some).map_err(|source| AdminError::Listen { what, address, source })
}

/// Whether the kernel was started with IPv6.
fn has_ipv6() -> bool {
    std::net::UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

#[cfg(test)]
mod tests;
