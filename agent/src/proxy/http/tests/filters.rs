//! What a route has done with requests that are allowed, to the byte.

use super::*;

async fn rig(prefix: &str, filters: &str) -> Rig {
    let judge = TestJudge::new(|request| request.path != "/forbidden");
    *judge.filters.lock().unwrap() = RouteFilters::from_yaml(prefix, filters);
    Rig::new(judge).await
}

const MODIFY: &str = "[{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-User, value: mesh}], add: [{name: x-by, value: route}], remove: [X-Admin]}}]";

/// The application hears what the route says, however the client says it.
#[tokio::test]
async fn a_client_s_own_header_does_not_survive() {
    for fields in [
        "X-User: root\r\nX-Admin: 1\r\n",
        "x-uSER: root\r\nx-USER: toor\r\nX-ADMIN: 1\r\nx-admin: 2\r\nX-Admin:\r\n",
        "X-User:root\r\nX-Admin:\t1\r\n",
        "Connection: X-User, x-admin, keep-alive\r\nX-User: root\r\nX-Admin: 1\r\n",
        // The one that the route sets is not the connection's either.
        "Connection: x-user\r\nConnection: X-ADMIN, x-by\r\nX-Admin: 1\r\n",
        "",
    ] {
        let mut rig = rig("/", MODIFY).await;
        rig.say(format!("GET /a HTTP/1.1\r\nHost: a\r\n{fields}X-Kept: 1\r\n\r\n")).await;
        let got = rig.arrives("\r\n\r\n").await.to_ascii_lowercase();
        let lines: Vec<_> = got.lines().filter(|line| line.contains("x-")).collect();
        let mut sorted = lines.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, ["x-by: route", "x-kept: 1", "x-user: mesh"], "{fields}: {got}");
        let named =
            got.lines().filter(|line| line.starts_with("connection:")).any(|line| line.contains("x-"));
        assert!(!named, "{got}");
    }
}

#[tokio::test]
async fn nor_does_it_as_a_trailer() {
    let mut rig = rig("/", MODIFY).await;
    rig.say("POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Admin, X-User, X-Sum\r\n\r\n2\r\nhi\r\n0\r\nX-ADMIN: 1\r\nx-user: root\r\nX-Sum: 7\r\n\r\n").await;
    let head = rig.arrives("\r\n\r\n").await.to_ascii_lowercase();
    assert!(head.contains("x-user: mesh\r\n") && !head.contains("x-user: root"), "{head}");
    assert_eq!(rig.arrives("\r\n\r\n").await.to_ascii_lowercase(), "2\r\nhi\r\n0\r\nx-sum: 7\r\n\r\n");
    // With none left the body ends all the same.
    rig.answer("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    rig.hears("\r\n\r\n").await;
    rig.say("POST /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Admin\r\n\r\n2\r\nhi\r\n0\r\nX-ADMIN: 1\r\n\r\n").await;
    rig.arrives("\r\n\r\n").await;
    rig.gets("2\r\nhi\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn policy_is_asked_about_what_the_client_sent() {
    let judge = TestJudge::new(|request| request.headers.contains_key("x-admin"));
    *judge.filters.lock().unwrap() = RouteFilters::from_yaml("/", MODIFY);
    let mut rig = Rig::new(judge).await;
    rig.say("GET /a HTTP/1.1\r\nHost: a\r\nX-Admin: 1\r\n\r\n").await;
    assert!(!rig.arrives("\r\n\r\n").await.to_ascii_lowercase().contains("x-admin"));
    rig.answer("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    rig.hears("\r\n\r\n").await;
    // And what the route adds admits nobody.
    rig.say("GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(rig.hears("policy\n").await.starts_with("HTTP/1.1 403 "));
}

#[tokio::test]
async fn an_answer_s_headers_are_changed_and_its_trailers() {
    let mut rig = rig(
        "/",
        "[{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: server, value: mesh}], remove: [x-debug]}}]",
    )
    .await;
    rig.say("GET /a HTTP/1.1\r\nHost: a\r\nX-Debug: 1\r\nTE: trailers\r\nConnection: te\r\n\r\n").await;
    assert!(rig.arrives("\r\n\r\n").await.contains("X-Debug: 1"), "requests are left alone");
    rig.answer("HTTP/1.1 200 OK\r\nServer: a\r\nSERVER: b\r\nX-DEBUG: 1\r\nTransfer-Encoding: chunked\r\nTrailer: X-Debug, X-Sum\r\n\r\n2\r\nhi\r\n0\r\nX-Debug: 1\r\nX-Sum: 7\r\n\r\n").await;
    let head = rig.hears("\r\n\r\n").await.to_ascii_lowercase();
    assert!(head.contains("server: mesh\r\n") && !head.contains("server: a"), "{head}");
    assert!(!head.contains("server: b") && !head.contains("x-debug: 1"), "{head}");
    assert_eq!(rig.hears("\r\n\r\n").await.to_ascii_lowercase(), "2\r\nhi\r\n0\r\nx-sum: 7\r\n\r\n");
}

#[tokio::test]
async fn a_redirect_is_answered_and_nothing_reaches_the_application() {
    let redirect = "[{type: RequestRedirect, requestRedirect: {scheme: https, hostname: new.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}, statusCode: 308}}]";
    let mut rig = rig("/old", redirect).await;
    for (fields, body) in [("", ""), ("Content-Length: 5\r\n", "hello")] {
        rig.say(format!("PUT /old/./a?b=c HTTP/1.1\r\nHost: a:8080\r\n{fields}\r\n{body}")).await;
        rig.told("HTTP/1.1 308 Permanent Redirect\r\nlocation: https://new.example:8080/new/a?b=c\r\ncontent-length: 0\r\n\r\n")
            .await;
    }
    // Whoever is refused is not told where anything is.
    rig.say("GET /forbidden HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let heard = rig.hears("policy\n").await;
    assert!(heard.starts_with("HTTP/1.1 403 ") && !heard.contains("location"), "{heard}");
    // What is there already passes.
    rig.say("GET https://new.example/new HTTP/1.1\r\nHost: new.example\r\n\r\n").await;
    let arrived = rig.arrives("\r\n\r\n").await;
    assert!(arrived.starts_with("GET ") && arrived.contains("/new HTTP/1.1"), "{arrived}");
    let expected = ["PUT /old/a 308 allowed", "PUT /old/a 308 allowed", "GET /forbidden 403 denied"];
    assert_eq!(rig.seen(), expected);
}

#[tokio::test]
async fn a_redirect_to_nowhere_is_an_error() {
    let mut rig = rig("/", "[{type: RequestRedirect, requestRedirect: {scheme: https}}]").await;
    rig.say("GET /a HTTP/1.0\r\n\r\n").await;
    let (heard, in_order) = rest(&mut rig.client).await;
    assert!(heard.starts_with("HTTP/1.0 400 ") && in_order, "{heard}");
    assert_eq!(rest(&mut rig.application).await.0, "");
    assert_eq!(rig.seen(), ["GET /a 400 refused"]);
}

#[tokio::test]
async fn a_redirect_whose_body_is_long_ends_the_connection() {
    let mut rig = rig("/", "[{type: RequestRedirect, requestRedirect: {hostname: b}}]").await;
    rig.say("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n").await;
    let (heard, in_order) = rest(&mut rig.client).await;
    assert!(heard.starts_with("HTTP/1.1 302 ") && heard.contains("connection: close"), "{heard}");
    assert!(in_order);
    assert_eq!(rest(&mut rig.application).await.0, "");
}
