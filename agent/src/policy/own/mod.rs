//! Our own resources: what neither dialect has a kind for.

mod enforcement;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use super::resource::{Defect, Kind, ResourceRef};
use super::{Object, Settings, Subject};
use enforcement::Enforcement;

pub use enforcement::{InPhase, Level, Phase};

/// `apiVersion`'s first part.
pub const GROUP: &str = "underpass.io";

/// `apiVersion`'s second part.
pub const VERSION: &str = "v1alpha1";

/// All of the mesh's resources of our own kinds.
#[derive(Debug, Default)]
pub struct Own {
    root_namespace: Arc<str>,
    /// By namespace, the oldest first.
    enforcements: HashMap<Arc<str>, Vec<Enforcement>>,
    defects: Vec<Defect>,
}

impl Own {
    /// Takes what is of this group, and leaves the rest.
    pub fn new<'a>(objects: impl IntoIterator<Item = &'a Object>, settings: &Settings) -> Self {
        let mut own = Self { root_namespace: settings.root_namespace.clone(), ..Self::default() };
        for object in objects {
            if object.is(GROUP, "Enforcement") {
                let read = Enforcement::read(object, &mut own.defects);
                own.enforcements.entry(object.meta.namespace.clone()).or_default().push(read);
            }
        }
        own.enforcements.values_mut().for_each(|list| list.sort_by(|a, b| a.age().cmp(&b.age())));
        own
    }

    /// How far policy is enforced for a pod: as its own Enforcement says, or its namespace's, or the mesh's.
    pub fn phase(&self, subject: &Subject<'_>) -> InPhase {
        let of = |namespace: &str| self.enforcements.get(namespace).map_or(&[][..], Vec::as_slice);
        let is_root = *subject.namespace == *self.root_namespace;
        enforcement::resolve(of(&self.root_namespace), of(subject.namespace), is_root, subject)
    }

    /// What could not be taken as it stands.
    pub fn defects(&self) -> &[Defect] {
        &self.defects
    }
}

fn resource(kind: Kind, object: &Object) -> ResourceRef {
    ResourceRef { kind, namespace: object.meta.namespace.clone(), name: object.meta.name.clone() }
}
