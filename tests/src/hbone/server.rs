//! Somebody who answers on the HBONE port of a pod with papers that may not be its own.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::tls::Groups;
use super::{PORT, tls};
use crate::netns::Netns;
use crate::pki::Papers;

/// Accepts every tunnel, answers every CONNECT with 200 and keeps what it is told. Ends when dropped.
#[derive(Debug)]
pub struct Impostor {
    counts: Arc<Counts>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicUsize,
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

impl Impostor {
    pub fn start(ns: &Netns, papers: &Papers) -> Result<Self> {
        Self::start_with(ns, papers, &[])
    }

    /// As [`Self::start`], for somebody who can do these key exchanges only.
    pub fn start_with(ns: &Netns, papers: &Papers, groups: Groups) -> Result<Self> {
        let acceptor = TlsAcceptor::from(tls::server(papers, groups)?);
        let counts = Arc::new(Counts::default());
        let (stop, stopped) = oneshot::channel();
        let (bound, is_bound) = std::sync::mpsc::channel();
        let theirs = counts.clone();
        let thread = ns.spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
                return;
            };
            runtime.block_on(async {
                let listener = TcpListener::bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT)).await;
                let listener = match listener {
                    Ok(listener) => {
                        let _ = bound.send(Ok(()));
                        listener
                    }
                    Err(e) => return drop(bound.send(Err(e))),
                };
                tokio::select! {
                    () = accept(&listener, &acceptor, &theirs) => {}
                    _ = stopped => {}
                }
            });
        });
        is_bound.recv().context("the impostor's thread died")?.context("binding the HBONE port")?;
        Ok(Self { counts, stop: Some(stop), thread: Some(thread) })
    }

    /// TCP connections accepted.
    pub fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::Relaxed)
    }

    /// CONNECT requests that somebody trusted us with.
    pub fn requests(&self) -> usize {
        self.counts.requests.load(Ordering::Relaxed)
    }

    /// Bytes of applications that we got to see.
    pub fn bytes(&self) -> usize {
        self.counts.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: &TcpListener, acceptor: &TlsAcceptor, counts: &Arc<Counts>) {
    while let Ok((tcp, _)) = listener.accept().await {
        counts.connections.fetch_add(1, Ordering::Relaxed);
        let (acceptor, counts) = (acceptor.clone(), counts.clone());
        tokio::spawn(async move {
            let Ok(tls) = acceptor.accept(tcp).await else { return };
            let Ok(mut connection) = h2::server::handshake(tls).await else { return };
            while let Some(Ok((request, mut answer))) = connection.accept().await {
                counts.requests.fetch_add(1, Ordering::Relaxed);
                let counts = counts.clone();
                tokio::spawn(async move {
                    let Ok(mut stream) = answer.send_response(http::Response::new(()), false) else { return };
                    let mut body = request.into_body();
                    while let Some(Ok(data)) = body.data().await {
                        counts.bytes.fetch_add(data.len(), Ordering::Relaxed);
                        let _ = body.flow_control().release_capacity(data.len());
                        let _ = stream.send_data(Bytes::copy_from_slice(&data), false);
                    }
                    let _ = stream.send_data(Bytes::new(), true);
                });
            }
        });
    }
}
