//! `targetRefs`: the waypoint or gateway that a policy is left to.

use serde_json::{Map, Value};

use super::authorization::Whole;
use crate::policy::{DefectKind, Settings};

/// As Istio's schema says.
const MOST: usize = 16;

/// What Istio lets a policy be aimed at, by group and kind.
const KINDS: &[(&str, &str)] = &[
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", GATEWAY_CLASS),
    ("", "Service"),
    ("core", "Service"),
    ("networking.istio.io", "ServiceEntry"),
];

const GATEWAY_CLASS: &str = "GatewayClass";

/// None: no proxy takes the policy off the workloads, because there are no targets, or none that Istio would take.
pub(super) fn read(whole: &mut Whole<'_>, spec: &Map<String, Value>, settings: &Settings) -> Option<String> {
    let given = |name: &str| spec.get(name).filter(|value| !value.is_null());
    let is_root = *whole.resource.namespace == *settings.root_namespace;
    let mut wrong = Vec::new();
    let mut targets = Vec::new();
    let mut one = |field: &str, value: &Value, wrong: &mut Vec<_>| match target(value, is_root) {
        Ok(target) => targets.push(target),
        Err((name, what)) => wrong.push((format!("{field}{name}"), what)),
    };
    let mut several = false;
    match given("targetRefs") {
        None => {}
        Some(Value::Array(refs)) => {
            several = !refs.is_empty();
            if refs.len() > MOST {
                wrong.push(("spec.targetRefs".into(), format!("they are more than {MOST}")));
            }
            for (at, value) in refs.iter().enumerate() {
                one(&format!("spec.targetRefs[{at}]"), value, &mut wrong);
            }
        }
        Some(_) => wrong.push(("spec.targetRefs".into(), "it is no list".into())),
    }
    if let Some(value) = given("targetRef") {
        one("spec.targetRef", value, &mut wrong);
        if several {
            wrong.push(("spec.targetRef".into(), "a policy has a targetRef or targetRefs, not both".into()));
        }
    }
    if given("selector").is_some() && (several || given("targetRef").is_some()) {
        wrong.push(("spec.selector".into(), "a policy has a selector or targetRefs, not both".into()));
    }
    for (field, what) in &wrong {
        whole.refuse(field, DefectKind::Invalid, what);
    }
    (wrong.is_empty() && !targets.is_empty()).then(|| targets.join(", "))
}

/// `Kind name`; or which field is wrong, and why.
fn target(value: &Value, is_root: bool) -> Result<String, (String, String)> {
    let Some(fields) = value.as_object() else { return Err((String::new(), "it is no object".into())) };
    if let Some(name) =
        fields.keys().find(|name| !["group", "kind", "name", "namespace"].contains(&name.as_str()))
    {
        return Err((format!(".{name}"), "there is no such field".into()));
    }
    let text = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(&**text),
        Some(other) => Err((format!(".{name}"), format!("{other} is no string"))),
    };
    let (group, kind, name, namespace) = (text("group")?, text("kind")?, text("name")?, text("namespace")?);
    for (field, text) in [("kind", kind), ("name", name)] {
        if text.is_empty() {
            return Err((format!(".{field}"), "it is missing".into()));
        }
    }
    if !KINDS.contains(&(group, kind)) {
        let what = format!(
            "{kind} of {group:?} is nothing that a policy can be aimed at: Gateway and GatewayClass of \
             gateway.networking.k8s.io, Service, ServiceEntry of networking.istio.io"
        );
        return Err((".kind".into(), what));
    }
    if !namespace.is_empty() {
        return Err((".namespace".into(), "a policy is aimed at what is in its own namespace".into()));
    }
    if kind == GATEWAY_CLASS && !is_root {
        return Err((".kind".into(), "a GatewayClass is for policies of the root namespace".into()));
    }
    Ok(format!("{kind} {name}"))
}
