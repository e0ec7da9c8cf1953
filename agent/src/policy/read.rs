//! Reads the JSON of a resource, and notes what of it cannot be taken as it stands.

use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::object::{LabelOperator, LabelRequirement, LabelSelector};
use super::resource::{Defect, DefectKind, ResourceRef};

/// What is wrong with one resource.
pub(super) struct Faults {
    pub(super) resource: ResourceRef,
    /// What holds of a resource that is broken, for the reader of the defect.
    holds: &'static str,
    pub(super) defects: Vec<Defect>,
    broken: Option<Arc<str>>,
}

impl Faults {
    pub(super) fn new(resource: ResourceRef, holds: &'static str) -> Self {
        Self { resource, holds, defects: Vec::new(), broken: None }
    }

    /// It cannot be taken: the resource is broken by it.
    pub(super) fn refuse(&mut self, kind: DefectKind, field: &str, what: impl Display) {
        let message = format!("{what}; {}", self.holds);
        self.broken.get_or_insert_with(|| format!("{field}: {what}").into());
        self.tell(kind, field, message);
    }

    pub(super) fn invalid(&mut self, field: &str, what: impl Display) {
        self.refuse(DefectKind::Invalid, field, what);
    }

    /// Whoever wrote it should know; what it means is clear.
    pub(super) fn tell(&mut self, kind: DefectKind, field: &str, message: impl Into<String>) {
        let (resource, field) = (self.resource.clone(), field.to_string());
        self.defects.push(Defect { resource, field, kind, message: message.into() });
    }

    /// The first reason why the resource cannot be taken.
    pub(super) fn broken(&self) -> Option<Arc<str>> {
        self.broken.clone()
    }
}

/// A value and where it stands.
pub(super) struct Node<'a> {
    value: &'a Value,
    pub(super) path: String,
}

impl<'a> Node<'a> {
    pub(super) fn spec(value: &'a Value) -> Self {
        Self { value, path: "spec".into() }
    }

    /// Its fields, of which there may be no others than these.
    pub(super) fn fields(&self, known: &[&str], faults: &mut Faults) -> Fields<'a> {
        let fields = self.any_fields(faults);
        for (key, value) in fields.object.into_iter().flatten() {
            if !known.contains(&key.as_str()) && !value.is_null() {
                faults.invalid(&format!("{}.{key}", self.path), "there is no such field");
            }
        }
        fields
    }

    pub(super) fn any_fields(&self, faults: &mut Faults) -> Fields<'a> {
        let object = self.value.as_object();
        if object.is_none() {
            faults.invalid(&self.path, "it is no object");
        }
        Fields { object, path: self.path.clone() }
    }

    pub(super) fn text(&self, faults: &mut Faults) -> Option<&'a str> {
        let text = self.value.as_str();
        if text.is_none() {
            faults.invalid(&self.path, format_args!("{} is no text", self.value));
        }
        text
    }

    /// A text that names something.
    pub(super) fn name(&self, faults: &mut Faults) -> Option<&'a str> {
        let text = self.text(faults)?;
        if text.is_empty() {
            faults.invalid(&self.path, "it is empty");
            return None;
        }
        Some(text)
    }

    pub(super) fn truth(&self, faults: &mut Faults) -> Option<bool> {
        let truth = self.value.as_bool();
        if truth.is_none() {
            faults.invalid(&self.path, format_args!("{} is neither true nor false", self.value));
        }
        truth
    }

    pub(super) fn items(&self, faults: &mut Faults) -> Vec<Node<'a>> {
        let Some(items) = self.value.as_array() else {
            faults.invalid(&self.path, "it is no list");
            return Vec::new();
        };
        let item = |(index, value)| Node { value, path: format!("{}[{index}]", self.path) };
        items.iter().enumerate().map(item).collect()
    }

    pub(super) fn value(&self) -> &'a Value {
        self.value
    }

    pub(super) fn network(&self, faults: &mut Faults) -> Option<IpNet> {
        let text = self.text(faults)?;
        let net = text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        if net.is_none() {
            faults.invalid(&self.path, format_args!("{text:?} is no address range"));
        }
        net
    }

    /// What of it cannot be read is left out, so that it selects more.
    pub(super) fn selector(&self, faults: &mut Faults) -> LabelSelector {
        let mut selector = LabelSelector::default();
        let fields = self.fields(&["matchLabels", "matchExpressions"], faults);
        if let Some(labels) = fields.get("matchLabels") {
            for (key, value) in labels.any_fields(faults).nodes() {
                if let Some(value) = value.text(faults) {
                    selector.match_labels.insert(key.into(), value.into());
                }
            }
        }
        for item in fields.items("matchExpressions", faults) {
            selector.match_expressions.extend(item.requirement(faults));
        }
        selector
    }

    fn requirement(&self, faults: &mut Faults) -> Option<LabelRequirement> {
        let fields = self.fields(&["key", "operator", "values"], faults);
        let key = fields.required("key", faults)?.name(faults)?;
        let node = fields.required("operator", faults)?;
        let operator = match node.text(faults)? {
            "In" => LabelOperator::In,
            "NotIn" => LabelOperator::NotIn,
            "Exists" => LabelOperator::Exists,
            "DoesNotExist" => LabelOperator::DoesNotExist,
            other => {
                faults.invalid(&node.path, format_args!("{other:?} is no operator"));
                return None;
            }
        };
        let mut values = Vec::new();
        for value in fields.items("values", faults) {
            values.push(value.text(faults)?.into());
        }
        if matches!(operator, LabelOperator::In | LabelOperator::NotIn) == values.is_empty() {
            let takes = if values.is_empty() { "needs values" } else { "takes no values" };
            faults.invalid(&format!("{}.values", self.path), format_args!("{operator:?} {takes}"));
            return None;
        }
        Some(LabelRequirement { key: key.into(), operator, values })
    }
}

/// The fields of an object; one that is null is not there, as when the API server stores it.
pub(super) struct Fields<'a> {
    object: Option<&'a Map<String, Value>>,
    path: String,
}

impl<'a> Fields<'a> {
    pub(super) fn get(&self, key: &str) -> Option<Node<'a>> {
        let value = self.object?.get(key).filter(|value| !value.is_null())?;
        Some(Node { value, path: format!("{}.{key}", self.path) })
    }

    pub(super) fn required(&self, key: &str, faults: &mut Faults) -> Option<Node<'a>> {
        let node = self.get(key);
        if node.is_none() {
            faults.invalid(&format!("{}.{key}", self.path), "it is missing");
        }
        node
    }

    pub(super) fn items(&self, key: &str, faults: &mut Faults) -> Vec<Node<'a>> {
        self.get(key).map(|node| node.items(faults)).unwrap_or_default()
    }

    pub(super) fn path(&self, key: &str) -> String {
        format!("{}.{key}", self.path)
    }

    fn nodes(&self) -> Vec<(&'a str, Node<'a>)> {
        let node = |(key, value): (&'a String, &'a Value)| {
            (key.as_str(), Node { value, path: format!("{}.{key}", self.path) })
        };
        self.object.into_iter().flatten().map(node).collect()
    }
}

/// Which object another one names.
pub(super) struct Reference<'a> {
    pub(super) group: &'a str,
    pub(super) kind: &'a str,
    /// Empty where it is not said.
    pub(super) name: &'a str,
    /// None: the own one.
    pub(super) namespace: Option<&'a str>,
}

impl<'a> Reference<'a> {
    /// None: it cannot be read, which is noted.
    pub(super) fn read(node: &Node<'a>, known: &[&str], faults: &mut Faults) -> Option<Self> {
        let fields = node.fields(known, faults);
        let kind = fields.required("kind", faults)?.name(faults)?;
        let mut text = |key, default| match fields.get(key) {
            None => Some(default),
            Some(node) => node.text(faults).map(Some),
        };
        let group = text("group", None)?.unwrap_or_default();
        let name = text("name", None)?.unwrap_or_default();
        let namespace = text("namespace", None)?;
        // Both spellings of Kubernetes' own group are in use.
        let group = if group.eq_ignore_ascii_case("core") { "" } else { group };
        Some(Self { group, kind, name, namespace })
    }

    pub(super) fn is(&self, group: &str, kind: &str) -> bool {
        self.group.eq_ignore_ascii_case(group) && self.kind.eq_ignore_ascii_case(kind)
    }

    /// `Kind.group`, for messages.
    pub(super) fn title(&self) -> String {
        match self.group {
            "" => self.kind.to_string(),
            group => format!("{}.{group}", self.kind),
        }
    }
}
