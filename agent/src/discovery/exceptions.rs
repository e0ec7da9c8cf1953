//! Exceptions from mutual TLS as they are listed: who, to what, why, until when, and how each stands.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Snapshot;
use super::ask::Offline;
use crate::policy::own::{Exception, Standing};
use crate::policy::{Kind, Resources};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    pub namespace: String,
    pub name: String,
    pub state: Standing,
    /// Who may come in plaintext; of alternatives each.
    pub from: Vec<String>,
    /// By which labels of its namespace's workloads; empty for all of them.
    pub selector: String,
    pub ports: Vec<u16>,
    pub reason: String,
    /// RFC 3339.
    pub until: String,
    /// Of one that could not be understood, which says nothing else.
    pub defects: Vec<String>,
}

/// By namespace and name.
fn list(resources: &Resources, now: OffsetDateTime) -> Vec<Listed> {
    let mut all: Vec<_> = resources.own.exceptions().map(|one| Listed::of(one, now)).collect();
    let mut broken = BTreeMap::<_, Vec<String>>::new();
    for defect in resources.own.defects().iter().filter(|d| d.resource.kind == Kind::PlaintextException) {
        let told = format!("{}: {}", defect.field, defect.message);
        broken.entry(&defect.resource).or_default().push(told);
    }
    all.extend(broken.into_iter().map(|(resource, defects)| Listed {
        namespace: resource.namespace.to_string(),
        name: resource.name.to_string(),
        state: Standing::Defective,
        from: Vec::new(),
        selector: String::new(),
        ports: Vec::new(),
        reason: String::new(),
        until: String::new(),
        defects,
    }));
    all.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    all
}

impl Listed {
    fn of(one: &Exception, now: OffsetDateTime) -> Self {
        Self {
            namespace: one.resource().namespace.to_string(),
            name: one.resource().name.to_string(),
            state: one.standing(now),
            from: one.from(),
            selector: one.selector().map(ToString::to_string).unwrap_or_default(),
            ports: one.ports().into_iter().collect(),
            reason: one.reason.to_string(),
            until: one.until_text(),
            defects: Vec::new(),
        }
    }
}

impl Snapshot {
    /// As they stand at a moment: what is judged at the moment of the snapshot may lapse soon only since.
    pub fn listed_exceptions_at(&self, now: OffsetDateTime) -> Vec<Listed> {
        self.policies().resources().map(|resources| list(resources, now)).unwrap_or_default()
    }
}

impl Offline {
    pub fn listed_exceptions(&self) -> Vec<Listed> {
        self.set.now().map(|now| list(&self.resources, now)).unwrap_or_default()
    }
}
