//! What is left of failed attempts once nobody holds the identity: a pod that is refused a certificate lets
//! its lease go until it is tried again, and must not ask more often for that.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::clock::Deadline;
use super::{CertError, CertState, CertView};
use crate::model::SpiffeId;

/// How far an identity's back-off is.
pub(super) struct Setback {
    pub(super) failures: u32,
    pub(super) error: CertError,
    /// When the issuer may be asked again.
    pub(super) next: Deadline,
}

#[derive(Default)]
pub(super) struct Failures(Mutex<HashMap<SpiffeId, Left>>);

struct Left {
    at: Instant,
    setback: Setback,
    /// For whoever looks before somebody holds it again.
    view: CertView,
}

impl Failures {
    pub(super) fn remember(&self, identity: &SpiffeId, setback: Setback, view: CertView) {
        let mut all = self.all();
        all.retain(|_, left| left.at.elapsed() < REMEMBERED);
        if all.len() >= MOST
            && let Some(oldest) = all.iter().min_by_key(|(_, left)| left.at).map(|(id, _)| id.clone())
        {
            all.remove(&oldest);
        }
        all.insert(identity.clone(), Left { at: Instant::now(), setback, view });
    }

    /// Whoever takes it goes on with it.
    pub(super) fn take(&self, identity: &SpiffeId) -> Option<Setback> {
        self.all().remove(identity).filter(|left| left.at.elapsed() < REMEMBERED).map(|left| left.setback)
    }

    pub(super) fn told(&self) -> Vec<CertView> {
        let is_told = |left: &&Left| left.at.elapsed() < TOLD && left.view.state == CertState::Failed;
        self.all().values().filter(is_told).map(|left| left.view.clone()).collect()
    }

    fn all(&self) -> MutexGuard<'_, HashMap<SpiffeId, Left>> {
        // Each change to the table is a single step: a panic elsewhere leaves it usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Longer than the longest back-off, so that whoever comes a little after it has passed goes on with it.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Longer than a pod waits for its next try.
const TOLD: Duration = Duration::from_secs(30);
/// More than a node runs service accounts.
const MOST: usize = 1024;
