//! Authorization by route: which route a request is of, and who is admitted to it.

use super::Mesh;

pub(super) fn server(protocol: &str, access: &str) -> String {
    format!(
        "---\napiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {{namespace: shop, name: s}}\nspec: {{podSelector: {{}}, port: 8080, proxyProtocol: {protocol}, accessPolicy: {access}}}\n"
    )
}

pub(super) fn route(name: &str, rest: &str) -> String {
    let parent = "parentRefs: [{group: policy.linkerd.io, kind: Server, name: s}]";
    format!(
        "---\napiVersion: policy.linkerd.io/v1beta3\nkind: HTTPRoute\nmetadata: {{namespace: shop, name: {name}}}\nspec: {{{parent}, {rest}}}\n"
    )
}

/// Admits the account of this name to a route.
pub(super) fn admit(route: &str, account: &str) -> String {
    format!(
        "---\napiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{namespace: shop, name: {account}-to-{route}}}\nspec: {{targetRef: {{group: policy.linkerd.io, kind: HTTPRoute, name: {route}}}, requiredAuthenticationRefs: [{{kind: ServiceAccount, name: {account}}}]}}\n"
    )
}

/// Admits it to the Server.
pub(super) fn admit_all(account: &str) -> String {
    admit("s", account).replace("kind: HTTPRoute", "kind: Server")
}

const DENIED: &str = "deny unauthorized s";

/// The books example of the documentation: one client reads, another reads and writes, probes need a route.
#[test]
fn the_example_of_the_documentation() {
    let yaml = format!(
        "{}{}{}{}{}{}{}{}",
        server("unknown", "deny"),
        route(
            "get",
            "rules: [{matches: [{path: {value: /authors.json}, method: GET}, {path: {value: /authors/, type: PathPrefix}, method: GET}]}]"
        ),
        route(
            "modify",
            "rules: [{matches: [{path: {value: /authors/, type: PathPrefix}, method: DELETE}, {path: {value: /authors/, type: PathPrefix}, method: PUT}, {path: {value: /authors.json}, method: POST}]}]"
        ),
        route("probe", "rules: [{matches: [{path: {value: /ping}, method: GET}]}]"),
        admit("get", "books"),
        admit("get", "webapp"),
        admit("modify", "webapp"),
        admit("probe", "x").replace("[{kind: ServiceAccount, name: x}]", "[]"),
    );
    let pod = Mesh::of(&yaml).probe(8080, "/ping").probe(8080, "/live");
    let ask = |from, request| pod.http(from, 8080, request);
    assert_eq!(ask("books.shop", "GET /authors.json"), "allow books-to-get");
    assert_eq!(ask("webapp.shop", "GET /authors/3.json"), "allow webapp-to-get");
    assert_eq!(ask("webapp.shop", "DELETE /authors/3"), "allow webapp-to-modify");
    assert_eq!(ask("books.shop", "DELETE /authors/3"), "deny unauthorized modify#0");
    assert_eq!(ask("webapp.shop", "POST /authors.json"), "allow webapp-to-modify");
    assert_eq!(ask("webapp.shop", "POST /authors/3"), "deny no_route s");
    assert_eq!(ask("other.shop", "GET /authors.json"), "deny unauthorized get#0");
    assert_eq!(ask("plaintext@8.8.8.8", "GET /ping"), "allow x-to-probe");
    // With routes no probe is admitted that they do not.
    assert_eq!(ask("plaintext", "GET /live"), "deny no_route s");
    // A stream that is not HTTP is the Server's, and nobody is admitted there.
    assert_eq!(pod.tcp("webapp.shop", 8080), DENIED);
    assert_eq!(pod.whatever("webapp.shop", 8080), "per request");
}

#[test]
fn authorizations_of_the_server_and_of_the_route_are_alternatives() {
    let yaml = format!(
        "{}{}{}{}",
        server("unknown", "deny"),
        route("r", "rules: [{matches: [{path: {value: /a}}]}]"),
        admit("r", "one"),
        admit_all("all")
    );
    let pod = Mesh::of(&yaml);
    assert_eq!(pod.http("one.shop", 8080, "GET /a"), "allow one-to-r");
    assert_eq!(pod.http("all.shop", 8080, "GET /a"), "allow all-to-s");
    assert_eq!(pod.http("two.shop", 8080, "GET /a"), "deny unauthorized r#0");
    assert_eq!(pod.whatever("two.shop", 8080), DENIED);
    // A request of no route is nobody's, whoever is admitted to the Server.
    assert_eq!(pod.http("all.shop", 8080, "GET /b"), "deny no_route s");
    assert_eq!(pod.tcp("all.shop", 8080), "allow all-to-s");
    assert_eq!(pod.tcp("one.shop", 8080), DENIED);
}

#[test]
fn audit_lets_through_what_routes_refuse_and_no_request_without_route() {
    let yaml = format!(
        "{}{}{}",
        server("unknown", "audit"),
        route("r", "rules: [{matches: [{path: {value: /a}}]}]"),
        admit("r", "one")
    );
    let pod = Mesh::of(&yaml);
    assert_eq!(pod.http("one.shop", 8080, "GET /a"), "allow one-to-r");
    assert_eq!(pod.http("two.shop", 8080, "GET /a"), "audit s");
    assert_eq!(pod.http("plaintext", 8080, "GET /b"), "deny no_route s");
    assert_eq!(pod.tcp("plaintext", 8080), "audit s");
}

#[test]
fn a_route_that_takes_everything_leaves_nothing_to_ask() {
    for rest in
        ["rules: [{}]", "rules: [{matches: []}]", "rules: [{matches: [{path: {value: /}}]}]", "hostnames: []"]
    {
        let pod = Mesh::of(&format!("{}{}{}", server("unknown", "deny"), route("r", rest), admit_all("all")));
        assert_eq!(pod.whatever("all.shop", 8080), "allow all-to-s", "{rest}");
        assert_eq!(pod.whatever("other.shop", 8080), DENIED, "{rest}");
    }
    let pod =
        Mesh::of(&format!("{}{}{}", server("unknown", "deny"), route("r", "rules: []"), admit_all("all")));
    // One without rules takes no request, and is a route all the same.
    assert_eq!(pod.http("all.shop", 8080, "GET /"), "deny no_route s");
    assert_eq!(pod.tcp("all.shop", 8080), "allow all-to-s");
}

#[test]
fn protocols_decide_what_is_looked_at() {
    let rest = format!(
        "{}{}{}",
        route("r", "rules: [{matches: [{path: {value: /a}}]}]"),
        admit("r", "one"),
        admit_all("all")
    );
    for protocol in ["HTTP/1", "HTTP/2", "gRPC"] {
        let pod = Mesh::of(&format!("{}{rest}", server(protocol, "deny")));
        assert_eq!(pod.http("one.shop", 8080, "GET /a"), "allow one-to-r", "{protocol}");
        assert_eq!(pod.tcp("all.shop", 8080), "deny not_http s", "{protocol}");
        assert_eq!(pod.whatever("all.shop", 8080), "per request", "{protocol}");
    }
    for protocol in ["opaque", "TLS"] {
        let pod = Mesh::of(&format!("{}{rest}", server(protocol, "deny")));
        assert_eq!(pod.http("one.shop", 8080, "GET /a"), DENIED, "{protocol}");
        assert_eq!(pod.whatever("all.shop", 8080), "allow all-to-s", "{protocol}");
        assert_eq!(pod.defects(), ["r spec.parentRefs"], "{protocol}");
    }
}

#[test]
fn routes_of_the_gateway_api_count_when_a_server_is_their_parent() {
    let own = route("r", "rules: [{matches: [{path: {value: /a}}]}]");
    let upstream = own.replace("policy.linkerd.io/v1beta3", "gateway.networking.k8s.io/v1");
    let admit_upstream =
        admit("r", "one").replace("group: policy.linkerd.io", "group: gateway.networking.k8s.io");
    let pod = Mesh::of(&format!("{}{upstream}{admit_upstream}", server("unknown", "deny")));
    assert_eq!(pod.http("one.shop", 8080, "GET /a"), "allow one-to-r");
    // A policy for the route of the other group is not for this one.
    let pod = Mesh::of(&format!("{}{upstream}{}", server("unknown", "deny"), admit("r", "one")));
    assert_eq!(pod.http("one.shop", 8080, "GET /a"), "deny unauthorized r#0");
    // What says no group means a gateway; in Linkerd's own kind, its own group.
    let ungrouped = upstream.replace("{group: policy.linkerd.io, kind: Server", "{kind: Server");
    let pod = Mesh::of(&format!("{}{ungrouped}{}", server("unknown", "deny"), admit_all("all")));
    assert_eq!(pod.http("all.shop", 8080, "GET /b"), "allow all-to-s");
    assert_eq!(pod.defects(), ["r spec.parentRefs[0]"]);
    let ungrouped = own.replace("{group: policy.linkerd.io, kind: Server", "{kind: Server");
    let pod = Mesh::of(&format!("{}{ungrouped}{}", server("unknown", "deny"), admit_all("all")));
    assert_eq!(pod.http("all.shop", 8080, "GET /b"), "deny no_route s");
    // Gateways' own routes are theirs, whatever they say.
    let gateways = upstream
        .replace("{group: policy.linkerd.io, kind: Server, name: s}", "{name: gateway}")
        .replace("/a}", "a}");
    let pod = Mesh::of(&format!("{}{gateways}", server("unknown", "deny")));
    assert!(pod.defects().is_empty());
}

#[test]
fn grpc_routes_are_services_and_methods() {
    let route = |name: &str, matches: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {{namespace: shop, name: {name}}}\nspec: {{parentRefs: [{{group: policy.linkerd.io, kind: Server, name: s}}], rules: [{{matches: {matches}}}]}}\n"
        )
    };
    let admit = |route: &str, account: &str| {
        admit(route, account).replace(
            "group: policy.linkerd.io, kind: HTTPRoute",
            "group: gateway.networking.k8s.io, kind: GRPCRoute",
        )
    };
    let yaml = format!(
        "{}{}{}{}{}{}",
        server("gRPC", "deny"),
        route("service", "[{method: {service: shop.Votes}}]"),
        route(
            "method",
            "[{method: {service: shop.Votes, method: Vote}, headers: [{name: x-kind, value: dog}]}]"
        ),
        route("regex", "[{method: {type: RegularExpression, service: 'shop\\.(Dogs|Cats)'}}]"),
        admit("service", "one"),
        admit("method", "two"),
    );
    let pod = Mesh::of(&yaml);
    let ask = |from, request| pod.http(from, 8080, request);
    assert_eq!(ask("one.shop", "POST /shop.Votes/List"), "allow one-to-service");
    assert_eq!(ask("one.shop", "POST /shop.Votes/Vote"), "allow one-to-service");
    assert_eq!(ask("two.shop", "POST /shop.Votes/Vote x-kind=dog"), "allow two-to-method");
    assert_eq!(ask("one.shop", "POST /shop.Votes/Vote x-kind=dog"), "deny unauthorized method#0");
    assert_eq!(ask("one.shop", "POST /shop.Dogs/List"), "deny unauthorized regex#0");
    for other in [
        "GET /shop.Votes/List",
        "POST /shop.Votes",
        "POST /shop.Votes/List/x",
        "POST /shop.Vote/List",
        "POST /shop.Birds/List",
    ] {
        assert_eq!(ask("one.shop", other), "deny no_route s", "{other}");
    }
}

/// A request is of the route that meets it most closely: host, path, method, headers, query.
#[test]
fn the_closest_route_takes_a_request() {
    for (name, loses, wins, request) in [
        (
            "an exact host before a wider one",
            "hostnames: ['*.shop.example']",
            "hostnames: [a.shop.example]",
            "GET /x host=a.shop.example",
        ),
        (
            "a longer wide host",
            "hostnames: ['*.example']",
            "hostnames: ['*.shop.example']",
            "GET /x host=a.shop.example",
        ),
        (
            "any host before none",
            "rules: [{matches: [{path: {value: /x/y/z}}]}]",
            "hostnames: ['*.example']",
            "GET /x/y/z host=a.shop.example",
        ),
        (
            "exact before prefix",
            "rules: [{matches: [{path: {value: /x}, method: GET, headers: [{name: a, value: b}]}]}]",
            "rules: [{matches: [{path: {type: Exact, value: /x}}]}]",
            "GET /x a=b",
        ),
        (
            "the longer prefix",
            "rules: [{matches: [{path: {value: /x}}]}]",
            "rules: [{matches: [{path: {value: /x/y}}]}]",
            "GET /x/y/z",
        ),
        (
            "a method",
            "rules: [{matches: [{path: {value: /x}, headers: [{name: a, value: b}]}]}]",
            "rules: [{matches: [{path: {value: /x}, method: GET}]}]",
            "GET /x a=b",
        ),
        (
            "more headers",
            "rules: [{matches: [{path: {value: /x}, headers: [{name: a, value: b}], queryParams: [{name: q, value: '1'}]}]}]",
            "rules: [{matches: [{path: {value: /x}, headers: [{name: a, value: b}, {name: c, value: d}]}]}]",
            "GET /x?q=1 a=b c=d",
        ),
        (
            "more of the query",
            "rules: [{matches: [{path: {value: /x}}]}]",
            "rules: [{matches: [{path: {value: /x}, queryParams: [{name: q, value: '1'}]}]}]",
            "GET /x?q=1",
        ),
        (
            "the best of several matches",
            "rules: [{matches: [{path: {value: /x}}]}]",
            "rules: [{matches: [{path: {value: /}}, {path: {value: /x/y}}]}]",
            "GET /x/y",
        ),
        (
            "an expression before a prefix",
            "rules: [{matches: [{path: {value: /x/y}}]}]",
            "rules: [{matches: [{path: {type: RegularExpression, value: '/x/y'}}]}]",
            "GET /x/y",
        ),
    ] {
        let pod =
            Mesh::of(&format!("{}{}{}", server("unknown", "deny"), route("a", loses), route("b", wins)));
        assert_eq!(pod.http("c.d", 8080, request), "deny unauthorized b#0", "{name}");
    }
}

#[test]
fn of_routes_as_close_the_oldest_takes_a_request_then_the_first_by_name() {
    let dated = |name: &str, time: &str| {
        route(name, "rules: [{matches: [{path: {value: /x}}]}, {matches: [{path: {value: /x}}]}]")
            .replace("namespace: shop,", &format!("namespace: shop, creationTimestamp: '{time}',"))
    };
    let (old, new) = (dated("b", "2024-01-01T00:00:00Z"), dated("a", "2024-02-01T00:00:00Z"));
    let pod = Mesh::of(&format!("{}{new}{old}", server("unknown", "deny")));
    assert_eq!(pod.http("c.d", 8080, "GET /x"), "deny unauthorized b#0");
    let same = dated("a", "2024-01-01T00:00:00Z");
    let pod = Mesh::of(&format!("{}{old}{same}", server("unknown", "deny")));
    assert_eq!(pod.http("c.d", 8080, "GET /x"), "deny unauthorized a#0");
}

#[test]
fn every_form_of_match() {
    for (matches, fits, misses) in [
        ("{path: {type: Exact, value: /a}}", "/a /a?x=1", "/a/ /ab /a/b /A /"),
        ("{path: {type: PathPrefix, value: /a}}", "/a /a/ /a/b", "/ab /A / /b/a"),
        ("{path: {type: PathPrefix, value: /a/}}", "/a /a/ /a/b", "/ab /"),
        ("{path: {value: /a/b}}", "/a/b /a/b/c", "/a /a/bc"),
        ("{path: {type: PathPrefix}}", "/ /a *", ""),
        ("{path: {type: RegularExpression, value: '/a|/a[0-9]+'}}", "/a /a1 /a12", "/ab /x/a /a1x"),
        ("{path: {type: RegularExpression, value: '(?i)/a'}}", "/a /A", "/b"),
        (
            "{queryParams: [{name: q, value: 'a b'}]}",
            "/?q=a+b /?q=a%20b /?x=1&q=a+b /?q=z&q=a+b",
            "/ /?q=a /?Q=a+b /?q=a+bc",
        ),
        ("{queryParams: [{name: q, type: RegularExpression, value: 'a+'}]}", "/?q=a /?q=aa", "/?q=ab /?q="),
        ("{queryParams: [{name: q, value: a}, {name: q, value: b}]}", "/?q=a", "/?q=b"),
    ] {
        let pod = Mesh::of(&format!(
            "{}{}",
            server("unknown", "deny"),
            route("r", &format!("rules: [{{matches: [{matches}]}}]"))
        ));
        assert!(pod.defects().is_empty(), "{matches}: {:?}", pod.defects());
        for path in fits.split_whitespace() {
            assert_eq!(
                pod.http("c.d", 8080, &format!("GET {path}")),
                "deny unauthorized r#0",
                "{matches} {path}"
            );
        }
        for path in misses.split_whitespace() {
            assert_eq!(pod.http("c.d", 8080, &format!("GET {path}")), "deny no_route s", "{matches} {path}");
        }
    }
    for (rest, fits, misses) in [
        ("rules: [{matches: [{method: PUT}]}]", "PUT", "GET put"),
        (
            "rules: [{matches: [{headers: [{name: X-Kind, value: a}]}]}]",
            "x-kind=a x-kind=b,x-kind=a",
            "x-kind=A x-kind=b x-other=a",
        ),
        (
            "rules: [{matches: [{headers: [{name: x-kind, type: RegularExpression, value: 'a|ab'}]}]}]",
            "x-kind=a x-kind=ab",
            "x-kind=abc x-kind=b",
        ),
        (
            "rules: [{matches: [{headers: [{name: a, value: '1'}, {name: b, value: '2'}]}]}]",
            "a=1,b=2",
            "a=1 b=2",
        ),
        (
            "hostnames: [shop.example]",
            "host=shop.example host=SHOP.example:8080 host=shop.example.",
            "host=a.shop.example host=shop.example.org host=x",
        ),
        (
            "hostnames: ['*.shop.example', other]",
            "host=a.shop.example host=a.b.shop.example:80 host=OTHER",
            "host=shop.example host=ashop.example host=.shop.example",
        ),
    ] {
        let pod = Mesh::of(&format!("{}{}", server("unknown", "deny"), route("r", rest)));
        assert!(pod.defects().is_empty(), "{rest}: {:?}", pod.defects());
        let ask = |what: &str| match what.contains('=') {
            true => pod.http("c.d", 8080, &format!("GET / {}", what.replace(',', " "))),
            false => pod.http("c.d", 8080, &format!("{what} /")),
        };
        for what in fits.split_whitespace() {
            assert_eq!(ask(what), "deny unauthorized r#0", "{rest} {what}");
        }
        for what in misses.split_whitespace() {
            assert_eq!(ask(what), "deny no_route s", "{rest} {what}");
        }
    }
}

/// What it was meant to take from another route nobody can tell, so nobody is admitted to what it may be for.
#[test]
fn a_route_that_cannot_be_understood_admits_nobody_to_what_it_may_be_for() {
    let huge = format!(
        "rules: [{{matches: [{{path: {{type: RegularExpression, value: '{}'}}}}]}}]",
        "(a{1000}){1000}"
    );
    for (rest, field) in [
        (
            "rules: [{matches: [{path: {type: RegularExpression, value: '('}}]}]",
            "rules[0].matches[0].path.value",
        ),
        (
            "rules: [{matches: [{path: {type: RegularExpression, value: 'x)|(?:'}}]}]",
            "rules[0].matches[0].path.value",
        ),
        (&huge, "rules[0].matches[0].path.value"),
        ("rules: [{matches: [{path: {type: Suffix, value: /x}}]}]", "rules[0].matches[0].path.type"),
        ("rules: [{matches: [{path: {type: Exact, value: x}}]}]", "rules[0].matches[0].path.value"),
        ("rules: [{matches: [{path: {val: /x}}]}]", "rules[0].matches[0].path.val"),
        ("rules: [{matches: [{method: get}]}]", "rules[0].matches[0].method"),
        ("rules: [{matches: [{headers: [{name: 'a b', value: x}]}]}]", "rules[0].matches[0].headers[0].name"),
        ("rules: [{matches: [{headers: [{name: a}]}]}]", "rules[0].matches[0].headers[0].value"),
        (
            "rules: [{matches: [{queryParams: [{name: a, type: Like, value: x}]}]}]",
            "rules[0].matches[0].queryParams[0].type",
        ),
        ("rules: [{matches: [{cookies: [{name: a, value: x}]}]}]", "rules[0].matches[0].cookies"),
        ("rules: [{when: []}]", "rules[0].when"),
        ("rule: []", "rule"),
        ("hostnames: ['*']", "hostnames[0]"),
        ("hostnames: ['10.0.0.1']", "hostnames[0]"),
        ("hostnames: ['a.*.example']", "hostnames[0]"),
        ("rules: [{filters: [{type: URLRewrite}]}]", "rules[0].filters[0]"),
    ] {
        let yaml = format!(
            "{}{}{}{}{}",
            server("unknown", "deny"),
            route("r", rest),
            route("z", "rules: [{matches: [{path: {type: Exact, value: /y}}]}]"),
            admit("z", "one"),
            admit("r", "one")
        );
        let pod = Mesh::of(&yaml);
        assert_eq!(pod.http("one.shop", 8080, "GET /y"), "deny defective_policy r#0", "{rest}");
        assert_eq!(pod.defects(), [format!("r spec.{field}")], "{rest}");
    }
    // What it is not for stays as it is.
    let rest = "rules: [{matches: [{path: {value: /x}, headers: [{name: 'a b', value: x}]}]}]";
    let yaml = format!(
        "{}{}{}{}",
        server("unknown", "deny"),
        route("r", rest),
        route("z", "rules: [{}]"),
        admit("z", "one")
    );
    let pod = Mesh::of(&yaml);
    assert_eq!(pod.http("one.shop", 8080, "GET /x/1"), "deny defective_policy r#0");
    assert_eq!(pod.http("one.shop", 8080, "GET /y"), "allow one-to-z");
}

#[test]
fn parents_that_cannot_be_right() {
    let with = |parent: &str| {
        route("r", "rules: [{matches: [{path: {value: /a}}]}]")
            .replace("[{group: policy.linkerd.io, kind: Server, name: s}]", parent)
    };
    let ask = |parent: &str| {
        Mesh::of(&format!("{}{}{}", server("unknown", "deny"), with(parent), admit_all("all")))
    };
    // Not attached, so that the Server has no routes.
    let pod = ask("[{group: policy.linkerd.io, kind: Server, name: gone}]");
    assert_eq!(pod.http("all.shop", 8080, "GET /a"), "allow all-to-s");
    assert_eq!(pod.defects(), ["r spec.parentRefs"]);
    let pod = ask("[{group: policy.linkerd.io, kind: Server, name: s, namespace: other}]");
    assert_eq!(pod.http("all.shop", 8080, "GET /a"), "allow all-to-s");
    assert_eq!(pod.defects(), ["r spec.parentRefs[0]"]);
    for more in ["port: 8080", "sectionName: x"] {
        let pod = ask(&format!("[{{group: policy.linkerd.io, kind: Server, name: s, {more}}}]"));
        assert_eq!(pod.http("all.shop", 8080, "GET /a"), "deny defective_policy r#0", "{more}");
    }
    let pod = ask(
        "[{group: policy.linkerd.io, kind: Server, name: s, namespace: ''}, {name: gateway, group: gateway.networking.k8s.io}]",
    );
    assert_eq!(pod.http("all.shop", 8080, "GET /a"), "allow all-to-s");
    assert_eq!(pod.http("all.shop", 8080, "GET /b"), "deny no_route s");
    assert!(pod.defects().is_empty());
}
