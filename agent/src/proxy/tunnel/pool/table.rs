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
    by_key: HashMap<Key, Entry>,
    last_id: u64,
}

struct Entry {
    /// Oldest first, so that the youngest fall idle and are released.
    tunnels: Vec<Arc<Tunnel>>,
    /// Streams that a new tunnel to this peer will carry, by what its last one said.
    limit: usize,
}

/// One connection, from the moment that somebody wants it.
pub(super) struct Tunnel {
    pub(super) id: u64,
    pub(super) key: Key,
    pub(super) session: Arc<Session>,
    pub(super) phase: watch::Sender<Phase>,
    /// Streams it may carry: a guess until the peer's SETTINGS came.
    limit: AtomicUsize,
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
    Ready {
        sender: SendRequest<Chunk>,
        /// The peer's limit of streams is known.
        settled: bool,
    },
    Failed(TunnelError),
    /// It stood once.
    Gone,
}

/// A reserved place in a tunnel. Dropped, it is free for others.
pub(super) struct Place {
    pub(super) tunnel: Arc<Tunnel>,
    pub(super) lease: Lease,
    /// How many places were taken before this one.
    pub(super) ahead: usize,
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
        let fresh = || Entry { tunnels: Vec::new(), limit: settings.max_streams };
        let entry = self.by_key.entry(key.clone()).or_insert_with(fresh);
        let with_room = || entry.tunnels.iter().filter(|t| t.has_room() && !except.contains(&t.id));
        let ready = with_room().find(|t| t.is_ready());
        if let Some(tunnel) = ready.or_else(|| with_room().next()) {
            return Ok(Found::Standing(Place::take(tunnel)));
        }
        self.last_id += 1;
        let tunnel = Arc::new(Tunnel::new(self.last_id, key.clone(), entry.limit));
        let place = Place::take(&tunnel);
        entry.tunnels.push(tunnel);
        Ok(Found::New(place))
    }

    /// Forgets the tunnel, if it is known.
    pub(super) fn remove(&mut self, tunnel: &Tunnel) {
        if let Some(entry) = self.by_key.get_mut(&tunnel.key) {
            entry.tunnels.retain(|t| t.id != tunnel.id);
            if entry.tunnels.is_empty() {
                self.by_key.remove(&tunnel.key);
            }
        }
    }

    pub(super) fn set_limit(&mut self, tunnel: &Tunnel, limit: usize) {
        tunnel.limit.store(limit, Ordering::Release);
        if let Some(entry) = self.by_key.get_mut(&tunnel.key) {
            entry.limit = limit;
        }
    }

    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Arc<Tunnel>> + use<> {
        std::mem::take(&mut self.by_key).into_values().flat_map(|e| e.tunnels)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Tunnel>> {
        self.by_key.values().flat_map(|e| &e.tunnels)
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
        matches!(*self.phase.borrow(), Phase::Ready { .. })
    }

    /// The peer's SETTINGS came.
    pub(super) fn settled(&self) {
        self.phase.send_if_modified(|phase| match phase {
            Phase::Ready { settled, .. } => !std::mem::replace(settled, true),
            _ => false,
        });
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
        let ahead = tunnel.session.streams();
        Self { tunnel: Arc::clone(tunnel), lease: tunnel.session.lease(), ahead, reused: tunnel.is_ready() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::key;
    use super::*;

    #[test]
    fn the_last_tunnel_of_a_key_takes_the_key_along() {
        let (mut table, settings) = (Table::default(), ClientSettings::default());
        for n in 0..100 {
            let Ok(Found::New(place)) = table.find(&key(n), &[], &settings) else { panic!("not new") };
            table.remove(&place.tunnel);
        }
        assert!(table.by_key.is_empty(), "{} keys without tunnels", table.by_key.len());
    }
}
