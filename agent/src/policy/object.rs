//! Kubernetes objects as the API server stores them, before anybody has understood what they say.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// One object: what every kind has, and the rest as it is written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Object {
    /// Empty for the core group.
    pub group: Arc<str>,
    pub version: Arc<str>,
    pub kind: Arc<str>,
    pub meta: Meta,
    /// Null where there is none.
    pub spec: Value,
    /// Null where there is none.
    pub status: Value,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    pub name: Arc<str>,
    /// Empty for what belongs to no namespace.
    pub namespace: Arc<str>,
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    pub annotations: BTreeMap<Arc<str>, Arc<str>>,
    /// As in the object, in RFC 3339; empty where it has none.
    pub creation_timestamp: Arc<str>,
}

/// Why something is no Kubernetes object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    #[error("it has no apiVersion and kind")]
    NoKind,
    #[error("metadata: {0}")]
    Meta(String),
    #[error("{kind} {}: metadata.{field}: {key}: {value} is no text; quote it: {key}: \"{}\"", .name.as_deref().unwrap_or("without a name"), .value.trim_matches('"'))]
    NoText { kind: String, name: Option<String>, field: &'static str, key: String, value: String },
    #[error("it has no metadata.name")]
    NoName,
}

impl Object {
    /// Reads one object that is no List. An object of a kind that has a namespace, and says none, is in
    /// `default`.
    ///
    /// # Errors
    /// It lacks what every object has.
    pub fn read(mut value: Value) -> Result<Self, ObjectError> {
        let text = |value: &Value, key| value.get(key).and_then(Value::as_str).map(ToString::to_string);
        let (Some(api_version), Some(kind)) = (text(&value, "apiVersion"), text(&value, "kind")) else {
            return Err(ObjectError::NoKind);
        };
        let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
        let mut take = |key| value.get_mut(key).map(Value::take).unwrap_or_default();
        let mut meta = take("metadata");
        // What a manifest leaves empty is null.
        if let Value::Object(fields) = &mut meta {
            fields.retain(|_, value| !value.is_null());
        } else if meta.is_null() {
            return Err(ObjectError::NoName);
        }
        for field in ["labels", "annotations"] {
            let other = meta.get(field).and_then(Value::as_object).into_iter().flatten();
            if let Some((key, value)) = other.into_iter().find(|(_, value)| !value.is_string()) {
                return Err(ObjectError::NoText {
                    kind,
                    name: text(&meta, "name"),
                    field,
                    key: key.clone(),
                    value: value.to_string(),
                });
            }
        }
        let generated = text(&meta, "generateName");
        let mut meta: Meta = serde_json::from_value(meta).map_err(|e| ObjectError::Meta(e.to_string()))?;
        if meta.name.is_empty() {
            meta.name = generated.unwrap_or_default().into();
        }
        if meta.name.is_empty() {
            return Err(ObjectError::NoName);
        }
        if meta.namespace.is_empty() && !CLUSTER_SCOPED.contains(&&*kind) {
            meta.namespace = "default".into();
        }
        let (spec, status) = (take("spec"), take("status"));
        Ok(Self { group: group.into(), version: version.into(), kind: kind.into(), meta, spec, status })
    }

    pub fn is(&self, group: &str, kind: &str) -> bool {
        *self.group == *group && *self.kind == *kind
    }

    /// Of a group whose kinds are known one that there is not, and which may have been meant.
    pub fn no_such_kind(&self) -> Option<String> {
        let (_, kinds) = KINDS.iter().find(|(group, _)| **group == *self.group)?;
        if kinds.contains(&&*self.kind) {
            return None;
        }
        Some(format!("there is no {} of {}; there are {}", self.kind, self.group, kinds.join(", ")))
    }

    /// Applied in this order: those that are there at the end, and those that a later one has replaced. To an API
    /// server the version makes no other object.
    pub fn applied(objects: Vec<Self>) -> (Vec<Self>, Vec<Self>) {
        let mut seen = HashSet::new();
        let (mut kept, mut replaced) = (Vec::with_capacity(objects.len()), Vec::new());
        for object in objects.into_iter().rev() {
            let Meta { namespace, name, .. } = &object.meta;
            let key = (object.group.clone(), object.kind.clone(), namespace.clone(), name.clone());
            if seen.insert(key) { kept.push(object) } else { replaced.push(object) }
        }
        kept.reverse();
        replaced.reverse();
        (kept, replaced)
    }

    /// When it was made. What does not say is older than everything that does, as for everybody who sorts
    /// by this field.
    pub fn created(&self) -> Option<OffsetDateTime> {
        OffsetDateTime::parse(&self.meta.creation_timestamp, &Rfc3339).ok()
    }
}

/// Every kind of the groups that policies are of.
const KINDS: &[(&str, &[&str])] = &[
    (super::istio::GROUP, &["AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication"]),
    (
        super::linkerd::GROUP,
        &[
            "AuthorizationPolicy",
            "EgressNetwork",
            "HTTPLocalRateLimitPolicy",
            "HTTPRoute",
            "MeshTLSAuthentication",
            "NetworkAuthentication",
            "Server",
            "ServerAuthorization",
        ],
    ),
    (super::own::GROUP, &["Enforcement", "PlaintextException"]),
];

const CLUSTER_SCOPED: &[&str] = &["Namespace", "Node", "GatewayClass", "CustomResourceDefinition"];

/// Kubernetes' label selector. An empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    pub match_labels: BTreeMap<Arc<str>, Arc<str>>,
    pub match_expressions: Vec<LabelRequirement>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct LabelRequirement {
    pub key: Arc<str>,
    pub operator: LabelOperator,
    #[serde(default)]
    pub values: Vec<Arc<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum LabelOperator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl LabelSelector {
    pub fn selects(&self, labels: &BTreeMap<Arc<str>, Arc<str>>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.holds(labels))
    }
}

impl fmt::Display for LabelSelector {
    /// `app=web, tier in (a, b), !old`, as kubectl takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = self.match_labels.iter().map(|(key, value)| format!("{key}={value}"));
        let parts = labels.chain(self.match_expressions.iter().map(ToString::to_string));
        f.write_str(&parts.collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Display for LabelRequirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(", "));
        match self.operator {
            LabelOperator::In => write!(f, "{key} in ({values})"),
            LabelOperator::NotIn => write!(f, "{key} notin ({values})"),
            LabelOperator::Exists => write!(f, "{key}"),
            LabelOperator::DoesNotExist => write!(f, "!{key}"),
        }
    }
}

impl LabelRequirement {
    fn holds(&self, labels: &BTreeMap<Arc<str>, Arc<str>>) -> bool {
        let value = labels.get(&self.key);
        let listed = value.is_some_and(|value| self.values.contains(value));
        match self.operator {
            LabelOperator::In => listed,
            // What lacks the label altogether is selected too.
            LabelOperator::NotIn => !listed,
            LabelOperator::Exists => value.is_some(),
            LabelOperator::DoesNotExist => value.is_none(),
        }
    }
}
