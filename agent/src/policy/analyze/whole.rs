//! What needs no understanding of a single policy: defects that reading found, versions, namespaces, plaintext.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{Defect, DefectKind, Kind, Subject, istio, linkerd, own};
use super::world::{World, is_policy, name, some};
use super::{Findings, Named, codes};
use crate::model::MtlsMode;

pub(super) fn look(world: &World<'_>, found: &mut Findings) {
    if world.pods.is_empty() {
        found.add(&codes::NO_PODS, Named::new("Pod", "", ""), "", codes::NO_PODS.title);
    }
    defects(world, found);
    kinds(world, found);
    namespaces(world, found);
    plaintext(world, found);
}

fn defects(world: &World<'_>, found: &mut Findings) {
    let resources = &world.resources;
    for defect in world.set.defects() {
        add(defect, (&defect.resource).into(), found);
    }
    for pod in &world.pods {
        for defect in resources.linkerd.inbound(&Subject::from(*pod)).defects {
            // What the namespace says is told of the namespace.
            if !resources.linkerd.defects().contains(&defect) {
                add(&defect, Named::new("Pod", &pod.namespace, &pod.name), found);
            }
        }
    }
}

fn add(defect: &Defect, resource: Named, found: &mut Findings) {
    let annotation = defect.resource.kind == Kind::LinkerdDefault;
    let without_selector = defect.resource.kind == Kind::PeerAuthentication
        && defect.field == "spec.portLevelMtls"
        && !defect.message.contains("STRICT instead");
    let code = match defect.kind {
        DefectKind::Invalid if annotation => &codes::BAD_ANNOTATION,
        _ if without_selector => &codes::PORTS_WITHOUT_SELECTOR,
        DefectKind::Invalid => &codes::INVALID,
        DefectKind::Unsupported => &codes::UNSUPPORTED,
        DefectKind::Dangling => &codes::DANGLING,
    };
    let resource = match annotation && resource.kind != "Pod" {
        true => Named::new("Namespace", "", &defect.resource.namespace),
        false => resource,
    };
    found.add(code, resource, &defect.field, defect.message.clone());
}

fn kinds(world: &World<'_>, found: &mut Findings) {
    for object in world.objects.iter().filter(|object| is_policy(object)) {
        let ours = matches!(
            (&*object.group, &*object.kind),
            (istio::GROUP, "AuthorizationPolicy" | "PeerAuthentication")
                | (
                    linkerd::GROUP,
                    "Server"
                        | "ServerAuthorization"
                        | "AuthorizationPolicy"
                        | "MeshTLSAuthentication"
                        | "NetworkAuthentication"
                        | "HTTPRoute"
                        | "HTTPLocalRateLimitPolicy"
                )
                | (own::GROUP, "Enforcement" | "PlaintextException")
        );
        if let Some(message) = object.no_such_kind() {
            found.add(&codes::NO_SUCH_KIND, &**object, "kind", message);
        } else if !ours {
            let message = format!("nothing is done with a {} of {}", object.kind, object.group);
            found.add(&codes::UNKNOWN_KIND, &**object, "kind", message);
        } else if *object.group == *istio::GROUP && !matches!(&*object.version, "v1" | "v1beta1") {
            let message = format!("there is no {} of it: v1 or v1beta1", object.version);
            found.add(&codes::UNKNOWN_VERSION, &**object, "apiVersion", message);
        }
    }
    for object in &world.resources.replaced {
        let message = "it is there more than once: the last one holds, and the others are not looked at";
        found.add(&codes::TWICE, object, "metadata.name", message);
    }
}

fn namespaces(world: &World<'_>, found: &mut Findings) {
    for object in world.objects.iter().filter(|object| is_policy(object)) {
        let namespace = &object.meta.namespace;
        if !world.has_namespace(namespace) && !world.is_root(namespace) {
            let message = format!("there is no namespace {namespace}");
            found.add(&codes::NO_NAMESPACE, &**object, "metadata.namespace", message);
        }
    }
}

fn plaintext(world: &World<'_>, found: &mut Findings) {
    let mut open: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for pod in &world.pods {
        let (mtls, _) = world.set.mtls(&Subject::from(*pod));
        let ports: Vec<_> = mtls.ports.iter().filter(|(_, mode)| **mode == MtlsMode::Permissive).collect();
        let of = open.entry(&pod.namespace).or_default();
        if mtls.mode == MtlsMode::Permissive {
            of.insert(name(pod));
        } else {
            of.extend(ports.iter().map(|(port, _)| format!("{} port {port}", name(pod))));
        }
    }
    for (namespace, pods) in open.into_iter().filter(|(_, pods)| !pods.is_empty()) {
        let all = world.pods_in(namespace).count();
        let message = format!("plaintext is let in to {} of {all} pods: {}", pods.len(), some(pods));
        found.add(&codes::PLAINTEXT, Named::new("Namespace", "", namespace), "", message);
    }
}
