//! Our own resources: what neither dialect has a kind for.

mod enforcement;
mod exception;
#[cfg(test)]
mod exception_tests;
mod exceptions;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::resource::{Defect, Kind, ResourceRef};
use super::{Object, Settings, Subject};
use enforcement::Enforcement;

pub use enforcement::{InPhase, Level, Phase};
pub use exception::{Exception, Standing};
pub(super) use exceptions::Exceptions;

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
    /// By namespace, then by name.
    exceptions: BTreeMap<Arc<str>, Vec<Arc<Exception>>>,
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
            } else if object.is(GROUP, "PlaintextException")
                && let Some(read) = Exception::read(object, &mut own.defects)
            {
                own.exceptions.entry(object.meta.namespace.clone()).or_default().push(Arc::new(read));
            }
        }
        own.enforcements.values_mut().for_each(|list| list.sort_by(|a, b| a.age().cmp(&b.age())));
        own.exceptions.values_mut().for_each(|list| list.sort_by(|a, b| a.resource().cmp(b.resource())));
        own
    }

    /// How far policy is enforced for a pod: as its own Enforcement says, or its namespace's, or the mesh's.
    pub fn phase(&self, subject: &Subject<'_>) -> InPhase {
        let of = |namespace: &str| self.enforcements.get(namespace).map_or(&[][..], Vec::as_slice);
        let is_root = *subject.namespace == *self.root_namespace;
        enforcement::resolve(of(&self.root_namespace), of(subject.namespace), is_root, subject)
    }

    /// The exceptions for a pod, whether they have lapsed or not.
    pub fn exceptions_for(&self, subject: &Subject<'_>) -> impl Iterator<Item = Arc<Exception>> {
        let own = self.exceptions.get(subject.namespace).into_iter().flatten();
        own.filter(|one| one.selects(subject)).cloned()
    }

    /// Every exception that was understood.
    pub fn exceptions(&self) -> impl Iterator<Item = &Arc<Exception>> {
        self.exceptions.values().flatten()
    }

    /// Those of a namespace that were not, and admit nobody.
    pub fn broken_exceptions(&self, namespace: &str) -> BTreeSet<ResourceRef> {
        let exceptions = self.defects.iter().map(|defect| &defect.resource);
        let own = |one: &&ResourceRef| one.kind == Kind::PlaintextException && *one.namespace == *namespace;
        exceptions.filter(own).cloned().collect()
    }

    /// What could not be taken as it stands.
    pub fn defects(&self) -> &[Defect] {
        &self.defects
    }
}

fn resource(kind: Kind, object: &Object) -> ResourceRef {
    ResourceRef { kind, namespace: object.meta.namespace.clone(), name: object.meta.name.clone() }
}
