//! The tunnels of one pod, and how a caller gets a stream in one of them.
//!
//! A caller reserves its place first and waits, if at all, outside the lock: for the handshake of a
//! tunnel to the very peer it wants, never for another. Handshakes run in the tunnels' own tasks, so a
//! caller that goes away takes nothing with it.

mod driver;
mod key;
mod open;
mod table;

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::Request;
use serde::Serialize;
use tokio::time::timeout;

pub use key::Key;
use table::{Found, Place, Table};

use super::{ClientSettings, Connect, DialError, Dialled, Transport, TunnelError, TunnelStream};
use crate::model::{Cause, PodUid};

/// All tunnels that carry one source pod's connections. Dropped, it takes no new streams; those that
/// live go on.
pub struct Pool {
    inner: Arc<Inner>,
}

impl Pool {
    pub fn new(source: PodUid, settings: ClientSettings) -> Self {
        Self { inner: Arc::new(Inner { source, settings, table: Mutex::default() }) }
    }

    /// Opens a stream to the peer that `key` names, in a tunnel that stands or in a new one that
    /// `connector` dials (TCP, TLS, ALPN `h2` and the check of the peer's identity are its business, and so is what the peer's trust hangs on).
    ///
    /// While a handshake is under way further callers of the same key share it, as many as its streams
    /// will carry. When the peer says that it did not process the request (REFUSED_STREAM, or GOAWAY
    /// below its stream), another tunnel is tried; likewise when a tunnel that had been idle in the pool
    /// turns out to be dead: no byte of the application has been sent by then.
    ///
    /// Safe to cancel. Takes no longer than the settings' `answer_timeout`.
    pub async fn open<C, F, T>(
        &self,
        key: &Key,
        request: &Connect,
        connector: C,
    ) -> Result<TunnelStream, TunnelError>
    where
        C: Fn() -> F,
        F: Future<Output = Result<Dialled<T>, DialError>> + Send + 'static,
        T: Transport,
    {
        if key.source != self.inner.source {
            let (own, asked) = (self.inner.source.clone(), key.source.clone());
            return Err(TunnelError::ForeignPod { own, asked });
        }
        let request = request.encode().map_err(|e| TunnelError::Encoding(e.to_string().into()))?;
        let limit = self.inner.settings.answer_timeout;
        let opened = timeout(limit, self.open_somewhere(key, request, connector)).await;
        opened.unwrap_or(Err(TunnelError::NoAnswer(limit)))
    }

    async fn open_somewhere<C, F, T>(
        &self,
        key: &Key,
        request: Request<()>,
        connector: C,
    ) -> Result<TunnelStream, TunnelError>
    where
        C: Fn() -> F,
        F: Future<Output = Result<Dialled<T>, DialError>> + Send + 'static,
        T: Transport,
    {
        let mut refused_by = Vec::new();
        for _ in 0..ATTEMPTS {
            let place = self.place(key, &refused_by, &connector)?;
            match place.open(request.clone()).await {
                Ok(stream) => return Ok(stream),
                Err(open::Failed::Final(e)) => return Err(e),
                Err(open::Failed::NotProcessed(tunnel)) => refused_by.push(tunnel),
            }
        }
        Err(TunnelError::RefusedRepeatedly(ATTEMPTS))
    }

    /// Ends every tunnel and with it every stream, which say `cause`. Later callers get it as an error.
    pub fn close_all(&self, cause: Cause) {
        let mut table = self.inner.table();
        table.closed.get_or_insert(cause);
        for tunnel in table.take_all() {
            tunnel.close(cause);
        }
    }

    /// New streams get new tunnels; live streams go on in the old ones, which close with their last
    /// stream.
    pub fn retire_all(&self) {
        for tunnel in self.inner.table().take_all() {
            tunnel.retire();
        }
    }

    /// What there is now, in no order.
    pub fn views(&self) -> Vec<TunnelView> {
        self.inner.table().iter().map(|t| t.view()).collect()
    }

    /// A place in a tunnel, new or not.
    fn place<C, F, T>(&self, key: &Key, except: &[u64], connector: &C) -> Result<Place, TunnelError>
    where
        C: Fn() -> F,
        F: Future<Output = Result<Dialled<T>, DialError>> + Send + 'static,
        T: Transport,
    {
        let mut table = self.inner.table();
        match table.find(key, except, &self.inner.settings)? {
            Found::Standing(place) => Ok(place),
            Found::New(place) => {
                drop(table);
                // Stands before the connector is called: should that panic, nobody waits for ever.
                let end = driver::End::new(&self.inner, &place.tunnel);
                tokio::spawn(driver::run(end, self.inner.settings.clone(), connector()));
                Ok(place)
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.retire_all();
    }
}

/// One tunnel, for the admin API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TunnelView {
    pub next_hop: String,
    /// Who the peer may be; it proved to be one of them.
    pub identities: Vec<String>,
    /// The handshake is over.
    pub established: bool,
    pub streams: usize,
    pub max_streams: usize,
    /// How many streams it has carried, those that live included.
    pub opened: u64,
    pub age_seconds: u64,
    pub idle_seconds: u64,
}

/// How many tunnels a caller tries whose peers do not process its request.
const ATTEMPTS: usize = 4;

struct Inner {
    source: PodUid,
    settings: ClientSettings,
    table: Mutex<Table>,
}

impl Inner {
    /// Nothing panics while it holds the lock, and if something did the table would still be whole.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
