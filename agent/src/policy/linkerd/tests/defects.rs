//! Whatever is written, nothing panics, and what is told says where it stands.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::super::object::{Meta, Object};
use super::super::Linkerd;
use super::{Mesh, settings};

#[test]
fn a_defect_names_its_resource_field_and_what_holds_instead() {
    let yaml = "
apiVersion: policy.linkerd.io/v1alpha1
kind: NetworkAuthentication
metadata: {namespace: shop, name: net}
spec: {networks: [{cidr: 10.0.0.0/8}, {cidr: 10.0.0.0/33}]}
";
    let linkerd = Linkerd::new(&super::objects(yaml), &settings());
    let [defect] = linkerd.defects() else { panic!("{:?}", linkerd.defects()) };
    assert_eq!(defect.resource.to_string(), "NetworkAuthentication.policy.linkerd.io/shop/net");
    assert_eq!(defect.field, "spec.networks[1].cidr");
    assert_eq!(defect.message, "\"10.0.0.0/33\" is no address range; it admits nobody");
}

#[test]
fn what_is_null_is_not_there() {
    let yaml = "
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {namespace: shop, name: s}
spec: {podSelector: {matchLabels: null}, externalWorkloadSelector: null, port: 8080, accessPolicy: null, other: null}
";
    let mesh = Mesh::of(yaml);
    assert_eq!(mesh.tcp("a.b", 8080), "deny unauthorized s");
    assert!(mesh.defects().is_empty());
}

#[test]
fn of_several_of_one_name_the_last_counts() {
    let server = |access: &str| {
        format!(
            "---\n{{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {{namespace: shop, name: s}}, spec: {{podSelector: {{}}, port: 8080, accessPolicy: {access}}}}}\n"
        )
    };
    let mesh = Mesh::of(&format!("{}{}", server("deny"), server("all-unauthenticated")));
    assert_eq!(mesh.tcp("a.b", 8080), "allow s");
}

/// Words that mean something, so that what is made of them is now and then almost right.
fn word() -> impl Strategy<Value = String> {
    const KNOWN: &[&str] = &[
        "Server",
        "HTTPRoute",
        "Namespace",
        "ServiceAccount",
        "MeshTLSAuthentication",
        "NetworkAuthentication",
        "policy.linkerd.io",
        "gateway.networking.k8s.io",
        "s",
        "shop",
        "*",
        "*.b",
        "GET",
        "/a",
        "(",
        "Exact",
        "RegularExpression",
        "10.0.0.0/8",
        "10.0.0.0/33",
        "In",
        "deny",
        "audit",
        "gRPC",
        "",
        "é",
    ];
    prop_oneof![proptest::sample::select(KNOWN).prop_map(String::from), ".{0,6}"]
}

fn key() -> impl Strategy<Value = String> {
    const KNOWN: &[&str] = &[
        "podSelector",
        "matchLabels",
        "matchExpressions",
        "key",
        "operator",
        "values",
        "port",
        "proxyProtocol",
        "accessPolicy",
        "server",
        "name",
        "selector",
        "client",
        "networks",
        "cidr",
        "except",
        "unauthenticated",
        "meshTLS",
        "identities",
        "serviceAccounts",
        "targetRef",
        "group",
        "kind",
        "requiredAuthenticationRefs",
        "identityRefs",
        "parentRefs",
        "hostnames",
        "rules",
        "matches",
        "path",
        "type",
        "value",
        "headers",
        "queryParams",
        "method",
        "service",
        "filters",
        "RequestHeaderModifier",
        "requestHeaderModifier",
        "RequestRedirect",
        "requestRedirect",
        "set",
        "remove",
        "name",
        "hostname",
        "port",
        "statusCode",
        "ReplacePrefixMatch",
        "replacePrefixMatch",
        "namespace",
    ];
    prop_oneof![9 => proptest::sample::select(KNOWN).prop_map(String::from), 1 => ".{0,4}"]
}

fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        word().prop_map(Value::String),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(|number| json!(number)),
        (0u32..70000).prop_map(|number| json!(number)),
        any::<f64>().prop_map(|number| json!(number)),
        Just(Value::Null),
    ];
    leaf.prop_recursive(6, 48, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            proptest::collection::vec((key(), inner), 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_panics_whatever_is_written(specs in proptest::collection::vec((0usize..8, anything()), 1..6)) {
        let kinds = [
            ("policy.linkerd.io", "v1beta3", "Server"),
            ("policy.linkerd.io", "v1beta1", "ServerAuthorization"),
            ("policy.linkerd.io", "v1alpha1", "AuthorizationPolicy"),
            ("policy.linkerd.io", "v1alpha1", "MeshTLSAuthentication"),
            ("policy.linkerd.io", "v1alpha1", "NetworkAuthentication"),
            ("policy.linkerd.io", "v1beta3", "HTTPRoute"),
            ("gateway.networking.k8s.io", "v1", "HTTPRoute"),
            ("gateway.networking.k8s.io", "v1", "GRPCRoute"),
        ];
        let objects: Vec<_> = specs
            .into_iter()
            .map(|(kind, spec)| {
                let (group, version, kind) = kinds[kind];
                let meta = Meta { name: "s".into(), namespace: "shop".into(), ..Meta::default() };
                let (group, version, kind) = (group.into(), version.into(), kind.into());
                Arc::new(Object { group, version, kind, meta, spec, status: Value::Null })
            })
            .collect();
        let mut mesh = Mesh::of("").probe(8080, "/live");
        mesh.linkerd = Linkerd::new(&objects, &settings());
        mesh.http("s.shop", 8080, "GET /a?x=%zz&y host=s");
        mesh.tcp("plaintext", 8080);
        // A Server that is there takes its port, or all that it may mean: by default everybody would be let in.
        // All have one name, so that the last is the one that is there.
        let server = objects.iter().rfind(|object| &*object.kind == "Server");
        if server.is_some_and(|server| server.spec == json!({})) {
            let answer = mesh.tcp("plaintext", 8080);
            prop_assert!(answer.starts_with("deny"), "{}", answer);
        }
    }
}

/// Nothing counts requests, and nothing leads a port around the agent: who wrote it is told, and policy holds.
#[test]
fn what_is_not_applied_is_told_and_opens_nothing() {
    let server = "---\napiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {namespace: shop, name: s}\nspec: {podSelector: {}, port: 8080}\n";
    let limit = |target: &str| {
        format!(
            "{server}---\napiVersion: policy.linkerd.io/v1alpha1\nkind: HTTPLocalRateLimitPolicy\nmetadata: {{namespace: shop, name: l}}\nspec: {{targetRef: {target}, total: {{requestsPerSecond: 9}}}}\n"
        )
    };
    let pod = Mesh::of(&limit("{group: policy.linkerd.io, kind: Server, name: s}"));
    assert_eq!(pod.defects(), ["l spec"]);
    assert_eq!(pod.tcp("a.shop", 8080), "deny unauthorized s");
    let pod = Mesh::of(&limit("{group: policy.linkerd.io, kind: Server, name: gone}"));
    assert_eq!(pod.defects(), ["l spec", "l spec.targetRef"]);
    let pod = Mesh::of(&limit("{kind: Namespace, name: shop}"));
    assert_eq!(pod.defects(), ["l spec.targetRef"]);

    let skipped = "config.linkerd.io/skip-inbound-ports";
    let pod = Mesh::of(server).annotation(skipped, "8080");
    assert_eq!(pod.tcp("plaintext", 8080), "deny unauthorized s");
    assert_eq!(pod.defects(), [format!("annotation metadata.annotations[{skipped}]")]);
    assert!(Mesh::of(server).annotation(skipped, "").defects().is_empty());
}
