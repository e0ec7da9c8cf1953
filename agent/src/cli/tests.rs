use super::*;
use crate::bpf::{Report, Requirement};
use crate::tls::testing::Authority;
use clap::CommandFactory;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

#[test]
fn the_command_line_is_consistent() {
    Underpass::command().debug_assert();
}

#[test]
fn what_may_be_typed() {
    for (line, good) in [
        ("underpass agent --config f", true),
        ("underpass agent", false),
        ("underpass status", true),
        ("underpass pods -o json --socket /s", true),
        ("underpass certs --config f -o yaml", true),
        ("underpass certs --pod shop/a", true),
        ("underpass certs --pod shop/a --identity spiffe://t/ns/a/sa/b", false),
        (
            "underpass certs verify a.pem b.pem --bundle r.pem --trust-domain t --crl l --at 2026-01-01T00:00:00Z",
            true,
        ),
        ("underpass certs verify", false),
        ("underpass certs verify a.pem --bundle r.pem", false),
        ("underpass pods --socket /s --config f", false),
        ("underpass pods -o xml", false),
        ("underpass config check f", true),
        ("underpass config check", false),
        ("underpass mesh check f", true),
        ("underpass check --config f -o json", true),
        ("underpass uninstall", true),
        ("underpass uninstall --pin-root /p --instance i", true),
        ("underpass uninstall --config f --instance i", false),
        ("underpass log", true),
        ("underpass log info,underpass::proxy=debug", true),
        ("underpass ca init --root --out d", true),
        ("underpass ca init", false),
        ("underpass ca intermediate --root d --out f --trust-domain td --lifetime 90d", true),
        ("underpass ca intermediate --root d --out f", false),
        ("underpass ca intermediate --root d --out f --trust-domain TD", false),
        ("underpass ca intermediate --root d --secret n/s", true),
        ("underpass ca intermediate --root d --secret n/s --kubeconfig k --trust-domain td", true),
        ("underpass ca intermediate --root d --secret n/s --out f", false),
        ("underpass ca intermediate --root d --out f --trust-domain td --kubeconfig k", false),
        ("underpass ca node n --out d -o json", true),
        ("underpass ca rotate next --ca f --new-root d", true),
        ("underpass ca rotate run --secret n/s --kubeconfig k --controller s", true),
        (
            "underpass ca rotate run --ca f --controller s --controller t --also-trusts u --also-trusts v",
            true,
        ),
        ("underpass ca rotate run --ca f --controller s --also-trusts", false),
        ("underpass ca rotate status", false),
        ("underpass ca rotate status --ca f --secret n/s", false),
        ("underpass", false),
    ] {
        assert_eq!(Underpass::try_parse_from(line.split(' ')).is_ok(), good, "{line}");
    }
}

#[test]
fn tables() {
    let pods = json!([
        {
            "namespace": "shop", "name": "client-1", "state": "enrolled", "reason": null,
            "identity": "spiffe://cluster.local/ns/shop/sa/client", "addresses": ["10.0.1.5", "fd00::5"],
            "capture": "mark", "mtls": { "mode": "STRICT" }, "policies": ["shop/a", "shop/b"], "connections": 3,
        },
        {
            "namespace": "s", "name": "x", "state": "refused", "reason": "no such namespace",
            "identity": "spiffe://cluster.local/ns/s/sa/x", "addresses": [], "capture": null, "mtls": null,
            "policies": [], "connections": 0,
        },
    ]);
    assert_eq!(show::PODS.table(&pods), "\
NAMESPACE   NAME       STATE      IDENTITY                                   ADDRESSES          CAPTURE   MTLS     POLICIES        CONNECTIONS   REASON
shop        client-1   enrolled   spiffe://cluster.local/ns/shop/sa/client   10.0.1.5,fd00::5   mark      STRICT   shop/a,shop/b   3             -
s           x          refused    spiffe://cluster.local/ns/s/sa/x           -                  -         -        -               0             no such namespace
");

    let workloads = json!([{
        "namespace": "shop", "name": "server-1", "addresses": ["10.0.2.9"], "node": "node-2", "protocol": "HBONE",
        "health": "HEALTHY", "identity": "spiffe://cluster.local/ns/shop/sa/server",
    }]);
    assert_eq!(
        show::WORKLOADS.table(&workloads),
        "\
NAMESPACE   NAME       ADDRESSES   NODE     PROTOCOL   HEALTH    IDENTITY
shop        server-1   10.0.2.9    node-2   HBONE      HEALTHY   spiffe://cluster.local/ns/shop/sa/server
"
    );

    let services = json!([{
        "namespace": "shop", "name": "server", "hostname": "server.shop.svc.cluster.local",
        "vips": ["10.96.0.7/32", "fd00::7/128", "10.97.0.0/16"],
        "ports": [{ "service_port": 80, "target_port": 8080 }, { "service_port": 443, "target_port": 0 }],
        "endpoints": 2, "healthy": 1,
    }]);
    assert_eq!(show::SERVICES.table(&services), "\
NAMESPACE   NAME     HOSTNAME                        VIPS                             PORTS           ENDPOINTS
shop        server   server.shop.svc.cluster.local   10.96.0.7,fd00::7,10.97.0.0/16   80>8080,443>0   1/2
");

    let policies = json!([{
        "namespace": "shop", "name": "deny", "action": "DENY", "dry_run": true, "scope": "NAMESPACE", "groups": [{}, {}], "defect": null,
    }]);
    assert_eq!(
        show::POLICIES.table(&policies),
        "\
NAMESPACE   NAME   ACTION   DRY RUN   SCOPE       GROUPS   DEFECT
shop        deny   DENY     true      NAMESPACE   2        -
"
    );

    let certificates = json!([
        {
            "identity": "spiffe://cluster.local/ns/shop/sa/client", "state": "valid", "serial": "0a1b",
            "not_after": "2026-08-23T09:00:00Z", "not_before": "2026-08-22T09:00:00Z",
            "renewal_due": "2026-08-22T21:00:00Z", "issuer": "istio", "trust_domain": "cluster.local",
            "chain": [
                { "kind": "Leaf", "serial": "0a1b", "valid": true,
                  "not_after": "2026-08-23T09:00:00Z", "not_before": "2026-08-22T09:00:00Z" },
                { "kind": "Root", "serial": "07", "valid": false,
                  "not_after": "2036-08-23T09:00:00Z", "not_before": "2026-08-22T09:00:00Z" },
            ],
        },
        { "identity": "spiffe://cluster.local/ns/shop/sa/x", "state": "fetching" },
    ]);
    assert_eq!(show::CERTIFICATES.table(&certs::rows(&certificates)), "\
CERTIFICATE NAME                           TYPE   STATUS         VALID CERT   SERIAL NUMBER   NOT AFTER              NOT BEFORE             RENEWAL DUE            ISSUER   TRUST DOMAIN    LAST ERROR
spiffe://cluster.local/ns/shop/sa/client   Leaf   Available      true         0a1b            2026-08-23T09:00:00Z   2026-08-22T09:00:00Z   2026-08-22T21:00:00Z   istio    cluster.local   -
spiffe://cluster.local/ns/shop/sa/client   Root   Available      false        07              2036-08-23T09:00:00Z   2026-08-22T09:00:00Z   -                      istio    cluster.local   -
spiffe://cluster.local/ns/shop/sa/x        Leaf   Initializing   false        -               -                      -                      -                      -        -               -
");

    let connections = json!([{
        "id": 7, "direction": "outbound", "state": "established",
        "source": { "addr": "10.0.1.5:40000", "workload": "client-1", "namespace": "shop" },
        "destination": { "addr": "10.0.2.9:15008" }, "hbone_addr": "10.0.2.9:8080", "mtls": true,
        "bytes_sent": 11, "bytes_received": 22, "age_ms": 61_000,
    }]);
    assert_eq!(show::CONNECTIONS.table(&connections), "\
ID   DIRECTION   STATE         SOURCE          SOURCE ADDRESS   DESTINATION   DESTINATION ADDRESS   MTLS   SENT   RECEIVED   AGE
7    outbound    established   shop/client-1   10.0.1.5:40000   -             10.0.2.9:8080         true   11     22         1m1s
");

    assert_eq!(
        show::POLICIES.table(&json!([])),
        "NAMESPACE   NAME   ACTION   DRY RUN   SCOPE   GROUPS   DEFECT\n"
    );
}

#[test]
fn what_a_machine_lacks() {
    let requirement = |name: &str, met, fatal| Requirement {
        name: name.into(),
        met,
        fatal,
        found: if met { "loads" } else { "lacks sk_assign" }.into(),
        cost: "no steering".into(),
    };
    let good = Report {
        requirements: vec![requirement("sk_lookup", true, true), requirement("nicer errors", false, false)],
    };
    assert_eq!(
        check::page(&good),
        "\
RESULT   REQUIREMENT    FOUND             WITHOUT IT
ok       sk_lookup      loads             -
absent   nicer errors   lacks sk_assign   no steering

The agent can run here.
"
    );
    let bad = Report { requirements: vec![requirement("sk_lookup", false, true)] };
    let page = check::page(&bad);
    assert!(page.contains("missing   sk_lookup     lacks sk_assign   no steering\n"), "{page}");
    assert!(page.contains("The agent cannot run here: one requirement is missing."), "{page}");
}

#[test]
fn ages() {
    for (ms, shown) in [
        (0, "0s"),
        (59_999, "59s"),
        (60_000, "1m0s"),
        (3_599_000, "59m59s"),
        (3_600_000, "1h0m"),
        (86_399_000, "23h59m"),
        (90_000_000, "1d1h"),
    ] {
        assert_eq!(show::age(ms), shown);
    }
}

#[test]
fn a_status_page() {
    let status = json!({
        "version": "0.1.0", "instance": "default", "node": "node-1", "pid": 12, "started": "2026-08-22T09:30:00Z",
        "ready": false, "pending": [{ "name": "certificates", "reason": "no issuer", "seconds": 3 }],
        "stopping": "SIGTERM",
        "mesh": { "revision": 4, "trust_domain": "cluster.local", "workloads": 5, "services": 2, "policies": 1 },
        "source": { "name": "file", "accepted": "2026-08-22T09:31:00Z", "refused": "mesh.yaml:3: name: missing" },
        "pods": { "enrolled": 2, "refused": 1, "leaving": 0 }, "connections": 9,
        "findings": ["pod shop/x is not enrolled: no such namespace"],
        "policy_defects": [{
            "resource": { "kind": "AuthorizationPolicy.security.istio.io", "namespace": "shop", "name": "ext" },
            "field": "spec.action", "kind": "unsupported", "message": "nobody can be asked; it denies\u{1b}[2J",
        }],
    });
    assert_eq!(
        status::page(&status),
        "\
Agent:        underpass 0.1.0, instance default on node-1, pid 12
Started:      2026-08-22T09:30:00Z
Ready:        no
Waits for:    certificates: no issuer (3 s)
Stopping:     SIGTERM
Mesh:         revision 4 of cluster.local: 5 workloads, 2 services, 1 policies
Source:       file, accepted 2026-08-22T09:31:00Z
Refused edit: mesh.yaml:3: name: missing
Pods:         2 enrolled, 1 refused, 0 leaving
Connections:  9
Finding:      pod shop/x is not enrolled: no such namespace
Policy:       AuthorizationPolicy.security.istio.io/shop/ext: spec.action: nobody can be asked; it denies\\u{1b}[2J
"
    );
}

#[test]
fn a_status_page_has_the_first_of_many_policies_that_are_not_as_written() {
    let defect = |n: usize| {
        json!({
            "resource": { "kind": "Server.policy.linkerd.io", "namespace": "shop", "name": format!("s{n:02}") },
            "field": "", "kind": "invalid", "message": "no",
        })
    };
    let of = |many: usize| {
        let page = status::page(&json!({ "policy_defects": (0..many).map(defect).collect::<Vec<_>>() }));
        page.lines().filter(|line| line.starts_with("Policy:")).map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(of(10).last().unwrap(), "Policy:       Server.policy.linkerd.io/shop/s09: no");
    let of_more = of(12);
    assert_eq!(of_more.len(), 11);
    assert_eq!(of_more[10], "Policy:       and 2 more; `underpass analyze --live` lists them all");
}

#[test]
fn nothing_in_a_cell_commands_the_terminal() {
    let table = table::table(&["A", "B"], vec![vec!["\u{1b}[2Jx\ny".into(), "\u{202e}z".into()]]);
    assert_eq!(table, "A                  B\n\\u{1b}[2Jx\\u{a}y   \\u{202e}z\n");
}

#[test]
fn the_same_value_in_every_form() {
    let value = json!([{ "name": "a" }]);
    for (form, expected) in [
        (args::Output::Table, "the table"),
        (args::Output::Json, "[\n  {\n    \"name\": \"a\"\n  }\n]\n"),
        (args::Output::Yaml, "- name: a\n"),
    ] {
        assert_eq!(output::render(&value, form, || "the table".into()).unwrap(), expected);
    }
}

/// A socket that gives `answer` to the first who asks, and what was asked.
fn answering(answer: &'static str) -> (Socket, std::thread::JoinHandle<String>) {
    let socket = Socket::new();
    let listener = UnixListener::bind(&socket.0).unwrap();
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
            request.push(byte[0]);
        }
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8(request).unwrap()
    });
    (socket, asked)
}

struct Socket(PathBuf);

impl Socket {
    fn new() -> Self {
        let id = crate::model::ConnectionId::next();
        Self(std::env::temp_dir().join(format!("up{}-cli{id}.sock", std::process::id())))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn an_answer_is_read() {
    let (socket, asked) = answering("HTTP/1.0 200 OK\r\ncontent-length: 7\r\n\r\n[1,2]\r\n");
    assert_eq!(client::ask(&socket.0, "GET", "/pods", "").unwrap(), json!([1, 2]));
    assert_eq!(asked.join().unwrap(), "GET /pods HTTP/1.0\r\nContent-Length: 0\r\n\r\n");
}

#[test]
fn answers_that_are_none() {
    for (answer, expected) in [
        (
            "HTTP/1.1 400 Bad Request\r\n\r\n{\"error\":\"not a filter\"}",
            "the agent answered 400: not a filter",
        ),
        ("HTTP/1.1 404 Not Found\r\n\r\n", "the agent answered 404: "),
        ("HTTP/1.1 200 OK\r\n\r\n{", "its JSON does not parse"),
        ("HTTP/1.1 200 OK\r\n", "its headers do not end"),
        ("SSH-2.0-x\r\n\r\n", "it begins with \"SSH-2.0-x\""),
        ("", "its headers do not end"),
    ] {
        let (socket, asked) = answering(answer);
        let error = client::ask(&socket.0, "GET", "/pods", "").unwrap_err().to_string();
        assert!(error.contains(expected), "{answer:?} gave {error}");
        asked.join().unwrap();
    }
}

#[test]
fn who_does_not_answer_is_named_with_the_next_step() {
    let missing = Socket::new();
    let left_behind = Socket::new();
    drop(UnixListener::bind(&left_behind.0).unwrap());
    for socket in [&missing, &left_behind] {
        let error = client::ask(&socket.0, "GET", "/pods", "").unwrap_err();
        assert!(matches!(error, ClientError::Absent { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(&socket.0.display().to_string()) && text.contains("--socket"), "{text}");
        assert_eq!(exit_code(&error.into()), args::EXIT_NO_AGENT);
    }
}

#[test]
fn a_socket_of_somebody_else_is_a_matter_of_permission() {
    // Root, which runs these tests, may open every socket; so only the error is real here.
    let denied = std::io::Error::from_raw_os_error(nix::errno::Errno::EACCES as i32);
    let error = client::not_connected("/run/x.sock".into(), denied);
    assert!(error.to_string().contains("try again as root"), "{error}");
    assert_eq!(exit_code(&error.into()), args::EXIT_FAILED);
}

#[test]
fn a_missing_field_is_an_empty_cell() {
    assert_eq!(show::text(&Value::Null, "/a/b"), "");
    assert_eq!(show::text(&json!({ "a": { "b": 1 } }), "/a/b"), "1");
}

#[test]
fn an_error_tells_each_cause_once_and_a_list_in_lines() {
    use std::io::ErrorKind;
    let absent = ClientError::Absent { path: "/s".into(), source: ErrorKind::NotFound.into() };
    let told = output::words(&anyhow::Error::from(absent).context("asking"));
    assert_eq!(told.matches("entity not found").count(), 1, "{told}");
    assert!(told.starts_with("asking: no agent answers at /s"), "{told}");
    let list = crate::bpf::BpfError::Requirements("MISSING one\nMISSING \u{1b}two".into());
    let told = output::words(&list.into());
    assert!(told.contains("\nMISSING one\nMISSING \\u{1b}two\n"), "{told}");
}

#[test]
fn a_file_is_taken_for_what_it_is() {
    let root = Authority::root();
    let shown = root.leaf("spiffe://mesh.test/ns/shop/sa/cart", |_| {});
    assert_eq!(certs::certificates(root.pem.as_bytes()).unwrap().len(), 1);
    assert_eq!(certs::certificates(&shown.chain[0]).unwrap(), shown.chain);
    assert_eq!(certs::certificates(format!("{0}{0}", root.pem).as_bytes()).unwrap().len(), 2);
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    for (bytes, said) in
        [(&b""[..], "neither"), (b"\xff\x00 garbage", "neither"), (key.as_bytes(), "private key")]
    {
        assert!(certs::certificates(bytes).unwrap_err().contains(said), "{said}");
    }
    let half = &root.pem[..root.pem.len() / 2];
    assert!(certs::certificates(half.as_bytes()).is_err());
}

#[test]
fn a_controllers_configuration_is_judged_as_one() {
    let file = std::env::temp_dir().join(format!("underpass-cli-{}.yaml", std::process::id()));
    let judged = |text: &str, controller| {
        std::fs::write(&file, text).unwrap();
        super::files::check_config(&file, controller).unwrap()
    };
    let (own, agents) = (crate::config::ControllerConfig::example(), crate::config::example());
    let said = [judged(&own, true), judged(&own, false), judged(&agents, true), judged("names: []", true)];
    std::fs::remove_file(&file).unwrap();
    assert_eq!(said, [Answer::Yes, Answer::No, Answer::No, Answer::No]);
}

#[test]
fn clocks_and_files_that_are_amiss_stand_under_the_certificates() {
    let now =
        time::OffsetDateTime::parse("2026-01-02T00:00:00Z", &time::format_description::well_known::Rfc3339);
    let now = now.unwrap();
    let well =
        json!([{"issuer": "controller", "issuer_ahead_seconds": -120.0}, {"issuer_ahead_seconds": null}]);
    let files = json!({"files": [
        {"path": "/r.pem", "problem": null, "next_update": null},
        {"path": "/l.crl", "problem": null, "next_update": "2026-01-03T00:00:00Z"},
    ]});
    assert_eq!(certs::notes(&well, &files, now), "");
    let ahead = json!([
        {"issuer": "controller", "issuer_ahead_seconds": 3.0},
        {"issuer": "controller", "issuer_ahead_seconds": 93.4},
    ]);
    let files = json!({"files": [
        {"path": "/r.pem", "problem": "no \u{1b}certificate", "accepted": "2026-01-01T00:00:00Z"},
        {"path": "/l.crl", "problem": null, "next_update": "2026-01-01T12:00:00Z"},
    ]});
    let notes = certs::notes(&ahead, &files, now);
    let lines: Vec<&str> = notes.lines().collect();
    assert_eq!(lines.len(), 3, "{notes}");
    assert!(lines[0].contains("(controller) is ahead of this node's by 93 s"), "{notes}");
    assert!(lines[1].starts_with("Trust: /r.pem: no \\u{1b}certificate;"), "{notes}");
    assert!(lines[1].contains("at 2026-01-01T00:00:00Z stays in force"), "{notes}");
    assert!(lines[2].contains("/l.crl: a newer list was due at 2026-01-01T12:00:00Z"), "{notes}");
}
