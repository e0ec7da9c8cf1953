//! What peers are verified against, as a value that is replaced while it is in use.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Crls, TrustBundles};

/// Roots that may change under configurations made with them: every handshake asks for the newest.
/// Clones share it.
#[derive(Clone, Debug)]
pub struct Trust {
    now: watch::Sender<Arc<Trusted>>,
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
        Self { now: watch::Sender::new(Arc::new(trusted)) }
    }

    /// The newest.
    pub fn now(&self) -> Arc<Trusted> {
        self.now.borrow().clone()
    }

    /// Replaces it for every handshake from now on. Those who subscribed hear of it only if it differs.
    pub fn set(&self, trusted: Trusted) {
        self.now.send_if_modified(|held| {
            let differs = **held != trusted;
            if differs {
                *held = Arc::new(trusted);
            }
            differs
        });
    }

    /// For whoever must look again at what was verified earlier.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Trusted>> {
        self.now.subscribe()
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
