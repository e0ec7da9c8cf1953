//! The exceptions of one workload, at one moment.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::exception::Exception;
use crate::policy::explain::{Considered, considered};
use crate::policy::peer::Peer;
use crate::policy::rule_list::RuleList;
use crate::policy::verdict::By;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::policy) struct Exceptions {
    in_force: Vec<Arc<Exception>>,
    /// Only to be told of.
    lapsed: Vec<Arc<Exception>>,
    /// Of those in force.
    list: Arc<RuleList>,
}

impl Exceptions {
    pub fn new(in_force: Vec<Arc<Exception>>, lapsed: Vec<Arc<Exception>>, list: Arc<RuleList>) -> Self {
        Self { in_force, lapsed, list }
    }

    /// Which of them admits a client without identity, and by which of its sources.
    pub fn admit(&self, peer: &Peer<'_>) -> Option<By> {
        if peer.identity.is_some() || self.list.is_empty() {
            return None;
        }
        self.list.by(self.list.find(&peer.by_address()).yes?)
    }

    /// Whether one of them admits anybody to this port.
    pub fn name(&self, port: u16) -> bool {
        self.in_force.iter().any(|one| one.ports().contains(&port))
    }

    pub fn ports(&self) -> BTreeSet<u16> {
        self.list.named_ports()
    }

    /// None of them is asked about a client that has an identity.
    pub fn explain(&self, peer: &Peer<'_>) -> Vec<Considered> {
        if peer.identity.is_some() {
            return Vec::new();
        }
        let peer = peer.by_address();
        let trace = |one: &Arc<Exception>, lapsed: bool| {
            let until = one.until_text();
            let mut told = considered(&one.matcher, &peer);
            told.action = None;
            told.note = Some(match lapsed {
                true => format!("it lapsed at {until} and admits nobody: {}", one.reason),
                false => format!("in place of mutual TLS until {until}: {}", one.reason),
            });
            told.matched &= !lapsed;
            told.rules.iter_mut().for_each(|rule| rule.matched &= !lapsed);
            told
        };
        let in_force = self.in_force.iter().map(|one| trace(one, false));
        in_force.chain(self.lapsed.iter().map(|one| trace(one, true))).collect()
    }
}
