//! Kubernetes' own YAML: pods, namespaces and policies as they are in a repository, or as `kubectl get -o yaml`
//! prints them.

mod pod;
mod template;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde_json::Value;

use super::yaml::{self, Invalid, Problem};
use crate::model::{TrustDomain, Workload};
use crate::policy::{Meta, Object};

/// Everything that was read, by what it is to us.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
    /// Pods, as workloads of the mesh.
    pub pods: Vec<Workload>,
    /// All the rest.
    pub objects: Vec<Object>,
    /// Of all of them, those that a later one of the same kind and name has replaced.
    pub replaced: Vec<Object>,
}

/// One document that is no object, or a pod that cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct Refused {
    /// `document 3`, or `Pod shop/web`.
    pub what: String,
    pub why: String,
}

/// Reads the objects of a text of one or several documents, Lists among them. Empty documents are nothing.
///
/// # Errors
/// The text is no YAML. Never panics, whatever the text.
pub fn read(text: &str) -> Result<Vec<Result<Object, Refused>>, Invalid> {
    let mut objects = Vec::new();
    for (at, document) in yaml::read_all(text)?.into_iter().enumerate() {
        flatten(&format!("document {}", at + 1), document, &mut objects);
    }
    Ok(objects)
}

impl Manifest {
    /// What there is once the objects are applied in this order.
    ///
    /// # Errors
    /// Each pod that cannot be taken: what is left is not the mesh that was meant.
    pub fn new(objects: Vec<Object>, trust_domain: &TrustDomain) -> Result<Self, Vec<Refused>> {
        let (objects, replaced) = Object::applied(objects);
        Ok(Self { replaced, ..Self::of(objects, trust_domain)? })
    }

    fn of(objects: Vec<Object>, trust_domain: &TrustDomain) -> Result<Self, Vec<Refused>> {
        let (pods, objects): (Vec<_>, Vec<_>) = objects.into_iter().partition(|object| object.is("", "Pod"));
        let namespace = |name: &str| {
            objects
                .iter()
                .find(|object| object.is("", "Namespace") && *object.meta.name == *name)
                .map(|o| &o.meta)
        };
        let (mut taken, mut refused) = (Vec::with_capacity(pods.len()), Vec::new());
        for object in &pods {
            match pod::workload(object, namespace(&object.meta.namespace), trust_domain) {
                Ok(workload) => taken.push(workload),
                Err(why) => refused.push(Refused { what: name(object), why }),
            }
        }
        if refused.is_empty() {
            Ok(Self { pods: taken, objects, replaced: Vec::new() })
        } else {
            Err(refused)
        }
    }

    /// Adds a pod for each Deployment, Job … that none of the pods is of.
    ///
    /// # Errors
    /// Each template that is no pod's.
    pub fn add_templates(&mut self, trust_domain: &TrustDomain) -> Result<(), Vec<Refused>> {
        let templates = self.objects.iter().filter_map(template::pod).filter(|template| {
            let own = |pod: &&Workload| pod.namespace == template.meta.namespace;
            !self.pods.iter().filter(own).any(|pod| template::may_be_of(template, &pod.facts.labels))
        });
        let namespaces = self.objects.iter().filter(|object| object.is("", "Namespace")).cloned();
        // A Deployment and a Job of one name are two.
        let added = Self::of(namespaces.chain(templates).collect(), trust_domain)?;
        self.pods.extend(added.pods);
        Ok(())
    }

    /// By `namespace` and `name`.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Workload> {
        self.pods.iter().find(|pod| *pod.namespace == *namespace && *pod.name == *name)
    }
}

fn name(object: &Object) -> String {
    let Meta { namespace, name, .. } = &object.meta;
    format!("{} {namespace}/{name}", object.kind)
}

fn flatten(what: &str, document: Value, objects: &mut Vec<Result<Object, Refused>>) {
    if document.is_null() {
        return;
    }
    match document {
        Value::Object(mut fields) if is_list(&fields) => {
            let of = item_type(&fields);
            let items = fields.remove("items").unwrap_or_default();
            for (at, item) in items.as_array().into_iter().flatten().enumerate() {
                let mut item = item.clone();
                if let (Some((api_version, kind)), Value::Object(item)) = (&of, &mut item) {
                    item.entry("apiVersion").or_insert_with(|| api_version.as_str().into());
                    item.entry("kind").or_insert_with(|| kind.as_str().into());
                }
                flatten(&format!("{what}, item {}", at + 1), item, objects);
            }
        }
        document => objects.push(Object::read(document).map_err(|e| Refused {
            what: what.to_string(),
            why: format!("this is no Kubernetes object: {e}"),
        })),
    }
}

fn is_list(fields: &serde_json::Map<String, Value>) -> bool {
    let kind = fields.get("kind").and_then(Value::as_str);
    kind.is_some_and(|kind| kind.ends_with("List"))
        && fields.get("items").is_some_and(|items| items.is_array() || items.is_null())
}

/// What the items of a `PodList` are that do not say it themselves, as an API server sends them.
fn item_type(list: &serde_json::Map<String, Value>) -> Option<(String, String)> {
    let kind = list.get("kind")?.as_str()?.strip_suffix("List").filter(|kind| !kind.is_empty())?;
    Some((list.get("apiVersion")?.as_str()?.to_string(), kind.to_string()))
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        Self { line: 0, column: 0, path: String::new(), message: refused.to_string() }
    }
}

/// A text that belongs to many.
fn text(value: &Value, key: &str) -> Option<Arc<str>> {
    value.get(key).and_then(Value::as_str).map(Arc::from)
}
