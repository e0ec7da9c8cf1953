use super::*;
use crate::discovery::manifest;
use crate::model::TrustDomain;

const WORLD: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: out, labels: {istio.io/dataplane-mode: none}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: api, namespace: shop}, spec: {containers: [{ports: [{containerPort: 80}]}]}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop}, status: {podIP: 10.0.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: new, namespace: shop}, status: {podIP: ''}}
---
{apiVersion: v1, kind: Pod, metadata: {name: host, namespace: shop}, spec: {hostNetwork: true}, status: {podIP: 192.0.2.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: none, namespace: shop, labels: {istio.io/dataplane-mode: none}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: ours, namespace: shop, labels: {underpass.io/mesh: disabled, istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: out}}
---
{apiVersion: v1, kind: Pod, metadata: {name: back, namespace: out, labels: {istio.io/dataplane-mode: ambient}}}
---
";

fn world(policy: &str, normalization: PathNormalization) -> Offline {
    let objects = manifest::read(&format!("{WORLD}{policy}")).unwrap().into_iter().map(Result::unwrap);
    let domain = TrustDomain::cluster_local();
    let settings = Settings { path_normalization: normalization, ..Settings::new(domain.clone()) };
    Offline::new(Manifest::new(objects.collect(), &domain).unwrap(), settings)
}

fn policy(spec: &str) -> String {
    format!(
        "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: p, namespace: shop}}, spec: {spec}}}"
    )
}

fn get(path: &str) -> Asked {
    Asked { from: "shop/web".into(), to: "shop/api".into(), path: Some(path.into()), ..Asked::default() }
}

fn from(from: &str) -> Asked {
    Asked { from: from.into(), to: "shop/api".into(), ..Asked::default() }
}

#[test]
fn a_method_that_is_not_in_capitals_is_refused_and_none_is_an_error() {
    let world = world(
        &policy("{action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]}"),
        Default::default(),
    );
    let asked = |method: &str| Asked { method: Some(method.into()), ..get("/") };
    for (method, cause) in [
        ("DELETE", "deny_matched"),
        ("delete", "bad_request"),
        ("Get", "bad_request"),
        ("M-SEARCH", "no_policy"),
    ] {
        assert_eq!(world.answer(&asked(method)).unwrap().cause, cause, "{method}");
    }
    for none in ["", "GE T", "G\tT"] {
        assert!(matches!(world.answer(&asked(none)), Err(AskError::Method(_))), "{none:?}");
    }
    let host = |host: &str| Asked { host: Some(host.into()), ..get("/") };
    for none in ["", "a b", "a/b", "x@a"] {
        assert!(matches!(world.answer(&host(none)), Err(AskError::Host(_))), "{none:?}");
    }
}

#[test]
fn a_bad_request_is_passed_where_no_request_is_judged() {
    let world = world(&policy("{rules: [{from: [{source: {namespaces: [shop]}}]}]}"), Default::default());
    assert_eq!(world.answer(&get("/a#b")).unwrap().cause, "allow_matched");
    assert_eq!(
        world.answer(&Asked { from: "plaintext".into(), ..get("/a#b") }).unwrap().cause,
        "no_allow_matched"
    );
}

#[test]
fn what_cannot_be_a_target_is_refused_whoever_asks() {
    use PathNormalization::{Base, DecodeAndMergeSlashes, MergeSlashes, None as AsSent};
    let spec = "{rules: [{to: [{operation: {paths: [/da, da, '/a#b', /a%23b]}}]}]}";
    for (path, how, cause) in [
        ("/da", Base, "allow_matched"),
        ("\\da", Base, "allow_matched"),
        ("\\da", MergeSlashes, "allow_matched"),
        ("\\da", DecodeAndMergeSlashes, "allow_matched"),
        ("\\da", AsSent, "no_allow_matched"),
        ("da", Base, "bad_request"),
        ("", Base, "bad_request"),
        ("?x", MergeSlashes, "bad_request"),
        ("da", AsSent, "allow_matched"),
        ("/a%00b", Base, "bad_request"),
        ("/.%%32e/", Base, "bad_request"),
        ("/a#b", Base, "bad_request"),
        ("/a#b", AsSent, "bad_request"),
        ("/da?x#y", Base, "bad_request"),
        ("/a%23b", Base, "allow_matched"),
    ] {
        let answer = world(&policy(spec), how).answer(&get(path)).unwrap();
        assert_eq!(answer.cause, cause, "{path} by {how:?}");
        assert_eq!(answer.verdict == Word::Allow, cause == "allow_matched", "{path}");
    }
}

#[test]
fn a_header_called_host_is_the_host() {
    let world = world(&policy("{rules: [{to: [{operation: {hosts: [a.b]}}]}]}"), Default::default());
    let asked = |host: Option<&str>, headers: &[&str]| Asked {
        host: host.map(Into::into),
        headers: headers.iter().map(ToString::to_string).collect(),
        ..get("/")
    };
    for (host, headers, cause) in [
        (None, &["host=a.b"][..], "allow_matched"),
        (None, &["Host=A.b"], "allow_matched"),
        (Some("a.b"), &["host=A.B"], "allow_matched"),
        (None, &["host=b.a"], "no_allow_matched"),
    ] {
        assert_eq!(world.answer(&asked(host, headers)).unwrap().cause, cause, "{headers:?}");
    }
    for (host, headers) in [(Some("a.b"), &["host=b.a"][..]), (None, &["host=a.b", "host=b.a"])] {
        assert!(matches!(world.answer(&asked(host, headers)), Err(AskError::Hosts(..))), "{headers:?}");
    }
}

#[test]
fn an_address_that_is_not_known_is_in_no_range_but_that_of_all() {
    for (field, values, matches) in [
        ("ipBlocks", "[0.0.0.0/0]", true),
        ("ipBlocks", "['::/0']", true),
        ("remoteIpBlocks", "[0.0.0.0/0]", true),
        ("ipBlocks", "[0.0.0.0/8]", false),
        ("ipBlocks", "[0.0.0.0]", false),
        ("ipBlocks", "['::/8']", false),
        ("ipBlocks", "[10.0.0.0/8]", false),
        (
            "ipBlocks",
            "[0.0.0.0/1, 1.0.0.0/8, 2.0.0.0/8, 3.0.0.0/8, 4.0.0.0/8, 5.0.0.0/8, 6.0.0.0/8, 7.0.0.0/8, '::/1']",
            false,
        ),
        ("notIpBlocks", "[0.0.0.0/0]", false),
        ("notIpBlocks", "[0.0.0.0/8]", true),
        ("notIpBlocks", "[10.0.0.0/8]", true),
    ] {
        let spec = format!("{{rules: [{{from: [{{source: {{{field}: {values}}}}}]}}]}}");
        let world = world(&policy(&spec), Default::default());
        for who in ["plaintext", "shop/new"] {
            let answer = world.answer(&from(who)).unwrap();
            assert_eq!(answer.verdict == Word::Allow, matches, "{who}: {field}: {values}");
            assert_eq!(answer.from.address, None);
            let because = answer.policies[0]["rules"][0]["because"].as_str().unwrap();
            assert!(because.contains("an address that is not known"), "{because}");
        }
        let known = world.answer(&Asked { from_ip: Some("10.0.0.9".parse().unwrap()), ..from("plaintext") });
        assert_eq!(known.unwrap().from.address, Some("10.0.0.9".parse().unwrap()));
    }
    let to = policy("{rules: [{when: [{key: destination.ip, values: [0.0.0.0/8, 10.0.0.0/8]}]}]}");
    let world = world(&to, Default::default());
    let asked = |to: &str| Asked { to: to.into(), ..from("plaintext") };
    assert_eq!(world.answer(&asked("shop/new")).unwrap().verdict, Word::Deny);
    assert_eq!(world.answer(&asked("shop/api")).unwrap().verdict, Word::Allow);
}

#[test]
fn a_pod_that_cannot_be_of_the_mesh_proves_nothing() {
    let strict = "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: s, namespace: shop}, spec: {mtls: {mode: STRICT}}}";
    let world = world(strict, Default::default());
    for who in ["shop/host", "shop/none", "shop/ours", "out/web"] {
        let answer = world.answer(&from(who)).unwrap();
        assert_eq!((&*answer.cause, answer.from.identity), ("strict_mtls", None), "{who}");
        assert!(answer.from.note.is_some_and(|note| note.contains("not of the mesh")), "{who}");
    }
    for who in ["shop/web", "shop/new", "out/back"] {
        let answer = world.answer(&from(who)).unwrap();
        assert_eq!((answer.verdict, answer.from.note), (Word::Allow, None), "{who}");
    }
}

#[test]
fn a_kind_that_there_is_not_is_told_of() {
    for kind in ["AuthorisationPolicy", "authorizationpolicy", "Authorizationpolicy"] {
        let text = format!(
            "{{apiVersion: security.istio.io/v1, kind: {kind}, metadata: {{name: p, namespace: shop}}}}"
        );
        let answer = world(&text, Default::default()).answer(&from("shop/web")).unwrap();
        let told = answer.defects.concat();
        assert!(told.contains(&format!("shop/p: kind: there is no {kind} of security.istio.io")), "{told}");
    }
    let known = "{apiVersion: security.istio.io/v1, kind: RequestAuthentication, metadata: {name: p, namespace: shop}}";
    let answer = world(known, Default::default()).answer(&from("shop/web")).unwrap();
    assert_eq!(answer.defects, Vec::<String>::new());
}

#[test]
fn nothing_is_listed_twice() {
    let linkerd = "{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {name: s, namespace: out}, spec: {podSelector: {}, port: 1}}";
    for extra in ["", linkerd] {
        let answer = world(extra, Default::default()).answer(&from("shop/web")).unwrap();
        let mut names: Vec<_> = answer.policies.iter().map(|policy| policy["resource"].to_string()).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all, "{:?}", answer.policies);
    }
}

#[test]
fn what_may_have_been_meant_for_the_pod_is_told_of() {
    let text = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, namespace: shop}, spec: {selector: {matchLabels: {app: typo}}, rules: [{}]}}
---
{apiVersion: policy.linkerd.io/v1alpha1, kind: AuthorizationPolicy, metadata: {name: q, namespace: shop}, spec: {targetRef: {group: policy.linkerd.io, kind: Server, name: typo}, requiredAuthenticationRefs: [{kind: ServiceAccount, name: web}]}}";
    let answer = world(text, Default::default()).answer(&from("shop/web")).unwrap();
    let passed_over = |policy: &&serde_json::Value| policy["note"] == "its selector selects other pods";
    assert_eq!(answer.policies.iter().filter(passed_over).count(), 1, "{:?}", answer.policies);
    assert!(answer.defects.concat().contains("typo"), "{:?}", answer.defects);
}
