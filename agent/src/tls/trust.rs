//! What peers are verified against, as a value that is replaced while it is in use.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use super::live::Peers;
use super::{Crls, Held, InUse, TlsError, TrustBundles};

/// Roots and revocations that may change under configurations made with them: every handshake asks for the
/// newest, and live tunnels that do not stand by it end. Clones share it.
#[derive(Clone)]
pub struct Trust {
    state: Arc<State>,
    in_use: InUse,
}

/// What the clones share.
pub(super) struct State {
    now: watch::Sender<Arc<Trusted>>,
    /// Those who are connected.
    pub(super) peers: Peers,
}

/// One state of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trusted {
    /// The roots, by trust domain.
    pub bundles: TrustBundles,
    /// What their issuers have taken back.
    pub revoked: Crls,
}

impl Trust {
    /// Begins with `trusted`.
    pub fn new(trusted: Trusted) -> Self {
        Self::counted(trusted, &InUse::default())
    }

    /// As [`Self::new`], with its live tunnels counted in `in_use`.
    pub fn counted(trusted: Trusted, in_use: &InUse) -> Self {
        let state = Arc::new(State { now: watch::Sender::new(Arc::new(trusted)), peers: Peers::default() });
        in_use.enter(&state);
        Self { state, in_use: in_use.clone() }
    }

    /// The newest.
    pub fn now(&self) -> Arc<Trusted> {
        self.state.now()
    }

    /// Replaces it for every handshake from now on, and ends the tunnels whose peers it does not trust. Those
    /// who subscribed hear of it only if it differs.
    pub fn set(&self, trusted: Trusted) {
        let replaced = self.state.now.send_if_modified(|held| {
            let differs = **held != trusted;
            if differs {
                *held = Arc::new(trusted);
            }
            differs
        });
        if replaced {
            self.in_use.review(&self.state);
        }
    }

    /// For whoever must look again at what was verified earlier.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Trusted>> {
        self.state.now.subscribe()
    }

    /// Enters a tunnel whose handshake is over, by the chain that the peer showed (leaf first). Verifies it
    /// once more, in case that trust has changed meanwhile.
    pub fn hold(&self, chain: &[CertificateDer<'_>]) -> Result<Held, TlsError> {
        self.state.hold(chain)
    }

    /// Where its tunnels are counted.
    pub fn in_use(&self) -> &InUse {
        &self.in_use
    }
}

impl State {
    pub(super) fn now(&self) -> Arc<Trusted> {
        self.now.borrow().clone()
    }
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Trust").field(&*self.now()).finish()
    }
}

impl From<TrustBundles> for Trusted {
    fn from(bundles: TrustBundles) -> Self {
        Self { bundles, revoked: Crls::default() }
    }
}

impl From<TrustBundles> for Trust {
    fn from(bundles: TrustBundles) -> Self {
        Self::new(bundles.into())
    }
}

impl From<&TrustBundles> for Trust {
    fn from(bundles: &TrustBundles) -> Self {
        bundles.clone().into()
    }
}

impl From<&Trust> for Trust {
    fn from(trust: &Trust) -> Self {
        trust.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::{Authority, bundles};

    #[test]
    fn who_holds_it_sees_the_newest_and_hears_only_of_changes() {
        let (old, new) = (Authority::root(), Authority::root());
        let trust = Trust::from(bundles(&[("mesh.test", &old)]));
        let mut heard = trust.subscribe();
        let holder = trust.clone();
        trust.set(bundles(&[("mesh.test", &old)]).into());
        assert!(!heard.has_changed().unwrap());
        trust.set(bundles(&[("mesh.test", &new)]).into());
        assert!(heard.has_changed().unwrap());
        assert_eq!(heard.borrow_and_update().bundles, bundles(&[("mesh.test", &new)]));
        assert_eq!(holder.now().bundles, bundles(&[("mesh.test", &new)]));
    }
}
