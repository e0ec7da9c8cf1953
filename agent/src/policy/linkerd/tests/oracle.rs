//! A plain, slow evaluator of Linkerd's rules, read straight from the resources as they are written, and
//! compared with the real one on random resources, clients and requests.

use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use super::super::super::object::Object;
use super::super::Linkerd;
use super::{Mesh, settings};

/// A client, and what it sends.
#[derive(Clone, Debug)]
struct Ask {
    account: Option<(&'static str, &'static str, &'static str)>,
    ip: &'static str,
    port: u16,
    request: Option<Sent>,
}

#[derive(Clone, Debug)]
struct Sent {
    method: &'static str,
    path: &'static str,
    host: &'static str,
    kind: Option<&'static str>,
    query: Option<&'static str>,
}

const POD_PORTS: [(&str, u16); 3] = [("http", 8080), ("admin", 9090), ("admin", 9091)];
const PROBE: (u16, &str) = (8080, "/live");

struct Oracle<'a> {
    objects: &'a [Value],
    ask: &'a Ask,
    default: &'a str,
}

impl<'a> Oracle<'a> {
    fn of_kind(&self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.objects.iter().filter(move |object| object["kind"] == kind)
    }

    /// `allow`, `audit` or `deny`.
    fn verdict(&self) -> &'static str {
        let Some(server) = self.server() else {
            let probe = self.is_probe();
            return match (self.by_default(self.default), self.default) {
                (true, "audit") => {
                    if probe {
                        "allow"
                    } else {
                        "audit"
                    }
                }
                (true, _) => "allow",
                (false, _) => {
                    if probe {
                        "allow"
                    } else {
                        "deny"
                    }
                }
            };
        };
        let protocol = server["spec"]["proxyProtocol"].as_str().unwrap_or("unknown");
        let access = server["spec"]["accessPolicy"].as_str().unwrap_or("deny");
        let by_server = self.policies_for("Server", &server["metadata"]["name"], "policy.linkerd.io")
            || self.policies_for("Namespace", &json!("shop"), "")
            || self.server_authorizations(server)
            || (access != "audit" && self.by_default(access));
        let otherwise = if access == "audit" { "audit" } else { "deny" };
        let answer = |admitted| if admitted { "allow" } else { otherwise };
        let routes = if matches!(protocol, "opaque" | "TLS") { Vec::new() } else { self.routes(server) };
        if routes.is_empty() {
            let probes = !matches!(protocol, "opaque" | "TLS");
            return answer(by_server || (probes && self.is_probe()));
        }
        let Some(sent) = &self.ask.request else {
            return if protocol == "unknown" { answer(by_server) } else { "deny" };
        };
        let mut best: Option<(Vec<usize>, &Value)> = None;
        for route in routes {
            for rule in route["spec"]["rules"].as_array().expect("rules") {
                for one in rule["matches"].as_array().expect("matches") {
                    let Some(close) = close(route, one, sent) else { continue };
                    // What it means to do with the request nobody here can.
                    if route["spec"]["rules"][0]["filters"].is_array() {
                        return "deny";
                    }
                    if best.as_ref().is_none_or(|(other, _)| close > *other) {
                        best = Some((close, route));
                    }
                }
            }
        }
        let Some((_, route)) = best else { return "deny" };
        let group = route["apiVersion"].as_str().expect("a version").split_once('/').expect("a group").0;
        let kind = route["kind"].as_str().expect("a kind");
        answer(by_server || self.policies_for(kind, &route["metadata"]["name"], group))
    }

    /// The oldest that selects the pod and the port, then the first by name.
    fn server(&self) -> Option<&'a Value> {
        let mine = |server: &&Value| {
            let port = match &server["spec"]["port"] {
                Value::String(name) => POD_PORTS.iter().any(|port| port.0 == name && port.1 == self.ask.port),
                number => *number == json!(self.ask.port),
            };
            port && selects(&server["spec"]["podSelector"], "web")
        };
        self.of_kind("Server").filter(mine).min_by_key(|server| age(server))
    }

    fn routes(&self, server: &Value) -> Vec<&'a Value> {
        let child = |route: &&Value| {
            let parents = route["spec"]["parentRefs"].as_array().expect("parents");
            parents.iter().any(|parent| parent["name"] == server["metadata"]["name"])
        };
        let mut routes: Vec<_> =
            self.of_kind("HTTPRoute").chain(self.of_kind("GRPCRoute")).filter(child).collect();
        routes.sort_by_key(|route| {
            (age(route), route["apiVersion"] != "policy.linkerd.io/v1beta3", route["kind"] == "GRPCRoute")
        });
        routes
    }

    fn is_probe(&self) -> bool {
        let sent = self.ask.request.as_ref();
        self.ask.port == PROBE.0 && sent.is_some_and(|sent| sent.method == "GET" && sent.path == PROBE.1)
    }

    fn by_default(&self, policy: &str) -> bool {
        let cluster = ["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fd00::/8"];
        let inside = cluster.iter().any(|net| within(self.ask.ip, net) == Some(true));
        match policy {
            "all-unauthenticated" | "audit" => true,
            "all-authenticated" => self.ask.account.is_some(),
            "cluster-authenticated" => self.ask.account.is_some() && inside,
            "cluster-unauthenticated" => inside,
            _ => false,
        }
    }

    fn server_authorizations(&self, server: &Value) -> bool {
        self.of_kind("ServerAuthorization").any(|one| {
            let spec = &one["spec"];
            let app = server["metadata"]["labels"]["app"].as_str().unwrap_or_default();
            let for_it = match &spec["server"]["name"] {
                Value::Null => selects(&spec["server"]["selector"], app),
                name => *name == server["metadata"]["name"],
            };
            let client = &spec["client"];
            let networks = match &client["networks"] {
                Value::Null => Some(self.by_default("cluster-unauthenticated")),
                networks => self.in_networks(networks),
            };
            let identity = match &client["meshTLS"] {
                Value::Null => client["unauthenticated"] == true,
                mesh if mesh["unauthenticatedTLS"] == true => self.ask.account.is_some(),
                mesh => {
                    let ids = mesh["identities"].as_array().into_iter().flatten();
                    let accounts = mesh["serviceAccounts"].as_array().into_iter().flatten();
                    ids.clone().any(|id| self.is(id))
                        || accounts.clone().any(|account| self.is_account(account))
                }
            };
            for_it && networks == Some(true) && identity
        })
    }

    /// None: something of it is no network.
    fn in_networks(&self, networks: &Value) -> Option<bool> {
        let mut found = false;
        for network in networks.as_array()? {
            let mut inside = within(self.ask.ip, network["cidr"].as_str()?)?;
            for except in network["except"].as_array().into_iter().flatten() {
                inside &= !within(self.ask.ip, except.as_str()?)?;
            }
            found |= inside;
        }
        Some(found)
    }

    fn dns_name(&self) -> Option<String> {
        let (domain, namespace, account) = self.ask.account?;
        Some(format!("{account}.{namespace}.serviceaccount.identity.linkerd.{domain}"))
    }

    fn is(&self, id: &Value) -> bool {
        let (Some(name), Some((domain, namespace, account))) = (self.dns_name(), self.ask.account) else {
            return false;
        };
        match id.as_str().expect("an id") {
            "*" => true,
            id if id.starts_with("*.") => name.ends_with(&id[1..]),
            id => id == name || id == format!("spiffe://{domain}/ns/{namespace}/sa/{account}"),
        }
    }

    fn is_account(&self, account: &Value) -> bool {
        let namespace = account["namespace"].as_str().unwrap_or("shop");
        let name = account["name"].as_str().expect("a name");
        self.ask.account == Some(("cluster.local", namespace, name))
    }

    fn policies_for(&self, kind: &str, name: &Value, group: &str) -> bool {
        self.of_kind("AuthorizationPolicy").any(|policy| {
            let target = &policy["spec"]["targetRef"];
            let for_it = target["kind"] == kind
                && target["name"] == *name
                && target["group"].as_str().unwrap_or_default() == group;
            let refs = policy["spec"]["requiredAuthenticationRefs"].as_array().expect("references");
            for_it && refs.iter().all(|one| self.authenticated(one))
        })
    }

    fn authenticated(&self, one: &Value) -> bool {
        let kind = one["kind"].as_str().expect("a kind");
        if kind == "ServiceAccount" {
            return self.is_account(one);
        }
        let mut all = self.objects.iter().filter(|object| object["kind"] == kind);
        let Some(found) = all.find(|object| object["metadata"]["name"] == one["name"]) else { return false };
        let spec = &found["spec"];
        let ids = spec["identities"].as_array().into_iter().flatten();
        let refs = spec["identityRefs"].as_array().into_iter().flatten();
        let of_namespace =
            |one: &Value| self.ask.account.is_some_and(|a| a.0 == "cluster.local" && one["name"] == a.1);
        match kind {
            "NetworkAuthentication" => self.in_networks(&spec["networks"]) == Some(true),
            _ => {
                ids.clone().any(|id| self.is(id))
                    || refs.clone().any(|one| match one["kind"] == "Namespace" {
                        true => of_namespace(one),
                        false => self.is_account(one),
                    })
            }
        }
    }
}

fn age(object: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    (text(&object["metadata"]["creationTimestamp"]), text(&object["metadata"]["name"]))
}

fn selects(selector: &Value, app: &str) -> bool {
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let mut expressions = selector["matchExpressions"].as_array().into_iter().flatten();
    labels.into_iter().all(|(key, value)| key == "app" && value == app)
        && expressions.all(|one| {
            let value = (one["key"] == "app").then_some(app);
            let listed = one["values"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|v| Some(v.as_str().unwrap_or_default()) == value);
            match one["operator"].as_str().expect("an operator") {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                _ => value.is_none(),
            }
        })
}

/// By bits, counted. None: it is no network.
fn within(ip: &str, net: &str) -> Option<bool> {
    let bits = |text: &str| -> Option<(u128, u32)> {
        Some(match text.parse::<IpAddr>().ok()? {
            IpAddr::V4(four) => (u128::from(u32::from(four)) << 96, 32),
            IpAddr::V6(six) => (u128::from(six), 128),
        })
    };
    let (address, length) = net.split_once('/').map_or((net, None), |(address, n)| (address, Some(n)));
    let (base, width) = bits(address)?;
    let length = length.map_or(Some(width), |text| text.parse().ok()).filter(|length| *length <= width)?;
    let (client, of) = bits(ip)?;
    Some(of == width && (0..length).all(|bit| (client ^ base) >> (127 - bit) & 1 == 0))
}

/// How closely a route's match meets a request: the greater the closer.
fn close(route: &Value, one: &Value, sent: &Sent) -> Option<Vec<usize>> {
    let mut host = None;
    let names = route["spec"]["hostnames"].as_array().into_iter().flatten();
    for name in names.clone() {
        let name = name.as_str().expect("a name");
        let fits = match name.strip_prefix('*') {
            Some(end) => sent.host.ends_with(end) && sent.host.len() > end.len(),
            None => sent.host == name,
        };
        if fits {
            let exact = if name.starts_with('*') { 0 } else { name.len() };
            host = host.max(Some((exact, name.len())));
        }
    }
    if names.count() > 0 {
        host?;
    }
    let (exact, any) = host.unwrap_or_default();
    let path = if route["kind"] == "GRPCRoute" {
        let mut parts = sent.path.split('/').skip(1);
        let (service, method) = (parts.next()?, parts.next()?);
        if sent.method != "POST" || parts.next().is_some() {
            return None;
        }
        let wanted = |key: &str| one["method"][key].as_str();
        if wanted("service").is_some_and(|s| s != service) || wanted("method").is_some_and(|m| m != method) {
            return None;
        }
        match (wanted("service"), wanted("method")) {
            (Some(_), Some(_)) => [3, sent.path.len()],
            (Some(service), None) => [2, service.len()],
            (None, Some(method)) => [1, method.len()],
            (None, None) => [1, 0],
        }
    } else {
        let value = one["path"]["value"].as_str().unwrap_or("/");
        match one["path"]["type"].as_str().unwrap_or("PathPrefix") {
            "Exact" => (value == sent.path).then_some([3, value.len()])?,
            "RegularExpression" => ["/a", "/a/b"].contains(&sent.path).then_some([2, sent.path.len()])?,
            _ => {
                let segments = |path: &str| -> Vec<String> {
                    path.split('/').filter(|part| !part.is_empty()).map(String::from).collect()
                };
                let (prefix, path) = (segments(value), segments(sent.path));
                let length = value.trim_end_matches('/').len().max(1);
                path.starts_with(&prefix).then_some([1, length])?
            }
        }
    };
    let method = one["method"].as_str();
    if method.is_some_and(|method| method != sent.method) {
        return None;
    }
    let wanted = |list: &str, given: Option<&str>| -> Option<usize> {
        let all = one[list].as_array().into_iter().flatten();
        all.clone().all(|one| given == one["value"].as_str()).then(|| all.count())
    };
    let headers = wanted("headers", sent.kind)?;
    let queries = wanted("queryParams", sent.query)?;
    Some(vec![exact, any, path[0], path[1], usize::from(method.is_some()), headers, queries])
}

fn metadata(name: String, time: Option<&str>, app: Option<&str>) -> Value {
    let mut metadata = json!({ "namespace": "shop", "name": name });
    if let Some(time) = time {
        metadata["creationTimestamp"] = json!(time);
    }
    if let Some(app) = app {
        metadata["labels"] = json!({ "app": app });
    }
    metadata
}

fn time() -> impl Strategy<Value = Option<&'static str>> {
    select(vec![None, Some("2024-01-01T00:00:00Z"), Some("2024-01-02T00:00:00Z")])
}

fn selector() -> impl Strategy<Value = Value> {
    select(vec![
        json!({}),
        json!({ "matchLabels": { "app": "web" } }),
        json!({ "matchLabels": { "app": "api" } }),
        json!({ "matchExpressions": [{ "key": "app", "operator": "NotIn", "values": ["api"] }] }),
        json!({ "matchExpressions": [{ "key": "tier", "operator": "Exists" }] }),
        json!({ "matchExpressions": [{ "key": "tier", "operator": "DoesNotExist" }] }),
    ])
}

fn policy_name() -> impl Strategy<Value = &'static str> {
    select(vec![
        "all-unauthenticated",
        "all-authenticated",
        "cluster-authenticated",
        "cluster-unauthenticated",
        "deny",
        "deny",
        "audit",
    ])
}

fn server() -> impl Strategy<Value = Value> {
    let port =
        select(vec![json!(8080), json!(8080), json!(9090), json!("http"), json!("admin"), json!("none")]);
    let protocol = select(vec!["unknown", "unknown", "HTTP/1", "HTTP/2", "gRPC", "opaque", "TLS"]);
    let app = select(vec![None, Some("web"), Some("api")]);
    (0..3, time(), app, selector(), port, protocol, proptest::option::of(policy_name())).prop_map(
        |(n, time, app, pods, port, protocol, access)| {
            let mut spec = json!({ "podSelector": pods, "port": port, "proxyProtocol": protocol });
            if let Some(access) = access {
                spec["accessPolicy"] = json!(access);
            }
            json!({ "apiVersion": "policy.linkerd.io/v1beta3", "kind": "Server",
                "metadata": metadata(format!("s{n}"), time, app), "spec": spec })
        },
    )
}

fn networks() -> impl Strategy<Value = Value> {
    let one = select(vec![
        json!({ "cidr": "10.0.0.0/8" }),
        json!({ "cidr": "10.0.0.0/8", "except": ["10.2.0.0/16", "10.3.0.1"] }),
        json!({ "cidr": "8.8.8.8" }),
        json!({ "cidr": "::/0" }),
        json!({ "cidr": "0.0.0.0/0", "except": ["8.0.0.0/7"] }),
        json!({ "cidr": "10.0.0.0/33" }),
    ]);
    proptest::collection::vec(one, 1..3).prop_map(Value::Array)
}

fn identities() -> impl Strategy<Value = Value> {
    let one = select(vec![
        json!("*"),
        json!("*.cluster.local"),
        json!("*.shop.serviceaccount.identity.linkerd.cluster.local"),
        json!("a.shop.serviceaccount.identity.linkerd.cluster.local"),
        json!("b.other.serviceaccount.identity.linkerd.cluster.local"),
        json!("spiffe://elsewhere/ns/shop/sa/a"),
    ]);
    proptest::collection::vec(one, 1..3).prop_map(Value::Array)
}

fn account() -> impl Strategy<Value = Value> {
    select(vec![json!({ "name": "a" }), json!({ "name": "b" }), json!({ "name": "b", "namespace": "other" })])
}

fn server_authorization() -> impl Strategy<Value = Value> {
    let server = prop_oneof![
        (0..3).prop_map(|n| json!({ "name": format!("s{n}") })),
        selector().prop_map(|selector| json!({ "selector": selector })),
    ];
    let client = prop_oneof![
        Just(json!({ "unauthenticated": true })),
        identities().prop_map(|ids| json!({ "meshTLS": { "identities": ids } })),
        account().prop_map(|account| json!({ "meshTLS": { "serviceAccounts": [account] } })),
        Just(json!({ "meshTLS": { "unauthenticatedTLS": true } })),
    ];
    (0..3, server, client, proptest::option::of(networks())).prop_map(|(n, server, mut client, networks)| {
        if let Some(networks) = networks {
            client["networks"] = networks;
        }
        json!({ "apiVersion": "policy.linkerd.io/v1beta1", "kind": "ServerAuthorization",
            "metadata": metadata(format!("z{n}"), None, None), "spec": { "server": server, "client": client } })
    })
}

fn authentication() -> impl Strategy<Value = Value> {
    let spec = prop_oneof![
        identities().prop_map(|ids| ("MeshTLSAuthentication", json!({ "identities": ids }))),
        account().prop_map(|mut account| {
            account["kind"] = json!("ServiceAccount");
            (
                "MeshTLSAuthentication",
                json!({ "identityRefs": [account, { "kind": "Namespace", "name": "other" }] }),
            )
        }),
        networks().prop_map(|networks| ("NetworkAuthentication", json!({ "networks": networks }))),
    ];
    (0..2, spec).prop_map(|(n, (kind, spec))| {
        json!({ "apiVersion": "policy.linkerd.io/v1alpha1", "kind": kind,
            "metadata": metadata(format!("m{n}"), None, None), "spec": spec })
    })
}

fn authorization_policy() -> impl Strategy<Value = Value> {
    let target = prop_oneof![
        (0..3)
            .prop_map(|n| json!({ "group": "policy.linkerd.io", "kind": "Server", "name": format!("s{n}") })),
        Just(json!({ "kind": "Namespace", "name": "shop" })),
        (0..3).prop_map(
            |n| json!({ "group": "policy.linkerd.io", "kind": "HTTPRoute", "name": format!("r{n}") })
        ),
        (0..3).prop_map(
            |n| json!({ "group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": format!("r{n}") })
        ),
        (0..3).prop_map(
            |n| json!({ "group": "gateway.networking.k8s.io", "kind": "GRPCRoute", "name": format!("r{n}") })
        ),
    ];
    let required = prop_oneof![
        (0..3).prop_map(|n| json!({ "group": "policy.linkerd.io", "kind": "MeshTLSAuthentication", "name": format!("m{n}") })),
        (0..3).prop_map(|n| json!({ "group": "policy.linkerd.io", "kind": "NetworkAuthentication", "name": format!("m{n}") })),
        account().prop_map(|mut account| {
            account["kind"] = json!("ServiceAccount");
            account
        }),
    ];
    (0..4, target, proptest::collection::vec(required, 0..3)).prop_map(|(n, target, refs)| {
        json!({ "apiVersion": "policy.linkerd.io/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": metadata(format!("p{n}"), None, None),
            "spec": { "targetRef": target, "requiredAuthenticationRefs": refs } })
    })
}

/// One of so many names.
fn route(names: u32) -> impl Strategy<Value = Value> {
    let path = select(vec![
        json!({ "type": "RegularExpression", "value": "/a(/b)?" }),
        json!({ "value": "/" }),
        json!({ "value": "/a" }),
        json!({ "type": "PathPrefix", "value": "/a/b/" }),
        json!({ "type": "Exact", "value": "/a" }),
        json!({ "type": "Exact", "value": "/a/b" }),
    ]);
    let method = proptest::option::of(select(vec!["GET", "POST"]));
    let one = (path, method, any::<bool>(), any::<bool>()).prop_map(|(path, method, header, query)| {
        let mut one = json!({ "path": path });
        if let Some(method) = method {
            one["method"] = json!(method);
        }
        if header {
            one["headers"] = json!([{ "name": "kind", "value": "x" }]);
        }
        if query {
            one["queryParams"] = json!([{ "name": "q", "value": "1" }]);
        }
        one
    });
    let rpc = select(vec![
        json!({ "method": { "service": "a" } }),
        json!({ "method": { "service": "a", "method": "b" } }),
        json!({ "method": { "method": "b" } }),
        json!({ "headers": [{ "name": "kind", "value": "x" }] }),
        json!({ "method": { "service": "a" }, "headers": [{ "name": "kind", "value": "x" }] }),
    ]);
    let hostnames =
        proptest::collection::vec(select(vec!["shop.example", "*.example", "a.shop.example"]), 0..3);
    let http = (Just("HTTPRoute"), proptest::collection::vec(one, 1..3));
    let grpc = (Just("GRPCRoute"), proptest::collection::vec(rpc, 1..3));
    let kind = prop_oneof![3 => http.prop_map(|(kind, list)| (kind, list)), 1 => grpc.prop_map(|(kind, list)| (kind, list))];
    let broken = proptest::bool::weighted(0.05);
    (0..names, time(), any::<bool>(), kind, hostnames, proptest::collection::vec(0..3, 1..3), broken)
        .prop_map(|(n, time, own, (kind, matches), hostnames, servers, broken)| {
            let own = own && kind == "HTTPRoute";
            let version = if own { "policy.linkerd.io/v1beta3" } else { "gateway.networking.k8s.io/v1" };
            let parent =
                |n| json!({ "group": "policy.linkerd.io", "kind": "Server", "name": format!("s{n}") });
            let parents: Vec<Value> = servers.into_iter().map(parent).collect();
            let (first, rest) = matches.split_at(1);
            let mut rules = vec![json!({ "matches": first })];
            if !rest.is_empty() {
                rules.push(json!({ "matches": rest }));
            }
            if broken {
                rules[0]["filters"] = json!([{ "type": "URLRewrite" }]);
            }
            json!({ "apiVersion": version, "kind": kind, "metadata": metadata(format!("r{n}"), time, None),
                "spec": { "parentRefs": parents, "hostnames": hostnames, "rules": rules } })
        })
}

fn ask() -> impl Strategy<Value = Ask> {
    let account = select(vec![
        None,
        Some(("cluster.local", "shop", "a")),
        Some(("cluster.local", "shop", "b")),
        Some(("cluster.local", "other", "b")),
        Some(("elsewhere", "shop", "a")),
    ]);
    let ip = select(vec!["10.1.0.1", "10.2.0.1", "10.3.0.1", "8.8.8.8", "9.9.9.9", "2001:db8::1"]);
    let port = select(vec![8080, 8080, 9090, 9091, 7000]);
    let request = (
        select(vec!["GET", "POST"]),
        select(vec!["/", "/a", "/a/b", "/a/b/c", "/ab", "/live", "/a/"]),
        select(vec!["shop.example", "a.shop.example", "web"]),
        select(vec![None, Some("x"), Some("y")]),
        select(vec![None, Some("1"), Some("2")]),
    );
    let request =
        request.prop_map(|(method, path, host, kind, query)| Sent { method, path, host, kind, query });
    (account, ip, port, proptest::option::weighted(0.8, request))
        .prop_map(|(account, ip, port, request)| Ask { account, ip, port, request })
}

fn objects() -> impl Strategy<Value = Vec<Value>> {
    let one = prop_oneof![
        3 => server(),
        2 => server_authorization(),
        3 => authorization_policy(),
        2 => authentication(),
        3 => route(3),
    ];
    // So many routes that they are looked up and no longer compared one by one.
    let routes = prop_oneof![2 => Just(0..1), 1 => Just(8..40)]
        .prop_flat_map(|n| proptest::collection::vec(route(40), n));
    // One of a name: which of several counts is not what is compared.
    (proptest::collection::vec(one, 0..14), routes).prop_map(|(mut objects, routes)| {
        objects.extend(routes);
        let mut seen = std::collections::HashSet::new();
        let key = |o: &Value| format!("{} {} {}", o["apiVersion"], o["kind"], o["metadata"]["name"]);
        objects.into_iter().filter(|object| seen.insert(key(object))).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn the_plain_evaluator_agrees(
        objects in objects(),
        default in policy_name(),
        asks in proptest::collection::vec(ask(), 8),
    ) {
        let mut settings = settings();
        settings.default_inbound_policy = default.parse().expect("a policy");
        let mut mesh = Mesh::of("").port("admin", 9090).port("admin", 9091).probe(PROBE.0, PROBE.1);
        let read = |object: &Value| Arc::new(Object::read(object.clone()).expect("an object"));
        mesh.linkerd = Linkerd::new(&objects.iter().map(read).collect::<Vec<_>>(), &settings);
        for ask in &asks {
            let from = match ask.account {
                None => format!("plaintext@{}", ask.ip),
                Some((domain, namespace, account)) => {
                    format!("spiffe://{domain}/ns/{namespace}/sa/{account}@{}", ask.ip)
                }
            };
            let answer = match &ask.request {
                None => mesh.tcp(&from, ask.port),
                Some(sent) => {
                    let query = sent.query.map(|value| format!("?q={value}")).unwrap_or_default();
                    let kind = sent.kind.map(|kind| format!(" kind={kind}")).unwrap_or_default();
                    let text = format!("{} {}{query} host={}{kind}", sent.method, sent.path, sent.host);
                    mesh.http(&from, ask.port, &text)
                }
            };
            let expected = Oracle { objects: &objects, ask, default }.verdict();
            prop_assert!(answer.starts_with(expected), "{answer}, not {expected}, of {ask:?}");
        }
    }
}
