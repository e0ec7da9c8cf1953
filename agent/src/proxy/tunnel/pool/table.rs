//! Which tunnels a pool has, and the choice among them. All of it under one short lock, without I/O.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use h2::client::SendRequest;
use tokio::sync::{Notify, watch};

use super::super::{Chunk, ClientSettings, Lease, Session, TunnelError};
use super::{Key, TunnelView};
use crate::model::Cause;

#[derive(Default)]
pub(super) struct Table {
    /// Why no further stream may be opened.
    pub(super) closed: Option<Cause>,
    /// Oldest first, so that the youngest fall idle and are released.
    tunnels: HashMap<Key, Vec<Arc<Tunnel>>>,
    last_id: u64,
}

/// One connection, from the moment that somebody wants it.
pub(super) struct Tunnel {
    pub(super) id: u64,
    pub(super) key: Key,
    pub(super) session: Arc<Session>,
    pub(super) phase: watch::Sender<Phase>,
    /// Streams it may carry: ours to set until the peer's SETTINGS say less.
    pub(super) limit: AtomicUsize,
    /// The limit went down: who queues inside `h2` for a place should look again.
    pub(super) shrunk: Notify,
    wish: AtomicU8,
    /// Tells the tunnel's task of another wish.
    pub(super) wished: Notify,
}

/// What is wished of a tunnel; only ever more.
const LIVE: u8 = 0;
const RETIRED: u8 = 1;
const CLOSED: u8 = 2;

pub(super) enum Phase {
    Connecting,
    Ready(SendRequest<Chunk>),
    Failed(TunnelError),
    /// It stood once.
    Gone,
}

/// A reserved place in a tunnel. Dropped, it is free for others.
pub(super) struct Place {
    pub(super) tunnel: Arc<Tunnel>,
    pub(super) lease: Lease,
    /// The tunnel stood already when the place was taken.
    pub(super) reused: bool,
}

pub(super) enum Found {
    Standing(Place),
    /// Entered into the table; somebody has to run it.
    New(Place),
}

impl Table {
    /// The oldest established tunnel with room; else one that is being established and will have room;
    /// else a new one.
    pub(super) fn find(
        &mut self,
        key: &Key,
        except: &[u64],
        settings: &ClientSettings,
    ) -> Result<Found, TunnelError> {
        if let Some(cause) = self.closed {
            return Err(TunnelError::Closed(cause));
        }
        if let Some(tunnels) = self.tunnels.get(key) {
            let with_room = || tunnels.iter().filter(|t| t.has_room() && !except.contains(&t.id));
            let ready = with_room().find(|t| t.is_ready());
            if let Some(tunnel) = ready.or_else(|| with_room().next()) {
                return Ok(Found::Standing(Place::take(tunnel)));
            }
        }
        self.last_id += 1;
        let tunnel = Arc::new(Tunnel::new(self.last_id, key.clone(), settings.max_streams));
        let place = Place::take(&tunnel);
        self.tunnels.entry(key.clone()).or_default().push(tunnel);
        Ok(Found::New(place))
    }

    /// Forgets the tunnel, if it is known.
    pub(super) fn remove(&mut self, tunnel: &Tunnel) {
        if let Some(tunnels) = self.tunnels.get_mut(&tunnel.key) {
            tunnels.retain(|t| t.id != tunnel.id);
            if tunnels.is_empty() {
                self.tunnels.remove(&tunnel.key);
            }
        }
    }

    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Arc<Tunnel>> + use<> {
        std::mem::take(&mut self.tunnels).into_values().flatten()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Tunnel>> {
        self.tunnels.values().flatten()
    }
}

impl Tunnel {
    fn new(id: u64, key: Key, limit: usize) -> Self {
        Self {
            id,
            key,
            session: Session::new(),
            phase: watch::Sender::new(Phase::Connecting),
            limit: AtomicUsize::new(limit),
            shrunk: Notify::new(),
            wish: AtomicU8::new(LIVE),
            wished: Notify::new(),
        }
    }

    fn has_room(&self) -> bool {
        !self.is_retired() && self.session.streams() < self.limit.load(Ordering::Acquire)
    }

    pub(super) fn is_over_limit(&self) -> bool {
        self.session.streams() > self.limit.load(Ordering::Acquire)
    }

    fn is_ready(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Ready(_))
    }

    /// It shall take no new streams, and close with the last one.
    pub(super) fn retire(&self) {
        self.wish(RETIRED);
    }

    /// It shall end at once, with all its streams.
    pub(super) fn close(&self, cause: Cause) {
        self.session.ends_for(cause);
        self.wish(CLOSED);
    }

    fn wish(&self, wish: u8) {
        self.wish.fetch_max(wish, Ordering::AcqRel);
        self.wished.notify_one();
    }

    pub(super) fn is_retired(&self) -> bool {
        self.wish.load(Ordering::Acquire) >= RETIRED
    }

    pub(super) fn is_closed(&self) -> bool {
        self.wish.load(Ordering::Acquire) >= CLOSED
    }

    /// For the tunnel's own task only.
    pub(super) async fn closed(&self) {
        while !self.is_closed() {
            self.wished.notified().await;
        }
    }

    pub(super) fn view(&self) -> TunnelView {
        TunnelView {
            next_hop: self.key.next_hop.to_string(),
            identities: self.key.identities.iter().map(ToString::to_string).collect(),
            established: self.is_ready(),
            streams: self.session.streams(),
            max_streams: self.limit.load(Ordering::Acquire),
            opened: self.session.opened(),
            age_seconds: self.session.age().as_secs(),
            idle_seconds: self.session.idle().as_secs(),
        }
    }
}

impl Place {
    fn take(tunnel: &Arc<Tunnel>) -> Self {
        Self { tunnel: Arc::clone(tunnel), lease: tunnel.session.lease(), reused: tunnel.is_ready() }
    }
}
