//! Every Server, route and authorization that was looked at, and why it did or did not decide.

use super::super::super::peer::Peer;
use super::Mesh;

const YAML: &str = "
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {namespace: shop, name: s}
spec: {podSelector: {}, port: 8080}
---
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {namespace: shop, name: t}
spec: {podSelector: {}, port: http}
---
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {namespace: shop, name: other}
spec: {podSelector: {matchLabels: {app: api}}, port: 8080}
---
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {namespace: shop, name: admin}
spec: {podSelector: {}, port: admin}
---
apiVersion: policy.linkerd.io/v1beta3
kind: HTTPRoute
metadata: {namespace: shop, name: read}
spec:
  parentRefs: [{kind: Server, name: s}]
  rules:
  - matches: [{path: {value: /a}, method: GET}]
  - matches: [{path: {value: /a/b}, method: GET, headers: [{name: kind, value: x}]}]
---
apiVersion: policy.linkerd.io/v1beta3
kind: HTTPRoute
metadata: {namespace: shop, name: write}
spec: {parentRefs: [{kind: Server, name: s}], rules: [{matches: [{method: POST}]}]}
---
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: readers}
spec: {targetRef: {group: policy.linkerd.io, kind: HTTPRoute, name: read}, requiredAuthenticationRefs: [{kind: ServiceAccount, name: a}]}
---
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: writers}
spec: {targetRef: {group: policy.linkerd.io, kind: HTTPRoute, name: write}, requiredAuthenticationRefs: []}
---
apiVersion: policy.linkerd.io/v1beta1
kind: ServerAuthorization
metadata: {namespace: shop, name: admins}
spec: {server: {name: s}, client: {meshTLS: {serviceAccounts: [{name: root}]}}}
";

#[test]
fn everything_that_was_looked_at_is_told_with_its_reason() {
    let mesh = Mesh::of(YAML);
    let lines = mesh.explain("a.shop", 8080, "GET /a/b");
    let expected = [
        "+ s: it takes the port; whom nothing authorizes is denied",
        "- t: Server.policy.linkerd.io/shop/s takes the port, which is older or comes first by name",
        "+ read: #0 + the request is its; #1 - headers[kind]: none that is sent is \"x\"",
        "- write: #0 - method: \"GET\" is not POST",
        "- admins: #0 - source.identities: \"a.shop.serviceaccount.identity.linkerd.cluster.local\" is none of [root.shop.serviceaccount.identity.linkerd.cluster.local]",
        "+ readers: for HTTPRoute.policy.linkerd.io/shop/read, which the request is of; #0 + source.identities: \"a.shop.serviceaccount.identity.linkerd.cluster.local\" is one of [a.shop.serviceaccount.identity.linkerd.cluster.local]",
        "- writers: for HTTPRoute.policy.linkerd.io/shop/write, which the request is not of; #0 + source.ipBlocks: 10.1.0.1 is one of [0.0.0.0/0]",
        "- admin: port: no container calls one \"admin\"",
        "- other: podSelector: it does not select the pod",
    ];
    assert_eq!(lines, expected);
    let closer = mesh.explain("a.shop", 8080, "GET /a/b kind=x");
    assert_eq!(
        closer[2],
        "+ read: #0 - HTTPRoute.policy.linkerd.io/shop/read#1 meets the request more closely, or comes first; #1 + the request is its"
    );
    let elsewhere = mesh.explain("a.shop", 9999, "GET /");
    assert_eq!(
        elsewhere[0],
        "+ all-unauthenticated: no Server takes the port; whom nothing authorizes is denied; #0 + it asks for nothing"
    );
    assert_eq!(elsewhere.last().expect("a Server"), "- t: port: 9999 is not \"http\", which is [8080]");
}

/// Of clients that may come from anywhere some may be admitted by a network, so they have to be looked at.
#[test]
fn what_depends_on_an_address_that_is_not_known_is_not_denied() {
    let network = "
---
apiVersion: policy.linkerd.io/v1alpha1
kind: NetworkAuthentication
metadata: {namespace: shop, name: inside}
spec: {networks: [{cidr: 10.0.0.0/8}]}
---
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: writers}
spec: {targetRef: {group: policy.linkerd.io, kind: HTTPRoute, name: write}, requiredAuthenticationRefs: [{group: policy.linkerd.io, kind: NetworkAuthentication, name: inside}]}
";
    let whatever = |yaml: &str| {
        Mesh::of(yaml)
            .inbound(|inbound| format!("{:?}", inbound.on_port(8080).whatever(&Peer::plaintext(Some(8080)))))
    };
    assert!(whatever(&format!("{YAML}{network}")).starts_with("Depends"));
    let nobody = YAML.replace(
        "requiredAuthenticationRefs: []",
        "requiredAuthenticationRefs: [{kind: ServiceAccount, name: b}]",
    );
    assert!(whatever(&nobody).starts_with("Deny"), "{}", whatever(&nobody));
}
