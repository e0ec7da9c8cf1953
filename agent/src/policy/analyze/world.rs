//! What is looked at, and what is asked of it again and again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::Value;

use super::super::object::LabelSelector;
use super::super::{Object, Policy, PolicySet, Resources, Settings, Subject, istio, linkerd, own};
use crate::model::{TrustDomain, Workload};

pub(super) struct World<'a> {
    pub set: &'a PolicySet,
    pub resources: Arc<Resources>,
    /// By namespace and name.
    pub pods: Vec<&'a Workload>,
    /// By kind, namespace and name.
    pub objects: Vec<Arc<Object>>,
    /// Istio's AuthorizationPolicies that apply to some pod, each with these pods.
    pub applied: HashMap<(Arc<str>, Arc<str>), Applied<'a>>,
    namespaces: BTreeSet<Arc<str>>,
    accounts: BTreeSet<(&'a str, &'a str)>,
}

/// A policy, and the pods that it applies to.
type Applied<'a> = (Arc<Policy>, Vec<&'a Workload>);

impl<'a> World<'a> {
    pub fn new(set: &'a PolicySet, mut pods: Vec<&'a Workload>) -> Self {
        pods.sort_by_key(|pod| (&pod.namespace, &pod.name));
        let none = || Arc::new(Resources::new(&[], Settings::new(TrustDomain::cluster_local())));
        let resources = set.resources().cloned().unwrap_or_else(none);
        let mut objects = resources.objects.clone();
        let key = |object: &Object| {
            let meta = &object.meta;
            (object.kind.clone(), object.group.clone(), meta.namespace.clone(), meta.name.clone())
        };
        objects.sort_by_key(|object| key(object));
        let mut applied: HashMap<_, Applied<'a>> = HashMap::new();
        for pod in &pods {
            for policy in resources.istio.policies(&Subject::from(*pod)) {
                let key = (policy.namespace.clone(), policy.name.clone());
                applied.entry(key).or_insert_with(|| (policy, Vec::new())).1.push(pod);
            }
        }
        let made = objects.iter().filter(|object| object.is("", "Namespace"));
        let namespaces = made
            .map(|object| object.meta.name.clone())
            .chain(pods.iter().map(|pod| pod.namespace.clone()))
            .collect();
        let accounts = pods.iter().filter_map(|pod| pod.identity.account()).collect();
        Self { set, resources, pods, objects, applied, namespaces, accounts }
    }

    pub fn of_kind(&self, group: &'static str, kind: &'static str) -> impl Iterator<Item = &Object> {
        self.objects.iter().map(|object| &**object).filter(move |object| object.is(group, kind))
    }

    /// The pods that an Istio AuthorizationPolicy applies to.
    pub fn pods_of(&self, object: &Object) -> &[&'a Workload] {
        let key = (object.meta.namespace.clone(), object.meta.name.clone());
        self.applied.get(&key).map_or(&[], |(_, pods)| pods)
    }

    pub fn pods_in<'w>(&'w self, namespace: &'w str) -> impl Iterator<Item = &'a Workload> + use<'a, 'w> {
        self.pods.iter().copied().filter(move |pod| *pod.namespace == *namespace)
    }

    pub fn is_root(&self, namespace: &str) -> bool {
        *self.resources.settings.root_namespace == *namespace
    }

    /// Whether anything is known of namespaces, and this one is there.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.is_empty() || self.namespaces.contains(name)
    }

    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.namespaces.iter()
    }

    pub fn has_account(&self, namespace: &str, name: &str) -> bool {
        self.pods.is_empty() || self.accounts.contains(&(namespace, name))
    }
}

/// Whether somebody writes it to say who may talk to whom.
pub(super) fn is_policy(object: &Object) -> bool {
    matches!(&*object.group, istio::GROUP | linkerd::GROUP | own::GROUP)
}

/// Whether pods say which ports they have, and this is none of them. Nothing is known of the ports of a pod that
/// declares none.
pub(super) fn is_undeclared(port: u16, pods: &[&Workload]) -> bool {
    let ports = || pods.iter().flat_map(|pod| &pod.facts.ports);
    !pods.is_empty() && pods.iter().all(|pod| !pod.facts.ports.is_empty()) && ports().all(|p| p.port != port)
}

/// `8080, 9090` or `http (8080)`.
pub(super) fn declared(pods: &[&Workload]) -> String {
    let ports: BTreeMap<u16, &str> =
        pods.iter().flat_map(|pod| &pod.facts.ports).map(|port| (port.port, &*port.name)).collect();
    let text = ports.iter().map(|(port, name)| match *name {
        "" => port.to_string(),
        name => format!("{port} ({name})"),
    });
    let text: Vec<_> = text.collect();
    if text.is_empty() { "none".into() } else { text.join(", ") }
}

/// `shop/web`, `shop/web and shop/db`, `shop/web and 3 more`.
pub(super) fn some(names: impl IntoIterator<Item = String>) -> String {
    let names: Vec<String> = names.into_iter().collect();
    match &names[..] {
        [] => "none".into(),
        [one] => one.clone(),
        [one, two] => format!("{one} and {two}"),
        [one, rest @ ..] => format!("{one} and {} more", rest.len()),
    }
}

pub(super) fn name(pod: &Workload) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

/// The items of a list with where they stand; none where it is no list.
pub(super) fn items<'v>(value: &'v Value, at: &str, key: &str) -> Vec<(String, &'v Value)> {
    let list = value.get(key).and_then(Value::as_array).into_iter().flatten();
    list.enumerate().map(|(index, item)| (format!("{at}.{key}[{index}]"), item)).collect()
}

/// The same of a list of texts.
pub(super) fn texts<'v>(value: &'v Value, at: &str, key: &str) -> Vec<(String, &'v str)> {
    let list = items(value, at, key).into_iter();
    list.filter_map(|(at, item)| item.as_str().map(|text| (at, text))).collect()
}

/// Istio's selector; None where there is none, or an empty one, which is the same.
pub(super) fn match_labels(spec: &Value) -> Option<LabelSelector> {
    let labels = spec.get("selector")?.get("matchLabels")?;
    let selector = LabelSelector {
        match_labels: serde_json::from_value(labels.clone()).ok()?,
        ..LabelSelector::default()
    };
    (!selector.match_labels.is_empty()).then_some(selector)
}
