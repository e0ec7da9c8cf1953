//! Exceptions from mutual TLS: whom they are for, how long they hold, and whether they are of any use.

use super::super::own::{Exception, Standing};
use super::super::{Stance, Subject};
use super::world::{World, declared, is_undeclared, name, some};
use super::{Findings, codes};
use crate::model::{MtlsMode, Workload};

pub(super) fn look(world: &World<'_>, found: &mut Findings) {
    for exception in world.resources.own.exceptions() {
        standing(world, exception, found);
        if !world.pods.is_empty() {
            reach(world, exception, found);
        }
    }
}

fn standing(world: &World<'_>, exception: &Exception, found: &mut Findings) {
    let Some(now) = world.set.now() else { return };
    let (resource, until) = (&**exception.resource(), exception.until_text());
    match exception.standing(now) {
        Standing::Lapsed => {
            let message = format!("it lapsed at {until}: it admits nobody any more");
            found.add(&codes::LAPSED, resource, "spec.until", message);
        }
        Standing::LapsesSoon => {
            let message = format!("it lapses at {until}: from then on its clients need mutual TLS");
            found.add(&codes::LAPSES_SOON, resource, "spec.until", message);
        }
        Standing::InForce | Standing::Defective => {}
    }
}

fn reach(world: &World<'_>, exception: &Exception, found: &mut Findings) {
    let resource = &**exception.resource();
    let namespace = &resource.namespace;
    let pods: Vec<_> =
        world.pods_in(namespace).filter(|pod| exception.selects(&Subject::from(*pod))).collect();
    if pods.is_empty() {
        match exception.selector() {
            Some(selector) => {
                let message = format!("no pod of {namespace} has the labels {selector}");
                found.add(&codes::SELECTS_NOTHING, resource, "spec.selector", message);
            }
            None => {
                let message = format!("there is no pod in {namespace}, and it is for no other namespace's");
                found.add(&codes::EMPTY_NAMESPACE, resource, "metadata.namespace", message);
            }
        }
        return;
    }
    for port in exception.ports() {
        if is_undeclared(port, &pods) {
            let message = format!("no pod that it selects declares port {port}: {}", declared(&pods));
            found.add(&codes::UNDECLARED_PORT, resource, "spec.ports", message);
        }
    }
    if !pods.iter().any(|pod| asks_for_mtls(world, pod, exception)) {
        let pods = some(pods.into_iter().map(name));
        let message = format!("plaintext is let in without it on these ports of {pods}");
        found.add(&codes::NEEDLESS, resource, "", message);
    }
}

/// On one of its ports.
fn asks_for_mtls(world: &World<'_>, pod: &Workload, exception: &Exception) -> bool {
    let (mtls, _) = world.set.mtls(&Subject::from(pod));
    world.resources.settings.stance_of(&pod.namespace) == Stance::Mtls
        || exception.ports().into_iter().any(|port| mtls.on_port(port).0 == MtlsMode::Strict)
}
