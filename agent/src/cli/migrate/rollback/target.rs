//! Whom a phase is taken back for.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::model::Workload;
use crate::policy::own::GROUP;
use crate::policy::{LabelSelector, Object, Settings};

/// `mesh`, `NAMESPACE`, or `NAMESPACE/KEY=VALUE[,KEY=VALUE]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Mesh,
    /// With labels: those of its workloads that have them.
    Namespace(Arc<str>, LabelSelector),
}

impl Target {
    /// Where its Enforcement is.
    pub fn namespace<'a>(&'a self, settings: &'a Settings) -> &'a Arc<str> {
        match self {
            Self::Mesh => &settings.root_namespace,
            Self::Namespace(namespace, _) => namespace,
        }
    }

    pub fn selector(&self) -> LabelSelector {
        match self {
            Self::Mesh => LabelSelector::default(),
            Self::Namespace(_, selector) => selector.clone(),
        }
    }

    pub fn has(&self, pod: &Workload) -> bool {
        match self {
            Self::Mesh => true,
            Self::Namespace(namespace, selector) => {
                pod.namespace == *namespace && selector.selects(&pod.facts.labels)
            }
        }
    }

    /// Whether this is an Enforcement for just them.
    pub fn is_of(&self, object: &Object, settings: &Settings) -> bool {
        let selector = match object.spec.get("selector") {
            None | Some(Value::Null) => Some(LabelSelector::default()),
            Some(written) => serde_json::from_value(written.clone()).ok(),
        };
        object.is(GROUP, "Enforcement")
            && object.meta.namespace == *self.namespace(settings)
            && selector.is_some_and(|selector| selector == self.selector())
    }

    /// What a new Enforcement's spec says of them.
    pub fn spec(&self, phase: &str) -> Value {
        let labels: Map<_, _> = self
            .selector()
            .match_labels
            .into_iter()
            .map(|(key, value)| (key.to_string(), json!(*value)))
            .collect();
        match labels.is_empty() {
            true => json!({"phase": phase}),
            false => json!({"phase": phase, "selector": {"matchLabels": labels}}),
        }
    }

    /// What a new Enforcement may be called.
    pub fn name(&self) -> String {
        let labels = self.selector().match_labels;
        if labels.is_empty() {
            return "phase".into();
        }
        let words: Vec<String> = labels
            .iter()
            .map(|(key, value)| format!("{}-{value}", key.rsplit('/').next().unwrap_or(key)))
            .collect();
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let name: String = words.join("-").chars().map(plain).take(MOST_OF_A_NAME).collect();
        name.trim_matches('-').to_string()
    }
}

const MOST_OF_A_NAME: usize = 50;

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (namespace, selector) = match self {
            Self::Mesh => return f.write_str("the mesh"),
            Self::Namespace(namespace, selector) => (namespace, selector),
        };
        if selector.match_labels.is_empty() {
            return write!(f, "namespace {namespace}");
        }
        write!(f, "the workloads of namespace {namespace} with")?;
        let mut pairs = selector.match_labels.iter();
        pairs.try_for_each(|(key, value)| write!(f, " {key}={value}"))
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = |what: &str| {
            Err(format!(
                "{what}; write mesh, a namespace, or NAMESPACE/KEY=VALUE[,KEY=VALUE] for workloads by label"
            ))
        };
        if text == "mesh" {
            return Ok(Self::Mesh);
        }
        // A namespace that is called mesh is mesh/.
        let (namespace, labels) = text.split_once('/').unwrap_or((text, ""));
        if namespace.is_empty()
            || !namespace.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        {
            return refused("it names no namespace");
        }
        let mut selector = LabelSelector::default();
        for pair in labels.split(',').filter(|_| !labels.is_empty()) {
            match pair.split_once('=') {
                Some((key, value)) if !key.is_empty() => {
                    selector.match_labels.insert(key.into(), value.into());
                }
                _ => return refused(&format!("{pair:?} is no label")),
            }
        }
        Ok(Self::Namespace(namespace.into(), selector))
    }
}
