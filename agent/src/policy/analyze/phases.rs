//! Enforcements: what they leave open, and which of them do nothing.

use std::collections::BTreeSet;

use super::super::object::LabelSelector;
use super::super::own::{self, Phase};
use super::super::{Object, Subject};
use super::world::{World, name, some};
use super::{Findings, codes};
use crate::model::{MtlsMode, Workload};

pub(super) fn look(world: &World<'_>, found: &mut Findings) {
    let mut all: Vec<_> = world.of_kind(own::GROUP, "Enforcement").collect();
    all.sort_by_key(|object| (object.created(), &object.meta.name));
    for (at, object) in all.iter().enumerate() {
        let selector = selector(object);
        let decides = decided_by(world, object);
        opens(world, object, &decides, found);
        reach(world, object, selector.as_ref(), found);
        let older = all[..at]
            .iter()
            .find(|older| older.meta.namespace == object.meta.namespace && self::selector(older) == selector);
        if let Some(older) = older {
            let message = format!("{} is older, or of one age and before it by name", older.meta.name);
            found.add(&codes::NOT_THE_OLDEST_PHASE, *object, "", message);
        }
    }
}

/// None where it selects nobody in particular, or cannot be read, which is a defect.
fn selector(object: &Object) -> Option<LabelSelector> {
    let written = object.spec.get("selector").filter(|selector| !selector.is_null())?;
    let selector = serde_json::from_value::<LabelSelector>(written.clone()).ok()?;
    (selector != LabelSelector::default()).then_some(selector)
}

/// The pods whose phase this one sets.
fn decided_by<'a>(world: &World<'a>, object: &Object) -> Vec<&'a Workload> {
    let is_by = |pod: &&Workload| {
        let by = world.resources.own.phase(&Subject::from(*pod)).by;
        by.is_some_and(|(by, _)| by.namespace == object.meta.namespace && by.name == object.meta.name)
    };
    world.pods.iter().copied().filter(is_by).collect()
}

fn opens(world: &World<'_>, object: &Object, pods: &[&Workload], found: &mut Findings) {
    let whom = || some(pods.iter().map(|pod| name(pod)));
    let phase = pods.first().map(|pod| world.resources.own.phase(&Subject::from(*pod)).phase);
    let strict = pods.iter().filter(|pod| {
        let (mtls, _) = world.set.mtls(&Subject::from(**pod));
        mtls.mode == MtlsMode::Strict || mtls.ports.values().any(|mode| *mode == MtlsMode::Strict)
    });
    let strict = strict.count();
    match phase {
        Some(Phase::Observe) => {
            let compiled = pods.iter().map(|pod| world.set.compile(&Subject::from(*pod)));
            let policies: BTreeSet<_> =
                compiled.flat_map(|one| one.policy_names().cloned().collect::<Vec<_>>()).collect();
            let message = format!(
                "nothing is refused by policy at {}: {} policies of Istio's and STRICT at {strict} of {} pods are only told of",
                whom(),
                policies.len(),
                pods.len()
            );
            found.add(&codes::OBSERVED, object, "spec.phase", message);
        }
        Some(Phase::Permissive) => {
            let message =
                format!("plaintext is let in to {}, of which {strict} of {} are STRICT", whom(), pods.len());
            found.add(&codes::PERMITTED, object, "spec.phase", message);
        }
        Some(Phase::Enforce) | None => {}
    }
}

fn reach(world: &World<'_>, object: &Object, selector: Option<&LabelSelector>, found: &mut Findings) {
    let namespace = &object.meta.namespace;
    let mut pods = world.pods_in(namespace);
    if world.pods.is_empty() {
        return;
    }
    match selector {
        Some(selector) if !pods.any(|pod| selector.selects(&pod.facts.labels)) => {
            let message = format!("no pod of {namespace} has the labels {selector}");
            found.add(&codes::SELECTS_NOTHING, object, "spec.selector", message);
        }
        None if !world.is_root(namespace) && pods.next().is_none() => {
            let message = format!("there is no pod in {namespace}");
            found.add(&codes::EMPTY_NAMESPACE, object, "metadata.namespace", message);
        }
        _ => {}
    }
}
