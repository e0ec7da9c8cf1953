//! Who was seen to connect to this node's pods, and what policy said of it: what a migration is judged by.
//!
//! A row stands for one server and port and one client, however often it connects, and is added to when a
//! connection ends. Rows are never taken from one client for another: there is room for so many of one client,
//! and for so many of clients that nobody knows, and what is left out is counted.

mod owner;
mod table;
#[cfg(test)]
mod tests;
mod unauthorized;
mod view;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

pub use owner::is_churning_label;
pub(super) use unauthorized::{LEFT_OUT, ROWS, UNAUTHORIZED_CONNECTIONS, UNAUTHORIZED_REQUESTS};
pub use view::{
    ClientView, ConnectionCounts, DenialView, LeftOut, ObservedAgent, ObservedServer, ObservedView,
    OutcomeView, RequestCounts, Seen, Transport,
};

use super::record::Denial;
use super::{lock, rfc3339};
use crate::model::{LocalPod, SpiffeId, Workload};
use table::Table;

/// Everything that was observed since the agent started.
pub(super) struct Observed {
    table: Mutex<Table>,
    since: SystemTime,
}

/// One connection to a pod of this node.
#[derive(Clone, Copy)]
pub(super) struct Sight<'a> {
    pub(super) pod: &'a LocalPod,
    /// None: nobody knows the pod's own workload.
    pub(super) server: Option<&'a Arc<Workload>>,
    /// Proved by mutual TLS; none is plaintext.
    pub(super) identity: Option<&'a SpiffeId>,
    /// The workload at the client's address.
    pub(super) client: Option<&'a Workload>,
    pub(super) client_ip: IpAddr,
    /// The application's address and port.
    pub(super) target: SocketAddr,
}

/// What of it is counted.
#[derive(Clone, Copy)]
pub(super) enum Event<'a> {
    Ended {
        outcome: Outcome<'a>,
        requests_allowed: u64,
        would_deny: Option<&'a str>,
    },
    /// It is not over yet.
    Open {
        requests_allowed: u64,
        would_deny: Option<&'a str>,
    },
    /// One request of it was refused.
    RequestDenied(&'a Denial),
}

#[derive(Clone, Copy)]
pub(super) enum Outcome<'a> {
    /// The application was reached; where requests are judged, by one of them.
    Allowed,
    Denied(&'a Denial),
    /// Policy did not refuse it, and it came to nothing.
    Unreached,
}

impl Observed {
    pub(super) fn new() -> Self {
        Self { table: Mutex::default(), since: SystemTime::now() }
    }

    pub(super) fn add(&self, sight: &Sight<'_>, event: Event<'_>) {
        lock(&self.table).add(sight, event, SystemTime::now());
    }

    /// Forgets what was not seen for a month.
    pub(super) fn prune(&self) {
        let before = SystemTime::now().checked_sub(KEPT).unwrap_or(SystemTime::UNIX_EPOCH);
        lock(&self.table).prune(before);
    }

    /// With the connections that are open now, each given to its argument.
    pub(super) fn view(
        &self,
        each_open: impl FnOnce(&mut dyn FnMut(&Sight<'_>, Event<'_>)),
    ) -> ObservedAgent {
        let mut table = lock(&self.table).clone();
        let now = SystemTime::now();
        each_open(&mut |sight, event| table.add(sight, event, now));
        ObservedAgent {
            node: String::new(),
            instance: String::new(),
            since: rfc3339(self.since),
            until: rfc3339(now),
            left_out: table.left_out,
            servers: table.servers(),
        }
    }

    /// In Prometheus's text format.
    pub(super) fn metrics(&self) -> String {
        unauthorized::render(&lock(&self.table))
    }
}

/// How long a row stays that nothing is added to.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
