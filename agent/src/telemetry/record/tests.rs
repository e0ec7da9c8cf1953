use super::*;
use crate::telemetry::testing::{lines, opened, party, telemetry};

#[test]
fn a_record_is_live_until_it_is_finished() {
    let (telemetry, output) = telemetry(|_| {});
    let record = telemetry.open(opened(Direction::Outbound));
    record.set_source(party("client"));
    record.set_destination(party("server"));
    record.set_next_hop(NextHop("10.0.2.9:15008".parse().unwrap()));
    record.counts().sent.store(5, Ordering::Relaxed);

    let [view] = &telemetry.connections()[..] else { panic!() };
    assert_eq!(
        (view.id, view.direction, view.state),
        (record.id(), Direction::Outbound, ConnectionState::Opening)
    );
    assert_eq!(view.source.workload.as_deref(), Some("client-1"));
    assert_eq!(view.source.identity, None, "not proved yet");
    assert_eq!(view.destination.addr, "10.0.2.9:15008".parse().unwrap());
    assert_eq!(view.original_destination, "10.96.0.7:80".parse().unwrap());
    assert_eq!(view.bytes_sent, 5);

    record.set_mtls(true);
    record.established();
    let [view] = &telemetry.connections()[..] else { panic!() };
    assert_eq!(view.state, ConnectionState::Established);
    assert_eq!(view.destination.identity, party("server").identity);

    assert_eq!(lines(&telemetry, &output).len(), 0, "one line, at the end");
    record.finish(Cause::Closed, None);
    assert_eq!(telemetry.connection_count(), 0);
    let [line] = &lines(&telemetry, &output)[..] else { panic!() };
    assert_eq!(line["cause"], "closed");
    assert_eq!(line["src.identity"], "spiffe://cluster.local/ns/shop/sa/client");
}

#[test]
fn a_record_that_is_dropped_is_an_internal_error() {
    let (telemetry, output) = telemetry(|_| {});
    drop(telemetry.open(opened(Direction::Inbound)));
    assert_eq!(telemetry.connection_count(), 0);
    let [line] = &lines(&telemetry, &output)[..] else { panic!() };
    assert_eq!((&line["cause"], &line["level"]), (&"internal".into(), &"error".into()));
}

#[test]
fn identities_that_nobody_proved_are_not_told() {
    let (telemetry, output) = telemetry(|_| {});
    let record = telemetry.open(opened(Direction::Inbound));
    record.set_source(party("client"));
    record.set_destination(party("server"));
    record.finish(Cause::PolicyDenied, Some("plaintext".into()));
    let [line] = &lines(&telemetry, &output)[..] else { panic!() };
    assert!(line.get("src.identity").is_none() && line.get("dst.identity").is_none(), "{line}");
    assert_eq!(line["src.workload"], "client-1");
}

#[test]
fn connections_are_listed_oldest_first() {
    let (telemetry, _) = telemetry(|_| {});
    let records: Vec<_> = (0..100).map(|_| telemetry.open(opened(Direction::Outbound))).collect();
    let listed: Vec<_> = telemetry.connections().iter().map(|view| view.id).collect();
    assert_eq!(listed, records.iter().map(Record::id).collect::<Vec<_>>());
    for record in records {
        record.finish(Cause::Closed, None);
    }
}

#[test]
fn a_request_that_is_denied_is_told_of_and_its_connection_is_not() {
    let (telemetry, output) = telemetry(|_| {});
    let of = |policy: &str| Denial { policy: Some(policy.into()), rule: Some(2), reason: "deny_matched" };
    let record = telemetry.open(opened(Direction::Inbound));
    record.established();
    record.set_denied_request(&of("shop/requests"));
    record.finish(Cause::Closed, None);
    assert!(!telemetry.metrics_text().unwrap().contains("underpass_policy_denied_connections_total{"));

    let record = telemetry.open(opened(Direction::Inbound));
    record.established();
    record.teller().denied(&of("shop/connections"));
    record.set_denied_request(&of("shop/requests"));
    record.finish(Cause::PolicyRevoked, None);
    let [first, second] = &lines(&telemetry, &output)[..] else { panic!() };
    let told =
        |line: &serde_json::Value| ["policy", "rule", "reason", "verdict"].map(|key| line[key].to_string());
    assert_eq!(told(first), ["\"shop/requests\"", "2", "\"deny_matched\"", "\"allow\""]);
    assert_eq!(told(second), ["\"shop/connections\"", "2", "\"deny_matched\"", "\"deny\""]);
}

#[test]
fn without_a_log_there_are_still_metrics() {
    let (telemetry, output) = telemetry(|config| config.access_log.enabled = false);
    telemetry.open(opened(Direction::Outbound)).finish(Cause::Closed, None);
    assert!(telemetry.metrics_text().unwrap().contains("istio_tcp_connections_opened_total{"));
    assert_eq!(lines(&telemetry, &output).len(), 0);
}
