//! Every policy resource of the mesh, of both dialects and our own.

use std::sync::Arc;

use super::istio::Istio;
use super::linkerd::Linkerd;
use super::own::Own;
use super::{Defect, Object, Settings};

/// Immutable: a change of any of them makes a new one.
#[derive(Debug)]
pub struct Resources {
    pub istio: Istio,
    pub linkerd: Linkerd,
    pub own: Own,
    pub settings: Settings,
    /// As they were given, for those who look at what is written.
    pub objects: Vec<Arc<Object>>,
    /// What was given too, and is not there because a later one of the same name has taken its place.
    pub replaced: Vec<Object>,
}

impl Resources {
    /// Takes what is policy, and leaves the rest.
    pub fn new(objects: &[Arc<Object>], settings: Settings) -> Self {
        Self::after(None, objects, settings)
    }

    /// Those that come after others. What is the same in both is not compiled again.
    pub fn after(before: Option<&Self>, objects: &[Arc<Object>], settings: Settings) -> Self {
        let istio = Istio::new(objects.iter().map(|object| &**object), &settings);
        let linkerd = match before {
            Some(before) => before.linkerd.next(objects, &settings),
            None => Linkerd::new(objects, &settings),
        };
        let own = Own::new(objects.iter().map(|object| &**object), &settings);
        Self { istio, linkerd, own, settings, objects: objects.to_vec(), replaced: Vec::new() }
    }

    /// What could not be taken as it stands.
    pub fn defects(&self) -> impl Iterator<Item = &Defect> {
        self.istio.defects().iter().chain(self.linkerd.defects()).chain(self.own.defects())
    }
}
