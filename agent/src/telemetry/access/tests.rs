use super::*;
use crate::model::SpiffeId;
use crate::telemetry::testing::{identity, pod, service, workload};
use std::time::UNIX_EPOCH;

/// What `change` makes of an ordinary outbound connection over mutual TLS.
fn formatted<'a>(format: Format, change: impl FnOnce(&mut Line<'a>)) -> String {
    let (client, server, service) = (workload("client"), workload("server"), service("server"));
    let (client_id, server_id) = (identity("shop", "client"), identity("shop", "server"));
    let end = |workload, identity: &'static SpiffeId| End {
        workload: Some(workload),
        pod: None,
        identity: Some(identity),
    };
    // Tests end soon; leaking lets `change` put its own borrowed values in.
    let (client, server): (&'static _, &'static _) =
        (Box::leak(Box::new(client)), Box::leak(Box::new(server)));
    let mut line = Line {
        id: ConnectionId(7),
        direction: Direction::Outbound,
        source: end(client, Box::leak(Box::new(client_id))),
        destination: end(server, Box::leak(Box::new(server_id))),
        client: ClientAddr("10.0.1.5:40000".parse().unwrap()),
        original: OriginalDst("10.96.0.7:80".parse().unwrap()),
        next_hop: Some(NextHop("10.0.2.9:15008".parse().unwrap())),
        hbone_addr: Some("10.0.2.9:8080".parse().unwrap()),
        service: Some(Box::leak(Box::new(service))),
        policy: Some("shop/allow-client"),
        rule: None,
        reason: None,
        phase: None,
        dry_run: None,
        audit: None,
        exception: None,
        trace: Some(0x0123_4567_89ab_cdef),
        established: true,
        sent: 11,
        received: 22,
        duration: Duration::from_micros(3_999),
        now: UNIX_EPOCH + Duration::from_secs(1_787_391_000),
        cause: Cause::Closed,
        detail: None,
    };
    change(&mut line);
    let mut text = String::new();
    with_line(format, &line, |bytes| text = String::from_utf8(bytes.to_vec()).unwrap());
    assert_eq!(text.matches('\n').count(), 1, "{text:?}");
    text.strip_suffix('\n').unwrap().to_owned()
}

fn json<'a>(change: impl FnOnce(&mut Line<'a>)) -> serde_json::Value {
    serde_json::from_str(&formatted(Format::Json, change)).unwrap()
}

#[test]
fn a_whole_line_in_text() {
    assert_eq!(
        formatted(Format::Text, |_| {}),
        "2026-08-22T09:30:00.000000Z\tinfo\taccess\tconnection complete\t\
         connection=7 trace_id=\"00000000000000000123456789abcdef\" src.addr=10.0.1.5:40000 src.workload=\"client-1\" src.namespace=\"shop\" \
         src.identity=\"spiffe://cluster.local/ns/shop/sa/client\" src.cluster=\"c1\" \
         dst.addr=10.0.2.9:15008 dst.hbone_addr=10.0.2.9:8080 dst.original_addr=10.96.0.7:80 \
         dst.service=\"server.shop.svc.cluster.local\" dst.workload=\"server-1\" dst.namespace=\"shop\" \
         dst.identity=\"spiffe://cluster.local/ns/shop/sa/server\" dst.cluster=\"c1\" \
         direction=\"outbound\" bytes_sent=11 bytes_recv=22 duration=\"3ms\" verdict=\"allow\" \
         policy=\"shop/allow-client\" cause=\"closed\""
    );
}

#[test]
fn a_whole_line_in_json() {
    assert_eq!(
        formatted(Format::Json, |_| {}),
        concat!(
            r#"{"level":"info","time":"2026-08-22T09:30:00.000000Z","scope":"access","#,
            r#""message":"connection complete","connection":7,"#,
            r#""trace_id":"00000000000000000123456789abcdef","src.addr":"10.0.1.5:40000","#,
            r#""src.workload":"client-1","src.namespace":"shop","#,
            r#""src.identity":"spiffe://cluster.local/ns/shop/sa/client","src.cluster":"c1","#,
            r#""dst.addr":"10.0.2.9:15008","dst.hbone_addr":"10.0.2.9:8080","#,
            r#""dst.original_addr":"10.96.0.7:80","dst.service":"server.shop.svc.cluster.local","#,
            r#""dst.workload":"server-1","dst.namespace":"shop","#,
            r#""dst.identity":"spiffe://cluster.local/ns/shop/sa/server","dst.cluster":"c1","#,
            r#""direction":"outbound","bytes_sent":11,"bytes_recv":22,"duration":"3ms","#,
            r#""verdict":"allow","policy":"shop/allow-client","cause":"closed"}"#,
        )
    );
}

#[test]
fn what_is_not_known_is_absent() {
    let value = json(|line| {
        let unknown = End { workload: None, pod: None, identity: None };
        (line.source, line.destination) = (unknown, unknown);
        (line.next_hop, line.hbone_addr, line.service, line.policy) = (None, None, None, None);
        line.trace = None;
        line.established = false;
        line.cause = Cause::NoEndpoint;
    });
    let keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = "bytes_recv bytes_sent cause connection direction dst.addr duration error level message \
                    scope src.addr time";
    assert_eq!(keys, expected.split_whitespace().collect::<Vec<_>>());
    assert_eq!(value["dst.addr"], "10.96.0.7:80");
}

#[test]
fn level_verdict_and_error_by_cause() {
    use Cause::*;
    for (cause, established, level, verdict, error) in [
        (Closed, true, "info", Some("allow"), None),
        (ClientReset, true, "info", Some("allow"), None),
        (ServerReset, true, "info", Some("allow"), None),
        (PolicyDenied, false, "warn", Some("deny"), Some("policy_denied")),
        (BadTarget, false, "warn", Some("deny"), Some("bad_target")),
        (BadRequest, false, "warn", Some("deny"), Some("bad_request")),
        (Loop, false, "warn", Some("deny"), Some("loop")),
        (SpoofedSource, false, "warn", Some("deny"), Some("spoofed_source")),
        (PolicyRevoked, true, "error", Some("deny"), Some("policy_revoked")),
        (DeniedByPeer, false, "error", Some("deny"), Some("denied_by_peer")),
        (WrongIdentity, false, "error", None, Some("wrong_identity")),
        (PeerUnreachable, false, "error", None, Some("peer_unreachable")),
        (TunnelFailed, true, "error", Some("allow"), Some("tunnel_failed")),
        (Drained, true, "error", Some("allow"), Some("drained")),
        (Internal, false, "error", None, Some("internal")),
    ] {
        let value = json(|line| (line.cause, line.established) = (cause, established));
        assert_eq!(value["level"], level, "{cause:?}");
        assert_eq!(value.get("verdict").and_then(|v| v.as_str()), verdict, "{cause:?}");
        assert_eq!(value.get("error").and_then(|v| v.as_str()), error, "{cause:?}");
        let message = if level == "warn" { "connection failed" } else { "connection complete" };
        assert_eq!(value["message"], message, "{cause:?}");
        assert_eq!(value["cause"], cause.as_str());
    }
}

#[test]
fn bytes_are_told_from_our_pods_side() {
    for (direction, sent, received) in [(Direction::Outbound, 11, 22), (Direction::Inbound, 22, 11)] {
        let value = json(|line| line.direction = direction);
        assert_eq!((&value["bytes_sent"], &value["bytes_recv"]), (&sent.into(), &received.into()));
    }
}

#[test]
fn a_pod_stands_in_for_a_workload_that_nobody_named() {
    let pod: &'static _ = Box::leak(Box::new(pod("alone")));
    let value = json(|line| line.source = End { workload: None, pod: Some(pod), identity: None });
    assert_eq!((&value["src.workload"], &value["src.namespace"]), (&"alone".into(), &"shop".into()));
    assert!(value.get("src.cluster").is_none());
}

#[test]
fn addresses_are_written_as_std_writes_them() {
    for addr in ["1.2.3.4:5", "255.255.255.255:65535", "0.0.0.0:0", "[fd00::1]:15008", "[::ffff:10.0.0.1]:1"]
    {
        let addr: SocketAddr = addr.parse().unwrap();
        assert_eq!(json(|line| line.client = ClientAddr(addr))["src.addr"], addr.to_string());
    }
    for number in [0, 9, 10, 12_345, u64::MAX] {
        assert_eq!(json(|line| line.sent = number)["bytes_sent"], number);
    }
}

/// Whatever a peer makes us say stays inside its quotes, and comes back unchanged when JSON is read.
#[test]
fn no_value_breaks_out() {
    let hostile = [
        "x\nlevel=info",
        "x\r\n2026-08-22T09:30:00Z\tinfo\taccess\tconnection complete\tverdict=\"allow\"",
        "\" verdict=\"allow\" x=\"",
        "\",\"verdict\":\"allow\",\"x\":\"",
        "\\",
        "\\\"",
        "ends with a backslash \\",
        "\u{0}\u{7}\u{8}\u{1b}[2J\u{1b}]0;title\u{7}\u{7f}",
        "\u{85}\u{9b}31m",
        "\u{2028}\u{2029}\u{202e}evil\u{2066}\u{200b}\u{feff}\u{e0041}",
        "ordinary Unicode: Grüße, 你好, 🦀",
    ];
    for value in hostile {
        let parsed = json(|line| {
            (line.cause, line.detail, line.policy) = (Cause::RejectedByPeer, Some(value), Some(value))
        });
        assert_eq!((&parsed["error"], &parsed["policy"]), (&value.into(), &value.into()));
        let failed = |detail| {
            formatted(Format::Text, |line| (line.cause, line.detail) = (Cause::RejectedByPeer, Some(detail)))
        };
        assert_eq!(outside_quotes(&failed(value)), outside_quotes(&failed("harmless")));
        for text in [failed(value), formatted(Format::Json, |line| line.policy = Some(value))] {
            let odd = |c: char| {
                c != '\t' && c.is_control()
                    || "\u{2028}\u{2029}\u{202e}\u{2066}\u{200b}\u{feff}\u{e0041}".contains(c)
            };
            assert!(!text.contains(odd), "{text:?}");
            assert_eq!(text.matches('\t').count() % 4, 0, "{text:?}");
        }
    }
}

/// What is left of a text line when its quoted values are taken out.
fn outside_quotes(fields: &str) -> String {
    let (mut out, mut inside, mut chars) = (String::new(), false, fields.chars());
    while let Some(c) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            '"' => inside = !inside,
            c if !inside => out.push(c),
            _ => {}
        }
    }
    assert!(!inside, "unbalanced quotes in {fields:?}");
    out
}

#[test]
fn a_long_error_is_cut_between_characters() {
    let long = "ü".repeat(10_000);
    let value = json(|line| (line.cause, line.detail) = (Cause::TlsFailed, Some(long.as_str())));
    assert_eq!(value["error"].as_str().unwrap(), "ü".repeat(MAX_DETAIL / 2));
}

proptest::proptest! {
    #[test]
    fn any_text_round_trips_through_json(detail in proptest::prelude::any::<String>()) {
        let parsed = json(|line| (line.cause, line.policy) = (Cause::TlsFailed, Some(detail.as_str())));
        proptest::prop_assert_eq!(parsed["policy"].as_str(), Some(detail.as_str()));
    }
}

const PAGE: &str = include_str!("../../../../docs/access-log.md");

/// The first column of the page's tables, below this heading.
fn documented(heading: &str) -> Vec<&'static str> {
    let section = PAGE.split_once(&format!("\n## {heading}\n")).unwrap().1;
    let section = section.split("\n## ").next().unwrap();
    section.lines().filter_map(|l| l.strip_prefix("| `")?.split_once('`')).map(|(first, _)| first).collect()
}

#[test]
fn the_page_lists_every_field() {
    let mut documented = documented("Fields");
    documented.sort_unstable();
    let whole = json(|line| {
        (line.cause, line.detail) = (Cause::TlsFailed, Some("why"));
        line.exception = Some("PlaintextException.underpass.io/shop/batch");
        (line.phase, line.dry_run) = (Some("observe"), Some("denied"));
        (line.rule, line.reason, line.audit) = (Some(2), Some("deny_matched"), Some("shop/seen#0"));
    });
    assert_eq!(documented, whole.as_object().unwrap().keys().map(String::as_str).collect::<Vec<_>>());
    assert!(
        PAGE.contains(&formatted(Format::Text, |_| {})),
        "the page's example line is not what is printed"
    );
}

#[test]
fn the_page_lists_every_cause_with_its_flags() {
    use Cause::*;
    let all = [
        Closed,
        ClientReset,
        ServerReset,
        ConnectRefused,
        PeerUnreachable,
        TlsFailed,
        WrongIdentity,
        TrustRevoked,
        TunnelFailed,
        DeniedByPeer,
        RejectedByPeer,
        NoAnswer,
        PolicyDenied,
        PolicyRevoked,
        NotHttp,
        BadTarget,
        BadRequest,
        NoEndpoint,
        Loop,
        SpoofedSource,
        Overloaded,
        NoCertificate,
        Drained,
        PodGone,
        Internal,
    ];
    for cause in all {
        // A new cause does not compile until it is listed above too.
        match cause {
            Closed | ClientReset | ServerReset | ConnectRefused | PeerUnreachable | TlsFailed
            | WrongIdentity | TrustRevoked | TunnelFailed | DeniedByPeer | RejectedByPeer | PolicyDenied
            | PolicyRevoked | NotHttp | BadTarget | BadRequest | NoEndpoint | Loop | SpoofedSource
            | NoCertificate | Drained | PodGone | Internal | NoAnswer | Overloaded => {}
        }
        let row = PAGE.lines().find(|l| l.starts_with(&format!("| `{}` |", cause.as_str())));
        let flags = row.and_then(|row| row.strip_suffix("` |")?.rsplit_once('`'));
        assert_eq!(flags.map(|(_, flags)| flags), Some(cause.response_flags()), "{cause:?}");
    }
    assert_eq!(documented("Causes"), all.map(Cause::as_str));
}
