//! Requests are judged one by one where a policy looks at them, and nowhere else.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use underpass_tests::access_log::Line;
use underpass_tests::cluster::Cluster;
use underpass_tests::stories::{self, World};
use underpass_tests::work::grpc;
use underpass_tests::work::http::{self, Response};
use underpass_tests::work::{server, talk};
use underpass_tests::{Mesh, Server};

fn main() -> ExitCode {
    stories::run(&[
        ("each_request_is_judged_and_the_connection_stays", orders),
        ("nobody_else_gets_through_by_whatever_spelling", spellings),
        ("what_is_no_http_is_denied_with_that_cause", not_http),
        ("a_change_ends_what_it_forbids_and_a_policy_that_goes_frees_the_connection", changes),
        ("an_upgrade_goes_through_and_ends_when_it_is_forbidden", upgrades),
        ("calls_of_grpc_are_judged_one_by_one_and_stream_unharmed", calls),
        ("requests_that_decide_nothing_are_told_of_and_the_bytes_pass", advised),
        ("ports_without_such_a_policy_carry_anything", other_ports),
    ])
}

const WEB: u16 = 8080;
const SOCKETS: u16 = 8081;
const CALLS: u16 = 8082;
const ECHO: u16 = 9000;

struct Shop {
    cluster: Cluster,
    web: Server,
    _sockets: Server,
    _calls: Server,
    _echo: Server,
    /// Without any policy.
    mesh: Mesh,
}

impl World for Shop {
    fn build() -> Result<Self> {
        let mesh = Mesh::of_four();
        let cluster = Cluster::start(&Mesh::FOUR, mesh.clone())?;
        let web = Server::start(cluster.ns("server"), WEB, http::serve("an order"))?;
        let sockets = Server::start(cluster.ns("server"), SOCKETS, http::upgrade)?;
        let calls = Server::start(cluster.ns("server"), CALLS, grpc::serve)?;
        let echo = Server::start(cluster.ns("server"), ECHO, server::echo)?;
        Ok(Self { cluster, web, _sockets: sockets, _calls: calls, _echo: echo, mesh })
    }

    fn diagnose(&self) -> String {
        self.cluster.diagnose()
    }
}

/// GET and POST of orders for alice with a header; port 9000 for everybody.
const ORDERS: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: orders, namespace: default}
spec:
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/alice]}}]
    to: [{operation: {methods: [GET, POST], paths: ['/api/orders/*'], ports: ['8080', '8081']}}]
    when: [{key: 'request.headers[X-Team]', values: [red]}]
  - to: [{operation: {ports: ['9000']}}]
";

const NO_POST: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: read-only, namespace: default}
spec:
  action: DENY
  rules: [{to: [{operation: {methods: [POST], ports: ['8080']}}]}]
";

const NO_SOCKETS: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-sockets, namespace: default}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: ['/api/orders/live'], ports: ['8081']}}]}]
";

fn orders(w: &mut Shop) -> Result<()> {
    w.cluster.apply(w.mesh.clone().resource(ORDERS))?;
    for v6 in [false, true] {
        let mut alice = w.dial("alice", v6)?;
        for (line, red, body, status) in [
            ("GET /api/orders/7", true, "", 200),
            ("GET /api/orders/7", false, "", 403),
            ("POST /api/orders/7", true, "two of them", 200),
            ("DELETE /api/orders/7", true, "", 403),
            ("GET /admin", true, "", 403),
            ("GET /api/orders/8?all=1", true, "", 200),
        ] {
            let answer = say(&mut alice, line, red, body).with_context(|| format!("{line} {red}"))?;
            ensure!(answer.status == status, "{line}, header {red}: {answer:?}");
            let told = String::from_utf8_lossy(&answer.body);
            match status {
                200 => ensure!(told == if body.is_empty() { "an order" } else { body }, "{told}"),
                _ => ensure!(
                    !told.contains("default/orders") && !told.contains("alice"),
                    "told too much: {told}"
                ),
            }
        }
        let seen = w.cluster.n2.access()?.len();
        drop(alice);
        let line = w.cluster.n2.wait_access_after(seen, "alice's end", |l| l.is("src.workload", "alice"))?;
        let told = line.get("error").unwrap_or_default();
        ensure!(told.starts_with("3 of 6 requests denied"), "the refusals are not told: {line}");
        ensure!(line.is("reason", "no_allow_matched") && line.is("verdict", "allow"), "{line}");
    }
    // Whom no request would let in is not asked for one.
    for who in ["bob", "guest"] {
        w.web.forget();
        let answer =
            w.dial(who, false).and_then(|mut stream| Ok(say(&mut stream, "GET /api/orders/7", true, "")?));
        ensure!(answer.is_err() && w.web.peers().is_empty(), "{who}: {answer:?}");
    }
    Ok(())
}

fn spellings(w: &mut Shop) -> Result<()> {
    w.cluster.apply(w.mesh.clone().resource(ORDERS))?;
    for path in
        ["/api/orders/../admin", "/api/orders/%2e%2e/admin", "/api/orders\\..\\..\\admin", "/API/orders/7"]
    {
        let mut alice = w.dial("alice", false)?;
        let answer = say(&mut alice, &format!("GET {path}"), true, "").with_context(|| path.to_owned())?;
        ensure!(matches!(answer.status, 400 | 403), "{path}: {answer:?}");
    }
    // A second request in the body of the first is no request.
    let mut alice = w.dial("alice", false)?;
    let hidden = "GET /admin HTTP/1.1\r\nHost: x\r\n\r\n";
    let answer = say(&mut alice, "POST /api/orders/7", true, hidden)?;
    ensure!(answer.status == 200 && answer.body == hidden.as_bytes(), "{answer:?}");
    // Nor is one that only one of two readers would see.
    w.web.forget();
    let mut alice = w.dial("alice", false)?;
    let two_ends = "POST /api/orders/7 HTTP/1.1\r\nHost: x\r\nX-Team: red\r\nContent-Length: 4\r\n\
                    Content-Length: 40\r\n\r\nabcdGET /admin HTTP/1.1\r\nHost: x\r\n\r\n";
    alice.write_all(two_ends.as_bytes())?;
    let mut answer = Vec::new();
    let _ = alice.read_to_end(&mut answer);
    ensure!(answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    Ok(())
}

fn not_http(w: &mut Shop) -> Result<()> {
    w.cluster.apply(w.mesh.clone().resource(ORDERS))?;
    let (seen, there) = (w.cluster.n2.access()?.len(), w.cluster.n1.access()?.len());
    let before = w.web.bytes();
    let mut alice = w.dial("alice", false)?;
    alice.write_all(b"\x16\x03\x01 no request at all\r\n\r\n")?;
    let mut answer = Vec::new();
    let _ = alice.read_to_end(&mut answer);
    ensure!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    let line = w.cluster.n2.wait_access_after(seen, "the refusal", |l| l.cause() == "not_http")?;
    ensure!(line.is("reason", "not_http") && line.get("policy").is_some(), "who refused is not told: {line}");
    w.cluster.n1.wait_access_after(there, "the client's line", |l| l.cause() == "not_http")?;
    ensure!(w.web.bytes() == before, "something of it reached the application");
    Ok(())
}

fn changes(w: &mut Shop) -> Result<()> {
    let orders = w.mesh.clone().resource(ORDERS);
    w.cluster.apply(orders.clone())?;
    let mut alice = w.dial("alice", false)?;
    ensure!(say(&mut alice, "POST /api/orders/7", true, "one")?.status == 200);
    w.cluster.apply(orders.clone().resource(NO_POST))?;
    ensure!(say(&mut alice, "POST /api/orders/7", true, "one")?.status == 403, "deny wins");
    ensure!(say(&mut alice, "GET /api/orders/7", true, "")?.status == 200);
    let seen = w.cluster.n2.access()?.len();
    drop(alice);
    let line = w.cluster.n2.wait_access_after(seen, "alice's end", |l| l.is("src.workload", "alice"))?;
    let told = [line.get("rule"), line.get("reason")].map(Option::unwrap_or_default);
    ensure!(told == ["0", "deny_matched"], "{line}");
    ensure!(line.get("policy").is_some_and(|policy| policy.ends_with("/default/read-only")), "{line}");
    let mut alice = w.dial("alice", false)?;
    // Broken, it admits nobody that it did not, and nobody that it did.
    let broken = ORDERS.replace("ports: ['8080', '8081']", "ports: ['8080', '80810']");
    w.cluster.apply(w.mesh.clone().resource(&broken))?;
    let answer = say(&mut alice, "GET /api/orders/7", true, "").map(|answer| answer.status);
    ensure!(!matches!(answer, Ok(200)), "the broken policy admits: {answer:?}");
    w.cluster.apply(w.mesh.clone())?;
    let mut bob = w.dial("bob", false)?;
    ensure!(say(&mut bob, "DELETE /anything", false, "")?.status == 200);
    Ok(())
}

fn upgrades(w: &mut Shop) -> Result<()> {
    let orders = w.mesh.clone().resource(ORDERS);
    w.cluster.apply(orders.clone())?;
    let ask = "GET /api/orders/live HTTP/1.1\r\nHost: x\r\nX-Team: red\r\nConnection: Upgrade\r\n\
               Upgrade: websocket\r\n\r\n";
    let mut alice = talk::dial(w.cluster.ns("alice"), w.cluster.addr("server", SOCKETS, false))?;
    alice.write_all(ask.as_bytes())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        alice.read_exact(&mut byte).context("reading the answer")?;
        head.push(byte[0]);
    }
    ensure!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    talk::echo(&mut alice, b"through the socket")?;
    w.cluster.apply(orders.resource(NO_SOCKETS))?;
    let mut rest = Vec::new();
    let ended = alice.read_to_end(&mut rest);
    ensure!(rest.is_empty(), "{ended:?} {rest:?}");
    w.cluster.apply(w.mesh.clone())
}

/// Two methods for alice, and one of them no more.
const CALLERS: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: callers, namespace: default}
spec:
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/alice]}}]
    to: [{operation: {methods: [POST], paths: [/shop.Orders/Get, /shop.Orders/Watch], ports: ['8082']}}]
";

const NO_WATCH: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-watch, namespace: default}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: [/shop.Orders/Watch], ports: ['8082']}}]}]
";

fn calls(w: &mut Shop) -> Result<()> {
    let callers = w.mesh.clone().resource(CALLERS);
    w.cluster.apply(callers.clone())?;
    let alice =
        grpc::Client::new(talk::dial(w.cluster.ns("alice"), w.cluster.addr("server", CALLS, false))?)?;
    let mut watching = alice.call("/shop.Orders/Watch", &[])?;
    watching.say(b"one")?;
    ensure!(watching.hear()? == b"one", "the stream waits for its end");
    // One stream is denied, and none beside it notices.
    let denied = alice.unary("/shop.Orders/Delete", &[], b"7")?;
    ensure!(
        denied.status == 200 && denied.in_head.as_deref() == Some("7") && denied.message.is_empty(),
        "no PERMISSION_DENIED in a head without a body: {denied:?}"
    );
    let large = vec![b'x'; 300_000];
    for message in [&b"7"[..], &large] {
        let got = alice.unary("/shop.Orders/Get", &[], message)?;
        let is_ok = got.in_head.is_none() && got.in_trailers.as_deref() == Some("0");
        ensure!(is_ok && got.message == message, "{:?} {:?}", got.in_head, got.in_trailers);
    }
    watching.say(b"two")?;
    ensure!(watching.hear()? == b"two", "the stream was harmed");
    // It ends as gRPC does when policy comes to forbid it; the connection goes on.
    let mut other = alice.call("/shop.Orders/Get", &[])?;
    other.say(b"a")?;
    ensure!(other.hear()? == b"a");
    w.cluster.apply(callers.resource(NO_WATCH))?;
    ensure!(watching.hear().is_err(), "a stream that is forbidden goes on");
    let ended = watching.end()?;
    ensure!(ended.in_trailers.as_deref() == Some("7"), "{ended:?}");
    other.say(b"b")?;
    ensure!(other.hear()? == b"b", "a stream that is allowed was ended");
    let ended = other.end()?;
    ensure!(ended.in_trailers.as_deref() == Some("0"), "{ended:?}");
    w.cluster.apply(w.mesh.clone())
}

/// Would forbid all but reading.
const TRY_READ_ONLY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: try-read-only, namespace: default, annotations: {istio.io/dry-run: 'true'}}
spec:
  action: DENY
  rules: [{to: [{operation: {notMethods: [GET]}}]}]
";

const TRACE: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: trace-orders, namespace: default}
spec:
  action: AUDIT
  rules: [{to: [{operation: {paths: ['/api/orders/*']}}]}]
";

fn advised(w: &mut Shop) -> Result<()> {
    w.cluster.apply(w.mesh.clone().resource(TRY_READ_ONLY).resource(TRACE))?;
    for who in ["alice", "guest"] {
        let told = |seen: usize| -> Result<_> {
            let theirs = |l: &Line| l.source_ip() == Some(w.cluster.ip(who, false));
            w.cluster.n2.wait_access_after(seen, &format!("{who}'s line"), theirs)
        };
        let seen = w.cluster.n2.access()?.len();
        let mut stream = w.dial(who, false)?;
        for line in ["GET /api/orders/7", "DELETE /api/orders/../7", "GET /"] {
            let answer = say(&mut stream, line, false, "")?;
            ensure!(answer.status == 200, "{line} was refused: {answer:?}");
        }
        drop(stream);
        let line = told(seen)?;
        let dry = line.get("dry_run").unwrap_or_default();
        ensure!(line.is("verdict", "allow") && line.cause() != "not_http", "{line}");
        ensure!(
            dry.starts_with("1 of 3 requests would be denied, the last: DELETE server:8080/api/7"),
            "{line}"
        );
        ensure!(dry.contains("try-read-only"), "who would is not told: {line}");
        ensure!(line.get("audit").is_some_and(|audit| audit.contains("trace-orders")), "{line}");
        // HTTP/2, an upgrade, and what is neither.
        let seen = w.cluster.n2.access()?.len();
        let client =
            grpc::Client::new(talk::dial(w.cluster.ns(who), w.cluster.addr("server", CALLS, false))?)?;
        ensure!(client.unary("/shop.Orders/Get", &[], b"7")?.in_trailers.as_deref() == Some("0"));
        drop(client);
        let line = told(seen)?;
        let dry = line.get("dry_run").unwrap_or_default();
        ensure!(
            dry.starts_with("1 of 1 requests would be denied, the last: POST server/shop.Orders/Get"),
            "{line}"
        );
        let seen = w.cluster.n2.access()?.len();
        let mut stream = talk::dial(w.cluster.ns(who), w.cluster.addr("server", ECHO, false))?;
        talk::echo(&mut stream, b"\x00\x01 anything\r\n\r\n")?;
        drop(talk::finish(stream)?);
        let line = told(seen)?;
        ensure!(line.cause() == "closed" && line.is("verdict", "allow"), "{line}");
        ensure!(line.get("dry_run").is_some_and(|dry| dry.contains("this is not HTTP")), "{line}");
    }
    w.cluster.apply(w.mesh.clone())
}

fn other_ports(w: &mut Shop) -> Result<()> {
    w.cluster.apply(w.mesh.clone().resource(ORDERS))?;
    for who in ["alice", "bob", "guest"] {
        let mut stream = talk::dial(w.cluster.ns(who), w.cluster.addr("server", ECHO, false))?;
        talk::echo(&mut stream, b"\x00\x01 anything").with_context(|| who.to_owned())?;
    }
    w.cluster.apply(w.mesh.clone())
}

impl Shop {
    fn dial(&self, from: &str, v6: bool) -> Result<TcpStream> {
        Ok(talk::dial(self.cluster.ns(from), self.cluster.addr("server", WEB, v6))?)
    }
}

/// One request, with alice's header or without.
fn say(stream: &mut TcpStream, line: &str, red: bool, body: &str) -> std::io::Result<Response> {
    let team = if red { "\r\nX-Team: red" } else { "" };
    http::ask(stream, &format!("{line} HTTP/1.1\r\nHost: server:8080{team}"), body.as_bytes())
}
