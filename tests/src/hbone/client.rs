//! One CONNECT to somebody's HBONE port, with papers and words of the caller's choice.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Method, Request};
use rustls::pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::tls::{self, Groups};
use crate::netns::Netns;
use crate::pki::Papers;

/// What is tried; [`Attempt::to`] gives a proper one to change.
#[derive(Clone, Debug)]
pub struct Attempt<'a> {
    /// Where the TCP connection goes.
    pub to: SocketAddr,
    /// The certificate to show, or none.
    pub papers: Option<&'a Papers>,
    /// A source address to claim (bound with IP_TRANSPARENT).
    pub source: Option<IpAddr>,
    pub method: Method,
    /// What the CONNECT names as its target.
    pub authority: String,
    pub headers: Vec<(&'a str, &'a str)>,
    pub alpn: Vec<&'a str>,
    /// The key exchanges that it can do; none means all.
    pub groups: Groups,
    pub patience: Duration,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No TCP connection: refused, or nothing answered.
    NoConnection(String),
    /// Cut before an answer to CONNECT: TLS or HTTP/2 went no further.
    Cut(String),
    /// An answer; after 200, whether bytes came back from an echo server behind it.
    Answered { status: u16, echoed: bool },
}

impl Outcome {
    /// The status, if there was an answer.
    pub fn status(&self) -> Option<u16> {
        if let Self::Answered { status, .. } = self { Some(*status) } else { None }
    }

    /// Whether the application behind was reached.
    pub fn reached(&self) -> bool {
        matches!(self, Self::Answered { echoed: true, .. })
    }
}

impl<'a> Attempt<'a> {
    pub fn to(to: SocketAddr, papers: Option<&'a Papers>, target: SocketAddr) -> Self {
        Self {
            to,
            papers,
            source: None,
            method: Method::CONNECT,
            authority: target.to_string(),
            headers: vec![],
            alpn: vec!["h2"],
            groups: &[],
            patience: Duration::from_secs(5),
        }
    }

    /// Makes the attempt from inside the namespace.
    ///
    /// # Errors
    /// Only what is wrong with the attempt itself; how the peer took it is the [`Outcome`].
    pub fn make(&self, from: &Netns) -> Result<Outcome> {
        from.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(self.go())
        })
    }

    async fn go(&self) -> Result<Outcome> {
        let config = tls::client(self.papers, &self.alpn, self.groups)?;
        let tcp = match timeout(self.patience, self.connect()).await {
            Ok(Ok(tcp)) => tcp,
            Ok(Err(e)) => return Ok(Outcome::NoConnection(e.to_string())),
            Err(_) => return Ok(Outcome::NoConnection("no answer".into())),
        };
        let name = ServerName::IpAddress(self.to.ip().into());
        let spoken = async {
            let tls = TlsConnector::from(config).connect(name, tcp).await?;
            self.converse(tls).await
        };
        Ok(match timeout(self.patience, spoken).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(e)) => Outcome::Cut(format!("{e:#}")),
            Err(_) => Outcome::Cut("no answer".into()),
        })
    }

    async fn connect(&self) -> std::io::Result<TcpStream> {
        let socket = if self.to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(source) = self.source {
            let options = socket2::SockRef::from(&socket);
            if source.is_ipv4() {
                options.set_ip_transparent_v4(true)?;
            } else {
                options.set_ip_transparent_v6(true)?;
            }
            socket.bind(SocketAddr::new(source, 0))?;
        }
        socket.connect(self.to).await
    }

    async fn converse(&self, tls: tokio_rustls::client::TlsStream<TcpStream>) -> Result<Outcome> {
        let (mut client, connection) = h2::client::handshake(tls).await.context("HTTP/2 preface")?;
        let driver = tokio::spawn(connection);
        let mut request = Request::builder().method(self.method.clone()).uri(&self.authority);
        for (name, value) in &self.headers {
            request = request.header(*name, *value);
        }
        let asked = async {
            poll_fn(|cx| client.poll_ready(cx)).await.context("HTTP/2 ready")?;
            let (response, stream) = client.send_request(request.body(())?, false).context("sending")?;
            Ok::<_, anyhow::Error>((response.await.context("the answer")?, stream))
        };
        let (response, mut stream) = asked.await?;
        let status = response.status().as_u16();
        let echoed = status == 200 && {
            let mut body = response.into_body();
            let said = stream.send_data(Bytes::from_static(b"knock"), false).is_ok();
            said && matches!(timeout(self.patience, body.data()).await, Ok(Some(Ok(b))) if &b[..] == b"knock")
        };
        driver.abort();
        Ok(Outcome::Answered { status, echoed })
    }
}
