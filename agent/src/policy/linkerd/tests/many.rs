//! What many routes and authorizations cost, and what of them a change compiles again.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::model::workload::WorkloadMtls;

use super::super::super::matcher::JUDGED;
use super::super::super::object::Object;
use super::super::super::set::Subject;
use super::super::{Inbound, Linkerd};
use super::{Mesh, settings};

/// How the matches of routes differ from each other: hosts, and the match.
type Differing = fn(usize) -> (Vec<String>, Value);

const DIFFERING: &[(&str, Differing)] = &[
    ("path", |n| (vec![], json!({ "path": { "type": "Exact", "value": format!("/p{n}") } }))),
    ("prefix", |n| (vec![], json!({ "path": { "value": format!("/p{n}/") } }))),
    ("host", |n| (vec![format!("h{n}.example")], json!({}))),
    ("domain", |n| (vec![format!("*.d{n}.example")], json!({ "method": "GET" }))),
    ("path of one host", |n| (vec!["web".into()], json!({ "path": { "value": format!("/p{n}") } }))),
    ("host of one path", |n| (vec![format!("h{n}")], json!({ "path": { "value": "/api" } }))),
    ("header", |n| (vec![], json!({ "headers": [{ "name": "x-team", "value": format!("t{n}") }] }))),
    ("header of one path", |n| {
        let headers = json!([{ "name": "x-team", "value": format!("t{n}") }]);
        (vec![], json!({ "path": { "value": "/api" }, "headers": headers }))
    }),
    ("path of another method", |n| {
        (vec![], json!({ "method": "PUT", "path": { "type": "Exact", "value": format!("/p{n}") } }))
    }),
];

const CALLS: &[(&str, Differing)] = &[
    ("service", |n| (vec![], json!({ "method": { "service": format!("shop.S{n}") } }))),
    ("method", |n| (vec![], json!({ "method": { "method": format!("M{n}") } }))),
    ("service and method", |n| {
        (vec![], json!({ "method": { "service": "shop.Orders", "method": format!("M{n}") } }))
    }),
];

fn object(version: &str, kind: &str, name: &str, spec: Value) -> Value {
    json!({ "apiVersion": version, "kind": kind, "metadata": { "namespace": "shop", "name": name }, "spec": spec })
}

fn server() -> Value {
    object("policy.linkerd.io/v1beta3", "Server", "s", json!({ "podSelector": {}, "port": 8080 }))
}

fn route(kind: &str, name: &str, hostnames: &[String], rules: Vec<Value>) -> Value {
    let parents = json!([{ "group": "policy.linkerd.io", "kind": "Server", "name": "s" }]);
    let spec = json!({ "parentRefs": parents, "hostnames": hostnames, "rules": rules });
    object("gateway.networking.k8s.io/v1", kind, name, spec)
}

/// Admits clients whom these resources authenticate.
fn admit(name: &str, kind: &str, target: &str, required: Value) -> Value {
    let group = if kind == "Server" { "policy.linkerd.io" } else { "gateway.networking.k8s.io" };
    let target = json!({ "group": group, "kind": kind, "name": target });
    let spec = json!({ "targetRef": target, "requiredAuthenticationRefs": required });
    object("policy.linkerd.io/v1alpha1", "AuthorizationPolicy", name, spec)
}

fn account(name: &str) -> Value {
    json!([{ "kind": "ServiceAccount", "name": name }])
}

fn read(objects: &[Value]) -> Vec<Arc<Object>> {
    let read = |object: &Value| Arc::new(Object::read(object.clone()).expect("an object"));
    objects.iter().map(read).collect()
}

fn mesh(objects: &[Value]) -> Mesh {
    let mut mesh = Mesh::of("");
    mesh.linkerd = Linkerd::new(&read(objects), &settings());
    mesh
}

/// How many matches were compared.
fn cost(mesh: &Mesh, from: &str, request: Option<&str>) -> usize {
    mesh.inbound(|inbound| {
        let conn = super::conn(from, 8080);
        let before = JUDGED.get();
        drop(inbound.on_connection(&conn));
        match request {
            None => drop(inbound.evaluate(&conn, None)),
            Some(text) => mesh.with_request(text, |request| drop(inbound.evaluate(&conn, Some(request)))),
        }
        JUDGED.get() - before
    })
}

#[test]
fn a_request_is_compared_with_as_few_routes_among_thousands_as_among_ten() {
    type Shape = fn(&str, usize, Differing) -> Vec<Value>;
    let of_routes: Shape = |kind, n, differing| {
        let one = |n: usize| {
            let (hosts, one) = differing(n);
            [
                route(kind, &format!("r{n}"), &hosts, vec![json!({ "matches": [one] })]),
                admit(&format!("p{n}"), kind, &format!("r{n}"), account(&format!("a{n}"))),
            ]
        };
        (0..n).flat_map(one).collect()
    };
    let of_rules: Shape = |kind, n, differing| {
        let rules = (0..n).map(|n| json!({ "matches": [differing(n).1] })).collect();
        vec![route(kind, "r", &differing(0).0, rules)]
    };
    let of_matches: Shape = |kind, n, differing| {
        let matches: Vec<_> = (0..n).map(|n| differing(n).1).collect();
        vec![route(kind, "r", &differing(0).0, vec![json!({ "matches": matches })])]
    };
    let http = DIFFERING.iter().map(|one| ("HTTPRoute", one));
    let kinds: Vec<_> = http.chain(CALLS.iter().map(|one| ("GRPCRoute", one))).collect();
    for (shape, objects) in [("routes", of_routes), ("rules", of_rules), ("matches", of_matches)] {
        for (kind, (field, differing)) in &kinds {
            if shape != "routes" && ["host", "domain", "host of one path"].contains(field) {
                // Those are the route's, and not its rules'.
                continue;
            }
            let costs = [10, 500].map(|n| {
                let mut all = objects(kind, n, *differing);
                all.push(server());
                let mesh = mesh(&all);
                assert!(mesh.linkerd.defects().is_empty(), "{:?}", mesh.linkerd.defects());
                let asked = [
                    "GET /api/orders host=web x-team=none",
                    "GET /p7 host=h7.example x-team=t7",
                    "GET /p7/x host=a.d7.example x-team=t7 x-team=t8",
                    "POST /shop.S7/M7 host=h7",
                    "POST /shop.Orders/M7 host=web",
                ];
                asked.map(|request| cost(&mesh, "a7.shop", Some(request))).into_iter().max()
            });
            assert!(costs[1] <= costs[0].max(Some(4)), "{shape} by {field}: {costs:?}");
        }
    }
}

/// A header may be sent in several lines, and any of them may be what a route asks for.
#[test]
fn every_line_of_a_header_is_looked_up() {
    let header = |n| json!({ "headers": [{ "name": "x-team", "value": format!("t{n}") }] });
    let one = |n| route("HTTPRoute", &format!("r{n}"), &[], vec![json!({ "matches": [header(n)] })]);
    let mut objects: Vec<_> = (0..20).map(one).collect();
    objects.push(server());
    let mesh = mesh(&objects);
    let ask = |request| mesh.http("a.shop", 8080, request);
    assert_eq!(ask("GET / x-team=none x-team=t7"), "deny unauthorized r7#0");
    assert_eq!(ask("GET / x-team=t9 x-team=t7"), "deny unauthorized r7#0");
    assert_eq!(ask("GET / x-team=t9,t7"), "deny no_route s");
}

#[test]
fn a_client_is_compared_with_as_few_authorizations_among_thousands_as_among_ten() {
    type Clients = fn(usize) -> Vec<Value>;
    let accounts: Clients =
        |n| (0..n).map(|n| admit(&format!("p{n}"), "Server", "s", account(&format!("a{n}")))).collect();
    let required = |kind: &str| json!([{ "group": "policy.linkerd.io", "kind": kind, "name": "x" }]);
    let of_one = |kind: &str, spec: Value| {
        let authentication = object("policy.linkerd.io/v1alpha1", kind, "x", spec);
        vec![authentication, admit("p", "Server", "s", required(kind))]
    };
    let identities = |n| -> Vec<Value> {
        let names = (0..n).map(|n| format!("a{n}.shop.serviceaccount.identity.linkerd.cluster.local"));
        of_one("MeshTLSAuthentication", json!({ "identities": names.collect::<Vec<_>>() }))
    };
    let suffixes = |n| -> Vec<Value> {
        let names = (0..n).map(|n| format!("*.n{n}.serviceaccount.identity.linkerd.cluster.local"));
        of_one("MeshTLSAuthentication", json!({ "identities": names.collect::<Vec<_>>() }))
    };
    let cidr = |n: usize| format!("172.16.{}.{}/32", n / 256, n % 256);
    let networks = |n| -> Vec<Value> {
        let nets = (0..n).map(|n| json!({ "cidr": cidr(n) }));
        of_one("NetworkAuthentication", json!({ "networks": nets.collect::<Vec<_>>() }))
    };
    let authorizations = |n| -> Vec<Value> {
        let one = |n: usize| {
            let client = json!({ "meshTLS": { "serviceAccounts": [{ "name": format!("a{n}") }] } });
            let spec = json!({ "server": { "selector": {} }, "client": client });
            object("policy.linkerd.io/v1beta1", "ServerAuthorization", &format!("z{n}"), spec)
        };
        (0..n).map(one).collect()
    };
    type Objects<'a> = &'a dyn Fn(usize) -> Vec<Value>;
    let kinds: [(&str, Objects<'_>); 5] = [
        ("policies of accounts", &accounts),
        ("identities", &identities),
        ("suffixes", &suffixes),
        ("networks", &networks),
        ("ServerAuthorizations", &authorizations),
    ];
    for (kind, objects) in kinds {
        let costs = [10, 500].map(|n| {
            let mut all = objects(n);
            all.push(server());
            let mesh = mesh(&all);
            let clients = ["nobody.shop", "a7.shop", "a.n7", "plaintext@172.16.0.7", "plaintext@8.8.8.8"];
            clients.map(|client| cost(&mesh, client, None)).into_iter().max()
        });
        assert!(costs[1] <= costs[0].max(Some(8)), "{kind}: {costs:?}");
    }
}

/// Of a pod that both Servers select.
fn inbound(linkerd: &Linkerd) -> Inbound {
    let mesh = Mesh::of("");
    let mtls = WorkloadMtls::default();
    linkerd.inbound(&Subject { namespace: "shop", policies: &[], mtls: &mtls, facts: &mesh.facts })
}

#[test]
fn only_what_an_object_touches_is_compiled_again() {
    let read_route = |name: &str, path: &str| {
        route("HTTPRoute", name, &[], vec![json!({ "matches": [{ "path": { "value": path } }] })])
    };
    let other = {
        let mut other = server();
        other["metadata"]["name"] = json!("t");
        other["spec"]["port"] = json!(9090);
        other
    };
    let objects = |path: &str, who: &str| {
        vec![
            server(),
            other.clone(),
            read_route("a", "/a"),
            read_route("b", path),
            admit("to-a", "HTTPRoute", "a", account("one")),
            admit("to-b", "HTTPRoute", "b", account(who)),
            admit("to-t", "Server", "t", account("one")),
        ]
    };
    let first = Linkerd::new(&read(&objects("/b", "one")), &settings());
    // Read again, and nothing has changed.
    let second = first.next(&read(&objects("/b", "one")), &settings());
    let [before, after] = [&first, &second].map(inbound);
    for port in [8080, 9090] {
        assert!(Arc::ptr_eq(before.on_port(port), after.on_port(port)), "{port}");
    }
    // One route has changed: its Server has, the other route and the other Server have not.
    let third = second.next(&read(&objects("/c", "one")), &settings());
    let [before, after] = [&second, &third].map(inbound);
    assert!(Arc::ptr_eq(before.on_port(9090), after.on_port(9090)));
    let routes = |inbound: &Inbound| inbound.on_port(8080).routes.all().to_vec();
    let (old, new) = (routes(&before), routes(&after));
    assert!(Arc::ptr_eq(&old[0], &new[0]));
    assert!(!Arc::ptr_eq(&old[1], &new[1]));
    assert!(old[1].authorizations == new[1].authorizations);
    let asked = |linkerd: Linkerd, from: &str, request: &str| {
        let mut mesh = Mesh::of("");
        mesh.linkerd = linkerd;
        mesh.http(from, 8080, request)
    };
    // Whom one of them admits has changed, and nothing of what is kept says otherwise.
    let fourth = third.next(&read(&objects("/c", "two")), &settings());
    let after = inbound(&fourth);
    assert!(Arc::ptr_eq(before.on_port(9090), after.on_port(9090)));
    assert!(Arc::ptr_eq(&new[0], &routes(&after)[0]));
    assert_eq!(asked(fourth, "one.shop", "GET /c"), "deny unauthorized b#0");
    let fifth = third.next(&read(&objects("/c", "two")), &settings());
    assert_eq!(asked(fifth, "two.shop", "GET /c"), "allow to-b");
    // What is gone is gone, and a setting counts at once.
    let mut fewer = objects("/c", "one");
    fewer.retain(|object| object["metadata"]["name"] != "to-b");
    assert_eq!(asked(third.next(&read(&fewer), &settings()), "one.shop", "GET /c"), "deny unauthorized b#0");
    let mut elsewhere = settings();
    elsewhere.trust_domain = "elsewhere".parse().expect("a trust domain");
    let moved = third.next(&read(&objects("/c", "one")), &elsewhere);
    assert_eq!(asked(moved, "one.shop", "GET /a"), "deny unauthorized a#0");
}

/// What is told of a route that is kept is told again, once.
#[test]
fn defects_are_told_of_what_is_kept_too() {
    let odd = |version: &str| {
        let mut odd = route("HTTPRoute", "r", &[], vec![json!({ "matches": [{ "method": "get" }] })]);
        odd["apiVersion"] = json!(format!("gateway.networking.k8s.io/{version}"));
        vec![server(), odd]
    };
    for version in ["v1", "v9"] {
        let first = Linkerd::new(&read(&odd(version)), &settings());
        let second = first.next(&read(&odd(version)), &settings());
        assert_eq!(first.defects(), second.defects());
        assert_eq!(first.defects().len(), if version == "v1" { 1 } else { 2 });
    }
}
