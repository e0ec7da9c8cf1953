//! What routes do with requests that they admit, and which filters keep everybody out.

use http::uri::Scheme;

use super::super::RouteFilters;
use super::Mesh;
use super::routes::{admit, admit_all, route, server};

const REDIRECT: &str = "{type: RequestRedirect, requestRedirect: {hostname: elsewhere.example}}";
const REMOVE: &str = "{type: RequestHeaderModifier, requestHeaderModifier: {remove: [X-Admin]}}";

fn rule(path: &str, filters: &str) -> String {
    format!("{{matches: [{{path: {{value: {path}}}}}], filters: [{filters}]}}")
}

impl Mesh {
    fn filters(&self, request: &str) -> RouteFilters {
        self.with_request(request, |request| self.inbound(|inbound| inbound.on_port(8080).filters(request)))
    }

    fn led(&self, request: &str) -> Option<String> {
        self.with_request(request, |request| {
            let filters = self.inbound(|inbound| inbound.on_port(8080).filters(request));
            let led = filters.redirect(request, &Scheme::HTTP).expect("it can be told");
            led.map(|(status, location)| format!("{} {location}", status.as_u16()))
        })
    }
}

#[test]
fn they_change_nothing_about_who_is_admitted() {
    let rules = format!("rules: [{}, {}]", rule("/a", REMOVE), rule("/b", REDIRECT));
    let pod = Mesh::of(&format!("{}{}{}", server("unknown", "deny"), route("r", &rules), admit("r", "one")));
    assert_eq!(pod.defects(), [""; 0]);
    for path in ["/a", "/b"] {
        assert_eq!(pod.http("one.shop", 8080, &format!("GET {path}")), "allow one-to-r");
        assert_eq!(
            pod.http("two.shop", 8080, &format!("GET {path}")),
            "deny unauthorized r#".to_owned() + if path == "/a" { "0" } else { "1" }
        );
    }
    assert_eq!(pod.led("GET /a"), None);
    assert_eq!(pod.led("GET /b"), Some("302 http://elsewhere.example/b".into()));
    assert_ne!(pod.filters("GET /a"), RouteFilters::default());
    assert_eq!(pod.filters("GET /c"), RouteFilters::default(), "of no route");
    let lines = pod.explain("one.shop", 8080, "GET /a");
    assert_eq!(
        lines[1],
        "+ r: #0 + the request is its; request headers: removes x-admin; #1 - path: \"/a\" is not at or below \"/b/\""
    );
    assert!(
        pod.explain("one.shop", 8080, "GET /b")[1]
            .contains("#1 + the request is its; answered by a redirect (302)")
    );
}

/// Whoever is admitted to everything would otherwise pass as bytes, and unchanged.
#[test]
fn where_there_are_any_every_request_is_looked_at() {
    for access in ["deny", "audit"] {
        let mesh = |filters: &str| {
            let rules = format!("rules: [{}]", rule("/", filters));
            Mesh::of(&format!("{}{}{}", server("unknown", access), route("r", &rules), admit_all("all")))
        };
        assert_ne!(mesh("").whatever("all.shop", 8080), "per request");
        for filters in [REMOVE, REDIRECT] {
            assert_eq!(mesh(filters).whatever("all.shop", 8080), "per request", "{access} {filters}");
        }
    }
}

#[test]
fn the_closest_rule_s_hold() {
    let rules = format!("rules: [{}, {}, {}]", rule("/", ""), rule("/a", REDIRECT), rule("/a/b", ""));
    let pod = Mesh::of(&format!("{}{}{}", server("unknown", "deny"), route("r", &rules), admit("r", "one")));
    assert_eq!(pod.led("GET /x"), None);
    assert_eq!(pod.led("GET /a?q=1"), Some("302 http://elsewhere.example/a?q=1".into()));
    assert_eq!(pod.led("GET /a/b/c"), None);
    // Of one that shares the Server and could not be understood, nobody gets as far as filters.
    let broken = route("z", "rules: [{matches: [{path: {value: /a/b}}], filters: [{type: URLRewrite}]}]");
    let pod = Mesh::of(&format!(
        "{}{}{}{broken}",
        server("unknown", "deny"),
        route("r", &rules),
        admit("r", "one")
    ));
    assert_eq!(pod.filters("GET /a/b/c"), RouteFilters::default());
    assert_eq!(pod.http("one.shop", 8080, "GET /a/b/c"), "deny defective_policy z#0");
}

#[test]
fn redirects_go_where_the_gateway_api_and_linkerd_have_them_go() {
    let to = |prefix: &str, redirect: &str, request: &str| {
        let filters = format!("{{type: RequestRedirect, requestRedirect: {redirect}}}");
        let rules = format!("rules: [{}]", rule(prefix, &filters));
        let pod =
            Mesh::of(&format!("{}{}{}", server("unknown", "deny"), route("r", &rules), admit("r", "one")));
        assert_eq!(pod.defects(), [""; 0], "{redirect}");
        pod.led(request).unwrap_or_else(|| "stays".into())
    };
    for (redirect, request, expected) in [
        ("{}", "GET /a?b=c", "stays"),
        ("{scheme: http}", "GET /a", "stays"),
        ("{hostname: web}", "GET /a", "stays"),
        ("{hostname: web.example}", "GET /a host=web.EXAMPLE", "stays"),
        ("{port: 80}", "GET /a", "stays"),
        ("{path: {type: ReplaceFullPath, replaceFullPath: /a}}", "GET /a", "stays"),
        ("{scheme: https}", "GET /a?b=c", "302 https://web/a?b=c"),
        ("{scheme: https, statusCode: 301}", "GET /a host=web:8080", "301 https://web:8080/a"),
        ("{scheme: https, port: 443}", "GET /a host=web:8080", "302 https://web/a"),
        ("{port: 80}", "GET /a host=web:8080", "302 http://web/a"),
        ("{port: 8443, scheme: https, statusCode: 308}", "GET /a", "308 https://web:8443/a"),
        ("{port: 443}", "GET /a", "302 http://web:443/a"),
        ("{hostname: x.example, statusCode: 307}", "GET /a host=web:8080", "307 http://x.example:8080/a"),
        ("{hostname: x.example, port: 81, statusCode: 303}", "GET /a", "303 http://x.example:81/a"),
        ("{hostname: x.example}", "GET /a host=[::1]:8080", "302 http://x.example:8080/a"),
        ("{port: 81}", "GET /a host=[::1]:8080", "302 http://[::1]:81/a"),
        ("{path: {type: ReplaceFullPath, replaceFullPath: '/x?y'}}", "GET /a?b=c", "302 http://web/x?y"),
    ] {
        assert_eq!(to("/", redirect, request), expected, "{redirect} {request}");
    }
    for (prefix, new, path, expected) in [
        ("/foo", "/xyz", "/foo/bar", "/xyz/bar"),
        ("/foo", "/xyz/", "/foo/bar", "/xyz/bar"),
        ("/foo/", "/xyz", "/foo/bar", "/xyz/bar"),
        ("/foo/", "/xyz/", "/foo/bar", "/xyz/bar"),
        ("/foo", "/xyz", "/foo", "/xyz"),
        ("/foo", "/xyz", "/foo/?q=%2F", "/xyz/?q=%2F"),
        ("/foo", "''", "/foo/bar", "/bar"),
        ("/foo", "''", "/foo/", "/"),
        ("/foo", "''", "/foo", "/"),
        ("/foo", "/", "/foo/", "/"),
        ("/foo", "/", "/foo?q", "/?q"),
        ("/", "/xyz", "/foo", "/xyz/foo"),
        // No other host, whatever the path says.
        ("/foo", "/", "/foo//evil.example", "//evil.example"),
    ] {
        let redirect = format!("{{path: {{type: ReplacePrefixMatch, replacePrefixMatch: {new}}}}}");
        let expected = format!("302 http://web{expected}");
        assert_eq!(to(prefix, &redirect, &format!("GET {path}")), expected, "{prefix} {new}");
    }
}

#[test]
fn a_request_that_says_no_host_is_led_nowhere_unless_the_route_says_one() {
    let headers = http::HeaderMap::new();
    let request = |host| super::Request { method: "GET", host, path: "/a", query: None, headers: &headers };
    let filters = |redirect| {
        RouteFilters::from_yaml("/", &format!("[{{type: RequestRedirect, requestRedirect: {redirect}}}]"))
    };
    assert!(filters("{scheme: https}").redirect(&request(""), &Scheme::HTTP).is_err());
    assert!(filters("{port: 81}").redirect(&request(""), &Scheme::HTTP).is_err());
    let (_, location) = filters("{hostname: x}").redirect(&request(""), &Scheme::HTTP).unwrap().unwrap();
    assert_eq!(location, "http://x/a");
}

#[test]
fn headers_are_added_then_set_then_removed() {
    let filters = RouteFilters::from_yaml(
        "/",
        "[{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: X-A, value: '1'}, {name: x-s, value: '1'}, {name: x-r, value: '1'}], set: [{name: X-S, value: '2'}, {name: x-s, value: '3'}], remove: [X-R]}},
          {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-s, value: '9'}]}},
          {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-t, value: '4'}]}}]",
    );
    let mut headers = http::HeaderMap::new();
    for name in ["x-a", "x-s", "x-s", "x-r", "x-r", "x-t", "x-other"] {
        headers.append(name, http::HeaderValue::from_static("client"));
    }
    let mut trailers = headers.clone();
    filters.change_request(&mut headers);
    let of = |headers: &http::HeaderMap, name: &str| {
        headers.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(of(&headers, "x-a"), ["client", "1"]);
    assert_eq!(of(&headers, "x-s"), ["2"]);
    assert_eq!(of(&headers, "x-r"), [""; 0]);
    assert_eq!(of(&headers, "x-t"), ["4"]);
    assert_eq!(of(&headers, "x-other"), ["client"]);
    filters.change_request_trailers(&mut trailers);
    for (name, left) in [("x-a", 1), ("x-s", 0), ("x-r", 0), ("x-t", 0), ("x-other", 1)] {
        assert_eq!(of(&trailers, name).len(), left, "{name}");
    }
}

#[test]
fn what_cannot_be_applied_keeps_everybody_out() {
    let set = |name: &str, value: &str| {
        format!(
            "{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: {name}, value: {value}}}]}}}}"
        )
    };
    let redirect = |of: &str| format!("{{type: RequestRedirect, requestRedirect: {of}}}");
    let many = (0..17).map(|n| format!("x-{n}")).collect::<Vec<_>>().join(", ");
    let mut table = vec![
        (set("'a b'", "x"), "[0].requestHeaderModifier.set[0].name"),
        (set("':authority'", "x"), "[0].requestHeaderModifier.set[0].name"),
        (set("''", "x"), "[0].requestHeaderModifier.set[0].name"),
        (set("x", "''"), "[0].requestHeaderModifier.set[0].value"),
        (set("x", "\"a\\r\\nx-admin: 1\""), "[0].requestHeaderModifier.set[0].value"),
        (set("x", "7"), "[0].requestHeaderModifier.set[0].value"),
        ("{type: RequestHeaderModifier}".into(), "[0].requestHeaderModifier"),
        (
            "{type: RequestHeaderModifier, requestHeaderModifier: {delete: [x]}}".into(),
            "[0].requestHeaderModifier.delete",
        ),
        (
            "{type: RequestHeaderModifier, requestHeaderModifier: {remove: x}}".into(),
            "[0].requestHeaderModifier.remove",
        ),
        (
            format!("{{type: RequestHeaderModifier, requestHeaderModifier: {{remove: [{many}]}}}}"),
            "[0].requestHeaderModifier.remove",
        ),
        (
            "{type: RequestHeaderModifier, requestRedirect: {}, requestHeaderModifier: {}}".into(),
            "[0].requestRedirect",
        ),
        (
            "{type: ResponseHeaderModifier, responseHeaderModifier: {}, requestHeaderModifier: {}}".into(),
            "[0].requestHeaderModifier",
        ),
        ("{requestHeaderModifier: {}}".into(), "[0].type"),
        ("{type: ExtensionRef, extensionRef: {}}".into(), "[0]"),
        ("{type: URLRewrite, urlRewrite: {}}".into(), "[0]"),
        ("{type: RequestHeaderModifierV2}".into(), "[0]"),
        (redirect("{scheme: ftp}"), "[0].requestRedirect.scheme"),
        (redirect("{hostname: 'a/b'}"), "[0].requestRedirect.hostname"),
        (redirect("{hostname: 'user@a'}"), "[0].requestRedirect.hostname"),
        (redirect("{hostname: 'a:80'}"), "[0].requestRedirect.hostname"),
        (redirect("{hostname: ''}"), "[0].requestRedirect.hostname"),
        (redirect("{port: 0}"), "[0].requestRedirect.port"),
        (redirect("{port: 65536}"), "[0].requestRedirect.port"),
        (redirect("{port: http}"), "[0].requestRedirect.port"),
        (redirect("{statusCode: 200}"), "[0].requestRedirect.statusCode"),
        (redirect("{statusCode: 304}"), "[0].requestRedirect.statusCode"),
        (redirect("{status: 301}"), "[0].requestRedirect.status"),
        (redirect("{path: {type: Other}}"), "[0].requestRedirect.path.type"),
        (redirect("{path: {type: ReplaceFullPath}}"), "[0].requestRedirect.path.replaceFullPath"),
        (
            redirect("{path: {type: ReplaceFullPath, replaceFullPath: x}}"),
            "[0].requestRedirect.path.replaceFullPath",
        ),
        (
            redirect("{path: {type: ReplaceFullPath, replaceFullPath: \"/a\\r\\n\"}}"),
            "[0].requestRedirect.path.replaceFullPath",
        ),
        (
            redirect("{path: {type: ReplacePrefixMatch, replacePrefixMatch: '/a?b'}}"),
            "[0].requestRedirect.path.replacePrefixMatch",
        ),
        (
            redirect("{path: {type: ReplacePrefixMatch, replacePrefixMatch: x}}"),
            "[0].requestRedirect.path.replacePrefixMatch",
        ),
    ];
    let framing = [
        "Host",
        "Content-Length",
        "Transfer-Encoding",
        "connection",
        "te",
        "Trailer",
        "upgrade",
        "Expect",
        "Keep-Alive",
        "Proxy-Connection",
        "HTTP2-Settings",
    ];
    table.extend(framing.map(|name| (set(name, "x"), "[0].requestHeaderModifier.set[0].name")));
    table.extend(framing.map(|name| {
        (
            format!("{{type: ResponseHeaderModifier, responseHeaderModifier: {{remove: [{name}]}}}}"),
            "[0].responseHeaderModifier.remove[0]",
        )
    }));
    for (filter, field) in table {
        let rules = format!("rules: [{{filters: [{filter}]}}]");
        let pod =
            Mesh::of(&format!("{}{}{}", server("unknown", "deny"), route("r", &rules), admit("r", "one")));
        assert_eq!(pod.http("one.shop", 8080, "GET /"), "deny defective_policy r#0", "{filter}");
        assert_eq!(pod.filters("GET /"), RouteFilters::default());
        assert_eq!(pod.defects(), [format!("r spec.rules[0].filters{field}")], "{filter}");
    }
    // There is no beginning of a path to replace.
    let replace = redirect("{path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}}");
    for one in [
        "{path: {type: Exact, value: /a}}",
        "{path: {value: /a}}, {path: {type: RegularExpression, value: '/.*'}}",
    ] {
        let rules = format!("rules: [{{matches: [{one}], filters: [{replace}]}}]");
        let pod =
            Mesh::of(&format!("{}{}{}", server("unknown", "deny"), route("r", &rules), admit("r", "one")));
        assert_eq!(pod.http("one.shop", 8080, "GET /a"), "deny defective_policy r#0", "{one}");
    }
    // Nor does a call's client follow a redirect.
    let rules = format!("rules: [{{filters: [{REDIRECT}]}}]");
    let grpc = |text: String| {
        text.replace("kind: HTTPRoute", "kind: GRPCRoute")
            .replace("policy.linkerd.io/v1beta3\nkind: GRPC", "gateway.networking.k8s.io/v1\nkind: GRPC")
            .replace("{group: policy.linkerd.io, kind: GRPC", "{group: gateway.networking.k8s.io, kind: GRPC")
    };
    let pod = Mesh::of(&format!(
        "{}{}{}",
        server("gRPC", "deny"),
        grpc(route("r", &rules)),
        grpc(admit("r", "one"))
    ));
    assert_eq!(pod.http("one.shop", 8080, "POST /a/b"), "deny defective_policy r#0");
    let rules = format!("rules: [{{filters: [{REMOVE}]}}]");
    let pod = Mesh::of(&format!(
        "{}{}{}",
        server("gRPC", "deny"),
        grpc(route("r", &rules)),
        grpc(admit("r", "one"))
    ));
    assert_eq!(pod.http("one.shop", 8080, "POST /a/b"), "allow one-to-r");
    assert_ne!(pod.filters("POST /a/b"), RouteFilters::default());
}

#[test]
fn what_is_left_out_harms_nobody() {
    for kind in ["RequestMirror, requestMirror: {}", "CORS, cors: {}"] {
        let rules = format!("rules: [{{filters: [{{type: {kind}}}]}}]");
        let pod =
            Mesh::of(&format!("{}{}{}", server("unknown", "deny"), route("r", &rules), admit("r", "one")));
        assert_eq!(pod.http("one.shop", 8080, "GET /"), "allow one-to-r");
        assert_eq!(pod.defects(), ["r spec.rules[0].filters[0]"]);
    }
}
