//! PeerAuthentications: which of several holds, and what they open.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use time::OffsetDateTime;

use super::super::object::LabelSelector;
use super::super::{Object, istio};
use super::world::{World, declared, is_undeclared, match_labels, name, some};
use super::{Findings, Named, codes};
use crate::model::Workload;

struct Peer<'w> {
    object: &'w Object,
    selector: Option<LabelSelector>,
    /// As it is written; none is UNSET.
    mode: Option<&'w str>,
}

impl<'w> Peer<'w> {
    fn new(object: &'w Object) -> Self {
        let mode = object.spec.get("mtls").and_then(mode);
        Self { object, selector: match_labels(&object.spec), mode }
    }

    fn age(&self) -> (Option<OffsetDateTime>, &Arc<str>) {
        (self.object.created(), &self.object.meta.name)
    }

    fn ports(&self) -> impl Iterator<Item = (&'w String, Option<&'w str>)> + use<'w> {
        let ports = self.object.spec.get("portLevelMtls").and_then(Value::as_object);
        ports.into_iter().flatten().map(|(port, value)| (port, mode(value)))
    }
}

fn mode(value: &Value) -> Option<&str> {
    value.get("mode").and_then(Value::as_str).filter(|mode| *mode != "UNSET")
}

fn is_open(mode: &str) -> bool {
    matches!(mode, "PERMISSIVE" | "DISABLE")
}

pub(super) fn look(world: &World<'_>, found: &mut Findings) {
    let mut peers: Vec<_> = world.of_kind(istio::GROUP, "PeerAuthentication").map(Peer::new).collect();
    peers.sort_by(|a, b| a.age().cmp(&b.age()));
    for peer in &peers {
        own(world, peer, found);
        reach(world, peer, found);
        opens(world, &peers, peer, found);
    }
    levels(world, &peers, found);
}

fn own(world: &World<'_>, peer: &Peer<'_>, found: &mut Findings) {
    if world.is_root(&peer.object.meta.namespace) && peer.selector.is_some() {
        let message = "the root namespace's are for the whole mesh, and have no selector";
        found.add(&codes::ROOT_SELECTOR, peer.object, "spec.selector", message);
    }
    if peer.mode.is_none() && !peer.ports().any(|(_, mode)| mode.is_some()) {
        let message = "it sets no mode: what the namespace or the mesh says holds";
        found.add(&codes::SETS_NOTHING, peer.object, "spec.mtls", message);
    }
    let modes = peer.ports().map(|(port, mode)| (format!("spec.portLevelMtls[{port}]"), mode));
    for (field, mode) in modes.chain([("spec.mtls".to_string(), peer.mode)]) {
        if mode == Some("DISABLE") {
            found.add(&codes::DISABLED, peer.object, &field, "DISABLE counts as PERMISSIVE");
        }
    }
}

fn selected<'a>(world: &World<'a>, peer: &Peer<'_>) -> Vec<&'a Workload> {
    let selector = peer.selector.as_ref();
    let of = |pod: &&Workload| selector.is_none_or(|selector| selector.selects(&pod.facts.labels));
    world.pods_in(&peer.object.meta.namespace).filter(of).collect()
}

fn reach(world: &World<'_>, peer: &Peer<'_>, found: &mut Findings) {
    let namespace = &peer.object.meta.namespace;
    if world.pods.is_empty() || world.is_root(namespace) {
        return;
    }
    let pods = selected(world, peer);
    match &peer.selector {
        Some(selector) if pods.is_empty() => {
            let message = format!("no pod of {namespace} has the labels {selector}");
            found.add(&codes::SELECTS_NOTHING, peer.object, "spec.selector", message);
        }
        None if pods.is_empty() => {
            let message = format!("there is no pod in {namespace}");
            found.add(&codes::EMPTY_NAMESPACE, peer.object, "metadata.namespace", message);
        }
        None => {}
        Some(_) => {
            for (port, _) in peer.ports() {
                if port.parse().is_ok_and(|port| is_undeclared(port, &pods)) {
                    let message = format!("no pod that it selects declares port {port}: {}", declared(&pods));
                    let field = format!("spec.portLevelMtls[{port}]");
                    found.add(&codes::MTLS_PORT, peer.object, &field, message);
                }
            }
        }
    }
}

/// Below STRICT of the mesh, the namespace or the workload itself.
fn opens(world: &World<'_>, peers: &[Peer<'_>], peer: &Peer<'_>, found: &mut Findings) {
    let namespace = &peer.object.meta.namespace;
    let root = world.is_root(namespace);
    let whole = |namespace: &str| {
        peers.iter().find(|one| one.selector.is_none() && *one.object.meta.namespace == *namespace)
    };
    let mesh = whole(&world.resources.settings.root_namespace);
    let above = match (root, &peer.selector) {
        (true, _) => None,
        (false, None) => mesh,
        (false, Some(_)) => whole(namespace).filter(|one| one.mode.is_some()).or(mesh),
    };
    let strict = above.filter(|above| above.mode == Some("STRICT"));
    if let (Some(mode), Some(above)) = (peer.mode.filter(|mode| is_open(mode)), strict) {
        let message = format!("{mode}, while {} says STRICT", Named::from(above.object));
        found.add(&codes::OPENS, peer.object, "spec.mtls.mode", message);
    }
    if peer.selector.is_none() || root {
        return;
    }
    let own = match peer.mode {
        Some("STRICT") => Some("it".to_string()),
        Some(_) => None,
        None => strict.map(|above| Named::from(above.object).to_string()),
    };
    for (port, mode) in peer.ports() {
        if let (Some(mode), Some(who)) = (mode.filter(|mode| is_open(mode)), &own) {
            let field = format!("spec.portLevelMtls[{port}]");
            let message = format!("{mode} on port {port}, while {who} says STRICT");
            found.add(&codes::OPENS, peer.object, &field, message);
        }
    }
}

/// Peers are sorted: the first of a level holds.
fn levels(world: &World<'_>, peers: &[Peer<'_>], found: &mut Findings) {
    let mut wholes: BTreeMap<&str, &Peer<'_>> = BTreeMap::new();
    for peer in peers.iter().filter(|peer| peer.selector.is_none()) {
        let namespace = &*peer.object.meta.namespace;
        match wholes.get(namespace) {
            None => drop(wholes.insert(namespace, peer)),
            Some(first) => {
                let level = if world.is_root(namespace) { "mesh" } else { "namespace" };
                let message =
                    format!("{} holds for the {level}: {}", first.object.meta.name, why(first, peer));
                found.add(&codes::NOT_THE_OLDEST, peer.object, "", message);
            }
        }
    }
    // By loser and winner.
    let mut pods: BTreeMap<(usize, usize), Vec<&Workload>> = BTreeMap::new();
    for pod in world.pods.iter().filter(|pod| !world.is_root(&pod.namespace)) {
        let selecting = |(at, peer): (usize, &Peer<'_>)| {
            let selector = peer.selector.as_ref()?;
            let own = *peer.object.meta.namespace == *pod.namespace;
            (own && selector.selects(&pod.facts.labels)).then_some(at)
        };
        let mut selecting = peers.iter().enumerate().filter_map(selecting);
        let Some(first) = selecting.next() else { continue };
        for other in selecting {
            pods.entry((other, first)).or_default().push(pod);
        }
    }
    for ((loser, winner), pods) in pods {
        let (loser, winner) = (&peers[loser], &peers[winner]);
        let pods = some(pods.into_iter().map(name));
        let message = format!("{} holds for {pods}: {}", winner.object.meta.name, why(winner, loser));
        found.add(&codes::NOT_THE_OLDEST, loser.object, "spec.selector", message);
    }
}

fn why(winner: &Peer<'_>, loser: &Peer<'_>) -> &'static str {
    match winner.object.created() == loser.object.created() {
        true => "they are of one age, and its name is before this one's",
        false => "it is the older one",
    }
}
