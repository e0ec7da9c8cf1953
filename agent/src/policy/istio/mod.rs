//! Istio's AuthorizationPolicy and PeerAuthentication: what they say of one pod.

pub(super) mod authorization;
mod condition;
pub(super) mod list;
mod peer;
mod rule;
mod targets;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value;

use crate::model::MtlsMode;

use super::mtls::EffectiveMtls;
use super::{Considered, Defect, Object, Policy, ResourceRef, Settings, Subject};
use authorization::Authorization;
use peer::PeerAuthentication;

pub use peer::MtlsSources;

/// `apiVersion`'s first part.
pub const GROUP: &str = "security.istio.io";

/// All of the mesh's resources of this dialect, by the namespaces that they apply to.
#[derive(Debug, Default)]
pub struct Istio {
    root_namespace: Arc<str>,
    authorizations: HashMap<Arc<str>, Vec<Arc<Authorization>>>,
    peers: HashMap<Arc<str>, Vec<PeerAuthentication>>,
    defects: Vec<Defect>,
}

impl Istio {
    /// Takes what is of this dialect, and leaves the rest.
    pub fn new<'a>(objects: impl IntoIterator<Item = &'a Object>, settings: &Settings) -> Self {
        let mut istio = Self { root_namespace: settings.root_namespace.clone(), ..Self::default() };
        for object in objects {
            let namespace = &object.meta.namespace;
            if object.is(GROUP, "AuthorizationPolicy") {
                let policy = Authorization::read(object, settings, &mut istio.defects);
                istio.authorizations.entry(namespace.clone()).or_default().push(Arc::new(policy));
            } else if object.is(GROUP, "PeerAuthentication") {
                let policy = PeerAuthentication::read(object, &mut istio.defects);
                istio.peers.entry(namespace.clone()).or_default().push(policy);
            }
        }
        // Which of several is told of must not depend on the order of arrival.
        istio
            .authorizations
            .values_mut()
            .for_each(|list| list.sort_by(|a, b| a.policy.name.cmp(&b.policy.name)));
        istio.peers.values_mut().for_each(|list| list.sort_by(|a, b| a.age().cmp(&b.age())));
        istio
    }

    /// The AuthorizationPolicies that apply to a pod, those that run dry among them. What is aimed at a waypoint
    /// or gateway is that one's and not among them.
    pub fn policies(&self, subject: &Subject<'_>) -> Vec<Arc<Policy>> {
        let selected = |policy: &&Arc<Authorization>| policy.selects(&subject.facts.labels);
        self.in_scope(subject.namespace).filter(selected).map(|policy| policy.policy.clone()).collect()
    }

    /// The AuthorizationPolicies that a waypoint or gateway of the pod's namespace is to enforce, each with what
    /// it is aimed at.
    pub fn left_to_others(&self, subject: &Subject<'_>) -> Vec<(ResourceRef, String)> {
        let aimed = |policy: &Arc<Authorization>| {
            policy.targets.as_ref().map(|targets| (policy.policy.resource(), targets.clone()))
        };
        self.in_scope(subject.namespace).filter_map(aimed).collect()
    }

    /// The AuthorizationPolicies of the pod's namespace and the mesh's that select other pods.
    pub fn passed_over(&self, subject: &Subject<'_>) -> Vec<ResourceRef> {
        let others =
            |policy: &&Arc<Authorization>| policy.targets.is_none() && !policy.selects(&subject.facts.labels);
        self.in_scope(subject.namespace).filter(others).map(|policy| policy.policy.resource()).collect()
    }

    /// Whether mutual TLS is asked of connections to a pod: of each port, of the workload, of its namespace, of
    /// the mesh, whichever says so first; `default` where none does.
    pub fn mtls(&self, subject: &Subject<'_>, default: &EffectiveMtls) -> (EffectiveMtls, MtlsSources) {
        let (root, own, is_root) = self.peers_for(subject);
        peer::resolve(root, own, is_root, subject, default)
    }

    /// The PeerAuthentications that are for a pod, those that do not decide about its port among them.
    pub fn peer_authentications(
        &self,
        subject: &Subject<'_>,
        default: &EffectiveMtls,
        port: u16,
    ) -> Vec<Considered> {
        let (root, own, is_root) = self.peers_for(subject);
        peer::considered(root, own, is_root, subject, default, port)
    }

    /// The root namespace's, its namespace's, and whether that is the same.
    fn peers_for(&self, subject: &Subject<'_>) -> (&[PeerAuthentication], &[PeerAuthentication], bool) {
        let of = |namespace: &str| self.peers.get(namespace).map_or(&[][..], Vec::as_slice);
        (of(&self.root_namespace), of(subject.namespace), *subject.namespace == *self.root_namespace)
    }

    /// Every AuthorizationPolicy, whatever it applies to, in no particular order.
    pub fn authorization_policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.authorizations.values().flatten().map(|policy| &policy.policy)
    }

    /// What could not be taken as it stands.
    pub fn defects(&self) -> &[Defect] {
        &self.defects
    }

    /// Everything of a kind that applies to a namespace, the root namespace's first.
    fn in_scope(&self, namespace: &str) -> impl Iterator<Item = &Arc<Authorization>> {
        let root = self.authorizations.get(&self.root_namespace).into_iter().flatten();
        let own = (*namespace != *self.root_namespace).then(|| self.authorizations.get(namespace));
        root.chain(own.flatten().into_iter().flatten())
    }
}

type Labels = BTreeMap<Arc<str>, Arc<str>>;

fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// `spec.selector`; none where there is none. What is wrong with it goes to `refuse` by its field: to whom the
/// policy applies is not known then.
fn selector(value: Option<&Value>, mut refuse: impl FnMut(&str, &str)) -> Option<Labels> {
    let value = value.filter(|value| !value.is_null())?;
    let Some(selector) = value.as_object() else {
        refuse("spec.selector", "it is no object");
        return None;
    };
    for name in selector.keys().filter(|name| *name != "matchLabels") {
        refuse(&format!("spec.selector.{name}"), "there is no such field: Istio selects by matchLabels only");
    }
    let mut labels = Labels::new();
    match selector.get("matchLabels") {
        None | Some(Value::Null) => {}
        Some(Value::Object(given)) => {
            for (key, value) in given {
                let field = || format!("spec.selector.matchLabels[{key}]");
                match value.as_str() {
                    _ if key.is_empty() => refuse(&field(), "a label has a key"),
                    None => refuse(&field(), "it is no string"),
                    // Istio refuses it: there are no patterns here, and no label has an asterisk.
                    Some(value) if key.contains('*') || value.contains('*') => {
                        refuse(&field(), "no label has an asterisk, and a selector no patterns");
                    }
                    Some(value) => drop(labels.insert(key.as_str().into(), value.into())),
                }
            }
        }
        Some(_) => refuse("spec.selector.matchLabels", "it is no object"),
    }
    Some(labels)
}

/// UNSET is none. A mode that is none of Istio's is an error.
fn mode(text: &str) -> Result<Option<MtlsMode>, String> {
    match text {
        "UNSET" => Ok(None),
        "STRICT" => Ok(Some(MtlsMode::Strict)),
        // DISABLE has no tunnel for those who would use one; it says nothing against whoever does.
        "PERMISSIVE" | "DISABLE" => Ok(Some(MtlsMode::Permissive)),
        other => Err(format!("{other:?} is no mode: UNSET, DISABLE, PERMISSIVE or STRICT")),
    }
}
