use std::net::IpAddr;

use super::*;
use crate::discovery::Store;
use crate::discovery::file::parse;
use crate::policy::{Action, Group, Kind, Match, PathMatch, Policy, Rule, Scope, StringMatch};

/// One local pod, and policies as given.
fn mesh(policies: &str, attached: &str) -> String {
    format!(
        "mesh: {{}}
localPods:
- {{uid: p, name: server, namespace: shop, serviceAccount: server, netns: /run/netns/p, addresses: [10.0.0.1]}}
workloads:
- {{uid: p, name: server, namespace: shop, serviceAccount: server, workloadIps: [10.0.0.1], protocol: HBONE,
   authorizationPolicies: [{attached}]}}
policies: [{policies}]
"
    )
}

const DENY_BAD: &str = "{name: no-bad, namespace: shop, scope: NAMESPACE, action: DENY,
  groups: [{rules: [{matches: [{principals: [cluster.local/ns/shop/sa/bad]}]}]}]}";

fn publish(store: &Store, policies: &str, attached: &str) {
    store.publish(parse(&mesh(policies, attached)).expect("a valid mesh").state);
}

fn conn(account: &str) -> Conn {
    let source: SpiffeId = format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap();
    Conn::new(Some(source), IpAddr::from([10, 0, 0, 2]), IpAddr::from([10, 0, 0, 1]), 80)
}

fn authorizer(store: &Store) -> Arc<Authorizer> {
    let pod = store.current().local_pods().next().expect("one pod").clone();
    Authorizer::new(pod, store.subscribe())
}

#[tokio::test]
async fn a_new_policy_takes_back_exactly_the_permits_that_it_forbids() {
    let store = Store::new();
    publish(&store, "", "");
    let authorizer = authorizer(&store);
    let cut = Stop::default();
    tokio::spawn(Arc::clone(&authorizer).review(CancellationToken::new()));
    let bad = authorizer.authorize(ConnectionId(1), conn("bad"), &cut).expect("nothing forbids it yet");
    let good = authorizer.authorize(ConnectionId(2), conn("good"), &cut).expect("nothing forbids it");
    tokio::task::yield_now().await;

    publish(&store, DENY_BAD, "");
    assert_eq!(bad.stop().ended().await, Cause::PolicyRevoked);
    assert!(futures::poll!(std::pin::pin!(good.stop().ended())).is_pending());

    let denied = authorizer.authorize(ConnectionId(3), conn("bad"), &cut).err().expect("denied");
    assert_eq!(denied.told.policy.as_deref(), Some("shop/no-bad"));
    drop((bad, good));
    assert!(authorizer.live().is_empty(), "a permit that is dropped, or never given, leaves nothing");
}

#[tokio::test]
async fn a_pod_that_is_no_workload_any_more_admits_nobody() {
    let store = Store::new();
    publish(&store, "", "");
    let authorizer = authorizer(&store);
    let cut = Stop::default();
    assert!(authorizer.authorize(ConnectionId(1), conn("good"), &cut).is_ok());
    store.publish(parse("mesh: {}").expect("a valid mesh").state);
    assert!(authorizer.authorize(ConnectionId(2), conn("good"), &cut).is_err());
}

#[tokio::test]
async fn a_pod_that_leaves_keeps_what_the_present_policies_allow_to_what_it_was() {
    let store = Store::new();
    publish(&store, "", "");
    let authorizer = authorizer(&store);
    let cut = Stop::default();
    let bad = authorizer.authorize(ConnectionId(1), conn("bad"), &cut).expect("nothing forbids it yet");
    let good = authorizer.authorize(ConnectionId(2), conn("good"), &cut).expect("nothing forbids it");
    tokio::spawn(Arc::clone(&authorizer).review(CancellationToken::new()));
    tokio::task::yield_now().await;

    store.publish(parse("mesh: {}").expect("a valid mesh").state);
    tokio::task::yield_now().await;
    for kept in [&bad, &good] {
        assert!(futures::poll!(std::pin::pin!(kept.stop().ended())).is_pending());
    }
    assert!(authorizer.authorize(ConnectionId(3), conn("good"), &cut).is_err());

    let forbidden = format!("mesh: {{}}\npolicies: [{DENY_BAD}]");
    store.publish(parse(&forbidden).expect("a valid mesh").state);
    assert_eq!(bad.stop().ended().await, Cause::PolicyRevoked);
    assert!(futures::poll!(std::pin::pin!(good.stop().ended())).is_pending());
}

#[tokio::test]
async fn a_policy_that_is_named_but_unknown_denies() {
    let store = Store::new();
    publish(&store, "", "shop/not-here");
    let authorizer = authorizer(&store);
    let cut = Stop::default();
    let denied = authorizer.authorize(ConnectionId(1), conn("good"), &cut).err().expect("denied");
    assert!(denied.why.contains("not-here") || denied.told.policy.as_deref() == Some("shop/not-here"));
}

/// A STRICT server, an exception for pods of `batch` until 2027, and a pod of `holder` at 10.0.0.3.
fn with_holder(holder: &str) -> String {
    format!(
        "mesh: {{mtls: STRICT}}
localPods:
- {{uid: p, name: server, namespace: shop, serviceAccount: server, netns: /run/netns/p, addresses: [10.0.0.1]}}
workloads:
- {{uid: p, name: server, namespace: shop, serviceAccount: server, workloadIps: [10.0.0.1], protocol: HBONE}}
- {{uid: q, name: jobs, namespace: {holder}, serviceAccount: jobs, workloadIps: [10.0.0.3], protocol: TCP}}
resources:
- apiVersion: underpass.io/v1alpha1
  kind: PlaintextException
  metadata: {{name: batch, namespace: shop}}
  spec: {{from: [{{namespaces: [batch]}}], ports: [80], reason: r, until: 2027-01-01T00:00:00Z}}
"
    )
}

#[tokio::test]
async fn plaintext_that_rests_on_an_exception_ends_when_it_lapses_or_the_address_is_anothers() {
    let time = Arc::new(Mutex::new(time::OffsetDateTime::from_unix_timestamp(1_798_761_599).unwrap()));
    let system = Arc::clone(&time);
    let store = Store::with_clock(move || *system.lock().unwrap());
    let publish = |holder: &str| store.publish(parse(&with_holder(holder)).expect("a valid mesh").state);
    publish("batch");
    let authorizer = authorizer(&store);
    let cut = Stop::default();
    tokio::spawn(Arc::clone(&authorizer).review(CancellationToken::new()));
    let from = |store: &Store, ip: [u8; 4]| {
        let conn = Conn::new(None, IpAddr::from(ip), IpAddr::from([10, 0, 0, 1]), 80);
        let at_source = at_source(&store.current(), &conn);
        Conn { at_source, ..conn }
    };
    let jobs = |id| authorizer.authorize(ConnectionId(id), from(&store, [10, 0, 0, 3]), &cut);
    let permit = jobs(1).expect("the exception admits it");
    let name = "PlaintextException.underpass.io/shop/batch";
    assert_eq!(permit.exception().map(|name| &**name), Some(name));
    let nobody = authorizer.authorize(ConnectionId(2), from(&store, [10, 0, 0, 4]), &cut).err();
    assert_eq!(nobody.expect("nobody is known there").told.reason, "strict_mtls");
    tokio::task::yield_now().await;

    publish("batch");
    tokio::task::yield_now().await;
    assert!(futures::poll!(std::pin::pin!(permit.stop().ended())).is_pending(), "nothing has changed");
    publish("other");
    assert_eq!(permit.stop().ended().await, Cause::PolicyRevoked);
    assert!(jobs(3).is_err(), "another pod has the address");

    publish("batch");
    let permit = jobs(4).expect("it has it back");
    tokio::task::yield_now().await;
    *time.lock().unwrap() += std::time::Duration::from_secs(1);
    store.lapse();
    assert_eq!(permit.stop().ended().await, Cause::PolicyRevoked);
    assert!(jobs(5).is_err(), "it has lapsed");
}

/// Forbids, or is the only one to allow, requests whose path begins with `/admin`.
fn admin(action: Action) -> Policy {
    let paths = vec![PathMatch::String(StringMatch::Prefix("/admin".into()))];
    let matches = vec![Match { paths, ..Match::default() }];
    Policy {
        kind: Kind::IstioAuthorizationPolicy,
        namespace: "shop".into(),
        name: "admin".into(),
        scope: Scope::Namespace,
        action,
        dry_run: false,
        groups: vec![Group { rules: vec![Rule { matches }], never: None }],
        defect: None,
    }
}

fn publish_with(store: &Store, policies: &str, policy: Policy) {
    let mut state = parse(&mesh(policies, "")).expect("a valid mesh").state;
    state.policies.push(policy);
    store.publish(state);
}

fn ruling(permit: &Permit, path: &str) -> bool {
    let request =
        Request { method: "GET", host: "shop", path, query: None, headers: &http::HeaderMap::new() };
    let judge = permit.requests().expect("it depends on requests");
    matches!(judge.judge(&request), Ruling::Allow { .. })
}

#[tokio::test]
async fn where_policy_depends_on_requests_each_is_judged_by_the_policy_of_now() {
    let store = Store::new();
    publish_with(&store, "", admin(Action::Deny));
    let authorizer = authorizer(&store);
    let cut = Stop::default();
    tokio::spawn(Arc::clone(&authorizer).review(CancellationToken::new()));
    let permit = authorizer.authorize(ConnectionId(1), conn("good"), &cut).expect("it may ask");
    assert_eq!([ruling(&permit, "/admin"), ruling(&permit, "/")], [false, true]);
    tokio::task::yield_now().await;
    let mut changes = permit.requests().expect("judged").changes();

    publish_with(&store, "", admin(Action::Allow));
    changes.changed().await.expect("it tells of the change");
    assert_eq!([ruling(&permit, "/admin"), ruling(&permit, "/")], [true, false]);

    // Without rules on requests it goes on as it is.
    publish(&store, "", "");
    changes.changed().await.expect("it tells of the change");
    assert_eq!([ruling(&permit, "/admin"), ruling(&permit, "/")], [true, true]);
    assert!(futures::poll!(std::pin::pin!(permit.stop().ended())).is_pending());

    publish(&store, DENY_BAD, "");
    changes.changed().await.expect("it tells of the change");
    assert!(futures::poll!(std::pin::pin!(permit.stop().ended())).is_pending());
    publish(&store, &DENY_BAD.replace("bad]", "good]"), "");
    assert_eq!(permit.stop().ended().await, Cause::PolicyRevoked);
}

#[tokio::test]
async fn bytes_that_nobody_can_judge_end_when_policy_comes_to_depend_on_requests() {
    let store = Store::new();
    publish(&store, "", "");
    let authorizer = authorizer(&store);
    let cut = Stop::default();
    tokio::spawn(Arc::clone(&authorizer).review(CancellationToken::new()));
    let permit = authorizer.authorize(ConnectionId(1), conn("good"), &cut).expect("nothing forbids it");
    assert!(permit.requests().is_none(), "without rules on requests nobody reads them");
    tokio::task::yield_now().await;
    publish_with(&store, "", admin(Action::Deny));
    assert_eq!(permit.stop().ended().await, Cause::PolicyRevoked);
}

#[tokio::test]
async fn what_has_gone_on_as_bytes_ends_when_policy_comes_to_depend_on_requests_again() {
    let store = Store::new();
    publish_with(&store, "", admin(Action::Deny));
    let authorizer = authorizer(&store);
    let cut = Stop::default();
    tokio::spawn(Arc::clone(&authorizer).review(CancellationToken::new()));
    let permit = authorizer.authorize(ConnectionId(1), conn("good"), &cut).expect("it may ask");
    let judge = permit.requests().expect("judged");
    assert!(matches!(judge.not_http(), Ruling::Deny { .. }), "what cannot be judged is denied");
    tokio::task::yield_now().await;

    let mut changes = judge.changes();
    publish(&store, "", "");
    changes.changed().await.expect("it tells of the change");
    assert!(matches!(judge.not_http(), Ruling::Allow { .. }));
    publish_with(&store, "", admin(Action::Deny));
    let ended = tokio::time::timeout(std::time::Duration::from_secs(10), permit.stop().ended()).await;
    assert_eq!(ended, Ok(Cause::PolicyRevoked), "bytes go on that nobody judges");
}

fn advice(permit: &Permit, path: Option<&str>) -> (Option<bool>, usize) {
    let headers = http::HeaderMap::new();
    let request =
        path.map(|path| Request { method: "GET", host: "shop", path, query: None, headers: &headers });
    let advice = permit.requests().expect("it depends on requests").advise(request.as_ref());
    (advice.would.map(|would| would.is_allow()), advice.audited.len())
}

#[tokio::test]
async fn what_decides_nothing_asks_for_requests_and_binds_nobody() {
    let store = Store::new();
    publish_with(&store, "", Policy { dry_run: true, ..admin(Action::Deny) });
    let authorizer = authorizer(&store);
    let cut = Stop::default();
    tokio::spawn(Arc::clone(&authorizer).review(CancellationToken::new()));
    let permit = authorizer.authorize(ConnectionId(1), conn("good"), &cut).expect("nothing is refused");
    assert!(permit.requests().is_some_and(|judge| !judge.binding()));
    assert!(ruling(&permit, "/admin"), "it decides nothing");
    assert_eq!(advice(&permit, Some("/admin")), (Some(false), 0));
    assert_eq!(advice(&permit, Some("/")), (Some(true), 0));
    assert_eq!(advice(&permit, None), (Some(false), 0), "what is not HTTP");

    publish_with(&store, "", admin(Action::Audit));
    assert_eq!(advice(&permit, Some("/admin")), (None, 1));
    assert_eq!(advice(&permit, Some("/")), (None, 0));
    let other = authorizer.authorize(ConnectionId(2), conn("good"), &cut).expect("nothing is refused");
    assert!(other.requests().is_some_and(|judge| !judge.binding()));

    // In force, it ends what has passed as bytes, and binds what comes.
    tokio::task::yield_now().await;
    publish_with(&store, "", admin(Action::Deny));
    assert_eq!(permit.stop().ended().await, Cause::PolicyRevoked);
    let bound = authorizer.authorize(ConnectionId(3), conn("good"), &cut).expect("it may ask");
    assert!(bound.requests().is_some_and(|judge| judge.binding()));
}

#[tokio::test]
async fn what_decides_nothing_whatever_is_requested_needs_no_requests() {
    let whole = |action, dry_run| Policy {
        groups: vec![Group { rules: Vec::new(), never: None }],
        dry_run,
        ..admin(action)
    };
    let other_port = |action| {
        let mut policy = admin(action);
        policy.groups[0].rules[0].matches[0].destination_ports = vec![81];
        policy
    };
    let store = Store::new();
    for policy in [
        whole(Action::Deny, true),
        whole(Action::Audit, false),
        other_port(Action::Audit),
        Policy { dry_run: true, ..other_port(Action::Deny) },
    ] {
        publish_with(&store, "", policy);
        let authorizer = authorizer(&store);
        let cut = Stop::default();
        let permit = authorizer.authorize(ConnectionId(1), conn("good"), &cut).expect("nothing is refused");
        assert!(permit.requests().is_none());
    }
}

/// The mesh with `bad` kept out, and everybody in this phase.
fn publish_in_phase(store: &Store, phase: &str) {
    let resources = format!(
        "resources:
- {{apiVersion: underpass.io/v1alpha1, kind: Enforcement, metadata: {{name: moving, namespace: shop}}, spec: {{phase: {phase}}}}}
"
    );
    let text = mesh(DENY_BAD, "") + &resources;
    store.publish(parse(&text).expect("a valid mesh").state);
}

#[tokio::test]
async fn a_turn_from_observe_to_enforce_ends_exactly_what_is_forbidden() {
    let store = Store::new();
    publish_in_phase(&store, "Observe");
    let authorizer = authorizer(&store);
    let cut = Stop::default();
    tokio::spawn(Arc::clone(&authorizer).review(CancellationToken::new()));
    let bad = authorizer.authorize(ConnectionId(1), conn("bad"), &cut).expect("nothing is refused");
    assert_eq!(bad.policy().map(|by| &**by), Some("Enforcement.underpass.io/shop/moving"));
    let good = authorizer.authorize(ConnectionId(2), conn("good"), &cut).expect("nothing is refused");
    tokio::task::yield_now().await;

    publish_in_phase(&store, "Enforce");
    assert_eq!(bad.stop().ended().await, Cause::PolicyRevoked);
    assert!(futures::poll!(std::pin::pin!(good.stop().ended())).is_pending());
    assert!(authorizer.authorize(ConnectionId(3), conn("bad"), &cut).is_err());
    publish_in_phase(&store, "Observed");
    assert!(authorizer.authorize(ConnectionId(3), conn("bad"), &cut).is_err(), "a typo opens nothing");
}

/// Everybody is admitted to the one port, by a route that does this with requests.
fn publish_route(store: &Store, filters: &str, protocol: &str) {
    let text = mesh("", "")
        + &format!(
            "resources:
- {{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {{name: s, namespace: shop}}, spec: {{podSelector: {{}}, port: 80, accessPolicy: all-unauthenticated, proxyProtocol: {protocol}}}}}
- {{apiVersion: policy.linkerd.io/v1beta3, kind: HTTPRoute, metadata: {{name: r, namespace: shop}}, spec: {{parentRefs: [{{group: policy.linkerd.io, kind: Server, name: s}}], rules: [{{filters: [{filters}]}}]}}}}
"
        );
    store.publish(parse(&text).expect("a valid mesh").state);
}

const REMOVE: &str = "{type: RequestHeaderModifier, requestHeaderModifier: {remove: [x-admin]}}";

#[tokio::test]
async fn what_is_allowed_is_ruled_with_its_route_s_filters() {
    let store = Store::new();
    publish_route(&store, REMOVE, "unknown");
    let authorizer = authorizer(&store);
    let permit = authorizer.authorize(ConnectionId(1), conn("good"), &Stop::default()).expect("admitted");
    let judge = permit.requests().expect("every request is looked at");
    assert!(judge.binding());
    let asked = http::HeaderMap::new();
    let request = Request { method: "GET", host: "shop", path: "/", query: None, headers: &asked };
    let changed = |ruling| {
        let Ruling::Allow { filters, .. } = ruling else { return None };
        let mut headers = http::HeaderMap::new();
        headers.insert("x-admin", http::HeaderValue::from_static("1"));
        filters.change_request(&mut headers);
        Some(headers.is_empty())
    };
    assert_eq!(changed(judge.judge(&request)), Some(true));
    // By the policies of now.
    publish_route(&store, "", "unknown");
    assert_eq!(changed(judge.judge(&request)), Some(false));
    publish_route(&store, "{type: URLRewrite}", "unknown");
    assert_eq!(changed(judge.judge(&request)), None, "denied");
}

#[tokio::test]
async fn bytes_that_may_be_requests_end_when_something_has_to_become_of_them() {
    let store = Store::new();
    publish_route(&store, "", "unknown");
    let authorizer = authorizer(&store);
    tokio::spawn(Arc::clone(&authorizer).review(CancellationToken::new()));
    let cut = Stop::default();
    let unread = authorizer.authorize(ConnectionId(1), conn("good"), &cut).expect("admitted");
    assert!(unread.requests().is_none());
    tokio::task::yield_now().await;
    publish_route(&store, REMOVE, "unknown");
    assert_eq!(unread.stop().ended().await, Cause::PolicyRevoked);

    // What is known to be none goes on, as long as that may pass.
    let bytes = authorizer.authorize(ConnectionId(2), conn("good"), &cut).expect("admitted");
    assert!(matches!(bytes.requests().expect("looked at").not_http(), Ruling::Allow { .. }));
    publish_route(&store, &REMOVE.replace("x-admin", "x-other"), "unknown");
    tokio::task::yield_now().await;
    assert!(futures::poll!(std::pin::pin!(bytes.stop().ended())).is_pending());
    publish_route(&store, REMOVE, "HTTP/1");
    assert_eq!(bytes.stop().ended().await, Cause::PolicyRevoked);
}
