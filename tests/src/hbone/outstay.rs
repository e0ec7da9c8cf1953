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

    /// Stays until its stream is ended by the other side; tells by `stands` when it is there.
    ///
    /// # Errors
    /// It did not come to stand, or nobody ended it.
    pub fn until_cut(&self, from: &Netns, stands: impl FnOnce() + Send) -> Result<()> {
        from.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let (_client, mut send, mut recv) = self.come().await?;
                echo(&mut send, &mut recv).await.context("before")?;
                stands();
                let ended = async { while let Some(Ok(_)) = recv.data().await {} };
                timeout(PATIENCE, ended).await.context("nobody ended the stream")
            })
        })
    }

    async fn go(&self) -> Result<()> {
        let (client, mut send, mut recv) = self.come().await?;
        echo(&mut send, &mut recv).await.context("before")?;
        while client.clone().ready().await.is_ok() {
            sleep(Duration::from_millis(50)).await;
        }
        echo(&mut send, &mut recv).await.context("after")
    }

    /// The tunnel, driven until the runtime ends, and one stream in it.
    async fn come(&self) -> Result<(SendRequest<Bytes>, SendStream<Bytes>, RecvStream)> {
        let config = tls::client(Some(self.papers), &["h2"], &[])?;
        let tcp = TcpStream::connect(self.to).await.context("connecting")?;
        let name = ServerName::IpAddress(self.to.ip().into());
        let stream = TlsConnector::from(config).connect(name, tcp).await.context("TLS")?;
        let (client, connection) = h2::client::handshake(stream).await.context("HTTP/2 preface")?;
        tokio::spawn(connection);
        let (send, recv) = self.open(client.clone()).await.context("the first stream")?;
        Ok((client, send, recv))
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
