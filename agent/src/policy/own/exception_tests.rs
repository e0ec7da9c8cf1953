//! Whom exceptions admit, and that nothing but one which is understood as a whole admits anybody.

use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use super::*;
use crate::model::workload::{PodFacts, WorkloadMtls};
use crate::model::{InboundAction, SpiffeId, TrustDomain};
use crate::policy::{Compiled, Conn, MtlsDefaults, PolicySet, Resources, Stance, Verdict};

const UNTIL: &str = "2027-01-31T00:00:00Z";

fn until() -> OffsetDateTime {
    OffsetDateTime::parse(UNTIL, &time::format_description::well_known::Rfc3339).unwrap()
}

fn before() -> OffsetDateTime {
    until() - Duration::SECOND
}

fn spec(from: Value) -> Value {
    json!({"selector": {"matchLabels": {"app": "db"}}, "from": [from], "ports": [5432],
        "reason": "the old batch jobs", "until": UNTIL})
}

fn object(kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    let group = if kind == "PlaintextException" { "underpass.io/v1alpha1" } else { "security.istio.io/v1" };
    json!({"apiVersion": group, "kind": kind, "metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

fn exception(namespace: &str, spec: Value) -> Value {
    object("PlaintextException", namespace, "legacy", spec)
}

fn strict() -> Value {
    object("PeerAuthentication", "istio-system", "strict", json!({"mtls": {"mode": "STRICT"}}))
}

fn resources(objects: &[Value], stance: Stance) -> Arc<Resources> {
    let objects: Vec<_> =
        objects.iter().map(|value| Arc::new(Object::read(value.clone()).unwrap())).collect();
    let settings = Settings { stance, ..Settings::new(TrustDomain::cluster_local()) };
    Arc::new(Resources::new(&objects, settings))
}

fn with(objects: &[Value], stance: Stance, now: OffsetDateTime, namespace: &str, app: &str) -> Compiled {
    let set =
        PolicySet::default().next([], MtlsDefaults::default(), Some(resources(objects, stance))).at(now);
    let facts = PodFacts { labels: [("app".into(), app.into())].into(), ..PodFacts::default() };
    let mtls = WorkloadMtls::default();
    set.compile(&Subject { facts: &facts, ..Subject::named(namespace, &[], &mtls) })
}

/// Of the database of `shop`, just before the exception lapses.
fn db(objects: &[Value]) -> Compiled {
    with(objects, Stance::Allow, before(), "shop", "db")
}

fn id(text: &str) -> SpiffeId {
    let (namespace, account) = text.split_once('/').unwrap();
    SpiffeId::new(TrustDomain::cluster_local(), namespace, account).unwrap()
}

/// From an address at which `known` is, to a port of the pod.
fn plaintext(ip: &str, known: Option<&str>, port: u16) -> Conn {
    let destination = "10.2.0.9".parse().unwrap();
    Conn { at_source: known.map(id), ..Conn::new(None, ip.parse().unwrap(), destination, port) }
}

fn admits(policy: &Compiled, conn: &Conn) -> bool {
    policy.evaluate(conn, None).is_allow()
}

#[test]
fn whom_it_admits_by_each_field() {
    for (from, ip, known, admitted) in [
        (json!({"ipBlocks": ["10.9.0.0/16"]}), "10.9.1.1", None, true),
        (json!({"ipBlocks": ["10.9.0.0/16"]}), "::ffff:10.9.1.1", None, true),
        (json!({"ipBlocks": ["10.8.0.1", "fd00::/8"]}), "fd00::1", None, true),
        (json!({"ipBlocks": ["10.9.0.0/16"]}), "10.10.0.1", Some("batch/jobs"), false),
        (json!({"namespaces": ["batch"]}), "10.1.0.1", Some("batch/jobs"), true),
        (json!({"namespaces": ["batch"]}), "10.1.0.1", Some("batch2/jobs"), false),
        (json!({"namespaces": ["batch"]}), "10.1.0.1", None, false),
        (json!({"serviceAccounts": ["batch/jobs"]}), "10.1.0.1", Some("batch/jobs"), true),
        (json!({"serviceAccounts": ["batch/jobs"]}), "10.1.0.1", Some("batch/other"), false),
        (json!({"serviceAccounts": ["batch/jobs"]}), "10.1.0.1", Some("shop/jobs"), false),
        (json!({"serviceAccounts": ["jobs"]}), "10.1.0.1", Some("shop/jobs"), true),
        (json!({"serviceAccounts": ["jobs"]}), "10.1.0.1", Some("batch/jobs"), false),
        // All fields of one.
        (json!({"namespaces": ["batch"], "ipBlocks": ["10.9.0.0/16"]}), "10.9.0.1", Some("batch/jobs"), true),
        (json!({"namespaces": ["batch"], "ipBlocks": ["10.9.0.0/16"]}), "10.9.0.1", None, false),
        (
            json!({"namespaces": ["batch"], "ipBlocks": ["10.9.0.0/16"]}),
            "10.1.0.1",
            Some("batch/jobs"),
            false,
        ),
    ] {
        let policy = db(&[strict(), exception("shop", spec(from.clone()))]);
        assert_eq!(admits(&policy, &plaintext(ip, known, 5432)), admitted, "{from} from {ip}, {known:?}");
        assert!(!admits(&policy, &plaintext(ip, known, 5433)), "{from}: another port");
    }
    let mut either = spec(json!({"ipBlocks": ["10.9.0.0/16"]}));
    either["from"].as_array_mut().unwrap().push(json!({"namespaces": ["batch"]}));
    let policy = db(&[strict(), exception("shop", either)]);
    assert!(admits(&policy, &plaintext("10.9.0.1", None, 5432)));
    assert!(admits(&policy, &plaintext("10.1.0.1", Some("batch/jobs"), 5432)));
}

#[test]
fn it_is_for_its_own_namespaces_workloads_only_the_root_namespace_too() {
    let anybody = json!({"ipBlocks": ["0.0.0.0/0"]});
    let mut whole = spec(anybody.clone());
    whole.as_object_mut().unwrap().remove("selector");
    let client = plaintext("10.1.0.1", None, 5432);
    for (namespace, spec, of, app, admitted) in [
        ("shop", spec(anybody.clone()), "shop", "db", true),
        ("shop", spec(anybody.clone()), "shop", "web", false),
        ("shop", whole.clone(), "shop", "web", true),
        ("shop", whole.clone(), "other", "db", false),
        ("istio-system", whole.clone(), "shop", "db", false),
        ("istio-system", spec(anybody), "shop", "db", false),
        ("istio-system", whole, "istio-system", "db", true),
    ] {
        let objects = [strict(), exception(namespace, spec)];
        let policy = with(&objects, Stance::Allow, before(), of, app);
        assert_eq!(admits(&policy, &client), admitted, "one in {namespace} for {of}/{app}");
    }
}

#[test]
fn it_ends_at_its_moment_and_without_a_clock_it_does_not_begin() {
    let objects = [strict(), exception("shop", spec(json!({"ipBlocks": ["10.9.0.0/16"]})))];
    let client = plaintext("10.9.0.1", None, 5432);
    for (now, admitted) in [(before(), true), (until(), false), (until() + Duration::DAY, false)] {
        let policy = with(&objects, Stance::Allow, now, "shop", "db");
        assert_eq!(admits(&policy, &client), admitted, "at {now}");
        let action = if admitted { InboundAction::Steer } else { InboundAction::Drop };
        assert_eq!(policy.kernel_plan().action(5432), action, "at {now}");
        assert_eq!(policy.kernel_plan().action(5433), InboundAction::Drop);
    }
    let set =
        PolicySet::default().next([], MtlsDefaults::default(), Some(resources(&objects, Stance::Allow)));
    let facts = PodFacts { labels: [("app".into(), "db".into())].into(), ..PodFacts::default() };
    let mtls = WorkloadMtls::default();
    let timeless = set.compile(&Subject { facts: &facts, ..Subject::named("shop", &[], &mtls) });
    assert!(!admits(&timeless, &client));
}

#[test]
fn it_stands_for_mutual_tls_only_policies_hold_as_before() {
    let from = json!({"ipBlocks": ["10.9.0.0/16"]});
    let client = plaintext("10.9.0.1", None, 5432);
    let istio = |spec: Value| object("AuthorizationPolicy", "shop", "p", spec);
    let block = json!([{"source": {"ipBlocks": ["10.9.0.0/16"]}}]);
    for (policy, admitted) in [
        (json!({"action": "DENY", "rules": [{"from": block}]}), false),
        (json!({"action": "ALLOW", "rules": [{"from": block}]}), true),
        (json!({"action": "ALLOW", "rules": [{"from": [{"source": {"principals": ["*"]}}]}]}), false),
        // Who is known at an address is nobody's identity.
        (json!({"action": "ALLOW", "rules": [{"from": [{"source": {"namespaces": ["batch"]}}]}]}), false),
        (json!({"action": "DENY", "rules": [{"from": [{"source": {"namespaces": ["batch"]}}]}]}), true),
    ] {
        let objects = [strict(), exception("shop", spec(from.clone())), istio(policy.clone())];
        let known = Conn { at_source: Some(id("batch/jobs")), ..client.clone() };
        assert_eq!(admits(&db(&objects), &known), admitted, "{policy}");
    }
    for (stance, admitted) in [(Stance::Allow, true), (Stance::Mtls, true), (Stance::Deny, false)] {
        for strict in [Some(strict()), None] {
            let with_it: Vec<_> =
                strict.clone().into_iter().chain([exception("shop", spec(from.clone()))]).collect();
            let policy = with(&with_it, stance, before(), "shop", "db");
            assert_eq!(admits(&policy, &client), admitted, "{stance:?}, strict {}", strict.is_some());
            let needed = admitted && (strict.is_some() || stance == Stance::Mtls);
            let verdict = policy.evaluate(&client, None);
            assert_eq!(verdict.exception().is_some(), needed, "{stance:?} {verdict}");
            assert!(
                !admits(&policy, &plaintext("10.1.0.1", None, 5432))
                    || (stance, strict) == (Stance::Allow, None)
            );
        }
    }
}

#[test]
fn a_client_with_an_identity_does_not_need_it_and_is_not_told_to() {
    let objects = [strict(), exception("shop", spec(json!({"namespaces": ["batch"]})))];
    let proven = Conn { source: Some(id("batch/jobs")), ..plaintext("10.9.0.1", None, 5432) };
    let explained = db(&objects).explain(&proven, None);
    assert_eq!(explained.verdict, Verdict::Allow { by: Vec::new() });
    let told = explained.considered.iter().any(|one| one.resource.kind == Kind::PlaintextException);
    assert!(!told, "{explained:?}");
}

#[test]
fn what_is_not_understood_admits_nobody_and_is_told_of() {
    let good = || spec(json!({"ipBlocks": ["10.9.0.0/16"]}));
    let mut cases = Vec::new();
    let mut case = |field: &str, change: &dyn Fn(&mut Value)| {
        let mut spec = good();
        change(&mut spec);
        cases.push((field.to_owned(), spec));
    };
    for missing in ["from", "ports", "reason", "until"] {
        case(&format!("spec.{missing}"), &|spec| drop(spec.as_object_mut().unwrap().remove(missing)));
        case(&format!("spec.{missing}"), &|spec| spec[missing] = Value::Null);
    }
    case("spec.from", &|spec| spec["from"] = json!([]));
    case("spec.from", &|spec| spec["from"] = json!({"ipBlocks": ["10.0.0.0/8"]}));
    case("spec.from[0]", &|spec| spec["from"] = json!([{}]));
    case("spec.from[1]", &|spec| spec["from"] = json!([{"ipBlocks": ["10.9.0.0/16"]}, "all"]));
    case("spec.from[0].ipBlock", &|spec| spec["from"][0]["ipBlock"] = json!("10.9.0.0/16"));
    case("spec.from[0].ipBlocks", &|spec| spec["from"][0]["ipBlocks"] = json!([]));
    case("spec.from[0].ipBlocks", &|spec| spec["from"][0]["ipBlocks"] = json!("10.9.0.0/16"));
    case("spec.from[0].ipBlocks[1]", &|spec| {
        spec["from"][0]["ipBlocks"] = json!(["10.9.0.1", "10.0.0.0/33"])
    });
    case("spec.from[0].ipBlocks[0]", &|spec| spec["from"][0]["ipBlocks"] = json!([7]));
    case("spec.from[0].namespaces", &|spec| spec["from"][0]["namespaces"] = json!([]));
    case("spec.from[0].namespaces[0]", &|spec| spec["from"][0]["namespaces"] = json!(["*"]));
    case("spec.from[0].namespaces[0]", &|spec| spec["from"][0]["namespaces"] = json!([""]));
    case("spec.from[0].serviceAccounts[0]", &|spec| spec["from"][0]["serviceAccounts"] = json!(["batch/*"]));
    case("spec.from[0].serviceAccounts[0]", &|spec| spec["from"][0]["serviceAccounts"] = json!(["a/b/c"]));
    case("spec.ports", &|spec| spec["ports"] = json!([]));
    for port in [json!(0), json!(65536), json!(-1), json!("5432"), json!(5432.5), Value::Null] {
        case("spec.ports[1]", &|spec| spec["ports"] = json!([5432, port]));
    }
    case("spec.reason", &|spec| spec["reason"] = json!(""));
    case("spec.reason", &|spec| spec["reason"] = json!("  \n"));
    for until in ["never", "2027-01-31", "2027-02-30T00:00:00Z", "2027-01-31T00:00:00", "", "1800000000"] {
        case("spec.until", &|spec| spec["until"] = json!(until));
    }
    case("spec.until", &|spec| spec["until"] = json!(1_800_000_000));
    case("spec.selector", &|spec| spec["selector"] = json!("app=db"));
    case("spec.selector.app", &|spec| spec["selector"] = json!({"app": "db"}));
    case("spec.selector.matchLabels.app", &|spec| spec["selector"] = json!({"matchLabels": {"app": 7}}));
    case("spec.forever", &|spec| spec["forever"] = json!(true));
    cases.push(("spec".into(), json!("all")));

    let client = plaintext("10.9.0.1", None, 5432);
    assert!(admits(&db(&[strict(), exception("shop", good())]), &client), "the good one is good");
    for (field, spec) in cases {
        let objects = [strict(), exception("shop", spec.clone())];
        let policy = db(&objects);
        assert!(!admits(&policy, &client), "{spec}");
        assert_eq!(policy.kernel_plan().action(5432), InboundAction::Drop, "{spec}");
        let resources = resources(&objects, Stance::Allow);
        let told: Vec<_> = resources.defects().map(|defect| &*defect.field).collect();
        assert!(told.contains(&&*field), "{spec}: not {field} but {told:?}");
        assert!(resources.defects().all(|defect| defect.message.ends_with("it admits nobody")), "{spec}");
        assert_eq!(resources.own.broken_exceptions("shop").len(), 1);
        assert!(resources.own.broken_exceptions("other").is_empty());
    }
    let mut other = exception("shop", good());
    other["apiVersion"] = json!("underpass.io/v2");
    assert!(!admits(&db(&[strict(), other.clone()]), &client));
    // Nor is another group's.
    other["apiVersion"] = json!("security.istio.io/v1");
    assert!(!admits(&db(&[strict(), other]), &client));
}

#[test]
fn one_that_is_broken_takes_nothing_from_another() {
    let mut other = exception("shop", spec(json!({"ipBlocks": ["10.9.0.0/33"]})));
    other["metadata"]["name"] = json!("broken");
    let good = exception("shop", spec(json!({"ipBlocks": ["10.9.0.0/16"]})));
    assert!(admits(&db(&[strict(), other, good]), &plaintext("10.9.0.1", None, 5432)));
}

#[test]
fn what_decided_is_told_with_the_reason_and_the_end() {
    let objects = [strict(), exception("shop", spec(json!({"namespaces": ["batch"]})))];
    let client = plaintext("10.9.0.1", Some("batch/jobs"), 5432);
    let told = db(&objects).explain(&client, None);
    assert_eq!(told.verdict.to_string(), "allowed by policy PlaintextException.underpass.io/shop/legacy#0");
    let note = told.considered[0].note.as_deref().unwrap();
    assert!(note.contains("the old batch jobs") && note.contains(UNTIL), "{note}");
    assert!(told.considered[0].matched && told.considered[0].action.is_none());

    let lapsed = with(&objects, Stance::Allow, until(), "shop", "db").explain(&client, None);
    assert!(!lapsed.verdict.is_allow() && !lapsed.considered[0].matched);
    let note = lapsed.considered[0].note.as_deref().unwrap();
    assert!(note.starts_with("it lapsed at 2027-01-31T00:00:00Z"), "{note}");
}

#[test]
fn it_is_warned_of_three_times_and_once_more_when_it_lapses() {
    let resources = resources(&[exception("shop", spec(json!({"namespaces": ["batch"]})))], Stance::Allow);
    let one = resources.own.exceptions().next().unwrap();
    let second = Duration::SECOND;
    for (left, warnings, standing, next) in [
        (Duration::days(15), 0, Standing::InForce, Some(Duration::days(14))),
        (Duration::days(14) + second, 0, Standing::InForce, Some(Duration::days(14))),
        (Duration::days(14), 1, Standing::LapsesSoon, Some(Duration::days(3))),
        (Duration::days(3), 2, Standing::LapsesSoon, Some(Duration::days(1))),
        (Duration::days(1), 3, Standing::LapsesSoon, Some(Duration::ZERO)),
        (second, 3, Standing::LapsesSoon, Some(Duration::ZERO)),
        (Duration::ZERO, 4, Standing::Lapsed, None),
        (-Duration::days(99), 4, Standing::Lapsed, None),
    ] {
        let now = until() - left;
        assert_eq!((one.warnings(now), one.standing(now)), (warnings, standing), "{left} before");
        assert_eq!(one.next(now), next.map(|left| until() - left), "{left} before");
    }
}
