//! How far policy is enforced, workload by workload.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::Workload;
use crate::policy::own::{InPhase, Phase};
use crate::policy::{PolicySet, Subject};

/// The pods of one workload that are in one phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadPhase {
    pub namespace: Arc<str>,
    /// Of what the pods are instances; a pod's own name where that is not known.
    pub workload: Arc<str>,
    pub pods: usize,
    pub phase: Phase,
    /// `mesh`, `namespace` or `workload`: the level that set it; none where none does.
    pub level: Option<String>,
    /// The Enforcement that set it.
    pub resource: Option<String>,
}

/// By namespace and workload.
pub(super) fn of<'a>(set: &PolicySet, pods: impl Iterator<Item = &'a Workload>) -> Vec<WorkloadPhase> {
    let mut counted: BTreeMap<_, usize> = BTreeMap::new();
    for pod in pods {
        let subject = Subject::from(pod);
        let InPhase { phase, by } = set.resources().map(|all| all.own.phase(&subject)).unwrap_or_default();
        let by = by.map(|(resource, level)| (level.to_string(), resource.to_string()));
        *counted.entry((pod.namespace.clone(), name(pod).clone(), phase, by)).or_default() += 1;
    }
    let row = |((namespace, workload, phase, by), pods): (_, usize)| {
        let (level, resource) = Option::unzip(by);
        WorkloadPhase { namespace, workload, pods, phase, level, resource }
    };
    counted.into_iter().map(row).collect()
}

fn name(pod: &Workload) -> &Arc<str> {
    if pod.workload_name.is_empty() { &pod.name } else { &pod.workload_name }
}
