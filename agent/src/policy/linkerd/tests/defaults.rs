//! Ports that no Server takes: the default inbound policies, their annotations, and probes.

use super::{Mesh, settings};

const POLICY: &str = "config.linkerd.io/default-inbound-policy";

/// Who is let in by which default policy: a meshed and an unmeshed client, of the cluster and from elsewhere.
#[test]
fn each_default_policy_admits_whom_it_says() {
    for (policy, expected) in [
        ("all-unauthenticated", "allow allow allow allow"),
        ("all-authenticated", "allow allow deny deny"),
        ("cluster-authenticated", "allow deny deny deny"),
        ("cluster-unauthenticated", "allow deny allow deny"),
        ("deny", "deny deny deny deny"),
        ("audit", "audit audit audit audit"),
    ] {
        let clients = ["a.b", "a.b@8.8.8.8", "plaintext", "plaintext@8.8.8.8"];
        let ask = |mesh: Mesh| {
            let word = |from| mesh.tcp(from, 9000).split(' ').next().expect("a word").to_string();
            clients.map(word).join(" ")
        };
        let mut of_mesh = settings();
        of_mesh.default_inbound_policy = policy.parse().expect("a policy");
        assert_eq!(ask(Mesh::with("", &of_mesh)), expected, "{policy} for the mesh");
        assert_eq!(ask(Mesh::of("").annotation(POLICY, policy)), expected, "{policy} for the pod");
        let namespace = format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, annotations: {{{POLICY}: {policy}}}}}}}"
        );
        assert_eq!(ask(Mesh::of(&namespace)), expected, "{policy} for the namespace");
    }
}

#[test]
fn the_pod_wins_over_its_namespace_and_that_over_the_mesh() {
    let namespace = format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, annotations: {{{POLICY}: deny}}}}}}"
    );
    assert_eq!(Mesh::of(&namespace).tcp("a.b", 80), "deny unauthorized deny");
    assert_eq!(Mesh::of(&namespace).namespace("other").tcp("a.b", 80), "allow all-unauthenticated");
    let pod = Mesh::of(&namespace).annotation(POLICY, "all-authenticated");
    assert_eq!(pod.tcp("a.b", 80), "allow all-authenticated");
    assert_eq!(pod.tcp("plaintext", 80), "deny unauthorized all-authenticated");
}

#[test]
fn a_default_policy_that_there_is_not_admits_nobody() {
    let pod = Mesh::of("").annotation(POLICY, "all_authenticated");
    assert_eq!(pod.tcp("a.b", 80), "deny defective_policy deny");
    assert_eq!(pod.defects().len(), 1);
    // Not even what would hold without it.
    let namespace = format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, annotations: {{{POLICY}: allow}}}}}}"
    );
    let pod = Mesh::of(&namespace).probe(80, "/live");
    assert_eq!(pod.tcp("a.b", 80), "deny defective_policy deny");
    assert_eq!(pod.http("plaintext", 80, "GET /live"), "deny defective_policy deny");
    assert_eq!(pod.defects()[0], format!("annotation metadata.annotations[{POLICY}]"));
}

#[test]
fn ports_can_ask_for_identity_whatever_the_default_is() {
    let key = "config.linkerd.io/proxy-require-identity-inbound-ports";
    let pod = Mesh::of("").annotation(key, "80, 9000-9002");
    assert_eq!(pod.tcp("plaintext", 80), "deny unauthorized all-authenticated");
    assert_eq!(pod.tcp("plaintext", 9001), "deny unauthorized all-authenticated");
    assert_eq!(pod.tcp("a.b", 9001), "allow all-authenticated");
    assert_eq!(pod.tcp("plaintext", 81), "allow all-unauthenticated");
    let pod = Mesh::of("").annotation(key, "80").annotation(POLICY, "cluster-unauthenticated");
    assert_eq!(pod.tcp("plaintext", 80), "deny unauthorized cluster-authenticated");
    assert_eq!(pod.tcp("a.b@8.8.8.8", 80), "deny unauthorized cluster-authenticated");
    for wrong in ["80,x", "90-80", "0", "70000"] {
        let pod = Mesh::of("").annotation(key, wrong);
        assert_eq!(pod.tcp("plaintext", 81), "deny unauthorized all-authenticated", "{wrong}");
        assert_eq!(pod.defects().len(), 1, "{wrong}");
    }
}

#[test]
fn probes_are_admitted_where_the_default_denies() {
    let pod = Mesh::of("").annotation(POLICY, "deny").probe(8080, "/live").probe(8080, "/ready");
    assert_eq!(pod.http("plaintext", 8080, "GET /live"), "allow probe");
    assert_eq!(pod.http("plaintext", 8080, "GET /ready"), "allow probe");
    for other in ["POST /live", "GET /live/x", "GET /", "HEAD /live"] {
        assert_eq!(pod.http("plaintext", 8080, other), "deny unauthorized deny", "{other}");
    }
    assert_eq!(pod.http("plaintext", 8081, "GET /live"), "deny unauthorized deny");
    assert_eq!(pod.tcp("plaintext", 8080), "deny unauthorized deny");
    assert_eq!(pod.whatever("plaintext", 8080), "per request");
    assert_eq!(pod.whatever("plaintext", 8081), "deny unauthorized deny");
}

#[test]
fn probes_come_from_the_probe_networks() {
    let mut narrow = settings();
    narrow.probe_networks = vec!["10.9.0.0/16".parse().expect("a range")];
    let pod = Mesh::with("", &narrow).annotation(POLICY, "deny").probe(8080, "/live");
    assert_eq!(pod.http("plaintext@10.9.0.1", 8080, "GET /live"), "allow probe");
    assert_eq!(pod.http("plaintext", 8080, "GET /live"), "deny unauthorized deny");
    assert_eq!(pod.whatever("plaintext", 8080), "deny unauthorized deny");
    narrow.probe_networks = Vec::new();
    let pod = Mesh::with("", &narrow).annotation(POLICY, "deny").probe(8080, "/live");
    assert_eq!(pod.http("plaintext@10.9.0.1", 8080, "GET /live"), "deny unauthorized deny");
}

#[test]
fn probes_of_an_opaque_port_are_like_all_else() {
    let pod = Mesh::of("")
        .annotation(POLICY, "deny")
        .annotation("config.linkerd.io/opaque-ports", "8080")
        .probe(8080, "/live")
        .probe(8081, "/live");
    assert_eq!(pod.http("plaintext", 8080, "GET /live"), "deny unauthorized deny");
    assert_eq!(pod.http("plaintext", 8081, "GET /live"), "allow probe");
}
