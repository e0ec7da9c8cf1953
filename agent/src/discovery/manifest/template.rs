//! The pods that a Deployment, or whatever else makes pods, will have.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::policy::Object;

/// One for all replicas, under its maker's name; none where the object makes no pods.
pub(super) fn pod(maker: &Object) -> Option<Object> {
    let template = match (&*maker.group, &*maker.kind) {
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("", "ReplicationController")
        | ("batch", "Job") => maker.spec.get("template")?,
        ("batch", "CronJob") => maker.spec.get("jobTemplate")?.get("spec")?.get("template")?,
        _ => return None,
    };
    let mut meta = template.get("metadata").filter(|meta| meta.is_object()).cloned().unwrap_or(json!({}));
    meta["name"] = json!(*maker.meta.name);
    meta["namespace"] = json!(*maker.meta.namespace);
    let spec = template.get("spec").cloned().unwrap_or(Value::Null);
    Object::read(json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})).ok()
}

/// Whether a pod with these labels may be one of the template's.
pub(super) fn may_be_of(template: &Object, labels: &BTreeMap<Arc<str>, Arc<str>>) -> bool {
    template.meta.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
}
