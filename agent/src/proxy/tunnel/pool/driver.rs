//! The task of one tunnel: its handshake, then its frames, pings, idleness and end.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use h2::client::{Connection, SendRequest};
use tokio::time::timeout;

use super::super::keepalive::{Beat, Keepalive};
use super::super::{Chunk, ClientSettings, DialError, Dialled, Transport, TunnelError};
use super::Inner;
use super::open::UNSETTLED;
use super::table::{Phase, Tunnel};
use crate::model::Cause;
use crate::tls::Held;

pub(super) async fn run<F, T>(end: End, settings: ClientSettings, connect: F)
where
    F: Future<Output = Result<Dialled<T>, DialError>> + Send + 'static,
    T: Transport,
{
    let tunnel = &end.tunnel;
    let handshake = timeout(settings.connect_timeout, handshake(connect, &settings));
    let outcome = tokio::select! {
        outcome = handshake => outcome,
        () = tunnel.closed() => return,
    };
    match outcome {
        Ok(Ok((sender, connection, bound))) => {
            tunnel.phase.send_replace(Phase::Ready { sender, settled: false });
            drive(&end, connection, bound, &settings).await;
        }
        Ok(Err(e)) => end.failed(e),
        Err(_) => end.failed(TunnelError::ConnectTimeout(settings.connect_timeout)),
    }
}

/// What a tunnel that stands hangs on.
struct Bound {
    peer: Option<Held>,
    outdated: Option<BoxFuture<'static, ()>>,
}

async fn handshake<F, T>(
    connect: F,
    settings: &ClientSettings,
) -> Result<(SendRequest<Chunk>, Connection<T, Chunk>, Bound), TunnelError>
where
    F: Future<Output = Result<Dialled<T>, DialError>> + Send + 'static,
    T: Transport,
{
    let Dialled { transport, peer, outdated } = connect.await?;
    let mut builder = settings.builder();
    builder.initial_max_send_streams(UNSETTLED);
    let made = builder.handshake(transport).await.map_err(|e| TunnelError::Handshake(Arc::new(e)));
    made.map(|(sender, connection)| (sender, connection, Bound { peer, outdated }))
}

/// Until the connection ends, by whomever.
async fn drive<T: Transport>(
    end: &End,
    mut connection: Connection<T, Chunk>,
    bound: Bound,
    settings: &ClientSettings,
) {
    let tunnel = &end.tunnel;
    let Some(ping) = connection.ping_pong() else { return };
    let mut keepalive = Keepalive::new(ping, &settings.keepalive);
    let mut wished = pin!(tunnel.wished.notified());
    let mut lost = pin!(lost(bound.peer.as_ref()));
    let mut outdated = bound.outdated;
    let mut retiring = false;
    let mut limit = UNSETTLED;
    poll_fn(|cx| {
        while wished.as_mut().poll(cx).is_ready() {
            wished.set(tunnel.wished.notified());
        }
        if lost.as_mut().poll(cx).is_ready() {
            tunnel.close(Cause::TrustRevoked);
        }
        if outdated.as_mut().is_some_and(|outdated| outdated.as_mut().poll(cx).is_ready()) {
            outdated = None;
            tunnel.retire();
        }
        if tunnel.is_closed() {
            return Poll::Ready(());
        }
        if tunnel.is_retired() && !retiring {
            // Without a sender `h2` closes the connection in order after the last stream.
            end.gone();
            retiring = true;
        }
        if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
            if let Err(error) = result {
                tracing::debug!(next_hop = %tunnel.key.next_hop, %error, "tunnel ended");
            }
            return Poll::Ready(());
        }
        let now = connection.max_concurrent_send_streams();
        if now != limit {
            limit = now;
            end.settle(limit.min(settings.max_streams));
        }
        poll_beats(end, &mut keepalive, settings.idle_timeout, cx)
    })
    .await;
}

/// Ready when the peer is trusted no more.
async fn lost(peer: Option<&Held>) {
    match peer {
        Some(peer) => drop(peer.lost().await),
        None => std::future::pending().await,
    }
}

/// Ready when the peer is gone.
fn poll_beats(end: &End, keepalive: &mut Keepalive, idle: Duration, cx: &mut Context<'_>) -> Poll<()> {
    while let Poll::Ready(beat) = keepalive.poll(cx) {
        match beat {
            Beat::Alive if end.tunnel.session.idle() >= idle => end.release_if_idle(idle),
            Beat::Alive => {}
            Beat::TimedOut => {
                tracing::info!(next_hop = %end.tunnel.key.next_hop, "no answer to PING: tunnel dropped");
                return Poll::Ready(());
            }
        }
    }
    Poll::Pending
}

/// Keeps the table true on every way out of the task, a panic included.
pub(super) struct End {
    pool: Weak<Inner>,
    tunnel: Arc<Tunnel>,
}

impl End {
    pub(super) fn new(pool: &Arc<Inner>, tunnel: &Arc<Tunnel>) -> Self {
        Self { pool: Arc::downgrade(pool), tunnel: Arc::clone(tunnel) }
    }

    /// Out of the table first: who is told of the failure and tries again shall not find it there.
    fn failed(&self, error: TunnelError) {
        self.forget();
        self.tunnel.phase.send_replace(Phase::Failed(error));
    }

    /// The peer said how many streams it takes.
    fn settle(&self, limit: usize) {
        if let Some(pool) = self.pool.upgrade() {
            pool.table().set_limit(&self.tunnel, limit);
        }
        self.tunnel.settled();
    }

    fn gone(&self) {
        self.forget();
        self.tunnel.phase.send_replace(Phase::Gone);
    }

    /// Nobody can take a place while the table is locked.
    fn release_if_idle(&self, idle: Duration) {
        let Some(pool) = self.pool.upgrade() else { return };
        let mut table = pool.table();
        if self.tunnel.session.idle() >= idle {
            table.remove(&self.tunnel);
            self.tunnel.retire();
        }
    }

    fn forget(&self) {
        self.tunnel.retire();
        if let Some(pool) = self.pool.upgrade() {
            pool.table().remove(&self.tunnel);
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.forget();
        self.tunnel.phase.send_modify(|phase| {
            if !matches!(phase, Phase::Failed(_)) {
                let connecting = matches!(phase, Phase::Connecting);
                *phase = match (connecting, self.tunnel.session.cause()) {
                    (true, Some(cause)) => Phase::Failed(TunnelError::Closed(cause)),
                    (true, None) => Phase::Failed(TunnelError::HandshakeVanished),
                    (false, _) => Phase::Gone,
                };
            }
        });
    }
}
