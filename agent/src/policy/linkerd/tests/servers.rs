//! Which ports of which pods a Server takes, and what holds there by itself.

use super::Mesh;

fn server(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {{namespace: shop, name: {name}}}\nspec: {spec}\n"
    )
}

#[test]
fn a_server_takes_its_port_from_the_default() {
    let mesh = Mesh::of(&server("s", "{podSelector: {matchLabels: {app: web}}, port: 8080}"));
    assert_eq!(mesh.tcp("a.b", 8080), "deny unauthorized s");
    assert_eq!(mesh.tcp("a.b", 8081), "allow all-unauthenticated");
    assert_eq!(
        Mesh::of(&server("s", "{podSelector: {}, port: 8080}")).namespace("other").tcp("a.b", 8080),
        "allow all-unauthenticated"
    );
}

#[test]
fn a_port_that_no_container_names_is_taken_too() {
    assert_eq!(
        Mesh::of(&server("s", "{podSelector: {}, port: 9999}")).tcp("a.b", 9999),
        "deny unauthorized s"
    );
}

#[test]
fn a_name_is_every_port_that_is_called_so() {
    let mesh =
        Mesh::of(&server("s", "{podSelector: {}, port: admin}")).port("admin", 9990).port("admin", 9991);
    assert_eq!(mesh.tcp("a.b", 9990), "deny unauthorized s");
    assert_eq!(mesh.tcp("a.b", 9991), "deny unauthorized s");
    assert_eq!(mesh.tcp("a.b", 8080), "allow all-unauthenticated");
    // Not one that no container has.
    let mesh = Mesh::of(&server("s", "{podSelector: {}, port: grpc}"));
    assert_eq!(mesh.tcp("a.b", 8080), "allow all-unauthenticated");
    assert!(mesh.defects().is_empty());
}

#[test]
fn selectors_of_pods() {
    for (selector, selects) in [
        ("{}", true),
        ("{matchLabels: {app: web}}", true),
        ("{matchLabels: {app: other}}", false),
        ("{matchLabels: {app: web, tier: front}}", false),
        ("{matchExpressions: [{key: app, operator: In, values: [api, web]}]}", true),
        ("{matchExpressions: [{key: app, operator: In, values: [api]}]}", false),
        ("{matchExpressions: [{key: app, operator: NotIn, values: [web]}]}", false),
        ("{matchExpressions: [{key: env, operator: NotIn, values: [dev]}]}", true),
        ("{matchExpressions: [{key: app, operator: Exists}]}", true),
        ("{matchExpressions: [{key: env, operator: Exists}]}", false),
        ("{matchExpressions: [{key: env, operator: DoesNotExist}]}", true),
        ("{matchExpressions: [{key: app, operator: DoesNotExist}]}", false),
        // Both have to hold.
        ("{matchLabels: {app: web}, matchExpressions: [{key: app, operator: NotIn, values: [web]}]}", false),
    ] {
        let mesh = Mesh::of(&server("s", &format!("{{podSelector: {selector}, port: 8080}}")));
        let expected = if selects { "deny unauthorized s" } else { "allow all-unauthenticated" };
        assert_eq!(mesh.tcp("a.b", 8080), expected, "{selector}");
        assert!(mesh.defects().is_empty(), "{selector}");
    }
}

#[test]
fn a_server_of_machines_outside_takes_no_pods() {
    let mesh = Mesh::of(&server("s", "{externalWorkloadSelector: {}, port: 8080}"));
    assert_eq!(mesh.tcp("a.b", 8080), "allow all-unauthenticated");
    assert!(mesh.defects().is_empty());
}

#[test]
fn the_oldest_server_wins_then_the_first_by_name() {
    let dated = |name: &str, time: &str, access: &str| {
        format!(
            "---\napiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {{namespace: shop, name: {name}, creationTimestamp: {time}}}\nspec: {{podSelector: {{}}, port: 8080, accessPolicy: {access}}}\n"
        )
    };
    let new = dated("a", "'2024-02-01T00:00:00Z'", "all-unauthenticated");
    let old = dated("b", "'2024-01-01T00:00:00Z'", "deny");
    let mesh = Mesh::of(&format!("{new}{old}"));
    assert_eq!(mesh.tcp("a.b", 8080), "deny unauthorized b");
    let shadowed = mesh.inbound(|inbound| inbound.on_port(8080).shadowed.clone());
    assert_eq!(
        shadowed.iter().map(|by| by.to_string()).collect::<Vec<_>>(),
        ["Server.policy.linkerd.io/shop/a"]
    );
    let same = dated("a", "'2024-01-01T00:00:00Z'", "all-unauthenticated");
    assert_eq!(Mesh::of(&format!("{old}{same}")).tcp("a.b", 8080), "allow a");
}

#[test]
fn access_policy_is_for_whom_nothing_authorizes() {
    for (access, meshed, plain) in [
        ("all-unauthenticated", "allow s", "allow s"),
        ("all-authenticated", "allow s", "deny unauthorized s"),
        ("cluster-authenticated", "deny unauthorized s", "deny unauthorized s"),
        ("cluster-unauthenticated", "deny unauthorized s", "deny unauthorized s"),
        ("deny", "deny unauthorized s", "deny unauthorized s"),
        ("audit", "audit s", "audit s"),
        // What there is not counts as deny.
        ("allow", "deny unauthorized s", "deny unauthorized s"),
    ] {
        let mesh =
            Mesh::of(&server("s", &format!("{{podSelector: {{}}, port: 8080, accessPolicy: {access}}}")));
        assert_eq!(mesh.tcp("a.b@8.8.8.8", 8080), meshed, "{access}");
        assert_eq!(mesh.tcp("plaintext@8.8.8.8", 8080), plain, "{access}");
    }
    let mesh = Mesh::of(&server("s", "{podSelector: {}, port: 8080, accessPolicy: cluster-authenticated}"));
    assert_eq!(mesh.tcp("a.b", 8080), "allow s");
}

#[test]
fn versions_without_access_policy_do_not_store_it() {
    let yaml = server("s", "{podSelector: {}, port: 8080, accessPolicy: audit}");
    assert_eq!(Mesh::of(&yaml).tcp("a.b", 8080), "audit s");
    for version in ["v1alpha1", "v1beta1", "v1beta2"] {
        let mesh = Mesh::of(&yaml.replace("v1beta3", version));
        assert_eq!(mesh.tcp("a.b", 8080), "deny unauthorized s", "{version}");
        assert_eq!(mesh.defects(), ["s spec.accessPolicy"], "{version}");
    }
}

#[test]
fn probes_of_a_server_without_routes_are_admitted() {
    let ask = |protocol: &str| {
        let spec = format!("{{podSelector: {{}}, port: 8080, proxyProtocol: {protocol}}}");
        Mesh::of(&server("s", &spec)).probe(8080, "/live").http("plaintext", 8080, "GET /live")
    };
    for protocol in ["unknown", "HTTP/1", "HTTP/2"] {
        assert_eq!(ask(protocol), "allow probe", "{protocol}");
    }
    for protocol in ["opaque", "TLS"] {
        assert_eq!(ask(protocol), "deny unauthorized s", "{protocol}");
    }
}

/// What the port of a Server is meant to be nobody can tell: all are closed, but those of other Servers.
#[test]
fn a_server_that_cannot_be_understood_closes_what_it_may_be_for() {
    for port in ["70000", "0", "-1", "'8080'", "'HTTP'", "1.5", "[80]", "a-name-that-is-too-long", "null"] {
        let yaml =
            server("s", &format!("{{podSelector: {{}}, port: {port}, accessPolicy: all-unauthenticated}}"));
        let mesh = Mesh::of(&yaml);
        assert_eq!(mesh.tcp("a.b", 8080), "deny defective_policy s", "{port}");
        assert_eq!(mesh.defects(), ["s spec.port"], "{port}");
        let good = server("t", "{podSelector: {}, port: 8080, accessPolicy: all-unauthenticated}");
        let mesh = Mesh::of(&format!("{yaml}{good}"));
        assert_eq!(mesh.tcp("a.b", 8080), "allow t", "{port}");
        assert_eq!(mesh.tcp("a.b", 8081), "deny defective_policy s", "{port}");
    }
    for (spec, field) in [
        ("{port: 8080}", "spec.podSelector"),
        ("{podSelector: {}, externalWorkloadSelector: {}, port: 8080}", "spec.podSelector"),
        ("{podSelector: {matchLabels: {app: 1}}, port: 8080}", "spec.podSelector.matchLabels.app"),
        ("{podSelector: {matchlabels: {app: other}}, port: 8080}", "spec.podSelector.matchlabels"),
        (
            "{podSelector: {matchExpressions: [{key: app, operator: Is, values: [other]}]}, port: 8080}",
            "spec.podSelector.matchExpressions[0].operator",
        ),
        (
            "{podSelector: {matchExpressions: [{key: app, operator: In}]}, port: 8080}",
            "spec.podSelector.matchExpressions[0].values",
        ),
        (
            "{podSelector: {matchExpressions: [{key: env, operator: Exists, values: [x]}]}, port: 8080}",
            "spec.podSelector.matchExpressions[0].values",
        ),
        ("{podSelector: {}, port: 8080, proxyProtocol: http}", "spec.proxyProtocol"),
        ("{podSelector: {}, port: 8080, accesspolicy: audit}", "spec.accesspolicy"),
        ("{podSelector: [], port: 8080}", "spec.podSelector"),
    ] {
        let authorization = "---\napiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, name: all}\nspec: {targetRef: {kind: Namespace, name: shop}, requiredAuthenticationRefs: []}\n";
        let mesh = Mesh::of(&format!("{}{authorization}", server("s", spec)));
        assert_eq!(mesh.tcp("a.b", 8080), "deny defective_policy s", "{spec}");
        assert_eq!(mesh.tcp("a.b", 8081), "allow all-unauthenticated", "{spec}");
        assert_eq!(mesh.defects(), [format!("s {field}")], "{spec}");
    }
    let mesh = Mesh::of(&server("s", "{podSelector: {}, port: 8080}").replace("v1beta3", "v2"));
    assert_eq!(mesh.tcp("a.b", 8080), "deny defective_policy s");
}
