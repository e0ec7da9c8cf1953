//! What a pod is an instance of, by its name and labels, and which of its labels change with every instance.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::Workload;
use crate::model::workload::PodFacts;

/// The name of the Deployment, StatefulSet, DaemonSet or Job, as far as name and labels tell; else the pod's own.
/// The source's word goes first.
pub(super) fn owner(workload: &Workload) -> &str {
    if !workload.workload_name.is_empty() {
        return &workload.workload_name;
    }
    owner_by_labels(&workload.name, &workload.facts.labels)
}

pub(super) fn owner_by_labels<'a>(name: &'a str, labels: &'a BTreeMap<Arc<str>, Arc<str>>) -> &'a str {
    let label = |key: &str| labels.get(key).map(|value| &**value);
    let job = label("batch.kubernetes.io/job-name").or_else(|| label("job-name"));
    if let Some(job) = job.filter(|job| name.starts_with(*job)) {
        // A CronJob's has the minute of its start at the end.
        return without_end(job, |end| end.len() >= 8 && end.bytes().all(|b| b.is_ascii_digit()));
    }
    if label("statefulset.kubernetes.io/pod-name").is_some()
        || label("apps.kubernetes.io/pod-index").is_some()
    {
        return without_end(name, |end| end.bytes().all(|b| b.is_ascii_digit()));
    }
    let instance = without_end(name, |end| end.len() == 5);
    if let Some(hash) = label("pod-template-hash") {
        return without_end(instance, |end| end == hash);
    }
    if label("controller-revision-hash").is_some() { instance } else { name }
}

/// Without the last part, dash included, where it is such a one.
fn without_end(name: &str, is: impl Fn(&str) -> bool) -> &str {
    match name.rsplit_once('-') {
        Some((begin, end)) if !begin.is_empty() && !end.is_empty() && is(end) => begin,
        _ => name,
    }
}

/// What policy knows of the pod, without the labels of its instance and revision.
pub(super) fn lasting(facts: &PodFacts) -> PodFacts {
    let mut facts = facts.clone();
    facts.labels.retain(|key, _| !is_churning_label(key));
    facts
}

/// Labels that a new revision, or another run of a Job, has otherwise: nobody's policy outlives them.
pub fn is_churning_label(key: &str) -> bool {
    CHURNING.contains(&key)
}

const CHURNING: [&str; 8] = [
    "pod-template-hash",
    "pod-template-generation",
    "controller-revision-hash",
    "controller-uid",
    "job-name",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
    "batch.kubernetes.io/job-completion-index",
];
