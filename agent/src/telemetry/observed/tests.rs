use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::owner::owner_by_labels;
use super::table::{MOST_OF_ONE, MOST_OF_STRANGERS, MOST_ROWS};
use super::*;
use crate::model::{Cause, ClientAddr, Direction, OriginalDst};
use crate::telemetry::testing::{identity, left_alone, opened, party, pod, telemetry, workload};
use crate::telemetry::{FlowLeftAlone, Opened, Party, Record, Telemetry};

/// A connection in a tunnel from this account to port 8080.
fn tunnelled(telemetry: &Telemetry, account: &str) -> Record {
    let record = telemetry.open(opened(Direction::Inbound));
    record.set_source(party(account));
    record.set_destination(party("server"));
    record.set_mtls(true);
    record.set_hbone_addr("10.0.2.9:8080".parse().unwrap());
    record
}

/// One in plaintext.
fn plaintext(telemetry: &Telemetry, client: &str, source: Option<&str>) -> Record {
    let record = telemetry.open(Opened {
        client: ClientAddr(client.parse().unwrap()),
        destination: OriginalDst("10.0.2.9:8080".parse().unwrap()),
        ..opened(Direction::Inbound)
    });
    record.set_source(Party { workload: source.map(|name| Arc::new(workload(name))), identity: None });
    record.set_destination(party("server"));
    record
}

fn denial(policy: &str) -> Denial {
    Denial { policy: Some(policy.into()), rule: Some(1), reason: "deny_matched" }
}

/// What was seen of the one server that there is.
fn seen(telemetry: &Telemetry) -> Vec<Seen> {
    let servers = telemetry.observed().servers;
    servers.into_iter().flat_map(|server| server.clients).collect()
}

#[test]
fn a_row_is_one_client_at_one_port_of_all_instances() {
    let (telemetry, _) = telemetry(|_| {});
    for _ in 0..3 {
        let record = tunnelled(&telemetry, "client");
        record.established();
        record.finish(Cause::Closed, None);
    }
    let refused = tunnelled(&telemetry, "bad");
    refused.set_denial(&denial("shop/no-bad"));
    refused.finish(Cause::PolicyDenied, None);
    let failed = tunnelled(&telemetry, "client");
    failed.finish(Cause::ConnectRefused, None);

    let observed = telemetry.observed();
    let [server] = &observed.servers[..] else { panic!("{observed:?}") };
    assert_eq!((&*server.namespace, &*server.name), ("shop", "server-deployment"));
    assert_eq!(server.identity, identity("shop", "server-1"));
    let [bad, good] = &server.clients[..] else { panic!("{server:?}") };
    assert_eq!(good.client.identity, Some(identity("shop", "client")));
    assert_eq!(good.client.transport, Transport::Mtls);
    assert_eq!(good.client.workload.as_deref(), Some("client-deployment"));
    assert_eq!(good.client.addresses, ["10.0.1.5".parse::<IpAddr>().unwrap()]);
    assert_eq!(good.port, 8080);
    assert_eq!(good.connections, ConnectionCounts { allowed: 3, unreached: 1, ..Default::default() });
    assert_eq!(good.last, Some(OutcomeView::Allowed));
    assert_eq!(bad.connections, ConnectionCounts { denied: 1, ..Default::default() });
    assert_eq!(bad.last, Some(OutcomeView::Denied));
    let told = DenialView {
        policy: Some("shop/no-bad".into()),
        rule: Some(1),
        reason: "deny_matched".into(),
        count: 1,
    };
    assert_eq!(bad.denials, [told]);
    assert!(bad.first_seen <= bad.last_seen);

    // As it is written, so it is read.
    let text = serde_json::to_string(&observed).unwrap();
    assert_eq!(serde_json::from_str::<ObservedAgent>(&text).unwrap(), observed);
}

#[test]
fn what_is_open_is_seen_before_it_ends() {
    let (telemetry, _) = telemetry(|_| {});
    let opening = tunnelled(&telemetry, "client");
    assert_eq!(seen(&telemetry), [], "nothing is decided yet");
    opening.established();
    for _ in 0..2 {
        let [row] = &seen(&telemetry)[..] else { panic!() };
        assert_eq!(row.connections, ConnectionCounts { allowed: 1, open: 1, ..Default::default() });
    }
    opening.finish(Cause::Closed, None);
    let [row] = &seen(&telemetry)[..] else { panic!() };
    assert_eq!(row.connections, ConnectionCounts { allowed: 1, ..Default::default() });
}

#[test]
fn a_policy_that_ends_a_connection_has_the_last_word_on_it() {
    let (telemetry, _) = telemetry(|_| {});
    let record = tunnelled(&telemetry, "client");
    record.established();
    record.teller().denied(&denial("shop/new"));
    record.finish(Cause::PolicyRevoked, None);
    let [row] = &seen(&telemetry)[..] else { panic!() };
    assert_eq!((row.connections.denied, row.last), (1, Some(OutcomeView::Denied)));
}

#[test]
fn what_would_be_refused_is_kept_as_long_as_it_holds() {
    let (telemetry, _) = telemetry(|_| {});
    let connect = |would: Option<(&str, bool)>| {
        let record = tunnelled(&telemetry, "client");
        if let Some((would, allow)) = would {
            record.set_dry_run(would.into(), allow);
        }
        record.established();
        record.finish(Cause::Closed, None);
        seen(&telemetry)[0].clone()
    };
    let row = connect(Some(("denied by policy dry", false)));
    assert_eq!((row.would_deny, row.would.as_deref()), (1, Some("denied by policy dry")));
    let row = connect(Some(("allowed", true)));
    assert_eq!((row.would_deny, row.would), (1, None));
}

#[test]
fn plaintext_is_whoever_is_at_its_address_and_never_an_identity() {
    let (telemetry, _) = telemetry(|_| {});
    // What it says of itself, in a certificate that nobody asked for, counts nothing.
    let record = plaintext(&telemetry, "10.0.1.5:1000", Some("client"));
    record.established();
    record.finish(Cause::Closed, None);
    plaintext(&telemetry, "192.0.2.7:1000", None).finish(Cause::ConnectRefused, None);
    let [one, other] = &seen(&telemetry)[..] else { panic!() };
    assert_eq!((one.client.transport, &one.client.identity), (Transport::Plaintext, &None));
    let (known, stranger) = if one.client.workload.is_some() { (one, other) } else { (other, one) };
    assert_eq!(known.client.workload.as_deref(), Some("client-deployment"));
    assert_eq!(known.client.expected_identity, Some(identity("shop", "client")));
    assert_eq!(stranger.client.addresses, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
    assert_eq!((stranger.connections.allowed, stranger.connections.unreached), (0, 1));
}

#[test]
fn what_a_client_says_of_itself_names_no_workload() {
    let (telemetry, _) = telemetry(|_| {});
    let record = tunnelled(&telemetry, "client");
    let mut told = workload("admin");
    told.uid = "".into();
    record.set_source(Party { workload: Some(Arc::new(told)), identity: Some(identity("shop", "client")) });
    record.established();
    record.finish(Cause::Closed, None);
    let [row] = &seen(&telemetry)[..] else { panic!() };
    assert_eq!((&row.client.workload, &row.client.namespace), (&None, &None));
}

#[test]
fn what_was_no_connection_to_an_application_makes_no_row() {
    let (telemetry, _) = telemetry(|_| {});
    // A handshake that failed, a CONNECT that was refused, and what our pod dialled.
    telemetry.open(opened(Direction::Inbound)).finish(Cause::TlsFailed, None);
    let record = telemetry.open(opened(Direction::Inbound));
    record.set_mtls(true);
    record.finish(Cause::BadRequest, None);
    let record = telemetry.open(opened(Direction::Outbound));
    record.established();
    record.finish(Cause::Closed, None);
    telemetry.flow_left_alone(&left_alone(&pod("client-1")));
    assert_eq!(telemetry.observed().servers, []);
}

#[test]
fn what_the_kernel_passed_by_itself_is_seen_when_it_closes() {
    let (telemetry, _) = telemetry(|_| {});
    let (own, server, client) = (pod("server-1"), Arc::new(workload("server")), workload("client"));
    telemetry.flow_left_alone(&FlowLeftAlone {
        direction: Direction::Inbound,
        local: "10.0.2.9:8080".parse().unwrap(),
        remote: "10.0.1.5:40000".parse().unwrap(),
        workload: Some(&server),
        peer: Some(&client),
        ..left_alone(&own)
    });
    let [row] = &seen(&telemetry)[..] else { panic!() };
    assert_eq!((row.client.transport, row.port, row.connections.allowed), (Transport::Plaintext, 8080, 1));
    assert_eq!(row.client.workload.as_deref(), Some("client-deployment"));
}

#[test]
fn where_requests_are_judged_a_connection_is_allowed_by_one_of_them() {
    let (telemetry, _) = telemetry(|_| {});
    let connect = |account: &str, allowed: usize, denied: usize, cause| {
        let record = tunnelled(&telemetry, account);
        record.established();
        let requests = record.requests();
        (0..allowed).for_each(|_| requests.allowed());
        (0..denied).for_each(|_| requests.denied(&denial("shop/get-only")));
        record.finish(cause, None);
        let row =
            seen(&telemetry).into_iter().find(|row| row.client.identity == Some(identity("shop", account)));
        let row = row.unwrap();
        (row.connections.allowed, row.connections.denied, row.requests.allowed, row.requests.denied, row.last)
    };
    assert_eq!(connect("a", 2, 1, Cause::Closed), (1, 0, 2, 1, Some(OutcomeView::Allowed)));
    assert_eq!(connect("b", 0, 2, Cause::Closed), (0, 1, 0, 2, Some(OutcomeView::Denied)));
    assert_eq!(connect("c", 0, 0, Cause::NotHttp), (0, 1, 0, 0, Some(OutcomeView::Denied)));
    assert_eq!(connect("d", 0, 0, Cause::Closed), (0, 0, 0, 0, None));
    assert_eq!(denials(&telemetry, "requests"), 3);
}

/// The sum of a family.
fn denials(telemetry: &Telemetry, what: &str) -> u64 {
    let name = format!("underpass_unauthorized_{what}_total");
    let text = telemetry.metrics_text().unwrap();
    let values = text.lines().filter(|line| line.starts_with(&name));
    values.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// A table, and a way to have a client add to it.
#[derive(Default)]
struct Crowd(Table);

impl Crowd {
    fn add(&mut self, identity: Option<&SpiffeId>, ip: IpAddr, port: u16, outcome: Outcome<'_>) {
        let (pod, server) = (pod("server-1"), Arc::new(workload("server")));
        let sight = Sight {
            pod: &pod,
            server: Some(&server),
            identity,
            client: None,
            client_ip: ip,
            target: SocketAddr::new([10, 0, 2, 9].into(), port),
        };
        let ended = Event::Ended { outcome, requests_allowed: 0, would_deny: None };
        self.0.add(&sight, ended, SystemTime::now());
    }
}

const SOMEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 5));

#[test]
fn who_tries_every_port_takes_no_row_from_others() {
    let mut crowd = Crowd::default();
    let (scanner, honest) = (identity("evil", "scanner"), identity("shop", "client"));
    for port in 1..=20_000 {
        crowd.add(Some(&scanner), SOMEWHERE, port, Outcome::Denied(&denial("shop/p")));
    }
    assert_eq!(crowd.0.rows().len(), MOST_OF_ONE);
    let left = crowd.0.left_out;
    assert_eq!((left.connections, left.denied), (20_000 - MOST_OF_ONE as u64, 20_000 - MOST_OF_ONE as u64));
    crowd.add(Some(&honest), SOMEWHERE, 80, Outcome::Allowed);
    assert_eq!(crowd.0.rows().len(), MOST_OF_ONE + 1);
    // What has a row goes on to be counted.
    crowd.add(Some(&scanner), SOMEWHERE, 1, Outcome::Allowed);
    assert_eq!(crowd.0.left_out, left);
}

#[test]
fn strangers_without_end_leave_room_for_identities() {
    let mut crowd = Crowd::default();
    // One that has a whole network of IPv6, and another that has many.
    for n in 0..20_000u128 {
        crowd.add(None, Ipv6Addr::from((0xfd00 << 112) + n).into(), 80, Outcome::Allowed);
    }
    assert_eq!(crowd.0.rows().len(), MOST_OF_ONE);
    for n in 0..20_000u128 {
        crowd.add(None, Ipv6Addr::from((0xfd01 << 112) + (n << 64)).into(), 80, Outcome::Allowed);
    }
    assert_eq!(crowd.0.rows().len(), MOST_OF_STRANGERS);
    for n in 0..20 {
        let account = identity("shop", &format!("client-{n}"));
        (0..1_000).for_each(|port| crowd.add(Some(&account), SOMEWHERE, port, Outcome::Allowed));
    }
    assert_eq!(crowd.0.rows().len(), MOST_ROWS, "and there is an end to everything");
    crowd.0.prune(SystemTime::now() + Duration::from_secs(1));
    assert_eq!(crowd.0.rows().len(), 0);
    crowd.add(None, SOMEWHERE, 80, Outcome::Allowed);
    assert_eq!(crowd.0.rows().len(), 1, "what was forgotten leaves its place");
}

#[test]
fn one_row_keeps_a_few_addresses_and_causes() {
    let mut crowd = Crowd::default();
    let client = identity("shop", "client");
    for n in 0..=255 {
        let denial = denial(&format!("shop/p{n}"));
        crowd.add(Some(&client), [10, 0, 1, n].into(), 80, Outcome::Denied(&denial));
    }
    let servers = crowd.0.servers();
    let [row] = &servers[0].clients[..] else { panic!() };
    assert_eq!((row.client.addresses.len(), row.client.from_other_addresses), (8, 248));
    assert_eq!(row.denials.len(), 4);
    assert_eq!(row.denials.iter().map(|denial| denial.count).sum::<u64>(), 256);
    assert_eq!((&row.denials[3].policy, &*row.denials[3].reason), (&None, "other"));
}

#[test]
fn refusals_are_counted_by_server_and_client() {
    let (telemetry, _) = telemetry(|_| {});
    let refuse = |record: Record| {
        record.set_denial(&denial("shop/p"));
        record.finish(Cause::PolicyDenied, None);
    };
    refuse(tunnelled(&telemetry, "bad"));
    refuse(tunnelled(&telemetry, "bad"));
    refuse(plaintext(&telemetry, "10.0.1.5:1000", Some("client")));
    refuse(plaintext(&telemetry, "192.0.2.7:1000", None));
    refuse(plaintext(&telemetry, "192.0.2.8:1000", None));
    let text = telemetry.metrics_text().unwrap();
    let to = "destination_workload_namespace=\"shop\",destination_workload=\"server-deployment\"";
    for (client, count) in [
        (
            "source_workload_namespace=\"shop\",source_workload=\"unknown\",source_principal=\"spiffe://cluster.local/ns/shop/sa/bad\"",
            2,
        ),
        (
            "source_workload_namespace=\"shop\",source_workload=\"client-deployment\",source_principal=\"unknown\"",
            1,
        ),
        ("source_workload_namespace=\"unknown\",source_workload=\"unknown\",source_principal=\"unknown\"", 2),
    ] {
        let security = if client.contains("spiffe") { "mutual_tls" } else { "none" };
        let line = format!(
            "underpass_unauthorized_connections_total{{{client},{to},connection_security_policy=\"{security}\"}} {count}"
        );
        assert!(text.lines().any(|l| l == line), "no {line} in {text}");
    }
}

#[test]
fn pods_are_called_by_what_they_are_instances_of() {
    for (name, labels, expected) in [
        ("web-7d9c5b8f6d-x2k4z", vec![("pod-template-hash", "7d9c5b8f6d")], "web"),
        // Not one of that ReplicaSet by its name.
        ("web-abc-x2k4z", vec![("pod-template-hash", "7d9c5b8f6d")], "web-abc"),
        (
            "db-0",
            vec![("statefulset.kubernetes.io/pod-name", "db-0"), ("controller-revision-hash", "db-5")],
            "db",
        ),
        ("agent-x2k4z", vec![("controller-revision-hash", "7d9c5b8f6d")], "agent"),
        ("report-28456780-x2k4z", vec![("batch.kubernetes.io/job-name", "report-28456780")], "report"),
        ("once-x2k4z", vec![("job-name", "once")], "once"),
        ("web-7d9c5b8f6d-x2k4z", vec![], "web-7d9c5b8f6d-x2k4z"),
        ("-x2k4z", vec![("controller-revision-hash", "7")], "-x2k4z"),
        ("", vec![("pod-template-hash", "")], ""),
    ] {
        let labels: BTreeMap<Arc<str>, Arc<str>> =
            labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        assert_eq!(owner_by_labels(name, &labels), expected, "{name} {labels:?}");
    }
}

#[test]
fn a_new_revision_of_a_deployment_is_the_same_server() {
    let mut table = Table::default();
    for hash in ["1", "2"] {
        let mut server = workload("server");
        server.workload_name = "web".into();
        server.facts.labels =
            [("app", "web"), ("pod-template-hash", hash)].map(|(k, v)| (k.into(), v.into())).into();
        let server = Arc::new(server);
        let pod = pod(&format!("web-{hash}"));
        let mut pod = (*pod).clone();
        pod.identity = identity("shop", "web");
        let id = identity("shop", "client");
        let sight = Sight {
            pod: &pod,
            server: Some(&server),
            identity: Some(&id),
            client: None,
            client_ip: SOMEWHERE,
            target: "10.0.2.9:80".parse().unwrap(),
        };
        let ended = Event::Ended { outcome: Outcome::Allowed, requests_allowed: 0, would_deny: None };
        table.add(&sight, ended, SystemTime::now());
    }
    let servers = table.servers();
    let [server] = &servers[..] else { panic!("{servers:?}") };
    assert_eq!(server.pod.labels.len(), 1);
    assert_eq!(server.clients[0].connections.allowed, 2);
}
