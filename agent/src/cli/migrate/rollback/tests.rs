//! What is said before a phase is taken back, and the resource that does it.

use serde_json::{Value, json};

use super::*;
use crate::cli::migrate::tests as seen;
use crate::discovery::ask::Offline;
use crate::discovery::manifest::{self, Manifest};
use crate::model::TrustDomain;
use crate::policy::Settings;
use crate::policy::own::Phase;

const MESH: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: strict, namespace: shop}, spec: {mtls: {mode: STRICT}}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: no-bad, namespace: shop}, spec: {selector: {matchLabels: {app: web}}, action: DENY, rules: [{from: [{source: {namespaces: [bad]}}]}]}}
";

fn settings() -> Settings {
    Settings::new(TrustDomain::cluster_local())
}

fn manifest(enforcements: &str) -> Manifest {
    let text = format!("{MESH}---\n{enforcements}");
    let objects = manifest::read(&text).unwrap().into_iter().map(|object| object.unwrap()).collect();
    Manifest::new(objects, &TrustDomain::cluster_local()).unwrap()
}

fn enforcement(name: &str, labels: &str, phase: &str) -> String {
    let selector =
        if labels.is_empty() { String::new() } else { format!("selector: {{matchLabels: {{{labels}}}}}, ") };
    format!(
        "{{apiVersion: underpass.io/v1alpha1, kind: Enforcement, metadata: {{name: {name}, namespace: shop, labels: {{team: a}}, creationTimestamp: 2026-01-01T00:00:00Z}}, spec: {{{selector}phase: {phase}}}}}\n---\n"
    )
}

fn plan(enforcements: &str, target: &str, to: Option<Phase>) -> anyhow::Result<Plan> {
    Plan::new(&manifest(enforcements), &settings(), &target.parse().unwrap(), to)
}

#[test]
fn one_phase_back_lets_plaintext_in_and_says_to_whom() {
    let plan = plan("", "shop", None).unwrap();
    assert_eq!((plan.before, plan.to, plan.replaces), (Phase::Enforce, Phase::Permissive, false));
    assert_eq!(plan.opens, ["plaintext is let in, in spite of STRICT, to shop/db, shop/web"]);
    assert_eq!(plan.document["spec"], serde_json::json!({"phase": "Permissive"}));
    assert_eq!(plan.document["metadata"]["namespace"], "shop");
}

#[test]
fn observe_says_which_policies_are_enforced_no_longer_and_for_whom() {
    let plan = plan("", "shop", Some(Phase::Observe)).unwrap();
    let opens = plan.opens.join("\n");
    assert!(
        opens
            .contains("AuthorizationPolicy.security.istio.io/shop/no-bad is no longer enforced for shop/web"),
        "{opens}"
    );
    assert!(!opens.contains("for shop/db"), "it never was for that one: {opens}");
}

#[test]
fn an_enforcement_that_is_there_is_changed_and_keeps_its_name_and_labels() {
    let plan = plan(&enforcement("moving", "", "Permissive"), "shop", None).unwrap();
    assert!(plan.replaces);
    assert_eq!((plan.before, plan.to), (Phase::Permissive, Phase::Observe));
    assert_eq!(
        plan.document["metadata"],
        serde_json::json!({"name": "moving", "namespace": "shop", "labels": {"team": "a"}})
    );
}

#[test]
fn labels_are_for_those_who_have_them_only() {
    let plan = plan(&enforcement("moving", "", "Enforce"), "shop/app=web", None).unwrap();
    assert_eq!(plan.opens, ["plaintext is let in, in spite of STRICT, to shop/web"]);
    assert_eq!(plan.document["metadata"]["name"], "app-web");
    assert_eq!(plan.document["spec"]["selector"], serde_json::json!({"matchLabels": {"app": "web"}}));
}

#[test]
fn there_is_nothing_before_observe_and_nothing_is_raised() {
    let observing = enforcement("moving", "", "Observe");
    assert!(plan(&observing, "shop", None).err().unwrap().to_string().contains("none before it"));
    for to in [Phase::Observe, Phase::Enforce] {
        let refused = plan(&observing, "shop", Some(to)).err().unwrap().to_string();
        assert!(refused.contains("is not before it"), "{refused}");
    }
}

/// The oldest holds: a new one beside it would open nothing, and whoever applies it would believe so.
#[test]
fn what_would_change_nothing_is_refused_by_the_name_of_who_decides() {
    let old = enforcement("a", "team: x, app: web", "Enforce").replace("team: x, ", "");
    let other = old.replace("matchLabels: {app: web}", "matchExpressions: [{key: app, operator: Exists}]");
    let refused = plan(&other, "shop/app=web", None).err().unwrap().to_string();
    assert!(refused.contains("stay in Enforce by Enforcement.underpass.io/shop/a"), "{refused}");
}

/// What could not be understood means Enforce; with another phase alone it still would.
#[test]
fn a_broken_enforcement_is_not_taken_for_one_that_opens() {
    let broken = enforcement("a", "", "Enforce").replace("phase: Enforce", "phase: Enforce, until: tomorrow");
    assert!(plan(&broken, "shop", None).is_err());
    let mistyped = plan(&enforcement("a", "", "Enforced"), "shop", None).unwrap();
    assert_eq!((mistyped.before, mistyped.to), (Phase::Enforce, Phase::Permissive));
}

#[test]
fn whoever_is_not_opened_is_named() {
    let own = enforcement("db", "app: db", "Enforce");
    let plan = plan(&own, "shop", None).unwrap();
    assert_eq!(
        plan.opens,
        [
            "plaintext is let in, in spite of STRICT, to shop/web",
            "not for shop/db, which stay in Enforce by Enforcement.underpass.io/shop/db"
        ]
    );
}

#[test]
fn what_is_printed_does_what_it_says_once_it_is_applied() {
    let plan = plan("", "shop/app=web", Some(Phase::Observe)).unwrap();
    let yaml = output::render(&plan.document, crate::cli::args::Output::Yaml, String::new).unwrap();
    let phases = Offline::new(manifest(&yaml), settings()).phases();
    let phases: Vec<_> = phases.iter().map(|one| (&*one.workload, one.phase)).collect();
    assert_eq!(phases, [("db", Phase::Enforce), ("web", Phase::Observe)]);
}

/// What is said of whom the agent has seen, where `to` would be the phase.
fn of_seen(to: Phase, name: &str, labels: Value, client: Value) -> String {
    let more = "{apiVersion: v1, kind: Pod, metadata: {name: api-5f6d7-abcde, namespace: shop, labels: {app: api, pod-template-hash: 5f6d7}}, spec: {containers: [{name: c}]}}\n";
    let plan = plan(more, "shop", Some(to)).unwrap();
    observed::list(&seen::observed(vec![seen::server(name, labels, vec![client])]), &plan)
}

#[test]
fn whoever_was_refused_and_would_get_in_is_named() {
    const BAD: &str = "spiffe://cluster.local/ns/bad/sa/x";
    let counts = |denied: u64| json!({"allowed": 0, "denied": denied, "unreached": 0, "open": 0});
    let refused = |identity| seen::but(seen::seen(identity, "10.0.1.5", 80), &[("/connections", counts(3))]);
    let web = || json!({"app": "web"});
    let nobody = "  nobody whom this node has seen refused gets in\n";

    assert_eq!(
        of_seen(Phase::Observe, "x", web(), refused(Some(BAD))),
        format!(
            "  {BAD} gets in to shop/x port 80: refused 3 connections, last seen 2026-08-22T09:31:00.000001Z\n"
        )
    );
    // By name too, and by what labels of a revision leave.
    let api = || json!({"app": "api"});
    assert!(of_seen(Phase::Observe, "web", json!({}), refused(Some(BAD))).contains("gets in to shop/web"));
    assert!(of_seen(Phase::Observe, "api", api(), refused(Some(BAD))).contains("gets in to shop/api"));
    // DENY is in force yet.
    assert_eq!(of_seen(Phase::Permissive, "x", web(), refused(Some(BAD))), nobody);
    let plain = of_seen(Phase::Permissive, "x", web(), refused(None));
    assert!(plain.contains("10.0.1.5 in plaintext gets in to shop/x port 80"), "{plain}");
    // Whoever was not refused gains nothing.
    assert_eq!(of_seen(Phase::Observe, "x", web(), seen::seen(Some("client"), "10.0.1.5", 80)), nobody);
    assert_eq!(of_seen(Phase::Observe, "x", json!({"app": "other"}), refused(Some(BAD))), nobody);

    let requests = json!({"allowed": 1, "denied": 1});
    let request = seen::but(seen::seen(Some(BAD), "10.0.1.5", 80), &[("/requests", requests)]);
    let told = of_seen(Phase::Observe, "x", web(), request);
    assert!(told.contains("refused 1 request,"), "{told}");
}

#[test]
fn an_agent_without_room_or_of_another_version_is_no_agent_that_has_seen_nobody() {
    let plan = plan("", "shop", None).unwrap();
    let mut observed = seen::observed(vec![]);
    observed.agents[0].left_out.denied = 7;
    let told = observed::list(&observed, &plan);
    assert!(told.contains("whose 7 more refused connections were is not known"), "{told}");
    let absent = observed::told(std::path::Path::new("/nonexistent/admin.sock"), &plan);
    assert!(absent.contains("is not known") && absent.contains("/nonexistent/admin.sock"), "{absent}");
}

#[test]
fn targets() {
    for (text, told) in [
        ("mesh", "the mesh"),
        ("mesh/", "namespace mesh"),
        ("shop", "namespace shop"),
        ("shop/app=web,tier=b", "the workloads of namespace shop with app=web tier=b"),
    ] {
        assert_eq!(text.parse::<Target>().unwrap().to_string(), told);
    }
    for text in ["", "/app=web", "shop/web", "shop/app=web,", "shop/=x", "Shop"] {
        assert!(text.parse::<Target>().is_err(), "{text}");
    }
}
