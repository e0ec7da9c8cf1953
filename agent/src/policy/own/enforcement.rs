//! Enforcement: how far policy is enforced while workloads move into the mesh. Workload before namespace before
//! mesh, and of several at one level the oldest, as for PeerAuthentication.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{GROUP, VERSION, resource};
use crate::policy::read::{Faults, Node};
use crate::policy::resource::{Defect, Kind, ResourceRef};
use crate::policy::{LabelSelector, Object, Subject};

/// How far policy is enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Policy refuses nothing. Everything is judged, and what would be refused is told of.
    Observe,
    /// As Enforce, but for plaintext where mutual TLS is STRICT: it is let in, and told of.
    Permissive,
    /// What policy says holds.
    #[default]
    Enforce,
}

impl Phase {
    pub const ALL: [Self; 3] = [Self::Observe, Self::Permissive, Self::Enforce];

    /// As resources have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Observe => "Observe",
            Self::Permissive => "Permissive",
            Self::Enforce => "Enforce",
        }
    }

    /// As logs have it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Permissive => "permissive",
            Self::Enforce => "enforce",
        }
    }

    /// The one before, which enforces less; none before Observe.
    pub const fn back(self) -> Option<Self> {
        match self {
            Self::Observe => None,
            Self::Permissive => Some(Self::Observe),
            Self::Enforce => Some(Self::Permissive),
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// For whom an Enforcement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Mesh,
    Namespace,
    Workload,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mesh => "mesh",
            Self::Namespace => "namespace",
            Self::Workload => "workload",
        })
    }
}

/// What holds for one workload, and who says so: nobody does where it is Enforce because nothing else is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InPhase {
    pub phase: Phase,
    pub by: Option<(Arc<ResourceRef>, Level)>,
}

#[derive(Debug)]
pub(super) struct Enforcement {
    resource: Arc<ResourceRef>,
    created: Option<OffsetDateTime>,
    /// None: the whole namespace, or mesh.
    selector: Option<LabelSelector>,
    /// It cannot be told for whom it is.
    unclear: bool,
    phase: Phase,
}

/// Both lists are sorted by age.
pub(super) fn resolve(
    root: &[Enforcement],
    own: &[Enforcement],
    is_root: bool,
    subject: &Subject<'_>,
) -> InPhase {
    let whole = |list: &'_ [Enforcement]| list.iter().position(|one| one.selector.is_none());
    let workload = own.iter().find(|one| one.selects(subject));
    // The root namespace's own is the mesh's.
    let namespace = || if is_root { None } else { whole(own).map(|at| (&own[at], Level::Namespace)) };
    let mesh = || whole(root).map(|at| (&root[at], Level::Mesh));
    match workload.map(|one| (one, Level::Workload)).or_else(namespace).or_else(mesh) {
        None => InPhase::default(),
        Some((one, level)) => InPhase { phase: one.phase, by: Some((one.resource.clone(), level)) },
    }
}

const HOLDS: &str = "it means Enforce";

impl Enforcement {
    /// One that cannot be understood means Enforce, for all that it may select.
    pub fn read(object: &Object, defects: &mut Vec<Defect>) -> Self {
        let resource = resource(Kind::Enforcement, object);
        let mut faults = Faults::new(resource.clone(), HOLDS);
        if *object.version != *VERSION {
            faults.invalid("apiVersion", format_args!("there is no {GROUP}/{}: {VERSION}", object.version));
        }
        let fields = Node::spec(&object.spec).fields(&["selector", "phase"], &mut faults);
        let selector = fields.get("selector").map(|node| node.selector(&mut faults));
        let unclear = faults.broken().is_some();
        let phase = fields.required("phase", &mut faults).and_then(|node| node.phase(&mut faults));
        let phase = phase.filter(|_| faults.broken().is_none()).unwrap_or(Phase::Enforce);
        defects.append(&mut faults.defects);
        // An empty selector is none.
        let selector = selector.filter(|selector| *selector != LabelSelector::default());
        Self { created: object.created(), resource: Arc::new(resource), selector, unclear, phase }
    }

    pub fn age(&self) -> (Option<OffsetDateTime>, &str) {
        (self.created, &self.resource.name)
    }

    /// By a selector. One that is for nobody knows whom may be for any workload of its namespace.
    fn selects(&self, subject: &Subject<'_>) -> bool {
        self.selector.as_ref().map_or(self.unclear, |selector| selector.selects(&subject.facts.labels))
    }
}

impl Node<'_> {
    fn phase(&self, faults: &mut Faults) -> Option<Phase> {
        let text = self.text(faults)?;
        let phase = Phase::ALL.into_iter().find(|phase| phase.as_str() == text);
        if phase.is_none() {
            faults.invalid(&self.path, format_args!("{text:?} is no phase: Observe, Permissive or Enforce"));
        }
        phase
    }
}
