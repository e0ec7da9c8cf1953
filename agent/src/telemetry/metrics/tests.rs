use super::*;
use crate::model::{Cause, Direction};
use crate::telemetry::page;
use crate::telemetry::testing::{left_alone, lines, opened, party, pod, service, telemetry};
use crate::telemetry::{
    BundleSample, CertificateAttempt, CertificateSample, CertificateSamples, RevocationListSample,
    TrustFileSample,
};
use crate::telemetry::{Denial, FlowLeftAlone, Party, PolicySample, SourceHealth, Telemetry};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// One sample of the text format.
#[derive(Debug)]
struct Sample {
    labels: BTreeMap<String, String>,
    value: u64,
}

fn samples(telemetry: &Telemetry, name: &str) -> Vec<Sample> {
    let text = telemetry.metrics_text().unwrap();
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| parse(line, name)).collect()
}

fn parse(line: &str, name: &str) -> Option<Sample> {
    let rest = line.strip_prefix(name)?;
    let (labels, value) = match rest.strip_prefix('{') {
        Some(rest) => rest.rsplit_once("} ").unwrap(),
        None => ("", rest.strip_prefix(' ')?),
    };
    let mut found = BTreeMap::new();
    let mut rest = labels;
    while let Some((label, after)) = rest.split_once("=\"") {
        let end = after.find('"').unwrap();
        found.insert(label.trim_start_matches(',').to_owned(), after[..end].to_owned());
        rest = &after[end + 1..];
    }
    Some(Sample { labels: found, value: value.parse::<f64>().unwrap() as u64 })
}

fn value(telemetry: &Telemetry, name: &str) -> u64 {
    samples(telemetry, name).iter().map(|s| s.value).sum()
}

/// A connection between `client` and `server` through mutual TLS.
fn connect(telemetry: &Telemetry, direction: Direction) -> crate::telemetry::Record {
    let record = telemetry.open(opened(direction));
    record.set_source(party("client"));
    record.set_destination(party("server"));
    record.set_service(service("server"));
    record.set_mtls(true);
    record
}

/// The list is Istio's (its "Standard metrics" page and ztunnel's `proxy/metrics.rs`), not ours to change.
#[test]
fn istios_labels_exactly() {
    let expected = [
        ("reporter", "source"),
        ("source_workload", "client-deployment"),
        ("source_canonical_service", "client"),
        ("source_canonical_revision", "v2"),
        ("source_workload_namespace", "shop"),
        ("source_principal", "spiffe://cluster.local/ns/shop/sa/client"),
        ("source_app", "client"),
        ("source_version", "v2"),
        ("source_cluster", "c1"),
        ("destination_service", "server.shop.svc.cluster.local"),
        ("destination_service_namespace", "shop"),
        ("destination_service_name", "server"),
        ("destination_workload", "server-deployment"),
        ("destination_canonical_service", "server"),
        ("destination_canonical_revision", "v2"),
        ("destination_workload_namespace", "shop"),
        ("destination_principal", "spiffe://cluster.local/ns/shop/sa/server"),
        ("destination_app", "server"),
        ("destination_version", "v2"),
        ("destination_cluster", "c1"),
        ("request_protocol", "tcp"),
        ("response_flags", "-"),
        ("connection_security_policy", "mutual_tls"),
    ];
    let (telemetry, _) = telemetry(|_| {});
    let record = connect(&telemetry, Direction::Outbound);
    record.established();
    record.finish(Cause::Drained, None);
    for name in [
        "istio_tcp_connections_opened_total",
        "istio_tcp_connections_closed_total",
        "istio_tcp_received_bytes_total",
        "istio_tcp_sent_bytes_total",
        "istio_tcp_connections_failed_total",
    ] {
        let [sample] = &samples(&telemetry, name)[..] else { panic!("{name}") };
        let expected: BTreeMap<_, _> =
            expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert_eq!(sample.labels, expected, "{name}");
        assert_eq!(
            expected.keys().collect::<BTreeSet<_>>(),
            labels::LABELS.iter().map(|l| (*l).to_owned()).collect::<BTreeSet<_>>().iter().collect()
        );
    }
}

#[test]
fn what_is_unknown_or_unproved_says_so() {
    let (telemetry, _) = telemetry(|_| {});
    let record = telemetry.open(opened(Direction::Inbound));
    record.set_source(Party { workload: None, identity: party("client").identity });
    record.finish(Cause::PolicyDenied, None);
    let [sample] = &samples(&telemetry, "istio_tcp_connections_failed_total")[..] else { panic!() };
    for (label, value) in &sample.labels {
        let expected = match label.as_str() {
            "reporter" => "destination",
            "request_protocol" => "tcp",
            "response_flags" => "DENY",
            // Our own pod is known.
            "destination_workload_namespace" => "shop",
            _ => "unknown",
        };
        assert_eq!(value, expected, "{label}");
    }
}

#[test]
fn response_flags_by_cause() {
    for (cause, flag) in [
        (Cause::PolicyDenied, Some("DENY")),
        (Cause::PolicyRevoked, Some("DENY")),
        (Cause::DeniedByPeer, Some("DENY")),
        (Cause::PeerUnreachable, Some("CONNECT")),
        (Cause::ConnectRefused, Some("CONNECT")),
        (Cause::TlsFailed, Some("TLS_FAILURE")),
        (Cause::TunnelFailed, Some("H2_HANDSHAKE_FAILURE")),
        (Cause::WrongIdentity, Some("IDENTITY_ERROR")),
        (Cause::NoCertificate, Some("IDENTITY_ERROR")),
        (Cause::Drained, Some("-")),
        (Cause::Closed, None),
        (Cause::ClientReset, None),
    ] {
        let (telemetry, _) = telemetry(|_| {});
        connect(&telemetry, Direction::Outbound).finish(cause, None);
        let failed = samples(&telemetry, "istio_tcp_connections_failed_total");
        assert_eq!(failed.first().map(|s| s.labels["response_flags"].as_str()), flag, "{cause:?}");
        assert_eq!(value(&telemetry, "istio_tcp_connections_closed_total"), 1, "{cause:?}");
        assert_eq!(value(&telemetry, "istio_tcp_connections_opened_total"), 1, "{cause:?}");
    }
}

#[test]
fn bytes_are_counted_from_the_servers_side_by_both_reporters() {
    for direction in [Direction::Outbound, Direction::Inbound] {
        let (telemetry, _) = telemetry(|_| {});
        let record = connect(&telemetry, direction);
        record.established();
        record.counts().sent.store(11, Ordering::Relaxed);
        record.counts().received.store(22, Ordering::Relaxed);
        record.finish(Cause::Closed, None);
        assert_eq!(value(&telemetry, "istio_tcp_received_bytes_total"), 11);
        assert_eq!(value(&telemetry, "istio_tcp_sent_bytes_total"), 22);
    }
}

#[test]
fn a_long_connection_is_counted_while_it_lives() {
    let (telemetry, _) = telemetry(|_| {});
    let record = connect(&telemetry, Direction::Outbound);
    assert_eq!(value(&telemetry, "istio_tcp_connections_opened_total"), 0, "its labels are not known yet");
    record.established();
    for total in [10, 10, 25, 40] {
        record.counts().sent.store(total, Ordering::Relaxed);
        assert_eq!(value(&telemetry, "istio_tcp_received_bytes_total"), total);
        assert_eq!(value(&telemetry, "istio_tcp_connections_opened_total"), 1);
        assert_eq!(value(&telemetry, "istio_tcp_connections_closed_total"), 0);
    }
    record.counts().sent.store(50, Ordering::Relaxed);
    record.finish(Cause::Closed, None);
    assert_eq!(value(&telemetry, "istio_tcp_received_bytes_total"), 50);
}

#[test]
fn equal_labels_share_a_series_whoever_built_the_workload() {
    let (telemetry, _) = telemetry(|_| {});
    for _ in 0..3 {
        connect(&telemetry, Direction::Outbound).finish(Cause::Closed, None);
    }
    connect(&telemetry, Direction::Inbound).finish(Cause::Closed, None);
    let opened = samples(&telemetry, "istio_tcp_connections_opened_total");
    let by_reporter: BTreeMap<_, _> =
        opened.iter().map(|s| (s.labels["reporter"].as_str(), s.value)).collect();
    assert_eq!(by_reporter, [("source", 3), ("destination", 1)].into());
    assert_eq!(value(&telemetry, "underpass_metrics_label_sets"), 2);
}

#[test]
fn an_idle_label_set_is_dropped_and_a_held_one_stays() {
    // At once: whatever no connection holds is idle.
    let (telemetry, _) = telemetry(|config| config.metrics.evict_after = Duration::ZERO);
    let held = connect(&telemetry, Direction::Outbound);
    held.established();
    connect(&telemetry, Direction::Inbound).finish(Cause::Closed, None);
    assert_eq!(value(&telemetry, "underpass_metrics_label_sets"), 1);
    assert_eq!(value(&telemetry, "underpass_metrics_label_sets_evicted_total"), 1);
    let left = samples(&telemetry, "istio_tcp_connections_opened_total");
    assert_eq!(left.iter().map(|s| s.labels["reporter"].as_str()).collect::<Vec<_>>(), ["source"]);
    held.finish(Cause::Closed, None);
    assert_eq!(value(&telemetry, "underpass_metrics_label_sets"), 0);
    assert_eq!(samples(&telemetry, "istio_tcp_connections_opened_total").len(), 0);
}

#[test]
fn a_label_set_in_use_is_kept_for_the_configured_time() {
    let (telemetry, _) = telemetry(|config| config.metrics.evict_after = Duration::from_secs(3600));
    connect(&telemetry, Direction::Outbound).finish(Cause::Closed, None);
    telemetry.prune();
    assert_eq!(value(&telemetry, "istio_tcp_connections_opened_total"), 1);
}

#[test]
fn label_sets_are_bounded_and_no_connection_goes_uncounted() {
    let (telemetry, _) = telemetry(|config| config.metrics.max_label_sets = 10);
    for n in 0..50 {
        let record = telemetry.open(opened(Direction::Outbound));
        record.set_destination(party(&format!("server-{n}")));
        record.finish(Cause::Closed, None);
    }
    let opened = samples(&telemetry, "istio_tcp_connections_opened_total");
    assert!(opened.len() <= 10, "{}", opened.len());
    assert_eq!(opened.iter().map(|s| s.value).sum::<u64>(), 50);
    let folded = opened.iter().find(|s| s.labels["destination_workload"] == "unknown").unwrap();
    assert_eq!(folded.value, value(&telemetry, "underpass_metrics_folded_connections_total"));
}

#[test]
fn a_hostile_label_value_stays_in_its_quotes() {
    let (telemetry, _) = telemetry(|_| {});
    let record = telemetry.open(opened(Direction::Outbound));
    let mut hostile = crate::telemetry::testing::workload("x");
    hostile.canonical_name = "a\"} 1\nistio_tcp_sent_bytes_total{x=\"\\".into();
    record.set_destination(Party { workload: Some(hostile.into()), identity: None });
    record.finish(Cause::Closed, None);
    let text = telemetry.metrics_text().unwrap();
    assert!(text.contains(r#"destination_app="a\"} 1\nistio_tcp_sent_bytes_total{x=\"\\","#), "{text}");
    assert!(
        text.lines().all(|l| l.starts_with("# ") || l.starts_with("istio_") || l.starts_with("underpass_"))
    );
    assert!(!text.contains("\nistio_tcp_sent_bytes_total{x="));
}

#[test]
fn the_agents_own_numbers() {
    let (telemetry, output) = telemetry(|_| {});
    telemetry.refused(Direction::Outbound, Cause::NoCertificate);
    let pod = pod("client-1");
    let flow = FlowLeftAlone { sent: 5, received: 7, ..left_alone(&pod) };
    telemetry.flow_left_alone(&flow);
    telemetry.flow_left_alone(&flow);
    telemetry.source("file", SourceHealth::Accepted { revision: 3 });
    telemetry.source("file", SourceHealth::Refused);
    telemetry.pods_enrolled(2);
    connect(&telemetry, Direction::Outbound).finish(Cause::PeerUnreachable, None);
    let live = connect(&telemetry, Direction::Inbound);
    assert_eq!(lines(&telemetry, &output).len(), 1);
    for (name, expected) in [
        ("underpass_build", 1),
        ("underpass_connections", 1),
        ("underpass_connections_refused_total", 2),
        ("underpass_pods_enrolled", 2),
        ("underpass_passthrough_connections_total", 2),
        ("underpass_passthrough_sent_bytes_total", 10),
        ("underpass_passthrough_received_bytes_total", 14),
        ("underpass_source_revision", 3),
        ("underpass_source_refused_total", 1),
        ("underpass_access_log_lines_total", 1),
        ("underpass_access_log_lost_lines_total", 0),
        ("underpass_access_log_queued_bytes", 0),
    ] {
        assert_eq!(value(&telemetry, name), expected, "{name}");
    }
    assert!(value(&telemetry, "underpass_source_last_good_timestamp_seconds") > 1_700_000_000);
    telemetry.forget_pod("shop", "client-1");
    assert_eq!(samples(&telemetry, "underpass_passthrough_connections_total").len(), 0);
    live.finish(Cause::Closed, None);
    assert_eq!(value(&telemetry, "underpass_connections"), 0);
}

#[test]
fn the_catalogue_is_what_is_rendered() {
    let (telemetry, _) = telemetry(|_| {});
    // Something of everything.
    connect(&telemetry, Direction::Outbound).finish(Cause::Internal, None);
    telemetry.flow_left_alone(&left_alone(&pod("client-1")));
    telemetry.source("file", SourceHealth::Accepted { revision: 1 });
    telemetry.source("file", SourceHealth::Refused);
    telemetry.request_denied("deny_matched", Some(&"n/no".into()));
    telemetry.request_dry_run(true);
    telemetry.request_audited(&"n/seen".into());
    let judged = connect(&telemetry, Direction::Inbound);
    judged.set_dry_run("denied".into(), false);
    judged.set_audit(&[("n/seen".into(), Some(0))]);
    let denial = Denial { policy: Some("n/no".into()), rule: Some(1), reason: "deny_matched" };
    judged.set_denial(&denial);
    judged.set_hbone_addr("10.0.2.9:8080".parse().unwrap());
    judged.requests().denied(&denial);
    judged.finish(Cause::PolicyDenied, None);
    telemetry.plaintext_admitted(Some(&"n/except".into()));
    telemetry.watch_policy(|| PolicySample { next_lapse: Some(60), ..PolicySample::default() });
    let took = Duration::from_millis(3);
    telemetry.certificate(&CertificateAttempt { took, failed: Some("deadline"), is_renewal: true });
    telemetry.watch_certificates(everything);
    let text = telemetry.metrics_text().unwrap();
    let mut rendered = BTreeMap::new();
    for line in text.lines().filter_map(|l| l.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let sample = if kind == "histogram" { format!("{name}_count") } else { name.to_owned() };
        let [first, ..] = &samples(&telemetry, &sample)[..] else { panic!("{name} has no sample") };
        rendered.insert(
            name.to_owned(),
            (kind.to_owned(), first.labels.keys().cloned().collect::<BTreeSet<_>>()),
        );
    }
    let promised: BTreeMap<_, _> = CATALOGUE
        .iter()
        .map(|m| {
            let kind = match m.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            let labels = m.labels.iter().map(|l| (*l).to_owned()).collect();
            (m.name.to_owned(), (kind.to_owned(), labels))
        })
        .collect();
    assert_eq!(rendered, promised);
}

fn everything() -> CertificateSamples {
    let certificate = |identity: &str, expires| CertificateSample {
        identity: identity.into(),
        state: "valid",
        expires: Some(expires),
        ahead: Some(-120.0),
    };
    let list = |age, next_update| RevocationListSample { issuer: "CN=root".into(), age, next_update };
    CertificateSamples {
        certificates: vec![certificate("spiffe://t/a", 60.0), certificate("spiffe://t/b", 30.0)],
        bundles: vec![BundleSample {
            trust_domain: "t".into(),
            version: "0a".into(),
            roots: 2,
            expires: 9.0,
        }],
        revocation_lists: vec![list(500.0, 1.0), list(7.0, 90.0), list(600.0, 2.0)],
        files: vec![TrustFileSample { path: "/t.pem".into(), refused: true }],
    }
}

#[test]
fn certificates_are_what_they_are_at_the_scrape() {
    let (telemetry, _) = telemetry(|_| {});
    let now = std::sync::Arc::new(std::sync::Mutex::new(everything()));
    let asked = now.clone();
    telemetry.watch_certificates(move || asked.lock().unwrap().clone());
    let of = |name: &str| value(&telemetry, name);
    assert_eq!(of("underpass_certificates"), 2);
    assert_eq!(of("underpass_certificates_soonest_expiry_seconds"), 30);
    assert_eq!(of("underpass_revocation_list_age_seconds"), 7, "the newest list's");
    assert_eq!(of("underpass_revocation_list_next_update_seconds"), 90);
    assert_eq!(of("underpass_trust_file_refused"), 1);
    *now.lock().unwrap() = CertificateSamples::default();
    for name in
        ["underpass_certificates", "underpass_certificate_expires_seconds", "underpass_trust_bundle_roots"]
    {
        assert!(samples(&telemetry, name).is_empty(), "{name} stays after what it is about is gone");
    }
}

/// The page's table, from the catalogue that `the_catalogue_is_what_is_rendered` holds to the truth.
fn table() -> String {
    let mut out = String::from("| metric | kind | labels | counts |\n|---|---|---|---|\n");
    for metric in CATALOGUE {
        let labels = match metric.labels {
            [] => "none".to_owned(),
            labels if labels == labels::LABELS => "[Istio's](#istios-labels)".to_owned(),
            labels => labels.iter().map(|l| format!("`{l}`")).collect::<Vec<_>>().join(", "),
        };
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        out += &format!("| `{}` | {kind} | {labels} | {} |\n", metric.name, metric.help);
    }
    out
}

#[test]
fn the_page_lists_every_metric_and_label() {
    let Some(after) = page::lists("metrics.md", "every metric", &table()) else { return };
    let (after, _) = after.split_once("\n## The controller's").unwrap();
    let documented: Vec<_> = after
        .lines()
        .filter_map(|l| l.strip_prefix("| `")?.split_once('`'))
        .map(|(label, _)| label)
        .collect();
    assert_eq!(documented, labels::LABELS);
}
