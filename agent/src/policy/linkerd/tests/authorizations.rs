//! Who is admitted to a Server: ServerAuthorization, and AuthorizationPolicy with its authentications.

use super::{Mesh, settings};

/// A Server `s` of port 8080 with the label `app: web`, and these.
fn mesh(yaml: &str) -> Mesh {
    Mesh::of(&format!("{SERVER}{yaml}"))
}

const SERVER: &str = "
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {namespace: shop, name: s, labels: {app: web}}
spec: {podSelector: {}, port: 8080}
";

fn authorization(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: policy.linkerd.io/v1beta1\nkind: ServerAuthorization\nmetadata: {{namespace: shop, name: {name}}}\nspec: {spec}\n"
    )
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{namespace: shop, name: {name}}}\nspec: {spec}\n"
    )
}

fn mesh_tls(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: policy.linkerd.io/v1alpha1\nkind: MeshTLSAuthentication\nmetadata: {{namespace: shop, name: {name}}}\nspec: {spec}\n"
    )
}

fn networks(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: policy.linkerd.io/v1alpha1\nkind: NetworkAuthentication\nmetadata: {{namespace: shop, name: {name}}}\nspec: {spec}\n"
    )
}

const TO_SERVER: &str = "targetRef: {group: policy.linkerd.io, kind: Server, name: s}";
const DENIED: &str = "deny unauthorized s";

/// A policy `p` for the Server with one reference of this kind, to `x`.
fn requiring(kind: &str) -> String {
    let refs = format!("[{{group: policy.linkerd.io, kind: {kind}, name: x}}]");
    policy("p", &format!("{{{TO_SERVER}, requiredAuthenticationRefs: {refs}}}"))
}

#[test]
fn server_authorizations_admit_by_identity() {
    for (client, admitted, refused) in [
        // Who is in the cluster, where no network is said.
        ("{unauthenticated: true}", "plaintext a.b", "plaintext@8.8.8.8 a.b@8.8.8.8"),
        (
            "{unauthenticated: true, networks: [{cidr: 0.0.0.0/0}, {cidr: '::/0'}]}",
            "plaintext@8.8.8.8 a.b@2001:db8::1",
            "",
        ),
        (
            "{unauthenticated: true, networks: [{cidr: 8.8.8.8}]}",
            "plaintext@8.8.8.8",
            "plaintext@8.8.8.9 a.b",
        ),
        (
            "{unauthenticated: true, networks: [{cidr: 10.0.0.0/8, except: [10.1.0.0/24, 10.2.0.1]}, {cidr: 10.1.0.9}]}",
            "plaintext@10.3.0.1 plaintext@10.2.0.2 plaintext@10.1.0.9",
            "plaintext@10.1.0.1 plaintext@10.2.0.1",
        ),
        ("{meshTLS: {identities: ['*']}}", "a.b spiffe://other/ns/x/sa/y", "plaintext a.b@8.8.8.8"),
        ("{meshTLS: {unauthenticatedTLS: true}}", "a.b", "plaintext"),
        (
            "{meshTLS: {identities: ['*.b.serviceaccount.identity.linkerd.cluster.local']}}",
            "a.b c.b",
            "a.bb b.a plaintext",
        ),
        (
            "{meshTLS: {identities: [a.b.serviceaccount.identity.linkerd.cluster.local]}}",
            "a.b",
            "b.b a.c plaintext",
        ),
        // Of the same trust domain.
        (
            "{meshTLS: {identities: [a.b.serviceaccount.identity.linkerd.other]}}",
            "spiffe://other/ns/b/sa/a",
            "a.b",
        ),
        (
            "{meshTLS: {serviceAccounts: [{name: a}]}}",
            "a.shop",
            "a.b b.shop spiffe://other/ns/shop/sa/a plaintext",
        ),
        (
            "{meshTLS: {serviceAccounts: [{name: a, namespace: b}, {name: c, namespace: d}]}}",
            "a.b c.d",
            "a.d a.shop",
        ),
        (
            "{meshTLS: {serviceAccounts: [{name: a}], identities: [c.d.serviceaccount.identity.linkerd.cluster.local]}}",
            "a.shop c.d",
            "a.d",
        ),
        (
            "{meshTLS: {serviceAccounts: [{name: a}]}, networks: [{cidr: 8.0.0.0/8}]}",
            "a.shop@8.8.8.8",
            "a.shop b.shop@8.8.8.8",
        ),
    ] {
        let mesh = mesh(&authorization("z", &format!("{{server: {{name: s}}, client: {client}}}")));
        assert!(mesh.defects().is_empty(), "{client}");
        for from in admitted.split_whitespace() {
            assert_eq!(mesh.tcp(from, 8080), "allow z", "{client} {from}");
            assert_eq!(mesh.whatever(from, 8080), "allow z", "{client} {from}");
        }
        for from in refused.split_whitespace() {
            assert_eq!(mesh.tcp(from, 8080), DENIED, "{client} {from}");
        }
    }
}

#[test]
fn server_authorizations_are_for_servers_by_name_or_label() {
    for (server, holds) in [
        ("{name: s}", true),
        ("{name: t}", false),
        ("{selector: {}}", true),
        ("{selector: {matchLabels: {app: web}}}", true),
        ("{selector: {matchLabels: {app: api}}}", false),
        ("{selector: {matchExpressions: [{key: app, operator: In, values: [web]}]}}", true),
    ] {
        let mesh =
            mesh(&authorization("z", &format!("{{server: {server}, client: {{unauthenticated: true}}}}")));
        assert_eq!(mesh.tcp("a.b", 8080), if holds { "allow z" } else { DENIED }, "{server}");
        assert_eq!(mesh.defects().len(), usize::from(server == "{name: t}"), "{server}");
    }
    // Never for another namespace's.
    let other =
        authorization("z", "{server: {name: s}, client: {unauthenticated: true}}").replace("shop", "other");
    assert_eq!(mesh(&other).tcp("a.b", 8080), DENIED);
}

#[test]
fn authorizations_are_alternatives() {
    let one = authorization("z", "{server: {name: s}, client: {meshTLS: {serviceAccounts: [{name: a}]}}}");
    let two = policy(
        "p",
        &format!("{{{TO_SERVER}, requiredAuthenticationRefs: [{{kind: ServiceAccount, name: b}}]}}"),
    );
    let mesh = mesh(&format!("{one}{two}"));
    assert_eq!(mesh.tcp("a.shop", 8080), "allow z");
    assert_eq!(mesh.tcp("b.shop", 8080), "allow p");
    assert_eq!(mesh.tcp("c.shop", 8080), DENIED);
}

#[test]
fn a_server_authorization_that_cannot_be_right_admits_nobody() {
    for (spec, field) in [
        ("{server: {name: s}, client: {}}", "spec.client"),
        ("{server: {name: s}, client: {networks: [{cidr: 0.0.0.0/0}]}}", "spec.client"),
        ("{server: {name: s}, client: {unauthenticated: false}}", "spec.client"),
        ("{server: {name: s}}", "spec.client"),
        (
            "{server: {name: s}, client: {unauthenticated: true, meshTLS: {identities: ['*']}}}",
            "spec.client.meshTLS",
        ),
        ("{server: {name: s}, client: {unauthenticated: 'true'}}", "spec.client.unauthenticated"),
        ("{server: {name: s}, client: {meshTLS: {}}}", "spec.client.meshTLS"),
        ("{server: {name: s}, client: {meshTLS: {identities: []}}}", "spec.client.meshTLS"),
        (
            "{server: {name: s}, client: {meshTLS: {unauthenticatedTLS: true, identities: ['*']}}}",
            "spec.client.meshTLS.unauthenticatedTLS",
        ),
        (
            "{server: {name: s}, client: {meshTLS: {identities: ['*', 'a*b']}}}",
            "spec.client.meshTLS.identities[1]",
        ),
        ("{server: {name: s}, client: {meshTLS: {identities: [A.b]}}}", "spec.client.meshTLS.identities[0]"),
        (
            "{server: {name: s}, client: {meshTLS: {serviceAccounts: [{namespace: b}]}}}",
            "spec.client.meshTLS.serviceAccounts[0].name",
        ),
        (
            "{server: {name: s}, client: {unauthenticated: true, networks: [{cidr: 10.0.0.0/33}]}}",
            "spec.client.networks[0].cidr",
        ),
        (
            "{server: {name: s}, client: {unauthenticated: true, networks: [{cidr: 10.0.0.0/8}, {cidr: x}]}}",
            "spec.client.networks[1].cidr",
        ),
        (
            "{server: {name: s}, client: {unauthenticated: true, networks: [{cidr: 10.0.0.0/8, except: [x]}]}}",
            "spec.client.networks[0].except[0]",
        ),
        (
            "{server: {name: s}, client: {unauthenticated: true, networks: [{cidr: 10.0.0.0/8, exept: [10.1.0.0/16]}]}}",
            "spec.client.networks[0].exept",
        ),
        ("{server: {name: s}, client: {unauthenticated: true, meshTls: {}}}", "spec.client.meshTls"),
        ("{server: {name: s}, clients: {}, client: {unauthenticated: true}}", "spec.clients"),
        ("{server: {name: s, selector: {}}, client: {unauthenticated: true}}", "spec.server"),
        ("{server: {}, client: {unauthenticated: true}}", "spec.server"),
        (
            "{server: {selector: {matchLabel: {app: x}}}, client: {unauthenticated: true}}",
            "spec.server.selector.matchLabel",
        ),
    ] {
        let mesh = mesh(&authorization("z", spec));
        for from in ["plaintext", "a.b", "a.shop"] {
            assert_eq!(mesh.tcp(from, 8080), DENIED, "{spec}");
        }
        assert!(mesh.defects().contains(&format!("z {field}")), "{spec}: {:?}", mesh.defects());
    }
}

/// It says nothing of anybody, so anybody is admitted from anywhere.
#[test]
fn a_policy_that_requires_nothing_admits_everybody() {
    let mesh = mesh(&policy("p", &format!("{{{TO_SERVER}, requiredAuthenticationRefs: []}}")));
    assert_eq!(mesh.tcp("plaintext@8.8.8.8", 8080), "allow p");
    assert_eq!(mesh.tcp("a.b@2001:db8::1", 8080), "allow p");
}

#[test]
fn all_that_a_policy_requires_has_to_hold() {
    let refs = |list: &str| policy("p", &format!("{{{TO_SERVER}, requiredAuthenticationRefs: [{list}]}}"));
    let own = "{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: m}";
    let net = "{group: policy.linkerd.io, kind: NetworkAuthentication, name: net}";
    let rest = format!(
        "{}{}{}",
        mesh_tls(
            "m",
            "{identities: [a.b.serviceaccount.identity.linkerd.cluster.local, '*.c.serviceaccount.identity.linkerd.cluster.local']}"
        ),
        networks("net", "{networks: [{cidr: 10.0.0.0/8, except: [10.9.0.0/16]}, {cidr: 8.8.8.8}]}"),
        networks("net2", "{networks: [{cidr: 10.1.0.0/16}]}"),
    );
    let both = mesh(&format!("{}{rest}", refs(&format!("{own}, {net}"))));
    assert_eq!(both.tcp("a.b", 8080), "allow p");
    assert_eq!(both.tcp("x.c@8.8.8.8", 8080), "allow p");
    assert_eq!(both.tcp("a.b@10.9.1.1", 8080), DENIED);
    assert_eq!(both.tcp("a.b@8.8.8.9", 8080), DENIED);
    assert_eq!(both.tcp("b.b", 8080), DENIED);
    assert_eq!(both.tcp("plaintext", 8080), DENIED);
    let account = mesh(&format!("{}{rest}", refs("{kind: ServiceAccount, name: a}")));
    assert_eq!(account.tcp("a.shop", 8080), "allow p");
    assert_eq!(account.tcp("a.shop@8.8.8.8", 8080), "allow p");
    assert_eq!(account.tcp("spiffe://other/ns/shop/sa/a", 8080), DENIED);
    assert_eq!(account.tcp("a.b", 8080), DENIED);
    let elsewhere =
        mesh(&format!("{}{rest}", refs("{group: core, kind: ServiceAccount, name: a, namespace: b}")));
    assert_eq!(elsewhere.tcp("a.b", 8080), "allow p");
    assert_eq!(elsewhere.tcp("a.shop", 8080), DENIED);
    let alone = mesh(&format!("{}{rest}", refs(net)));
    assert_eq!(alone.tcp("plaintext@8.8.8.8", 8080), "allow p");
    let two = mesh(&format!("{}{rest}", refs(&format!("{net}, {}", net.replace("name: net", "name: net2")))));
    assert_eq!(two.tcp("plaintext", 8080), "allow p");
    assert_eq!(two.tcp("plaintext@8.8.8.8", 8080), DENIED);
}

#[test]
fn authentications_of_other_namespaces_are_named_with_them() {
    let refs = "[{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: m, namespace: other}]";
    let p = policy("p", &format!("{{{TO_SERVER}, requiredAuthenticationRefs: {refs}}}"));
    let here = mesh_tls("m", "{identities: ['*']}");
    assert_eq!(mesh(&format!("{p}{here}")).tcp("a.b", 8080), DENIED);
    let there =
        here.replace("shop", "other").replace("['*']", "[a.b.serviceaccount.identity.linkerd.cluster.local]");
    let mesh = mesh(&format!("{p}{here}{there}"));
    assert_eq!(mesh.tcp("a.b", 8080), "allow p");
    assert_eq!(mesh.tcp("c.b", 8080), DENIED);
}

#[test]
fn identities_in_every_spelling() {
    for (spec, admitted, refused) in [
        ("{identities: ['*']}", "a.b spiffe://other/ns/x/sa/y spiffe://other/some/path", "plaintext"),
        (
            "{identities: ['*.cluster.local']}",
            "a.b",
            "spiffe://other/ns/x/sa/y spiffe://cluster.local/some/path plaintext",
        ),
        (
            "{identities: ['spiffe://other/ns/x/sa/y']}",
            "spiffe://other/ns/x/sa/y",
            "y.x spiffe://other/ns/x/sa/z",
        ),
        (
            "{identities: ['spiffe://other/some/path']}",
            "spiffe://other/some/path",
            "a.b spiffe://other/ns/x/sa/y spiffe://other/some/path/x spiffe://another/some/path",
        ),
        ("{identityRefs: [{kind: ServiceAccount, name: a}]}", "a.shop", "a.b plaintext"),
        (
            "{identityRefs: [{kind: ServiceAccount, name: a, namespace: b}, {kind: ServiceAccount, name: c}]}",
            "a.b c.shop",
            "c.b a.shop",
        ),
        ("{identityRefs: [{kind: ServiceAccount}]}", "a.shop z.shop", "a.b plaintext"),
        (
            "{identityRefs: [{kind: ServiceAccount, namespace: b}]}",
            "a.b",
            "a.shop spiffe://cluster.local/ns/b/sa/a/x spiffe://cluster.local/x/ns/b/sa/a spiffe://cluster.local/ns/b",
        ),
        ("{identityRefs: [{kind: Namespace, name: b}]}", "a.b z.b", "a.bb a.shop spiffe://other/ns/b/sa/a"),
    ] {
        let mesh = mesh(&format!("{}{}", requiring("MeshTLSAuthentication"), mesh_tls("x", spec)));
        assert!(mesh.defects().is_empty(), "{spec}: {:?}", mesh.defects());
        for from in admitted.split_whitespace() {
            assert_eq!(mesh.tcp(from, 8080), "allow p", "{spec} {from}");
        }
        for from in refused.split_whitespace() {
            assert_eq!(mesh.tcp(from, 8080), DENIED, "{spec} {from}");
        }
    }
}

#[test]
fn the_control_planes_namespace_is_a_part_of_identities() {
    let yaml = format!(
        "{SERVER}{}{}",
        requiring("MeshTLSAuthentication"),
        mesh_tls("x", "{identityRefs: [{kind: ServiceAccount, name: a}]}")
    );
    let mut other = settings();
    other.linkerd_namespace = "mesh".into();
    assert_eq!(Mesh::with(&yaml, &other).tcp("a.shop", 8080), "allow p");
    let named = yaml.replace(
        "identityRefs: [{kind: ServiceAccount, name: a}]",
        "identities: [a.shop.serviceaccount.identity.linkerd.cluster.local]",
    );
    assert_eq!(Mesh::with(&named, &other).tcp("a.shop", 8080), DENIED);
    assert_eq!(Mesh::of(&named).tcp("a.shop", 8080), "allow p");
}

#[test]
fn an_authentication_that_cannot_be_right_admits_nobody() {
    for (kind, spec) in [
        ("MeshTLSAuthentication", "{}"),
        ("MeshTLSAuthentication", "{identities: []}"),
        ("MeshTLSAuthentication", "{identities: ['*'], identityRefs: [{kind: ServiceAccount, name: a}]}"),
        ("MeshTLSAuthentication", "{identities: ['*', '*.*']}"),
        ("MeshTLSAuthentication", "{identities: ['*', 'spiffe://x/a//b']}"),
        ("MeshTLSAuthentication", "{identities: ['*', 'spiffe://X/a']}"),
        ("MeshTLSAuthentication", "{identities: ['*', '']}"),
        ("MeshTLSAuthentication", "{identities: '*'}"),
        ("MeshTLSAuthentication", "{identity: ['*'], identities: ['*']}"),
        ("MeshTLSAuthentication", "{identityRefs: [{kind: ServiceAccount, name: a}, {kind: Pod, name: b}]}"),
        ("MeshTLSAuthentication", "{identityRefs: [{kind: ServiceAccount, name: a}, {kind: Namespace}]}"),
        ("MeshTLSAuthentication", "{identityRefs: [{kind: Namespace, name: shop, namespace: shop}]}"),
        ("MeshTLSAuthentication", "{identityRefs: [{kind: ServiceAccount, group: apps, name: a}]}"),
        ("NetworkAuthentication", "{}"),
        ("NetworkAuthentication", "{networks: []}"),
        ("NetworkAuthentication", "{networks: [{cidr: 0.0.0.0/0}, {cidr: 10.0.0.0/33}]}"),
        ("NetworkAuthentication", "{networks: [{cidr: 0.0.0.0/0, except: [300.0.0.0/8]}]}"),
        ("NetworkAuthentication", "{networks: [{cidr: 0.0.0.0/0, but: [10.0.0.0/8]}]}"),
        ("NetworkAuthentication", "{networks: [{except: [10.0.0.0/8]}]}"),
    ] {
        let made = if kind.starts_with('M') { mesh_tls("x", spec) } else { networks("x", spec) };
        let mesh = mesh(&format!("{}{made}", requiring(kind)));
        for from in ["plaintext@8.8.8.8", "a.shop", "a.b"] {
            assert_eq!(mesh.tcp(from, 8080), DENIED, "{spec} {from}");
        }
        let defects = mesh.defects();
        assert!(defects.iter().any(|defect| defect.starts_with("x ")), "{spec}: {defects:?}");
        assert!(defects.iter().any(|defect| defect.starts_with("p ")), "{spec}: {defects:?}");
    }
}

/// What lies outside takes nothing away, what covers all leaves nobody; neither is a reason to admit more or less.
#[test]
fn exceptions_count_as_they_are_written() {
    for (spec, admitted, refused) in [
        ("{networks: [{cidr: 10.0.0.0/8, except: [192.168.0.0/16]}]}", "plaintext", "plaintext@192.168.0.1"),
        ("{networks: [{cidr: 10.0.0.0/8, except: [0.0.0.0/0]}]}", "", "plaintext"),
        ("{networks: [{cidr: 10.0.0.0/8, except: ['::/0']}]}", "plaintext", "plaintext@::1"),
    ] {
        let mesh = mesh(&format!("{}{}", requiring("NetworkAuthentication"), networks("x", spec)));
        for from in admitted.split_whitespace() {
            assert_eq!(mesh.tcp(from, 8080), "allow p", "{spec}");
        }
        for from in refused.split_whitespace() {
            assert_eq!(mesh.tcp(from, 8080), DENIED, "{spec}");
        }
        assert_eq!(mesh.defects(), ["x spec.networks[0].except[0]"], "{spec}");
    }
}

#[test]
fn a_policy_that_cannot_be_right_admits_nobody() {
    let m = mesh_tls("m", "{identities: ['*']}");
    for (spec, field) in [
        // What is not there.
        (format!("{{{TO_SERVER}, requiredAuthenticationRefs: [{{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: gone}}]}}"), "requiredAuthenticationRefs[0]"),
        (format!("{{{TO_SERVER}, requiredAuthenticationRefs: [{{group: policy.linkerd.io, kind: NetworkAuthentication, name: gone}}]}}"), "requiredAuthenticationRefs[0]"),
        (format!("{{{TO_SERVER}, requiredAuthenticationRefs: [{{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: m}}, {{group: policy.linkerd.io, kind: NetworkAuthentication, name: gone}}]}}"), "requiredAuthenticationRefs[1]"),
        // Istio's group, and none.
        (format!("{{{TO_SERVER}, requiredAuthenticationRefs: [{{group: security.istio.io, kind: MeshTLSAuthentication, name: m}}]}}"), "requiredAuthenticationRefs[0]"),
        (format!("{{{TO_SERVER}, requiredAuthenticationRefs: [{{kind: MeshTLSAuthentication, name: m}}]}}"), "requiredAuthenticationRefs[0]"),
        (format!("{{{TO_SERVER}, requiredAuthenticationRefs: [{{kind: ServiceAccount}}]}}"), "requiredAuthenticationRefs[0]"),
        (format!("{{{TO_SERVER}}}"), "requiredAuthenticationRefs"),
        (format!("{{{TO_SERVER}, requiredAuthenticationRefs: [], action: ALLOW}}"), "action"),
        ("{targetRef: {group: policy.linkerd.io, kind: Server, name: gone}, requiredAuthenticationRefs: []}".into(), "targetRef"),
        ("{targetRef: {kind: Server, name: s}, requiredAuthenticationRefs: []}".into(), "targetRef"),
        ("{targetRef: {group: policy.linkerd.io, kind: Server, name: s, namespace: shop}, requiredAuthenticationRefs: []}".into(), "targetRef.namespace"),
        ("{targetRef: {kind: Namespace, name: other}, requiredAuthenticationRefs: []}".into(), "targetRef"),
        ("{targetRef: {group: policy.linkerd.io, kind: Namespace, name: shop}, requiredAuthenticationRefs: []}".into(), "targetRef"),
        ("{targetRef: {kind: Pod, name: web}, requiredAuthenticationRefs: []}".into(), "targetRef"),
        ("{requiredAuthenticationRefs: []}".into(), "targetRef"),
    ] {
        let mesh = mesh(&format!("{}{m}", policy("p", &spec)));
        assert_eq!(mesh.tcp("a.b", 8080), DENIED, "{spec}");
        assert_eq!(mesh.defects(), [format!("p spec.{field}")], "{spec}");
    }
}

#[test]
fn a_policy_of_a_namespace_is_for_all_its_servers() {
    let all = policy(
        "p",
        "{targetRef: {kind: Namespace, name: shop}, requiredAuthenticationRefs: [{kind: ServiceAccount, name: a}]}",
    );
    let mesh = mesh(&all);
    assert_eq!(mesh.tcp("a.shop", 8080), "allow p");
    assert_eq!(mesh.tcp("b.shop", 8080), DENIED);
    // For no port without one.
    let deny = Mesh::of(&all).annotation("config.linkerd.io/default-inbound-policy", "deny");
    assert_eq!(deny.tcp("a.shop", 8080), "deny unauthorized deny");
}

#[test]
fn policies_of_the_same_name_in_istios_group_are_not_linkerds() {
    let istio = policy("p", &format!("{{{TO_SERVER}, requiredAuthenticationRefs: []}}"))
        .replace("policy.linkerd.io/v1alpha1", "security.istio.io/v1");
    let mesh = mesh(&istio);
    assert_eq!(mesh.tcp("a.b", 8080), DENIED);
    assert!(mesh.defects().is_empty());
}
