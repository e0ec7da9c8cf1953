//! A peer of the mesh that stays in its tunnel when its certificate's time is over.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{Method, Request};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::tls;
use crate::netns::Netns;
use crate::pki::Papers;

/// One tunnel with one stream, to an echo server.
#[derive(Clone, Debug)]
pub struct Outstay<'a> {
    pub to: SocketAddr,
    pub papers: &'a Papers,
    pub target: SocketAddr,
}

impl Outstay<'_> {
    /// Stays until the tunnel takes no new stream, and talks in the old one before and after.
    ///
    /// # Errors
    /// The tunnel took new streams for ever, or the old one did not live on.
    pub fn make(&self, from: &Netns) -> Result<()> {
        from.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime
                .block_on(async { timeout(PATIENCE, self.go()).await.context("it took streams for ever")? })
        })
    }

    async fn go(&self) -> Result<()> {
        let config = tls::client(Some(self.papers), &["h2"])?;
        let tcp = TcpStream::connect(self.to).await.context("connecting")?;
        let name = ServerName::IpAddress(self.to.ip().into());
        let stream = TlsConnector::from(config).connect(name, tcp).await.context("TLS")?;
        let (client, connection) = h2::client::handshake(stream).await.context("HTTP/2 preface")?;
        let driver = tokio::spawn(connection);
        let (mut send, mut recv) = self.open(client.clone()).await.context("the first stream")?;
        echo(&mut send, &mut recv).await.context("before")?;
        while client.clone().ready().await.is_ok() {
            sleep(Duration::from_millis(50)).await;
        }
        echo(&mut send, &mut recv).await.context("after")?;
        driver.abort();
        Ok(())
    }

    async fn open(&self, client: SendRequest<Bytes>) -> Result<(SendStream<Bytes>, RecvStream)> {
        let request = Request::builder().method(Method::CONNECT).uri(self.target.to_string()).body(())?;
        let (response, send) = client.ready().await?.send_request(request, false)?;
        let response = response.await?;
        ensure!(response.status() == 200, "{}", response.status());
        Ok((send, response.into_body()))
    }
}

async fn echo(send: &mut SendStream<Bytes>, recv: &mut RecvStream) -> Result<()> {
    send.send_data(Bytes::from_static(b"knock"), false)?;
    let back = recv.data().await.context("the stream ended")??;
    ensure!(&back[..] == b"knock");
    Ok(())
}

const PATIENCE: Duration = Duration::from_secs(40);
