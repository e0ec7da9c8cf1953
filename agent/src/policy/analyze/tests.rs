//! Each finding, with resources that have it and others that are near and do not.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::super::{MtlsDefaults, Resources, Settings};
use super::*;
use crate::model::workload::{ContainerPort, PodFacts};
use crate::model::{SpiffeId, TrustDomain};
use crate::telemetry::page;

fn pod(namespace: &str, name: &str, ports: &[(&str, u16)]) -> Workload {
    let identity = SpiffeId::new(TrustDomain::cluster_local(), namespace, name).unwrap();
    let port = |(name, port): &(&str, u16)| ContainerPort { name: (*name).into(), port: *port };
    Workload {
        facts: PodFacts {
            labels: [("app".into(), name.into())].into(),
            ports: ports.iter().map(port).collect(),
            ..PodFacts::default()
        },
        ..Workload::new(&format!("k//Pod/{namespace}/{name}"), namespace, name, identity)
    }
}

fn pods() -> Vec<Workload> {
    vec![
        pod("shop", "web", &[("http", 8080), ("metrics", 9090)]),
        pod("shop", "db", &[("tcp-db", 5432)]),
        pod("dev", "tool", &[]),
    ]
}

fn report(resources: &[Value], pods: Vec<Workload>) -> Report {
    let namespaces = ["shop", "dev", "empty"]
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    let objects = namespaces.iter().chain(resources).map(|value| Object::read(value.clone()).unwrap());
    let (objects, replaced) = Object::applied(objects.collect());
    let objects: Vec<_> = objects.into_iter().map(Arc::new).collect();
    let resources = Resources::new(&objects, Settings::new(TrustDomain::cluster_local()));
    let resources = Arc::new(Resources { replaced, ..resources });
    let set = PolicySet::default().next([], MtlsDefaults::default(), Some(resources));
    let set = set.at(OffsetDateTime::parse("2027-01-01T00:00:00Z", &Rfc3339).unwrap());
    let pods: Vec<_> = pods.into_iter().map(Arc::new).collect();
    analyze(&set, &pods)
}

fn object(version: &str, kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": version, "kind": kind, "metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

fn istio(name: &str, spec: Value) -> Value {
    object("security.istio.io/v1", "AuthorizationPolicy", "shop", name, spec)
}

fn peer(namespace: &str, name: &str, created: &str, spec: Value) -> Value {
    let mut peer = object("security.istio.io/v1", "PeerAuthentication", namespace, name, spec);
    peer["metadata"]["creationTimestamp"] = json!(created);
    peer
}

fn server(name: &str, app: &str, port: Value) -> Value {
    let spec = json!({"podSelector": {"matchLabels": {"app": app}}, "port": port, "accessPolicy": "all-authenticated"});
    object("policy.linkerd.io/v1beta3", "Server", "shop", name, spec)
}

fn linkerd(kind: &str, name: &str, spec: Value) -> Value {
    object("policy.linkerd.io/v1alpha1", kind, "shop", name, spec)
}

fn rule(rule: Value) -> Value {
    istio("p", json!({"rules": [rule]}))
}

fn from(source: Value) -> Value {
    rule(json!({"from": [{"source": source}]}))
}

fn to(operation: Value) -> Value {
    rule(json!({"to": [{"operation": operation}]}))
}

fn deny(rule: Value) -> Value {
    istio("p", json!({"action": "DENY", "rules": [rule]}))
}

fn selecting(app: &str, mut spec: Value) -> Value {
    spec["selector"] = json!({"matchLabels": {"app": app}});
    spec
}

fn tls(mode: &str) -> Value {
    json!({"mtls": {"mode": mode}})
}

const OLD: &str = "2020-01-01T00:00:00Z";
const NEW: &str = "2024-01-01T00:00:00Z";

/// A code, resources that have the finding, where it is told (`name field`), and resources that have it not.
type Case = (&'static str, Vec<Value>, &'static str, Vec<Value>);

fn cases() -> Vec<Case> {
    let web = || json!({"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/web"]}}]});
    let mut cases: Vec<Case> = Vec::new();
    cases.extend(of_defects(&web));
    cases.extend(of_reach(&web));
    cases.extend(of_rules(&web));
    cases.extend(of_peers());
    cases.extend(of_phases());
    cases.extend(of_conflicts(&web));
    cases.extend(of_exceptions());
    cases
}

fn of_exceptions() -> Vec<Case> {
    let until = |until: &str| {
        let spec =
            json!({"from": [{"namespaces": ["dev"]}], "ports": [5432], "reason": "old", "until": until});
        object("underpass.io/v1alpha1", "PlaintextException", "shop", "e", selecting("db", spec))
    };
    let with = |field: &str, value: Value| {
        let mut exception = until("2028-01-01T00:00:00Z");
        exception["spec"][field] = value;
        exception
    };
    let strict = || peer("shop", "p", OLD, tls("STRICT"));
    vec![
        ("UP0604", vec![until("2027-01-01T00:00:00Z")], "e spec.until", vec![until("2027-01-01T00:00:01Z")]),
        (
            "UP0605",
            vec![until("2027-01-15T00:00:00Z")],
            "e spec.until",
            vec![until("2027-01-15T00:00:01Z"), until("2026-12-31T00:00:00Z")],
        ),
        ("UP0606", vec![until("2028-01-01T00:00:00Z")], "e ", vec![until("2028-01-01T00:00:00Z"), strict()]),
        (
            "UP0201",
            vec![strict(), with("selector", json!({"matchLabels": {"app": "gone"}}))],
            "e spec.selector",
            vec![strict(), until("2028-01-01T00:00:00Z")],
        ),
        (
            "UP0302",
            vec![strict(), with("ports", json!([5433]))],
            "e spec.ports",
            vec![strict(), until("2028-01-01T00:00:00Z")],
        ),
        ("UP0101", vec![with("until", json!("never"))], "e spec.until", vec![until("2028-01-01T00:00:00Z")]),
    ]
}

fn of_defects(web: &dyn Fn() -> Value) -> Vec<Case> {
    let annotated = |value: &str| {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "noted",
        "annotations": {"config.linkerd.io/default-inbound-policy": value}}})
    };
    let custom = || istio("p", json!({"action": "CUSTOM", "provider": {"name": "x"}, "rules": [web()]}));
    let requires = |name: &str| {
        json!({"targetRef": {"group": "policy.linkerd.io", "kind": "Server", "name": name}, "requiredAuthenticationRefs": [
            {"kind": "ServiceAccount", "name": "web"}]})
    };
    let request = |version: &str| object(version, "RequestAuthentication", "shop", "p", json!({}));
    let beta = || {
        let spec = json!({"rules": [web()]});
        object("security.istio.io/v1beta1", "AuthorizationPolicy", "shop", "p", spec)
    };
    vec![
        (
            "UP0101",
            vec![from(json!({"ipBlocks": ["10.0.0.0/33"]}))],
            "p spec.rules[0].from[0].source.ipBlocks[0]",
            vec![from(json!({"ipBlocks": ["10.0.0.0/32"]}))],
        ),
        ("UP0102", vec![custom()], "p spec.action", vec![deny(web())]),
        (
            "UP0103",
            vec![linkerd("AuthorizationPolicy", "p", requires("gone"))],
            "p spec.targetRef",
            vec![linkerd("AuthorizationPolicy", "p", requires("s")), server("s", "web", json!(8080))],
        ),
        (
            "UP0104",
            vec![annotated("none")],
            "noted metadata.annotations[config.linkerd.io/default-inbound-policy]",
            vec![annotated("deny")],
        ),
        ("UP0105", vec![request("security.istio.io/v1")], "p kind", vec![request("other.example/v1")]),
        (
            "UP0108",
            vec![object("security.istio.io/v1", "AuthorisationPolicy", "shop", "p", json!({}))],
            "p kind",
            vec![request("security.istio.io/v1")],
        ),
        (
            "UP0106",
            vec![object(
                "security.istio.io/v2",
                "AuthorizationPolicy",
                "shop",
                "p",
                json!({"rules": [web()]}),
            )],
            "p apiVersion",
            vec![rule(web())],
        ),
        ("UP0107", vec![rule(web()), rule(web())], "p metadata.name", vec![rule(web())]),
        ("UP0107", vec![rule(web()), beta()], "p metadata.name", vec![beta()]),
    ]
}

fn of_reach(web: &dyn Fn() -> Value) -> Vec<Case> {
    let selector = |app: &str| istio("p", selecting(app, json!({"rules": [web()]})));
    let within = |namespace: &str| {
        object("security.istio.io/v1", "AuthorizationPolicy", namespace, "p", json!({"rules": [web()]}))
    };
    let aimed = |name: &str| {
        istio(
            "p",
            json!({"targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": name}], "rules": [web()]}),
        )
    };
    let gateway = object("gateway.networking.k8s.io/v1", "Gateway", "shop", "waypoint", json!({}));
    let saz = |role: &str| {
        let spec = json!({"server": {"selector": {"matchLabels": {"role": role}}}, "client": {"meshTLS": {"identities": ["*"]}}});
        object("policy.linkerd.io/v1beta1", "ServerAuthorization", "shop", "p", spec)
    };
    let labelled = || {
        let mut server = server("s", "web", json!(8080));
        server["metadata"]["labels"] = json!({"role": "web"});
        server
    };
    let closed = |access: &str| {
        let mut server = server("p", "web", json!(8080));
        server["spec"]["accessPolicy"] = json!(access);
        server
    };
    let authentication = || linkerd("MeshTLSAuthentication", "p", json!({"identities": ["*"]}));
    let requires = || {
        linkerd(
            "AuthorizationPolicy",
            "a",
            json!({"targetRef": {"kind": "Namespace", "name": "shop"}, "requiredAuthenticationRefs": [
                {"group": "policy.linkerd.io", "kind": "MeshTLSAuthentication", "name": "p"}]}),
        )
    };
    vec![
        ("UP0201", vec![selector("gone")], "p spec.selector", vec![selector("web")]),
        ("UP0201", vec![server("p", "gone", json!(8080))], "p spec.podSelector", vec![labelled()]),
        (
            "UP0201",
            vec![peer("shop", "p", OLD, selecting("gone", tls("STRICT")))],
            "p spec.selector",
            vec![peer("shop", "p", OLD, selecting("web", tls("STRICT")))],
        ),
        ("UP0202", vec![within("empty")], "p metadata.namespace", vec![within("dev")]),
        ("UP0203", vec![within("gone")], "p metadata.namespace", vec![within("istio-system")]),
        ("UP0204", vec![aimed("waypoint")], "p spec.targetRefs[0]", vec![aimed("waypoint"), gateway]),
        (
            "UP0205",
            vec![server("p", "web", json!("grpc"))],
            "p spec.port",
            vec![server("p", "web", json!("http"))],
        ),
        ("UP0205", vec![server("p", "web", json!(80))], "p spec.port", vec![server("p", "web", json!(8080))]),
        ("UP0206", vec![saz("gone"), labelled()], "p spec.server.selector", vec![saz("web"), labelled()]),
        (
            "UP0206",
            vec![requires(), authentication()],
            "a spec.targetRef",
            vec![requires(), authentication(), labelled()],
        ),
        ("UP0207", vec![closed("deny")], "p ", vec![closed("all-authenticated")]),
        ("UP0208", vec![authentication()], "p ", vec![authentication(), requires()]),
    ]
}

fn of_rules(web: &dyn Fn() -> Value) -> Vec<Case> {
    let principal = |text: &str| from(json!({"principals": [text]}));
    let when = |condition: Value| rule(json!({"when": [condition]}));
    let identity = |text: &str| linkerd("MeshTLSAuthentication", "p", json!({"identities": [text]}));
    vec![
        (
            "UP0301",
            vec![from(json!({"namespaces": ["dev", "shop"], "notNamespaces": ["*"]}))],
            "p spec.rules[0].from[0].source.namespaces",
            vec![from(json!({"namespaces": ["dev", "shop"], "notNamespaces": ["dev"]}))],
        ),
        (
            "UP0301",
            vec![from(json!({"namespaces": ["dev"], "principals": ["cluster.local/ns/shop/sa/web"]}))],
            "p spec.rules[0].from[0].source.principals",
            vec![from(json!({"namespaces": ["shop"], "principals": ["cluster.local/ns/shop/sa/web"]}))],
        ),
        (
            "UP0301",
            vec![when(json!({"key": "source.ip", "values": ["10.0.0.1"], "notValues": ["10.0.0.0/8"]}))],
            "p spec.rules[0].when[0].values",
            vec![when(json!({"key": "source.ip", "values": ["11.0.0.1"], "notValues": ["10.0.0.0/8"]}))],
        ),
        (
            "UP0302",
            vec![to(json!({"ports": ["8080", "80"]}))],
            "p spec.rules[0].to[0].operation.ports[1]",
            vec![to(json!({"ports": ["8080", "5432"]}))],
        ),
        (
            "UP0303",
            vec![from(json!({"namespaces": ["gone"]}))],
            "p spec.rules[0].from[0].source.namespaces[0]",
            vec![from(json!({"namespaces": ["dev", "sh*", "*"]}))],
        ),
        (
            "UP0304",
            vec![principal("cluster.local/ns/shop/sa/gone")],
            "p spec.rules[0].from[0].source.principals[0]",
            vec![
                principal("cluster.local/ns/shop/sa/web"),
                istio(
                    "q",
                    json!({"rules": [{"from": [
                {"source": {"principals": ["other.example/ns/shop/sa/gone", "*/sa/gone"]}}]}]}),
                ),
            ],
        ),
        (
            "UP0304",
            vec![from(json!({"serviceAccounts": ["gone"]}))],
            "p spec.rules[0].from[0].source.serviceAccounts[0]",
            vec![from(json!({"serviceAccounts": ["web", "dev/tool"]}))],
        ),
        (
            "UP0304",
            vec![identity("gone.shop.serviceaccount.identity.linkerd.cluster.local")],
            "p spec.identities[0]",
            vec![
                identity("web.shop.serviceaccount.identity.linkerd.cluster.local"),
                linkerd(
                    "MeshTLSAuthentication",
                    "q",
                    json!({"identities": ["*.shop.serviceaccount.identity.linkerd.cluster.local"]}),
                ),
            ],
        ),
        ("UP0305", vec![istio("p", json!({}))], "p spec.rules", vec![rule(web())]),
        ("UP0306", vec![istio("p", json!({"action": "DENY"}))], "p spec.rules", vec![deny(web())]),
        (
            "UP0307",
            vec![rule(json!({}))],
            "p spec.rules[0]",
            vec![rule(web()), istio("q", json!({"action": "DENY", "rules": [{}]}))],
        ),
        (
            "UP0308",
            vec![principal("*")],
            "p spec.rules[0].from[0].source.principals",
            vec![deny(json!({"from": [{"source": {"principals": ["*"]}}]}))],
        ),
        (
            "UP0309",
            vec![to(json!({"ports": ["5432"], "methods": ["GET"]}))],
            "p spec.rules[0].to[0].operation",
            vec![to(json!({"ports": ["8080", "5432"], "methods": ["GET"]}))],
        ),
        (
            "UP0309",
            vec![istio(
                "p",
                selecting(
                    "db",
                    json!({"rules": [{"when": [{"key": "request.headers[x]", "values": ["y"]}]}]}),
                ),
            )],
            "p spec.rules[0]",
            vec![istio(
                "p",
                selecting("db", json!({"rules": [{"to": [{"operation": {"ports": ["5432"]}}]}]})),
            )],
        ),
        (
            "UP0310",
            vec![deny(
                json!({"from": [{"source": {"namespaces": ["dev"]}}], "to": [{"operation": {"methods": ["GET"]}}]}),
            )],
            "p spec.rules[0].to[0].operation",
            vec![deny(json!({"to": [{"operation": {"methods": ["GET"], "ports": ["8080"]}}]}))],
        ),
        (
            "UP0311",
            vec![rule(json!({"from": [], "to": [{"operation": {"ports": ["8080"]}}]}))],
            "p spec.rules[0].from",
            vec![rule(json!({"to": [{"operation": {"ports": ["8080"]}}]}))],
        ),
        (
            "UP0312",
            vec![from(json!({"notNamespaces": ["dev"]}))],
            "p spec.rules[0].from[0].source",
            vec![from(json!({"notNamespaces": ["dev"], "principals": ["*"]}))],
        ),
    ]
}

fn of_phases() -> Vec<Case> {
    let phase = |namespace: &str, name: &str, created: &str, spec: Value| {
        let mut phase = object("underpass.io/v1alpha1", "Enforcement", namespace, name, spec);
        phase["metadata"]["creationTimestamp"] = json!(created);
        phase
    };
    let of = |phase: &str| json!({"phase": phase});
    vec![
        (
            "UP0701",
            vec![phase("shop", "p", OLD, of("Observe"))],
            "p spec.phase",
            vec![phase("shop", "p", OLD, of("Enforce")), phase("shop", "q", NEW, of("Observe"))],
        ),
        (
            "UP0701",
            vec![phase("istio-system", "p", OLD, of("Observe"))],
            "p spec.phase",
            vec![phase("istio-system", "p", OLD, of("observe"))],
        ),
        (
            "UP0702",
            vec![phase("shop", "p", OLD, selecting("web", of("Permissive")))],
            "p spec.phase",
            vec![phase("shop", "p", OLD, selecting("api", of("Permissive")))],
        ),
        (
            "UP0703",
            vec![phase("shop", "p", NEW, of("Observe")), phase("shop", "q", OLD, of("Enforce"))],
            "p ",
            vec![
                phase("shop", "p", NEW, selecting("web", of("Observe"))),
                phase("shop", "q", OLD, of("Enforce")),
            ],
        ),
        (
            "UP0101",
            vec![phase("shop", "p", OLD, of("Audit"))],
            "p spec.phase",
            vec![phase("shop", "p", OLD, of("Observe"))],
        ),
        (
            "UP0201",
            vec![phase("shop", "p", OLD, selecting("api", of("Observe")))],
            "p spec.selector",
            vec![phase("shop", "p", OLD, selecting("web", of("Observe")))],
        ),
        (
            "UP0202",
            vec![phase("empty", "p", OLD, of("Observe"))],
            "p metadata.namespace",
            vec![phase("dev", "p", OLD, of("Observe"))],
        ),
    ]
}

fn of_peers() -> Vec<Case> {
    let ports = |port: &str, mode: &str| {
        let mut ports = json!({"mtls": {"mode": "STRICT"}, "portLevelMtls": {}});
        ports["portLevelMtls"][port] = json!({"mode": mode});
        ports
    };
    let strict = |name: &str, created: &str| peer("shop", name, created, tls("STRICT"));
    vec![
        (
            "UP0401",
            vec![strict("a", NEW), strict("b", OLD)],
            "a ",
            vec![strict("a", OLD), peer("dev", "b", OLD, tls("STRICT"))],
        ),
        (
            "UP0401",
            vec![
                peer("shop", "a", OLD, selecting("web", tls("STRICT"))),
                peer("shop", "b", OLD, selecting("web", tls("PERMISSIVE"))),
            ],
            "b spec.selector",
            vec![
                peer("shop", "a", OLD, selecting("web", tls("STRICT"))),
                peer("shop", "b", OLD, selecting("db", tls("PERMISSIVE"))),
            ],
        ),
        (
            "UP0402",
            vec![peer("istio-system", "p", OLD, selecting("web", tls("STRICT")))],
            "p spec.selector",
            vec![peer("istio-system", "p", OLD, tls("STRICT"))],
        ),
        (
            "UP0403",
            vec![peer("shop", "p", OLD, ports("8080", "STRICT"))],
            "p spec.portLevelMtls",
            vec![peer("shop", "p", OLD, selecting("web", ports("8080", "STRICT")))],
        ),
        (
            "UP0404",
            vec![peer("istio-system", "m", OLD, tls("STRICT")), peer("shop", "p", OLD, tls("PERMISSIVE"))],
            "p spec.mtls.mode",
            vec![
                peer("istio-system", "m", OLD, tls("PERMISSIVE")),
                peer("shop", "p", OLD, tls("PERMISSIVE")),
            ],
        ),
        (
            "UP0404",
            vec![strict("ns", OLD), peer("shop", "p", OLD, selecting("web", tls("DISABLE")))],
            "p spec.mtls.mode",
            vec![
                peer("dev", "ns", OLD, tls("STRICT")),
                peer("shop", "p", OLD, selecting("web", tls("DISABLE"))),
            ],
        ),
        (
            "UP0404",
            vec![peer("shop", "p", OLD, selecting("web", ports("8080", "PERMISSIVE")))],
            "p spec.portLevelMtls[8080]",
            vec![peer("shop", "p", OLD, selecting("web", ports("8080", "UNSET")))],
        ),
        ("UP0405", vec![peer("shop", "p", OLD, tls("UNSET"))], "p spec.mtls", vec![strict("p", OLD)]),
        (
            "UP0406",
            vec![peer("shop", "p", OLD, selecting("web", ports("80", "STRICT")))],
            "p spec.portLevelMtls[80]",
            vec![peer("shop", "p", OLD, selecting("web", ports("8080", "STRICT")))],
        ),
        (
            "UP0407",
            vec![peer("shop", "p", OLD, tls("DISABLE"))],
            "p spec.mtls",
            vec![peer("shop", "p", OLD, tls("PERMISSIVE"))],
        ),
    ]
}

fn of_conflicts(web: &dyn Fn() -> Value) -> Vec<Case> {
    let all = |name: &str, action: &str, app: &str| {
        istio(name, selecting(app, json!({"action": action, "rules": [{}]})))
    };
    let mut dry = all("dry", "DENY", "web");
    dry["metadata"]["annotations"] = json!({"istio.io/dry-run": "true"});
    let allow = || istio("p", selecting("web", json!({"rules": [web()]})));
    let requires = |refs: Value| {
        linkerd(
            "AuthorizationPolicy",
            "p",
            json!({"targetRef": {"kind": "Namespace", "name": "shop"}, "requiredAuthenticationRefs": refs}),
        )
    };
    let account = || json!([{"kind": "ServiceAccount", "name": "web"}]);
    let saz = |client: Value| {
        let spec = json!({"server": {"name": "s"}, "client": client});
        object("policy.linkerd.io/v1beta1", "ServerAuthorization", "shop", "p", spec)
    };
    let strict = |mode: &str| peer("istio-system", "m", OLD, tls(mode));
    vec![
        (
            "UP0501",
            vec![allow(), all("all", "DENY", "web")],
            "p ",
            vec![allow(), all("all", "DENY", "db"), dry],
        ),
        ("UP0502", vec![allow(), all("all", "ALLOW", "web")], "p ", vec![allow(), all("all", "ALLOW", "db")]),
        (
            "UP0503",
            vec![server("a", "web", json!(8080)), server("b", "web", json!("http"))],
            "b spec.port",
            vec![server("a", "web", json!(8080)), server("b", "web", json!("metrics"))],
        ),
        (
            "UP0504",
            vec![rule(web()), requires(account())],
            "p metadata.name",
            vec![istio("q", json!({"rules": [web()]})), requires(account())],
        ),
        ("UP0601", vec![], "shop ", vec![strict("STRICT")]),
        (
            "UP0601",
            vec![
                strict("STRICT"),
                peer(
                    "shop",
                    "p",
                    OLD,
                    selecting("web", json!({"portLevelMtls": {"9090": {"mode": "PERMISSIVE"}}})),
                ),
            ],
            "shop ",
            vec![
                strict("STRICT"),
                peer(
                    "shop",
                    "p",
                    OLD,
                    selecting("web", json!({"portLevelMtls": {"9090": {"mode": "STRICT"}}})),
                ),
            ],
        ),
        ("UP0602", vec![requires(json!([]))], "p spec.requiredAuthenticationRefs", vec![requires(account())]),
        (
            "UP0603",
            vec![saz(json!({"unauthenticated": true}))],
            "p spec.client.unauthenticated",
            vec![saz(json!({"unauthenticated": false, "meshTLS": {"identities": ["*"]}}))],
        ),
    ]
}

#[test]
fn what_is_amiss_is_found_where_it_is_and_nowhere_else() {
    for (code, with, place, without) in cases() {
        let places = |report: &Report| -> BTreeSet<String> {
            let of = report.findings.iter().filter(|finding| finding.code == code);
            of.map(|finding| format!("{} {}", finding.resource.name, finding.field)).collect()
        };
        let found = report(&with, pods());
        assert!(places(&found).contains(place), "{code}: not at {place:?}: {:#?}", found.findings);
        let found = report(&without, pods());
        assert_eq!(places(&found), BTreeSet::new(), "{code}: {:#?}", found.findings);
    }
}

#[test]
fn every_code_has_a_case() {
    let shown: BTreeSet<_> = cases().iter().map(|case| case.0).chain(["UP0001"]).collect();
    let all: Vec<_> = CODES.iter().map(|code| code.code).collect();
    assert_eq!(shown.into_iter().collect::<Vec<_>>(), all, "sorted, each once, each with a case");
}

#[test]
fn without_pods_nothing_is_said_of_what_only_pods_tell() {
    let resources = [
        istio(
            "p",
            selecting(
                "gone",
                json!({"rules": [{"from": [{"source": {"namespaces": ["gone"],
            "ipBlocks": ["x"]}}], "to": [{"operation": {"ports": ["80"]}}]}]}),
            ),
        ),
        server("s", "gone", json!("gone")),
        peer("shop", "p", OLD, selecting("gone", tls("STRICT"))),
    ];
    let report = report(&resources, Vec::new());
    let codes: Vec<_> = report.findings.iter().map(|finding| &*finding.code).collect();
    assert_eq!(codes, ["UP0101", "UP0001"]);
    assert_eq!((report.summary.errors, report.summary.warnings, report.summary.infos), (1, 0, 1));
    assert_eq!((report.summary.pods, report.summary.resources), (0, 3));
}

#[test]
fn the_order_of_what_is_read_changes_nothing() {
    let mut resources: Vec<Value> =
        of_peers().into_iter().chain(of_conflicts(&|| json!({}))).flat_map(|c| c.1).collect();
    // One of each name: of two the order does count.
    for (at, value) in resources.iter_mut().enumerate() {
        value["metadata"]["name"] = json!(format!("r{at}"));
    }
    let first = report(&resources, pods());
    resources.reverse();
    let mut backwards = pods();
    backwards.reverse();
    assert_eq!(report(&resources, backwards), first);
    assert!(first.findings.is_sorted() && first.findings.len() > 10);
}

#[test]
fn a_pods_own_annotation_is_told_of_the_pod() {
    let mut pods = pods();
    pods[0].facts.annotations = [("config.linkerd.io/default-inbound-policy".into(), "none".into())].into();
    let report = report(&[], pods);
    let found = report.findings.iter().find(|finding| finding.code == "UP0104").unwrap();
    assert_eq!(found.resource.to_string(), "Pod/shop/web");
}

#[test]
fn a_waypoint_that_serves_a_pod_enforces_what_is_aimed_at_it() {
    let mut pods = pods();
    pods[0].facts.waypoint = Some("shop/waypoint".into());
    let aimed = |kind: &str, name: &str| {
        let group = if kind == "Gateway" { "gateway.networking.k8s.io" } else { "" };
        istio("p", json!({"targetRefs": [{"group": group, "kind": kind, "name": name}], "rules": [{}]}))
    };
    for (kind, name, left) in
        [("Gateway", "waypoint", false), ("Service", "web", false), ("Gateway", "other", true)]
    {
        let report = report(&[aimed(kind, name)], pods.clone());
        assert_eq!(report.findings.iter().any(|f| f.code == "UP0204"), left, "{kind} {name}");
    }
}

fn table() -> String {
    let mut out = String::from("| code | severity | found | what to do |\n|---|---|---|---|\n");
    for code in CODES {
        out +=
            &format!("| `{}` | {} | {} | {} |\n", code.code, code.severity.as_str(), code.title, code.hint);
    }
    out
}

#[test]
fn the_page_lists_every_code() {
    page::lists("analyze.md", "every code", &table());
}
