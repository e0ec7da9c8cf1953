//! Istio's AuthorizationPolicies: whom they reach.

use serde_json::Value;

use super::super::{Object, istio};
use super::world::{World, match_labels};
use super::{Findings, codes, rules};
use crate::model::Workload;

pub(super) fn look(world: &World<'_>, found: &mut Findings) {
    for policy in world.of_kind(istio::GROUP, "AuthorizationPolicy") {
        let targets = targets(&policy.spec);
        if targets.is_empty() {
            reach(world, policy, found);
        } else {
            aimed(world, policy, &targets, found);
        }
        rules::look(world, policy, found);
    }
}

fn reach(world: &World<'_>, policy: &Object, found: &mut Findings) {
    if world.pods.is_empty() || !world.pods_of(policy).is_empty() {
        return;
    }
    let namespace = &policy.meta.namespace;
    match match_labels(&policy.spec) {
        Some(selector) => {
            let place = if world.is_root(namespace) { "the mesh" } else { &**namespace };
            let message = format!("no pod of {place} has the labels {selector}");
            found.add(&codes::SELECTS_NOTHING, policy, "spec.selector", message);
        }
        None => {
            let message = format!("there is no pod in {namespace}");
            found.add(&codes::EMPTY_NAMESPACE, policy, "metadata.namespace", message);
        }
    }
}

/// A policy with `targetRefs` is a waypoint's or gateway's.
fn aimed(world: &World<'_>, policy: &Object, targets: &[(String, &Value)], found: &mut Findings) {
    if world.pods.is_empty() {
        return;
    }
    let namespace = &*policy.meta.namespace;
    let text = |value: &Value, key| value.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    for (at, target) in targets {
        let (kind, name) = (text(target, "kind"), text(target, "name"));
        let waypoint = format!("{namespace}/{name}");
        let is_gateway = kind == "Gateway";
        let serves = |pod: &Workload| match &pod.facts.waypoint {
            None => false,
            // A waypoint may serve other namespaces than its own.
            Some(own) if is_gateway => **own == *waypoint,
            Some(_) => world.is_root(namespace) || *pod.namespace == *namespace,
        };
        let is_here = |gateway: &Object| *gateway.meta.namespace == *namespace && *gateway.meta.name == *name;
        let mut gateways = world.of_kind("gateway.networking.k8s.io", "Gateway");
        let served = world.pods.iter().any(|pod| serves(pod)) || is_gateway && gateways.any(is_here);
        if !served {
            let message =
                format!("it is for {kind} {name}, and no waypoint that would enforce it serves a pod");
            found.add(&codes::NO_WAYPOINT, policy, at, message);
        }
    }
}

fn targets(spec: &Value) -> Vec<(String, &Value)> {
    let mut targets = super::world::items(spec, "spec", "targetRefs");
    let one = spec.get("targetRef").filter(|one| one.is_object());
    targets.extend(one.map(|one| ("spec.targetRef".to_string(), one)));
    targets
}
