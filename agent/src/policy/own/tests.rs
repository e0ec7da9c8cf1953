//! Which phase holds for whom, and that nothing but a resource which is understood makes it less than Enforce.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::*;
use crate::model::workload::{PodFacts, WorkloadMtls};
use crate::model::{InboundAction, InboundPlan, SpiffeId, TrustDomain};
use crate::policy::{
    Compiled, Conn, Connection, MtlsDefaults, PolicySet, Request, Resources, Stance, Verdict,
};

const OBSERVE: &str = "Observe";

fn settings() -> Settings {
    Settings::new(TrustDomain::cluster_local())
}

fn enforcement(namespace: &str, name: &str, day: u8, spec: Value) -> Object {
    Object::read(json!({
        "apiVersion": "underpass.io/v1alpha1", "kind": "Enforcement",
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": format!("2026-01-{day:02}T00:00:00Z")},
        "spec": spec,
    }))
    .unwrap()
}

fn whole(namespace: &str, name: &str, day: u8, phase: &str) -> Object {
    enforcement(namespace, name, day, json!({"phase": phase}))
}

fn web(name: &str, day: u8, phase: &str) -> Object {
    enforcement("shop", name, day, json!({"phase": phase, "selector": {"matchLabels": {"app": "web"}}}))
}

/// The phase of a pod with the label `app`, and `namespace/name` of who says so.
fn of(objects: &[Object], namespace: &str, app: &str) -> (Phase, String) {
    let facts = PodFacts { labels: [("app".into(), app.into())].into(), ..PodFacts::default() };
    with(objects, namespace, &facts)
}

fn with(objects: &[Object], namespace: &str, facts: &PodFacts) -> (Phase, String) {
    let mtls = WorkloadMtls::default();
    let subject = Subject { facts, ..Subject::named(namespace, &[], &mtls) };
    let InPhase { phase, by } = Own::new(objects, &settings()).phase(&subject);
    (phase, by.map_or_else(String::new, |(by, level)| format!("{level} {}/{}", by.namespace, by.name)))
}

fn told(phase: Phase, by: &str) -> (Phase, String) {
    (phase, by.to_string())
}

#[test]
fn without_a_resource_policy_is_enforced() {
    assert_eq!(of(&[], "shop", "web"), told(Phase::Enforce, ""));
    assert_eq!(of(&[whole("other", "o", 1, OBSERVE)], "shop", "web"), told(Phase::Enforce, ""));
}

#[test]
fn the_most_specific_level_decides() {
    let all = [
        whole("istio-system", "mesh", 1, OBSERVE),
        whole("shop", "shop", 2, "Permissive"),
        web("web", 3, "Enforce"),
    ];
    assert_eq!(of(&all, "shop", "web"), told(Phase::Enforce, "workload shop/web"));
    assert_eq!(of(&all, "shop", "db"), told(Phase::Permissive, "namespace shop/shop"));
    assert_eq!(of(&all, "other", "web"), told(Phase::Observe, "mesh istio-system/mesh"));
    assert_eq!(of(&all, "istio-system", "web"), told(Phase::Observe, "mesh istio-system/mesh"));
}

#[test]
fn of_several_at_one_level_the_oldest_holds_and_then_the_first_by_name() {
    let both = [whole("shop", "a-newer", 2, OBSERVE), whole("shop", "older", 1, "Enforce")];
    assert_eq!(of(&both, "shop", "web"), told(Phase::Enforce, "namespace shop/older"));
    let same = [whole("shop", "b", 1, OBSERVE), whole("shop", "a", 1, "Enforce")];
    assert_eq!(of(&same, "shop", "web"), told(Phase::Enforce, "namespace shop/a"));
    let workload = [web("newer", 3, OBSERVE), web("older", 2, "Enforce")];
    assert_eq!(of(&workload, "shop", "web"), told(Phase::Enforce, "workload shop/older"));
}

#[test]
fn a_selector_is_for_its_own_namespace_also_in_the_root_namespace() {
    let spec = json!({"phase": OBSERVE, "selector": {"matchLabels": {"app": "web"}}});
    let root = [enforcement("istio-system", "root", 1, spec)];
    assert_eq!(of(&root, "shop", "web").0, Phase::Enforce);
    assert_eq!(of(&root, "istio-system", "web"), told(Phase::Observe, "workload istio-system/root"));
    let empty = [enforcement("shop", "e", 1, json!({"phase": OBSERVE, "selector": {"matchLabels": {}}}))];
    assert_eq!(
        of(&empty, "shop", "db"),
        told(Phase::Observe, "namespace shop/e"),
        "an empty selector is none"
    );
}

/// Whoever makes a pod has no say.
#[test]
fn labels_and_annotations_of_a_pod_set_no_phase() {
    let facts = PodFacts {
        labels: [("underpass.io/phase".into(), OBSERVE.into()), ("phase".into(), OBSERVE.into())].into(),
        annotations: [
            ("underpass.io/phase".into(), OBSERVE.into()),
            ("underpass.io/enforcement".into(), OBSERVE.into()),
        ]
        .into(),
        ..PodFacts::default()
    };
    assert_eq!(with(&[], "shop", &facts).0, Phase::Enforce);
    assert_eq!(with(&[web("web", 1, OBSERVE)], "shop", &facts).0, Phase::Enforce);
}

#[test]
fn what_is_not_understood_means_enforce_and_is_told_of() {
    let selector = json!({"matchLabels": {"app": "web"}});
    for (spec, field) in [
        (json!(null), "spec"),
        (json!("Observe"), "spec"),
        (json!({}), "spec.phase"),
        (json!({"phase": null}), "spec.phase"),
        (json!({"phase": "observe"}), "spec.phase"),
        (json!({"phase": "Audit"}), "spec.phase"),
        (json!({"phase": ["Observe"]}), "spec.phase"),
        (json!({"phase": OBSERVE, "until": "2027-01-01T00:00:00Z"}), "spec.until"),
        (json!({"phase": OBSERVE, "selector": "app=web"}), "spec.selector"),
        (json!({"phase": OBSERVE, "selector": {"app": "web"}}), "spec.selector.app"),
        (json!({"phase": OBSERVE, "selector": {"matchLabels": {"app": 7}}}), "spec.selector.matchLabels.app"),
        (json!({"phase": OBSERVE, "selecter": selector}), "spec.selecter"),
    ] {
        let all = [
            whole("istio-system", "mesh", 1, OBSERVE),
            whole("shop", "shop", 2, OBSERVE),
            enforcement("shop", "broken", 3, spec.clone()),
        ];
        let own = Own::new(&all, &settings());
        let fields: Vec<_> = own.defects().iter().map(|defect| &*defect.field).collect();
        assert_eq!(fields[0], field, "{spec}");
        // A clear whole one of the namespace that is older wins; where its reach is unclear it may be any pod's.
        let phase = of(&all, "shop", "web").0;
        let clear = field == "spec.phase";
        assert_eq!(phase, if clear { Phase::Observe } else { Phase::Enforce }, "{spec}");
        assert_eq!(of(&all[2..], "shop", "web").0, Phase::Enforce, "{spec}");
        let mut mesh = all[2].clone();
        mesh.meta.namespace = "istio-system".into();
        mesh.meta.creation_timestamp = "2025-01-01T00:00:00Z".into();
        assert_eq!(of(&[all[0].clone(), mesh], "other", "web").0, Phase::Enforce, "{spec}: the mesh's");
    }
}

#[test]
fn another_version_is_not_understood() {
    let mut other = whole("shop", "o", 1, OBSERVE);
    other.version = "v9".into();
    assert_eq!(of(&[other.clone()], "shop", "web").0, Phase::Enforce);
    assert_eq!(Own::new(&[other], &settings()).defects()[0].field, "apiVersion");
}

#[test]
fn another_groups_enforcement_is_not_ours() {
    let mut other = whole("shop", "o", 1, OBSERVE);
    other.group = "policy.linkerd.io".into();
    assert_eq!(of(&[other], "shop", "web"), told(Phase::Enforce, ""));
}

fn istio(kind: &str, name: &str, spec: Value) -> Object {
    Object::read(json!({
        "apiVersion": "security.istio.io/v1", "kind": kind,
        "metadata": {"name": name, "namespace": "shop"}, "spec": spec,
    }))
    .unwrap()
}

/// STRICT, and `bad` is kept out.
fn policies() -> Vec<Object> {
    let bad = json!([{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/bad"]}}]}]);
    vec![
        istio("PeerAuthentication", "strict", json!({"mtls": {"mode": "STRICT"}})),
        istio("AuthorizationPolicy", "no-bad", json!({"action": "DENY", "rules": bad})),
    ]
}

fn compiled(objects: impl IntoIterator<Item = Object>, settings: Settings) -> Compiled {
    let objects: Vec<_> = objects.into_iter().map(Arc::new).collect();
    let resources = Arc::new(Resources::new(&objects, settings));
    let set = PolicySet::default().next([], MtlsDefaults::default(), Some(resources));
    let (facts, mtls) = (PodFacts::default(), WorkloadMtls::default());
    set.compile(&Subject { facts: &facts, ..Subject::named("shop", &[], &mtls) })
}

fn in_phase(phase: &str) -> Compiled {
    compiled(policies().into_iter().chain([whole("shop", "moving", 1, phase)]), settings())
}

fn from(account: Option<&str>) -> Conn {
    let id = |account| SpiffeId::new(TrustDomain::cluster_local(), "shop", account).unwrap();
    Conn::new(account.map(id), IpAddr::from([10, 0, 0, 2]), IpAddr::from([10, 0, 0, 1]), 80)
}

const CLIENTS: [Option<&str>; 3] = [Some("good"), Some("bad"), None];

fn admits(policy: &Compiled) -> [bool; 3] {
    CLIENTS.map(|client| {
        let allowed = policy.evaluate(&from(client), None).is_allow();
        let at_once = matches!(policy.on_connection(&from(client)), Connection::Allow(_));
        assert_eq!(allowed, at_once, "{client:?}");
        allowed
    })
}

fn would(policy: &Compiled) -> [Option<bool>; 3] {
    CLIENTS.map(|client| {
        let would = policy.dry_run(&from(client), None);
        let at_once =
            policy.dry_run_on_connection(&from(client)).map(|on| matches!(on, Connection::Allow(_)));
        assert_eq!(would.as_ref().map(Verdict::is_allow), at_once, "{client:?}");
        at_once
    })
}

#[test]
fn a_phase_lets_in_what_it_says_and_tells_what_enforce_would_refuse() {
    let told = [Some(true), Some(false), Some(false)];
    for (phase, admitted, told, plaintext) in [
        ("Observe", [true, true, true], told, InboundAction::Steer),
        ("Permissive", [true, false, true], told, InboundAction::Steer),
        ("Enforce", [true, false, false], [None; 3], InboundAction::Drop),
        ("Obey", [true, false, false], [None; 3], InboundAction::Drop),
    ] {
        let policy = in_phase(phase);
        assert_eq!(admits(&policy), admitted, "{phase}");
        assert_eq!(would(&policy), told, "{phase}");
        assert_eq!(policy.kernel_plan(), InboundPlan::all(plaintext), "{phase}");
        for client in CLIENTS {
            let as_enforced = in_phase("Enforce").evaluate(&from(client), None);
            assert_eq!(policy.enforced(&from(client), None), as_enforced, "{phase}");
        }
    }
}

#[test]
fn who_is_let_in_by_a_phase_only_is_by_its_resource() {
    let by = |phase, client| match in_phase(phase).evaluate(&from(client), None) {
        Verdict::Allow { by } => by.iter().map(ToString::to_string).collect::<Vec<_>>(),
        Verdict::Deny { .. } => panic!("{phase}"),
    };
    let moving = ["Enforcement.underpass.io/shop/moving"];
    assert_eq!(by("Observe", Some("bad")), moving);
    assert_eq!(by("Permissive", None), moving);
    assert!(by("Observe", Some("good")).is_empty());
}

#[test]
fn where_everything_may_come_in_the_kernel_still_shows_it_to_the_agent_in_observe() {
    let open = |phase| compiled([whole("shop", "moving", 1, phase)], settings()).kernel_plan();
    assert_eq!(open("Observe"), InboundPlan::all(InboundAction::Steer));
    assert_eq!(open("Permissive"), InboundPlan::all(InboundAction::Pass));
}

/// What follows STRICT is enforced in Permissive: the stance, and policies that plaintext does not meet.
#[test]
fn permissive_lifts_strict_and_nothing_else() {
    for stance in [Stance::Mtls, Stance::Deny] {
        let settings = Settings { stance, ..settings() };
        let policy =
            compiled(policies().into_iter().chain([whole("shop", "moving", 1, "Permissive")]), settings);
        assert!(!policy.evaluate(&from(None), None).is_allow(), "{stance:?}");
    }
    let only_good = json!({"rules": [{"from": [{"source": {"principals": ["*/sa/good"]}}]}]});
    let all = [
        istio("PeerAuthentication", "strict", json!({"mtls": {"mode": "STRICT"}})),
        istio("AuthorizationPolicy", "good", only_good),
        whole("shop", "moving", 1, "Permissive"),
    ];
    assert_eq!(admits(&compiled(all, settings())), [true, false, false]);
}

#[test]
fn a_pod_that_nobody_knows_is_in_no_phase() {
    let unknown = Compiled::deny_unknown_workload();
    assert_eq!(unknown.phase().phase, Phase::Enforce);
    assert_eq!(admits(&unknown), [false; 3]);
}

#[test]
fn requests_are_judged_in_observe_and_none_is_refused() {
    let gets = json!({"rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]});
    let all = |phase| {
        let gets = istio("AuthorizationPolicy", "gets", gets.clone());
        compiled([gets, whole("shop", "moving", 1, phase)], settings())
    };
    let policy = all("Observe");
    let conn = from(Some("good"));
    assert!(matches!(policy.on_connection(&conn), Connection::Allow(_)), "nobody has to read them to decide");
    assert_eq!(policy.dry_run_on_connection(&conn), Some(Connection::PerRequest));
    assert!(policy.advises_on_requests(&conn), "but to tell of them");
    for (method, allowed) in [("GET", true), ("POST", false)] {
        let headers = http::HeaderMap::new();
        let request = Request { method, host: "shop", path: "/", query: None, headers: &headers };
        assert!(policy.evaluate(&conn, Some(&request)).is_allow(), "{method}");
        assert_eq!(policy.dry_run(&conn, Some(&request)).map(|w| w.is_allow()), Some(allowed), "{method}");
    }
    assert_eq!(all("Permissive").on_connection(&conn), Connection::PerRequest);
}

/// Whoever tries a policy in a workload that moves in hears of it, once Enforce would refuse nothing.
#[test]
fn what_enforce_would_let_in_is_told_with_the_dry_run_policies() {
    let mut dry = policies().remove(1);
    dry.meta.annotations.insert("istio.io/dry-run".into(), "true".into());
    let all = [dry, whole("shop", "moving", 1, "Observe")];
    let policy = compiled(all, settings());
    assert_eq!(admits(&policy), [true; 3]);
    assert_eq!(would(&policy), [Some(true), Some(false), Some(true)]);
    assert!(policy.enforced(&from(Some("bad")), None).is_allow());
}
