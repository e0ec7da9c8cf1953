//! Policies that take each other's effect.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::{Action, Object, Policy, istio, linkerd};
use super::world::World;
use super::{Findings, Named, codes};
use crate::model::Workload;

pub(super) fn look(world: &World<'_>, found: &mut Findings) {
    shadows(world, found);
    names(world, found);
}

/// Whatever comes, it matches.
fn is_for_all(policy: &Policy) -> bool {
    let always = |group: &super::super::Group| {
        group.never.is_none() && group.rules.iter().all(|rule| rule.matches.is_empty())
    };
    policy.defect.is_some() || policy.groups.iter().any(always)
}

fn shadows(world: &World<'_>, found: &mut Findings) {
    let in_force = || world.applied.values().filter(|(policy, _)| !policy.dry_run);
    // By pod, the name of the first.
    let mut firsts: BTreeMap<(bool, &str), &Arc<Policy>> = BTreeMap::new();
    for (policy, pods) in in_force().filter(|(policy, _)| is_for_all(policy)) {
        let denies = policy.action == Action::Deny;
        for pod in pods.iter().filter(|_| denies || policy.action == Action::Allow) {
            let first = firsts.entry((denies, &*pod.uid)).or_insert(policy);
            if policy.key() < first.key() {
                *first = policy;
            }
        }
    }
    for (policy, pods) in in_force().filter(|(policy, _)| policy.action == Action::Allow) {
        for (denies, code) in [(true, &codes::DENIED_ANYWAY), (false, &codes::ALLOWED_ANYWAY)] {
            let by = |pod: &&Workload| firsts.get(&(denies, &*pod.uid)).copied();
            let all: Option<Vec<_>> = pods.iter().map(by).collect();
            let Some(first) = all.as_deref().and_then(<[_]>::first) else { continue };
            // Of two that allow everybody, neither is the one too many.
            if is_for_all(policy) && !denies {
                continue;
            }
            let does = if denies { "denies everything" } else { "allows everybody" };
            found.add(code, &policy.resource(), "", format!("{} {does}", first.resource()));
        }
    }
}

fn names(world: &World<'_>, found: &mut Findings) {
    let key = |object: &Object| (object.meta.namespace.clone(), object.meta.name.clone());
    let theirs: BTreeSet<_> = world.of_kind(linkerd::GROUP, "AuthorizationPolicy").map(key).collect();
    for own in world.of_kind(istio::GROUP, "AuthorizationPolicy").filter(|own| theirs.contains(&key(own))) {
        let kind = "AuthorizationPolicy.policy.linkerd.io";
        let other = Named::new(kind, &own.meta.namespace, &own.meta.name);
        found.add(&codes::SAME_NAME, own, "metadata.name", format!("there is {other} too"));
    }
}
