//! What is amiss in the policies of a mesh, and what they leave open. Findings have stable codes; nothing here
//! decides about connections.

mod authorization;
mod codes;
mod conflicts;
mod contradiction;
mod exceptions;
mod linkerd;
mod peers;
mod phases;
mod rules;
mod whole;
mod world;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Object, PolicySet, ResourceRef};
use crate::model::Workload;

pub use codes::{CODES, Code};
use world::World;

/// Everything that was found, the worst first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub findings: Vec<Finding>,
    pub summary: Summary,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub errors: usize,
    pub warnings: usize,
    pub infos: usize,
    /// Pods and policy resources that were looked at.
    pub pods: usize,
    pub resources: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    pub severity: Severity,
    pub code: Cow<'static, str>,
    pub resource: Named,
    /// `spec.rules[0].to[0].operation.ports[1]`; empty where it is about the resource as a whole.
    pub field: String,
    pub message: String,
    /// What to do.
    pub hint: Cow<'static, str>,
}

/// The worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It cannot be right.
    Error,
    /// It is hardly what was meant.
    Warning,
    /// Good to know.
    Info,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

/// A resource of any kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Named {
    /// `Kind.group`, `Kind` alone in the core group.
    pub kind: String,
    /// Empty for what belongs to no namespace.
    pub namespace: String,
    pub name: String,
}

impl Named {
    fn new(kind: &str, namespace: &str, name: &str) -> Self {
        Self { kind: kind.into(), namespace: namespace.into(), name: name.into() }
    }
}

impl From<&Object> for Named {
    fn from(object: &Object) -> Self {
        let dot = if object.group.is_empty() { "" } else { "." };
        let kind = format!("{}{dot}{}", object.kind, object.group);
        Self::new(&kind, &object.meta.namespace, &object.meta.name)
    }
}

impl From<&ResourceRef> for Named {
    fn from(resource: &ResourceRef) -> Self {
        Self::new(resource.kind.as_str(), &resource.namespace, &resource.name)
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        for part in [&self.namespace, &self.name] {
            if !part.is_empty() {
                write!(f, "/{part}")?;
            }
        }
        Ok(())
    }
}

/// Looks at every policy of `set`, with the pods that it is for. What is only known of pods is left out where
/// there are none.
pub fn analyze<'a>(set: &PolicySet, pods: impl IntoIterator<Item = &'a Arc<Workload>>) -> Report {
    let world = World::new(set, pods.into_iter().map(|pod| &**pod).collect());
    let mut found = Findings::default();
    whole::look(&world, &mut found);
    authorization::look(&world, &mut found);
    peers::look(&world, &mut found);
    phases::look(&world, &mut found);
    linkerd::look(&world, &mut found);
    exceptions::look(&world, &mut found);
    conflicts::look(&world, &mut found);
    let mut findings = found.0;
    findings.sort();
    findings.dedup();
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let summary = Summary {
        errors: count(Severity::Error),
        warnings: count(Severity::Warning),
        infos: count(Severity::Info),
        pods: world.pods.len(),
        resources: world.objects.iter().filter(|object| world::is_policy(object)).count(),
    };
    Report { findings, summary }
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, code: &Code, resource: impl Into<Named>, field: &str, message: impl Into<String>) {
        self.0.push(Finding {
            severity: code.severity,
            code: code.code.into(),
            resource: resource.into(),
            field: field.into(),
            message: message.into(),
            hint: code.hint.into(),
        });
    }
}

#[cfg(test)]
mod tests;
