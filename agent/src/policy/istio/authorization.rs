//! One AuthorizationPolicy.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::list::{Effect, Reader};
use super::{Labels, rule, selector, selects, targets};
use crate::policy::{Action, Defect, DefectKind, Group, Kind, Object, Policy, ResourceRef, Scope, Settings};

#[derive(Debug)]
pub(super) struct Authorization {
    pub policy: Arc<Policy>,
    selector: Labels,
    /// What it is aimed at, where that is not the workloads themselves.
    pub targets: Option<String>,
}

impl Authorization {
    pub fn read(object: &Object, settings: &Settings, defects: &mut Vec<Defect>) -> Self {
        let resource = ResourceRef {
            kind: Kind::IstioAuthorizationPolicy,
            namespace: object.meta.namespace.clone(),
            name: object.meta.name.clone(),
        };
        let none = Map::new();
        let spec = object.spec.as_object().unwrap_or(&none);
        let mut whole = Whole { resource: &resource, defects, defect: None };
        if !object.spec.is_object() && !object.spec.is_null() {
            whole.refuse("spec", DefectKind::Invalid, "it is no object");
        }
        let (action, effect) = whole.action(spec.get("action"));
        let selector = selector(spec.get("selector"), |field, what| {
            whole.refuse(field, DefectKind::Invalid, what);
        });
        let targets = targets::read(&mut whole, spec, settings);
        let defect = whole.defect;

        let mut reader = Reader { resource: &resource, effect, defects, broken: None };
        reader.unknown_fields(
            "spec",
            spec,
            &["action", "provider", "rules", "selector", "targetRef", "targetRefs"],
        );
        let mut all_broken = reader.broken.take();
        let mut groups = Vec::new();
        match spec.get("rules") {
            None | Some(Value::Null) => {}
            Some(Value::Array(rules)) => {
                for (at, value) in rules.iter().enumerate() {
                    let group = rule::read(&mut reader, &format!("spec.rules[{at}]"), value, settings);
                    groups.push(Group { never: group.never.or_else(|| all_broken.clone()), ..group });
                }
            }
            Some(_) => {
                reader.defect("spec.rules", DefectKind::Invalid, "it is no list");
                all_broken = reader.broken.take();
            }
        }
        // Something of the policy as a whole is not understood: what it says may not be all that it denies.
        if let (Some(_), Effect::Denies) = (&all_broken, effect) {
            groups = vec![Group::default()];
        }
        let dry_run = object.meta.annotations.get("istio.io/dry-run").is_some_and(|value| is_true(value));
        let policy = Policy {
            kind: Kind::IstioAuthorizationPolicy,
            namespace: resource.namespace.clone(),
            name: resource.name.clone(),
            scope: Scope::Namespace,
            action,
            dry_run,
            groups,
            defect,
        };
        Self { policy: Arc::new(policy), selector: selector.unwrap_or_default(), targets }
    }

    pub fn selects(&self, labels: &Labels) -> bool {
        self.targets.is_none() && selects(&self.selector, labels)
    }
}

/// Go's `strconv.ParseBool`.
fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

/// The parts that say to what and to which end the policy applies: a policy of which these are not understood
/// denies everything that it may apply to.
pub(in crate::policy) struct Whole<'a> {
    pub resource: &'a ResourceRef,
    pub defects: &'a mut Vec<Defect>,
    pub defect: Option<Arc<str>>,
}

impl Whole<'_> {
    pub fn refuse(&mut self, field: &str, kind: DefectKind, what: &str) {
        self.defect.get_or_insert_with(|| format!("{field}: {what}").into());
        self.add(field, kind, format!("{what}; everything that the policy applies to is denied"));
    }

    fn add(&mut self, field: &str, kind: DefectKind, message: String) {
        self.defects.push(Defect {
            resource: self.resource.clone(),
            field: field.to_string(),
            kind,
            message,
        });
    }

    fn action(&mut self, value: Option<&Value>) -> (Action, Effect) {
        match value.unwrap_or(&Value::Null) {
            Value::Null => (Action::Allow, Effect::Admits),
            Value::String(text) => match &**text {
                "ALLOW" => (Action::Allow, Effect::Admits),
                "DENY" => (Action::Deny, Effect::Denies),
                "AUDIT" => (Action::Audit, Effect::Admits),
                "CUSTOM" => {
                    let what = "an external authorizer cannot be asked by a node agent; what the rules match is denied";
                    self.add("spec.action", DefectKind::Unsupported, what.to_string());
                    (Action::Deny, Effect::Denies)
                }
                other => self.no_action(&format!("{other:?}")),
            },
            other => self.no_action(&other.to_string()),
        }
    }

    fn no_action(&mut self, value: &str) -> (Action, Effect) {
        let what = format!("{value} is no action: ALLOW, DENY, AUDIT or CUSTOM");
        self.refuse("spec.action", DefectKind::Invalid, &what);
        (Action::Deny, Effect::Denies)
    }
}
