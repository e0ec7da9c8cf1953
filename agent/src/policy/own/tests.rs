//! Which phase holds for whom, and that nothing but a resource which is understood makes it less than Enforce.

use serde_json::{Value, json};

use super::*;
use crate::model::TrustDomain;
use crate::model::workload::{PodFacts, WorkloadMtls};

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
