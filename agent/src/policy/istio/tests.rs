//! What Istio's resources become. That the result decides rightly is shown by the table of cases.

use serde_json::{Value, json};

use super::*;
use crate::model::TrustDomain;
use crate::model::workload::{PodFacts, WorkloadMtls};
use crate::policy::Group;
use crate::policy::{Action, Match, MtlsDefaults, PathMatch, StringMatch};

fn settings() -> Settings {
    Settings::new("td.example".parse::<TrustDomain>().unwrap())
}

fn object(kind: &str, namespace: &str, name: &str, spec: Value) -> Object {
    Object::read(json!({
        "apiVersion": "security.istio.io/v1", "kind": kind,
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    }))
    .unwrap()
}

fn istio(objects: &[Object]) -> Istio {
    Istio::new(objects, &settings())
}

fn policy(spec: Value) -> (Policy, Vec<Defect>) {
    let istio = istio(&[object("AuthorizationPolicy", "shop", "p", spec)]);
    let policy = istio.authorizations["shop"][0].policy.clone();
    ((*policy).clone(), istio.defects().to_vec())
}

fn facts(app: &str) -> PodFacts {
    PodFacts { labels: [("app".into(), app.into())].into(), ..PodFacts::default() }
}

fn names(istio: &Istio, namespace: &str, app: &str) -> Vec<String> {
    let (facts, mtls) = (facts(app), WorkloadMtls::default());
    let subject = Subject { facts: &facts, ..Subject::named(namespace, &[], &mtls) };
    istio.policies(&subject).iter().map(|policy| policy.key().to_string()).collect()
}

fn mode(istio: &Istio, namespace: &str, app: &str, port: u16) -> (MtlsMode, String) {
    let (facts, own) = (facts(app), WorkloadMtls::default());
    let subject = Subject { facts: &facts, ..Subject::named(namespace, &[], &own) };
    let (mtls, sources) = istio.mtls(&subject, &MtlsDefaults::default().resolve(namespace, &own));
    let by_port = mtls.ports.contains_key(&port);
    let source = if by_port { sources.ports } else { sources.mode };
    (mtls.on_port(port).0, source.map_or_else(String::new, |resource| resource.name.to_string()))
}

#[test]
fn a_policy_applies_to_whom_its_namespace_and_selector_say() {
    let all = json!({});
    let web = json!({"selector": {"matchLabels": {"app": "web"}}});
    let aimed = json!({"targetRefs": [{"kind": "Service", "name": "web"}]});
    let istio = istio(&[
        object("AuthorizationPolicy", "shop", "own", all.clone()),
        object("AuthorizationPolicy", "shop", "web", web.clone()),
        object("AuthorizationPolicy", "istio-system", "mesh", all.clone()),
        object("AuthorizationPolicy", "istio-system", "mesh-web", web),
        object("AuthorizationPolicy", "other", "other", all),
        object("AuthorizationPolicy", "shop", "aimed", aimed),
    ]);
    assert_eq!(
        names(&istio, "shop", "web"),
        ["istio-system/mesh", "istio-system/mesh-web", "shop/own", "shop/web"]
    );
    assert_eq!(names(&istio, "shop", "db"), ["istio-system/mesh", "shop/own"]);
    assert_eq!(names(&istio, "istio-system", "web"), ["istio-system/mesh", "istio-system/mesh-web"]);
    let (facts, mtls) = (facts("web"), WorkloadMtls::default());
    let left = istio.left_to_others(&Subject { facts: &facts, ..Subject::named("shop", &[], &mtls) });
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].1, "Service web");
    assert_eq!(istio.defects(), []);
}

#[test]
fn every_field_is_taken() {
    let (policy, defects) = policy(json!({
        "action": "DENY",
        "rules": [{
            "from": [{"source": {
                "principals": ["cluster.local/ns/a/sa/b", "*/sa/x"], "notPrincipals": ["*"],
                "namespaces": ["dev*"], "ipBlocks": ["10.0.0.1", "fd00::/8"], "notRemoteIpBlocks": ["10.0.0.0/8"],
                "trustDomains": ["td.example"]}}],
            "to": [{"operation": {"hosts": ["*.example"], "ports": ["80"], "methods": ["GET"], "notPaths": ["/a/{*}", "/b*"]}}],
            "when": [{"key": "request.headers[X-Team]", "notValues": ["red"]},
                     {"key": "source.serviceAccount", "values": ["web"]}],
        }],
    }));
    assert_eq!(defects, []);
    assert_eq!(policy.action, Action::Deny);
    let [group] = &policy.groups[..] else { panic!("{policy:?}") };
    assert_eq!(group.never, None);
    let [from, to, header, account] = &group.rules[..] else { panic!("{group:?}") };
    let from = &from.matches[0];
    let principals = [StringMatch::Exact("td.example/ns/a/sa/b".into()), StringMatch::Suffix("/sa/x".into())];
    assert_eq!(from.principals, principals);
    assert_eq!(from.not_principals, [StringMatch::Presence]);
    assert_eq!(from.namespaces, [StringMatch::Prefix("dev".into())]);
    assert_eq!(
        from.source_ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.0.0.1/32", "fd00::/8"]
    );
    assert_eq!((from.not_remote_ips.len(), from.trust_domains.len()), (1, 1));
    let to = &to.matches[0];
    assert_eq!(to.hosts, [StringMatch::Suffix(".example".into())]);
    assert_eq!((&to.destination_ports[..], to.methods.len()), (&[80][..], 1));
    assert!(matches!(&to.not_paths[..], [PathMatch::Template(_), PathMatch::String(StringMatch::Prefix(_))]));
    assert_eq!(&*header.matches[0].headers[0].name, "x-team");
    assert_eq!(&*account.matches[0].service_accounts[0].namespace, "shop");
}

#[test]
fn rules_that_are_absent_match_nothing_and_an_empty_one_everything() {
    assert_eq!(policy(json!({})).0.groups, []);
    assert_eq!(policy(json!({"rules": []})).0.groups, []);
    assert_eq!(policy(json!({"rules": [{}]})).0.groups, [Group::default()]);
    assert_eq!(policy(json!({"rules": [{"from": [], "to": null}]})).0.groups, [Group::default()]);
}

/// One rule in a policy that allows, and in one that denies.
fn both(rule: &Value) -> (Group, Group, Vec<Defect>) {
    let (mut allow, defects) = policy(json!({"rules": [rule]}));
    let (mut deny, _) = policy(json!({"action": "DENY", "rules": [rule]}));
    assert_eq!((allow.defect, deny.defect), (None, None));
    (allow.groups.remove(0), deny.groups.remove(0), defects)
}

#[test]
fn what_cannot_be_evaluated_admits_nobody_and_denies_more() {
    let from = |source: Value| json!({"from": [{"source": source}]});
    let to = |operation: Value| json!({"to": [{"operation": operation}]});
    let when = |condition: Value| json!({"when": [condition]});
    for (rule, field) in [
        (from(json!({"ipBlocks": ["10.0.0.0/33"]})), "from[0].source.ipBlocks[0]"),
        (from(json!({"ipBlocks": ["10.0.0.0/8", "x"]})), "from[0].source.ipBlocks[1]"),
        (from(json!({"notIpBlocks": ["x"]})), "from[0].source.notIpBlocks[0]"),
        (from(json!({"ipBlocks": "10.0.0.0/8"})), "from[0].source.ipBlocks"),
        (from(json!({"principals": [""]})), "from[0].source.principals[0]"),
        (from(json!({"serviceAccounts": ["a/b*"]})), "from[0].source.serviceAccounts[0]"),
        (from(json!({"principals": ["spiffe://td.example/ns/a/sa/b"]})), "from[0].source.principals[0]"),
        (from(json!({"principals": ["spiffe://*"]})), "from[0].source.principals[0]"),
        (
            from(json!({"notPrincipals": ["spiffe://td.example/ns/a/sa/b"]})),
            "from[0].source.notPrincipals[0]",
        ),
        (from(json!({"principals": ["td.example/ns/*/sa/b"]})), "from[0].source.principals[0]"),
        (from(json!({"principals": ["**"]})), "from[0].source.principals[0]"),
        (from(json!({"namespaces": ["*a*"]})), "from[0].source.namespaces[0]"),
        (from(json!({"notNamespaces": ["a*b"]})), "from[0].source.notNamespaces[0]"),
        (from(json!({"trustDomains": ["t*d"]})), "from[0].source.trustDomains[0]"),
        (from(json!({"trustDomains": ["spiffe://td.example"]})), "from[0].source.trustDomains[0]"),
        (from(json!({"notTrustDomains": ["a/b"]})), "from[0].source.notTrustDomains[0]"),
        (from(json!({"requestPrincipals": ["*"]})), "from[0].source.requestPrincipals"),
        (from(json!({"notRequestPrincipals": ["*"]})), "from[0].source.notRequestPrincipals"),
        (from(json!({"unheard": ["of"]})), "from[0].source.unheard"),
        (from(json!({})), "from[0].source"),
        (json!({"from": [{}]}), "from[0].source"),
        (json!({"from": "x"}), "from"),
        (json!({"unheard": []}), "unheard"),
        (to(json!({"ports": ["70000"]})), "to[0].operation.ports[0]"),
        (to(json!({"ports": [8080]})), "to[0].operation.ports[0]"),
        (to(json!({"notPorts": ["+80"]})), "to[0].operation.notPorts[0]"),
        (to(json!({"hosts": ["a.*.example"]})), "to[0].operation.hosts[0]"),
        (to(json!({"paths": ["/{**}/a/{*}"]})), "to[0].operation.paths[0]"),
        (to(json!({"paths": ["/a/{id}"]})), "to[0].operation.paths[0]"),
        (to(json!({"notPaths": ["/a//{*}"]})), "to[0].operation.notPaths[0]"),
        (when(json!({"key": "request.auth.claims[iss]", "values": ["x"]})), "when[0].key"),
        (when(json!({"key": "unheard.of", "values": ["x"]})), "when[0].key"),
        (when(json!({"key": "request.headers[]", "values": ["x"]})), "when[0].key"),
        (when(json!({"key": "request.headers[:scheme]", "values": ["x"]})), "when[0].key"),
        (when(json!({"key": "source.ip", "values": ["x"]})), "when[0].values[0]"),
        (when(json!({"key": "source.principal", "values": ["spiffe://a/b"]})), "when[0].values[0]"),
        (when(json!({"key": "source.trustDomain", "values": ["a*b"]})), "when[0].values[0]"),
        (when(json!({"key": "source.namespace", "values": ["a*b"]})), "when[0].values[0]"),
        (when(json!({"key": "connection.sni", "values": ["a*b"]})), "when[0].values[0]"),
        (when(json!({"key": "source.ip"})), "when[0]"),
        (when(json!({"values": ["x"]})), "when[0].key"),
    ] {
        let (allow, deny, defects) = both(&rule);
        assert!(allow.never.is_some(), "{rule}");
        assert!(defects.iter().any(|d| d.field == format!("spec.rules[0].{field}")), "{rule}: {defects:?}");
        assert_eq!(deny, Group::default(), "{rule}: denies everything");
    }
}

#[test]
fn the_rest_of_a_rule_that_denies_still_narrows_it() {
    let (allow, deny, _) = both(&json!({
        "from": [{"source": {"namespaces": ["dev"], "requestPrincipals": ["*"], "notIpBlocks": ["10.0.0.0/8", "x"]}}],
        "when": [{"key": "request.auth.audiences", "values": ["x"]}],
    }));
    assert!(allow.never.is_some());
    let expected = Match {
        namespaces: vec![StringMatch::Exact("dev".into())],
        not_source_ips: vec!["10.0.0.0/8".parse().unwrap()],
        ..Match::default()
    };
    assert_eq!(deny.rules[0].matches, [expected]);
    assert_eq!(deny.rules.len(), 1);
    // One alternative that may match anything leaves nothing of the others.
    let rule =
        json!({"from": [{"source": {"namespaces": ["dev"]}}, {"source": {"requestPrincipals": ["*"]}}]});
    assert_eq!(both(&rule).1, Group::default());
}

#[test]
fn a_policy_whose_reach_or_action_is_not_understood_denies_all() {
    for spec in [
        json!({"action": "PERMIT", "rules": [{}]}),
        json!({"action": 1, "rules": [{}]}),
        json!({"selector": {"matchExpressions": []}, "rules": [{}]}),
        json!({"selector": "app=web", "rules": [{}]}),
        json!({"selector": {"matchLabels": {"app": 1}}, "rules": [{}]}),
        json!({"selector": {"matchLabels": {"app": "*"}}, "rules": [{}]}),
        json!({"selector": {"matchLabels": {"a*": "web"}}, "rules": [{}]}),
        json!({"selector": {"matchLabels": {"": "web"}}, "rules": [{}]}),
        json!({"targetRefs": "web", "rules": [{}]}),
        json!("x"),
    ] {
        let (policy, defects) = policy(spec.clone());
        assert!(policy.defect.is_some() && !defects.is_empty(), "{spec}");
    }
    // Misspelt rules of a policy that denies.
    let (policy, defects) = policy(json!({"action": "DENY", "rule": [{}]}));
    assert_eq!((policy.groups, defects.len()), (vec![Group::default()], 1));
}

#[test]
fn a_target_that_istio_would_not_take_takes_a_policy_off_nobody() {
    let gateway = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "wp"});
    let class = json!({"group": "gateway.networking.k8s.io", "kind": "GatewayClass", "name": "c"});
    let with = |key: &str, value: Value| {
        let mut gateway = gateway.clone();
        gateway[key] = value;
        gateway
    };
    let left = |namespace: &str, spec: Value| {
        let istio = istio(&[object("AuthorizationPolicy", namespace, "p", spec)]);
        let policy = &istio.authorizations[namespace][0];
        assert_eq!(policy.policy.defect.is_some(), policy.targets.is_none());
        assert_eq!(istio.defects().is_empty(), policy.targets.is_some());
        policy.targets.clone()
    };
    let bad = [
        json!("wp"),
        json!({}),
        Value::Null,
        json!([]),
        json!(5),
        with("kind", json!("")),
        with("kind", Value::Null),
        with("name", json!("")),
        with("name", json!(5)),
        with("kind", json!("Foo")),
        with("kind", json!("gateway")),
        with("group", json!("")),
        with("group", json!("networking.istio.io")),
        with("group", json!(["gateway.networking.k8s.io"])),
        with("namespace", json!("dev")),
        with("sectionName", json!("http")),
        json!({"kind": "Gateway", "name": "wp"}),
        json!({"group": "apps", "kind": "Deployment", "name": "web"}),
        class.clone(),
    ];
    for one in bad {
        assert_eq!(left("shop", json!({"targetRefs": [one]})), None, "{one}");
        assert_eq!(left("shop", json!({"targetRefs": [gateway, one]})), None, "{one}");
        if !one.is_null() {
            assert_eq!(left("shop", json!({"targetRef": one})), None, "{one}");
        }
    }
    assert_eq!(left("shop", json!({"targetRefs": {"kind": "Gateway"}})), None);
    assert_eq!(left("shop", json!({"targetRefs": vec![gateway.clone(); 17]})), None);
    assert_eq!(left("shop", json!({"targetRefs": [gateway], "targetRef": gateway})), None);
    assert_eq!(left("shop", json!({"targetRefs": [gateway], "selector": {}})), None);
    assert_eq!(left("shop", json!({"targetRef": gateway, "selector": {"matchLabels": {"a": "b"}}})), None);

    assert_eq!(
        left("shop", json!({"targetRefs": vec![gateway.clone(); 2]})).unwrap(),
        "Gateway wp, Gateway wp"
    );
    assert_eq!(left("shop", json!({"targetRef": gateway, "selector": null})).unwrap(), "Gateway wp");
    assert_eq!(left("istio-system", json!({"targetRefs": [class]})).unwrap(), "GatewayClass c");
    for (group, kind) in [("", "Service"), ("core", "Service"), ("networking.istio.io", "ServiceEntry")] {
        let one = json!({"group": group, "kind": kind, "name": "x", "namespace": null});
        assert_eq!(left("shop", json!({"targetRefs": [one]})).unwrap(), format!("{kind} x"));
    }
}

/// What may be meant for the workload alone.
#[test]
fn a_peer_authentication_that_does_not_say_for_whom_it_is_is_strict_before_all_others() {
    let set = |mode: &str| json!({"mtls": {"mode": mode}});
    let web = json!({"selector": {"matchLabels": {"app": "web"}}, "mtls": {"mode": "DISABLE"},
        "portLevelMtls": {"80": {"mode": "DISABLE"}}});
    for selector in [
        json!({"matchLabels": {"app": 5}}),
        json!({"matchLabels": {"app": null}}),
        json!({"matchLabels": {"app": "*"}}),
        json!({"matchLabels": {"app": "we*"}}),
        json!({"matchLabels": {"*": "web"}}),
        json!({"matchLabels": {"": "web"}}),
        json!({"matchLabels": ["app"]}),
        json!({"matchLabels": "app"}),
        json!({"matchLabels": {"app": "web", "tier": 5}}),
        json!({"matchExpressions": []}),
        json!({"app": "web"}),
        json!([]),
        json!("app=web"),
        json!(5),
    ] {
        for own in ["STRICT", "DISABLE", "UNSET"] {
            let unclear = json!({"selector": selector, "mtls": {"mode": own}});
            let objects = [
                peer("shop", "ns", OLD, set("PERMISSIVE")),
                peer("shop", "a-web", OLD, web.clone()),
                peer("shop", "unclear", NEW, unclear.clone()),
            ];
            let istio = istio(&objects);
            assert_eq!(mode(&istio, "shop", "web", 80), (MtlsMode::Strict, "unclear".into()), "{selector}");
            assert_eq!(mode(&istio, "other", "web", 80).0, MtlsMode::Permissive);
            assert!(!istio.defects().is_empty());
            // In the root namespace it is the mesh's, and a namespace still says otherwise.
            let istio = self::istio(&[
                peer("istio-system", "mesh", OLD, set("PERMISSIVE")),
                peer("istio-system", "unclear", NEW, unclear),
                peer("shop", "ns", OLD, set("PERMISSIVE")),
            ]);
            assert_eq!(mode(&istio, "other", "web", 80), (MtlsMode::Strict, "unclear".into()), "{selector}");
            assert_eq!(mode(&istio, "shop", "web", 80), (MtlsMode::Permissive, "ns".into()), "{selector}");
        }
    }
    // What is understood of its selector still says for whom it is not.
    let narrowed =
        json!({"selector": {"matchLabels": {"app": "web", "tier": 5}}, "mtls": {"mode": "STRICT"}});
    assert_eq!(mode(&istio(&[peer("shop", "p", OLD, narrowed)]), "shop", "db", 80).0, MtlsMode::Permissive);
    // A misspelt field may be the selector.
    let misspelt = json!({"selectr": {"matchLabels": {"app": "web"}}, "mtls": {"mode": "STRICT"}});
    let objects = [peer("shop", "ns", OLD, set("DISABLE")), peer("shop", "p", NEW, misspelt)];
    assert_eq!(mode(&istio(&objects), "shop", "web", 80).0, MtlsMode::Strict);
}

#[test]
fn custom_counts_as_deny_and_audit_decides_nothing() {
    let (policy, defects) =
        self::policy(json!({"action": "CUSTOM", "provider": {"name": "x"}, "rules": [{}]}));
    assert_eq!((policy.action, defects.len(), policy.defect), (Action::Deny, 1, None));
    assert_eq!(self::policy(json!({"action": "AUDIT"})).0.action, Action::Audit);
}

#[test]
fn dry_run_is_what_go_calls_true() {
    for (value, dry) in
        [("true", true), ("1", true), ("T", true), ("yes", false), ("false", false), ("", false)]
    {
        let mut object = object("AuthorizationPolicy", "shop", "p", json!({}));
        object.meta.annotations.insert("istio.io/dry-run".into(), value.into());
        assert_eq!(istio(&[object]).authorizations["shop"][0].policy.dry_run, dry, "{value}");
    }
}

fn peer(namespace: &str, name: &str, created: &str, spec: Value) -> Object {
    let mut object = object("PeerAuthentication", namespace, name, spec);
    object.meta.creation_timestamp = created.into();
    object
}

const OLD: &str = "2020-01-01T00:00:00Z";
const NEW: &str = "2024-01-01T00:00:00Z";

#[test]
fn the_narrower_level_wins_and_unset_inherits() {
    let set = |mode: &str| json!({"mtls": {"mode": mode}});
    let web = |mode: &str| json!({"selector": {"matchLabels": {"app": "web"}}, "mtls": {"mode": mode}});
    let strict = MtlsMode::Strict;
    let open = MtlsMode::Permissive;
    for (objects, expected) in [
        (vec![], (open, "")),
        // For whom it is meant is not known, so it opens nobody.
        (
            vec![peer(
                "shop",
                "ns",
                OLD,
                json!({"selector": {"matchLabels": ["app"]}, "mtls": {"mode": "PERMISSIVE"}}),
            )],
            (strict, "ns"),
        ),
        (vec![peer("istio-system", "mesh", OLD, set("STRICT"))], (strict, "mesh")),
        (
            vec![
                peer("istio-system", "mesh", OLD, set("STRICT")),
                peer("shop", "ns", OLD, set("PERMISSIVE")),
            ],
            (open, "ns"),
        ),
        (
            vec![peer("istio-system", "mesh", OLD, set("STRICT")), peer("shop", "ns", OLD, set("UNSET"))],
            (strict, "mesh"),
        ),
        (
            vec![peer("istio-system", "mesh", OLD, set("STRICT")), peer("shop", "ns", OLD, json!({}))],
            (strict, "mesh"),
        ),
        (
            vec![peer("shop", "ns", OLD, set("STRICT")), peer("shop", "web", OLD, web("DISABLE"))],
            (open, "web"),
        ),
        (
            vec![peer("shop", "ns", OLD, set("STRICT")), peer("shop", "web", OLD, web("UNSET"))],
            (strict, "ns"),
        ),
        // Of several, the oldest, whatever it says.
        (vec![peer("shop", "a", NEW, set("STRICT")), peer("shop", "b", OLD, set("PERMISSIVE"))], (open, "b")),
        (vec![peer("shop", "a", NEW, web("STRICT")), peer("shop", "b", OLD, web("UNSET"))], (open, "")),
        (vec![peer("shop", "b", OLD, set("STRICT")), peer("shop", "a", OLD, set("PERMISSIVE"))], (open, "a")),
        // In the root namespace a selector makes it ignored.
        (vec![peer("istio-system", "web", OLD, web("STRICT"))], (open, "")),
        (vec![peer("other", "ns", OLD, set("STRICT"))], (open, "")),
        (vec![peer("shop", "ns", OLD, set("STRICTLY"))], (strict, "ns")),
        (vec![peer("shop", "ns", OLD, json!({"mtls": {"Mode": "PERMISSIVE"}}))], (strict, "ns")),
    ] {
        let (mode, source) = mode(&istio(&objects), "shop", "web", 80);
        assert_eq!((mode, &*source), expected, "{objects:?}");
    }
}

#[test]
fn ports_are_the_selected_workloads() {
    let spec = |mode: &str, ports: Value| json!({"selector": {"matchLabels": {"app": "web"}}, "mtls": {"mode": mode}, "portLevelMtls": ports});
    let at = |spec: Value, port| mode(&istio(&[peer("shop", "web", OLD, spec)]), "shop", "web", port).0;
    let (strict, open) = (MtlsMode::Strict, MtlsMode::Permissive);
    assert_eq!(at(spec("STRICT", json!({"8080": {"mode": "DISABLE"}})), 8080), open);
    assert_eq!(at(spec("STRICT", json!({"8080": {"mode": "DISABLE"}})), 8081), strict);
    assert_eq!(at(spec("STRICT", json!({"8080": {"mode": "UNSET"}})), 8080), strict);
    assert_eq!(at(spec("UNSET", json!({"8080": {"mode": "STRICT"}})), 8080), strict);
    assert_eq!(at(spec("UNSET", json!({"8080": {"mode": "STRICT"}})), 80), open);
    // A port that cannot be, and was to be closed.
    assert_eq!(at(spec("PERMISSIVE", json!({"70000": {"mode": "STRICT"}})), 80), strict);
    assert_eq!(at(spec("STRICT", json!({"x": {"mode": "PERMISSIVE"}})), 80), strict);
    // Without a selector ports say nothing.
    let whole = json!({"mtls": {"mode": "STRICT"}, "portLevelMtls": {"8080": {"mode": "PERMISSIVE"}}});
    assert_eq!(at(whole, 8080), strict);
}

/// Each with whether it decides about the port, and why.
fn peers(istio: &Istio, namespace: &str, own: &WorkloadMtls, port: u16) -> Vec<(String, bool, String)> {
    let facts = facts("web");
    let subject = Subject { facts: &facts, ..Subject::named(namespace, &[], own) };
    let all = istio
        .peer_authentications(&subject, &MtlsDefaults::default().resolve(namespace, own), port)
        .into_iter();
    all.map(|one| (one.resource.name.to_string(), one.matched, one.note.unwrap_or_default())).collect()
}

#[test]
fn every_peer_authentication_of_a_pod_is_told_of_with_what_became_of_it() {
    const SHOP: &str = "PeerAuthentication.security.istio.io/shop";
    let set = |mode: &str| json!({"mtls": {"mode": mode}});
    let web = |mode: &str| json!({"selector": {"matchLabels": {"app": "web"}}, "mtls": {"mode": mode}});
    let mut by_port = web("PERMISSIVE");
    by_port["portLevelMtls"] = json!({"8080": {"mode": "STRICT"}});
    let objects = [
        peer("istio-system", "mesh", OLD, set("STRICT")),
        peer("istio-system", "web-root", OLD, web("STRICT")),
        peer("shop", "ns", OLD, set("UNSET")),
        peer("shop", "ns-new", NEW, set("STRICT")),
        peer("shop", "web", OLD, by_port),
        peer("shop", "web-new", NEW, web("DISABLE")),
        peer(
            "shop",
            "db",
            OLD,
            json!({"selector": {"matchLabels": {"app": "db"}}, "mtls": {"mode": "STRICT"}}),
        ),
        peer("other", "ns", OLD, set("STRICT")),
    ];
    let told = |port, web: &str| {
        let narrower = format!("a more specific one decides, {SHOP}/web");
        let older = |which: &str| format!("an older one at this level holds, {SHOP}/{which}");
        let all = [
            ("mesh", false, format!("of the mesh, STRICT: {narrower}")),
            ("ns", false, "of the namespace, UNSET: it leaves the mode to the level above".into()),
            ("ns-new", false, format!("of the namespace, STRICT: {}", older("ns"))),
            ("web", true, format!("of the {web}: it decides")),
            ("web-new", false, format!("of the workload, PERMISSIVE: {}", older("web"))),
            (
                "web-root",
                false,
                "of the workload, STRICT: a selector in the root namespace is for nobody".into(),
            ),
        ];
        let all = all.map(|(name, decides, note): (_, _, String)| (name.to_owned(), decides, note));
        assert_eq!(peers(&istio(&objects), "shop", &WorkloadMtls::default(), port), all);
    };
    told(80, "workload, PERMISSIVE");
    told(8080, "port, STRICT");
}

#[test]
fn a_peer_authentication_does_not_decide_where_the_source_sets_the_port() {
    let own = WorkloadMtls { ports: [(80, MtlsMode::Permissive)].into(), ..WorkloadMtls::default() };
    let objects = [peer("shop", "ns", OLD, json!({"mtls": {"mode": "STRICT"}}))];
    let (_, decides, note) = peers(&istio(&objects), "shop", &own, 80).remove(0);
    assert!(!decides);
    assert_eq!(note, "of the namespace, STRICT: what is said of the port itself decides");
    assert!(peers(&istio(&objects), "shop", &own, 81)[0].1);
    assert_eq!(peers(&istio(&objects), "other", &own, 80), []);
}

#[test]
fn a_principal_of_one_of_the_meshs_names_is_one_of_all() {
    let domain = |name: &str| name.parse::<TrustDomain>().unwrap();
    let plain = settings();
    let renamed = Settings { trust_domain_aliases: vec![domain("old"), domain("older")], ..settings() };
    for (text, settings, expected) in [
        ("cluster.local/ns/a/sa/b", &plain, &["td.example/ns/a/sa/b"][..]),
        ("old/ns/a/sa/b", &plain, &["old/ns/a/sa/b"]),
        ("cluster.local/ns/a/sa/b", &renamed, &["td.example/ns/a/sa/b", "old/ns/a/sa/b", "older/ns/a/sa/b"]),
        ("older/ns/a/sa/b", &renamed, &["older/ns/a/sa/b", "td.example/ns/a/sa/b", "old/ns/a/sa/b"]),
        ("td.example/ns/a/sa/b", &renamed, &["td.example/ns/a/sa/b", "old/ns/a/sa/b", "older/ns/a/sa/b"]),
        ("other/ns/a/sa/b", &renamed, &["other/ns/a/sa/b"]),
        ("olde/ns/a/sa/b", &renamed, &["olde/ns/a/sa/b"]),
    ] {
        let expected: Vec<_> = expected.iter().map(|text| StringMatch::Exact((*text).into())).collect();
        assert_eq!(super::rule::principal(text, settings), Ok(expected), "{text}");
    }
    let suffix = |text: &str| StringMatch::Suffix(text.into());
    let exact = |text: &str| StringMatch::Exact(text.into());
    for (text, expected) in [
        ("*/ns/a/sa/b", vec![suffix("/ns/a/sa/b")]),
        (
            "*er/ns/a/sa/b",
            vec![suffix("er/ns/a/sa/b"), exact("td.example/ns/a/sa/b"), exact("old/ns/a/sa/b")],
        ),
        ("*-td/ns/a/sa/b", vec![suffix("-td/ns/a/sa/b")]),
        // The end of a namespace's name, and of no trust domain's.
        ("*er/sa/b", vec![suffix("er/sa/b")]),
        ("*/sa/b", vec![suffix("/sa/b")]),
    ] {
        assert_eq!(super::rule::principal(text, &renamed), Ok(expected), "{text}");
    }
    for (text, expected) in [
        ("old", vec![exact("old"), exact("td.example"), exact("older")]),
        ("old*", vec![StringMatch::Prefix("old".into()), exact("td.example")]),
        ("*", vec![StringMatch::Presence]),
        ("other", vec![exact("other")]),
        // It stands for the mesh's in principals only.
        ("cluster.local", vec![exact("cluster.local")]),
    ] {
        assert_eq!(super::rule::trust_domain(text, &renamed), Ok(expected), "{text}");
    }
}
