//! Linkerd's resources: which Servers and authorizations reach anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::super::linkerd::{GROUP, Otherwise};
use super::super::object::LabelSelector;
use super::super::{Kind, Object, ResourceRef, Subject};
use super::world::{World, declared, is_undeclared, items, name, some, texts};
use super::{Findings, codes};
use crate::model::{SpiffeId, Workload};

pub(super) fn look(world: &World<'_>, found: &mut Findings) {
    for server in world.of_kind(GROUP, "Server") {
        self::server(world, server, found);
    }
    ports(world, found);
    for authorization in world.of_kind(GROUP, "ServerAuthorization") {
        server_authorization(world, authorization, found);
    }
    for policy in world.of_kind(GROUP, "AuthorizationPolicy") {
        authorization_policy(world, policy, found);
    }
    for authentication in world.of_kind(GROUP, "MeshTLSAuthentication") {
        mesh_tls(world, authentication, found);
    }
    unused(world, found);
}

/// Tells of an account that no pod runs as.
pub(super) fn runs(
    world: &World<'_>,
    resource: &Object,
    at: &str,
    namespace: &str,
    account: &str,
    found: &mut Findings,
) {
    if world.pods.is_empty() {
    } else if !world.has_namespace(namespace) {
        found.add(&codes::UNKNOWN_NAMESPACE, resource, at, format!("there is no namespace {namespace}"));
    } else if !world.has_account(namespace, account) {
        let message = format!("no pod runs as service account {namespace}/{account}");
        found.add(&codes::UNKNOWN_ACCOUNT, resource, at, message);
    }
}

fn selector(value: Option<&Value>) -> Option<LabelSelector> {
    serde_json::from_value(value?.clone()).ok()
}

fn server(world: &World<'_>, server: &Object, found: &mut Findings) {
    let namespace = &*server.meta.namespace;
    let Some(selector) = selector(server.spec.get("podSelector")).filter(|_| !world.pods.is_empty()) else {
        return;
    };
    let pods: Vec<&Workload> =
        world.pods_in(namespace).filter(|pod| selector.selects(&pod.facts.labels)).collect();
    if pods.is_empty() {
        let message = format!("no pod of {namespace} is selected");
        found.add(&codes::SELECTS_NOTHING, server, "spec.podSelector", message);
        return;
    }
    let port = server.spec.get("port").unwrap_or(&Value::Null);
    let number = port.as_u64().and_then(|port| u16::try_from(port).ok());
    let missing = match (number, port.as_str()) {
        (Some(number), _) => is_undeclared(number, &pods),
        (_, Some(text)) => !pods.iter().flat_map(|pod| &pod.facts.ports).any(|port| *port.name == *text),
        _ => false,
    };
    if missing {
        let message = format!("no pod that it selects declares port {port}: {}", declared(&pods));
        found.add(&codes::SERVER_PORT, server, "spec.port", message);
    }
}

/// What becomes of each port of each pod.
fn ports(world: &World<'_>, found: &mut Findings) {
    let mut shared: BTreeMap<(ResourceRef, ResourceRef), BTreeSet<String>> = BTreeMap::new();
    let mut closed: BTreeSet<ResourceRef> = BTreeSet::new();
    for pod in &world.pods {
        let inbound = world.resources.linkerd.inbound(&Subject::from(*pod));
        for (port, policy) in inbound.ports.iter().filter(|(_, policy)| policy.by.kind == Kind::Server) {
            for loser in &policy.shadowed {
                let of = shared.entry(((**loser).clone(), (*policy.by).clone())).or_default();
                of.insert(format!("{} port {port}", name(pod)));
            }
            let own = |kind| !matches!(kind, Kind::LinkerdDefault);
            let nobody = !policy.authorizations.iter().any(|one| own(one.policy.kind));
            if nobody
                && policy.routes.is_empty()
                && policy.otherwise == Otherwise::Deny
                && policy.broken.is_none()
            {
                closed.insert((*policy.by).clone());
            }
        }
    }
    for ((loser, winner), ports) in shared {
        let message = format!("{winner} holds at {}", some(ports));
        found.add(&codes::SERVERS_SHARE, &loser, "spec.port", message);
    }
    for server in closed {
        found.add(&codes::SERVER_CLOSED, &server, "", "nobody is authorized for it, so nobody is admitted");
    }
}

fn servers_in<'w>(world: &'w World<'_>, namespace: &'w str) -> impl Iterator<Item = &'w Object> {
    world.of_kind(GROUP, "Server").filter(move |server| *server.meta.namespace == *namespace)
}

fn server_authorization(world: &World<'_>, authorization: &Object, found: &mut Findings) {
    let namespace = &*authorization.meta.namespace;
    let spec = &authorization.spec;
    if let Some(selector) = selector(spec.get("server").and_then(|server| server.get("selector"))) {
        let mut servers = servers_in(world, namespace);
        if !servers.any(|server| selector.selects(&server.meta.labels)) {
            let message = format!("no Server of {namespace} is selected");
            found.add(&codes::NO_SERVER, authorization, "spec.server.selector", message);
        }
    }
    let none = Value::Null;
    let client = spec.get("client").unwrap_or(&none);
    if client.get("unauthenticated") == Some(&Value::Bool(true)) {
        let message = "clients without identity are admitted";
        found.add(&codes::UNAUTHENTICATED, authorization, "spec.client.unauthenticated", message);
    }
    let mesh = client.get("meshTLS").unwrap_or(&none);
    for (at, account) in items(mesh, "spec.client.meshTLS", "serviceAccounts") {
        self::account(world, authorization, &at, account, found);
    }
    for (at, identity) in texts(mesh, "spec.client.meshTLS", "identities") {
        self::identity(world, authorization, &at, identity, found);
    }
}

fn account(world: &World<'_>, resource: &Object, at: &str, reference: &Value, found: &mut Findings) {
    let text = |key| reference.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let namespace = text("namespace").unwrap_or(&resource.meta.namespace);
    if let Some(account) = text("name") {
        runs(world, resource, at, namespace, account, found);
    }
}

/// `<account>.<namespace>.serviceaccount.identity.<control plane's namespace>.<trust domain>`, or a SPIFFE id.
fn identity(world: &World<'_>, resource: &Object, at: &str, text: &str, found: &mut Findings) {
    let domain = world.resources.settings.trust_domain.as_str();
    if text.starts_with("spiffe://") {
        let id = text.parse::<SpiffeId>().ok().filter(|id| id.trust_domain().as_str() == domain);
        if let Some((namespace, account)) = id.as_ref().and_then(SpiffeId::account) {
            runs(world, resource, at, namespace, account, found);
        }
        return;
    }
    let parts: Vec<&str> = text.splitn(4, '.').collect();
    if let [account, namespace, "serviceaccount", rest] = parts[..]
        && account != "*"
        && rest.ends_with(domain)
    {
        runs(world, resource, at, namespace, account, found);
    }
}

fn authorization_policy(world: &World<'_>, policy: &Object, found: &mut Findings) {
    let namespace = &*policy.meta.namespace;
    let kind = |value: &Value| value.get("kind").and_then(Value::as_str).unwrap_or_default().to_string();
    if policy.spec.get("targetRef").is_some_and(|target| kind(target) == "Namespace")
        && servers_in(world, namespace).next().is_none()
    {
        let message = format!("it is for the Servers of {namespace}, and there is none");
        found.add(&codes::NO_SERVER, policy, "spec.targetRef", message);
    }
    let required = policy.spec.get("requiredAuthenticationRefs").and_then(Value::as_array);
    if required.is_some_and(Vec::is_empty) {
        let message = "it asks for nothing, and admits everybody";
        found.add(&codes::REQUIRES_NOTHING, policy, "spec.requiredAuthenticationRefs", message);
    }
    for (at, reference) in items(&policy.spec, "spec", "requiredAuthenticationRefs") {
        if kind(reference) == "ServiceAccount" {
            account(world, policy, &at, reference, found);
        }
    }
}

fn mesh_tls(world: &World<'_>, authentication: &Object, found: &mut Findings) {
    for (at, identity) in texts(&authentication.spec, "spec", "identities") {
        self::identity(world, authentication, &at, identity, found);
    }
    for (at, reference) in items(&authentication.spec, "spec", "identityRefs") {
        let text = |key| reference.get(key).and_then(Value::as_str).unwrap_or_default();
        match text("kind") {
            "ServiceAccount" => account(world, authentication, &at, reference, found),
            "Namespace" if !world.pods.is_empty() && !world.has_namespace(text("name")) => {
                let message = format!("there is no namespace {}", text("name"));
                found.add(&codes::UNKNOWN_NAMESPACE, authentication, &at, message);
            }
            _ => {}
        }
    }
}

fn unused(world: &World<'_>, found: &mut Findings) {
    let mut used: BTreeSet<(String, Arc<str>, String)> = BTreeSet::new();
    for policy in world.of_kind(GROUP, "AuthorizationPolicy") {
        for (_, reference) in items(&policy.spec, "spec", "requiredAuthenticationRefs") {
            let text = |key| reference.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
            let namespace = text("namespace").map_or(policy.meta.namespace.clone(), Arc::from);
            let of = |key| text(key).unwrap_or_default().to_string();
            used.insert((of("kind"), namespace, of("name")));
        }
    }
    for kind in ["MeshTLSAuthentication", "NetworkAuthentication"] {
        for object in world.of_kind(GROUP, kind) {
            let key = (kind.to_string(), object.meta.namespace.clone(), object.meta.name.to_string());
            if !used.contains(&key) {
                found.add(&codes::UNUSED, object, "", "no AuthorizationPolicy requires it");
            }
        }
    }
}
