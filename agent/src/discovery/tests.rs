//! Lookups, routes and what the kernel is told, over one small mesh.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::model::workload::{Health, NetworkMode, PortMapping, TunnelProtocol};
use crate::model::{
    Cause, Destination, LocalPod, OriginalDst, PodUid, Service, SpiffeId, TrustDomain, Workload,
};
use crate::policy::{Action, Group, Kind, Policy, Scope};

fn id(namespace: &str, account: &str) -> SpiffeId {
    SpiffeId::new(TrustDomain::cluster_local(), namespace, account).unwrap()
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn workload(name: &str, addresses: &[&str]) -> Workload {
    let uid = format!("Kubernetes//Pod/shop/{name}");
    Workload { addresses: ips(addresses), ..Workload::new(&uid, "shop", name, id("shop", name)) }
}

fn plain(name: &str, addresses: &[&str]) -> Workload {
    Workload { protocol: TunnelProtocol::None, ..workload(name, addresses) }
}

fn member(of: &str, ports: &[(u16, u16)], workload: Workload) -> Workload {
    let mappings = ports.iter().map(|(s, t)| PortMapping { service_port: *s, target_port: *t }).collect();
    Workload { services: BTreeMap::from([(Arc::from(of), mappings)]), ..workload }
}

fn service(host: &str, vips: &[&str], ports: &[(u16, u16)]) -> Service {
    Service {
        name: host.into(),
        namespace: "shop".into(),
        hostname: host.into(),
        vips: vips.iter().map(|vip| vip.parse().unwrap()).collect(),
        ports: ports.iter().map(|(s, t)| PortMapping { service_port: *s, target_port: *t }).collect(),
        subject_alt_names: Vec::new(),
        allow_unhealthy: false,
        load_balancing: Default::default(),
        canonical: false,
        visibility: Default::default(),
    }
}

fn client() -> LocalPod {
    LocalPod {
        uid: PodUid("client".into()),
        namespace: "shop".into(),
        name: "client".into(),
        identity: id("shop", "client"),
        netns: "/run/netns/client".into(),
        addresses: ips(&["10.1.0.1", "fd00:1::1"]),
    }
}

fn mesh(workloads: Vec<Workload>, services: Vec<Service>) -> State {
    State {
        ranges: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/16".parse().unwrap()],
        workloads,
        services,
        local_pods: vec![client()],
        ..State::empty(TrustDomain::cluster_local())
    }
}

fn dial(state: State, to: &str) -> Route {
    let snapshot = Snapshot::build(1, state);
    route(&snapshot, &client(), OriginalDst(to.parse().unwrap()), &mut StdRng::seed_from_u64(1))
}

/// The route in a line: `hbone <target> via <next hop> as <identities>`, `plain <to>`, with `learn`
/// where it may be taught, and `refuse <cause>: <why>`.
fn told(route: &Route) -> String {
    match route {
        Route::Hbone { next_hop, target, expected, service, workload } => {
            let names: Vec<&str> = expected.iter().filter_map(SpiffeId::service_account).collect();
            let of = service.as_ref().map_or(String::new(), |s| format!(" of {}", s.hostname));
            format!("hbone {target} via {next_hop} as {} to {}{of}", names.join("|"), workload.name)
        }
        Route::Plain { to, service, workload, learn } => {
            let name = workload.as_ref().map_or("unknown", |w| &*w.name);
            let of = service.as_ref().map_or(String::new(), |s| format!(" of {}", s.hostname));
            format!("plain {to} to {name}{of}{}", if *learn { ", learn" } else { "" })
        }
        Route::Refuse(cause, why) => format!("refuse {}: {why}", cause.as_str()),
    }
}

fn small_mesh() -> State {
    mesh(
        vec![
            workload("client", &["10.1.0.1", "fd00:1::1"]),
            workload("server", &["10.1.0.2", "fd00:1::2"]),
            plain("legacy", &["10.1.0.3"]),
            plain("machine", &["192.0.2.7"]),
            Workload { network_mode: NetworkMode::HostNetwork, ..plain("hostnet", &["10.1.0.9"]) },
            Workload { network: "elsewhere".into(), ..workload("foreign", &["10.1.0.2"]) },
            member("shop/web", &[], workload("web", &["10.1.0.4", "fd00:1::4"])),
            member("shop/named", &[(80, 8081)], workload("named", &["10.1.0.5"])),
            member("shop/mixed", &[], plain("old", &["10.1.0.6"])),
            member(
                "shop/node",
                &[],
                Workload { network_mode: NetworkMode::HostNetwork, ..plain("agent", &["10.1.0.9"]) },
            ),
        ],
        vec![
            service("web", &["10.96.0.1/32", "fd00:96::1/128"], &[(80, 8080), (81, 15008)]),
            service("named", &["10.96.0.2/32"], &[(80, 0), (90, 0)]),
            service("mixed", &["10.96.0.3/32"], &[(80, 80)]),
            service("range", &["10.97.0.0/16"], &[(80, 80)]),
            service("node", &["10.96.0.5/32"], &[(80, 80)]),
            service("clash", &["10.1.0.2/32"], &[(80, 80)]),
        ],
    )
}

#[test]
fn routes() {
    for (to, expected) in [
        // Pods.
        ("10.1.0.2:8080", "hbone 10.1.0.2:8080 via 10.1.0.2:15008 as server to server"),
        ("[fd00:1::2]:8080", "hbone [fd00:1::2]:8080 via [fd00:1::2]:15008 as server to server"),
        ("[::ffff:10.1.0.2]:8080", "hbone 10.1.0.2:8080 via 10.1.0.2:15008 as server to server"),
        ("10.1.0.1:80", "hbone 10.1.0.1:80 via 10.1.0.1:15008 as client to client"),
        ("10.1.0.3:5432", "plain 10.1.0.3:5432 to legacy, learn"),
        ("192.0.2.7:443", "plain 192.0.2.7:443 to machine, learn"),
        // Services.
        ("10.96.0.1:80", "hbone 10.1.0.4:8080 via 10.1.0.4:15008 as web to web of web"),
        ("[fd00:96::1]:80", "hbone [fd00:1::4]:8080 via [fd00:1::4]:15008 as web to web of web"),
        ("10.96.0.2:80", "hbone 10.1.0.5:8081 via 10.1.0.5:15008 as named to named of named"),
        ("10.96.0.3:80", "plain 10.1.0.6:80 to old of mixed"),
        ("10.96.0.5:80", "plain 10.1.0.9:80 to agent of node"),
        ("10.96.0.1:8080", "refuse no_endpoint: service shop/web port 8080: it has no such port"),
        (
            "10.96.0.2:90",
            "refuse no_endpoint: service shop/named port 90: endpoints: 1 without a target port",
        ),
        ("10.97.3.4:80", "refuse no_endpoint: service shop/range port 80: it has no endpoints"),
        // The agent's own ports.
        (
            "10.1.0.2:15008",
            "refuse loop: 10.1.0.2:15008: port 15008 is the agent's own in every pod of the mesh",
        ),
        (
            "10.1.0.2:15006",
            "refuse loop: 10.1.0.2:15006: port 15006 is the agent's own in every pod of the mesh",
        ),
        (
            "10.1.0.2:15001",
            "refuse loop: 10.1.0.2:15001: port 15001 is the agent's own in every pod of the mesh",
        ),
        (
            "10.96.0.1:81",
            "refuse loop: 10.1.0.4:15008: port 15008 is the agent's own in every pod of the mesh",
        ),
        ("10.96.0.1:15008", "refuse no_endpoint: service shop/web port 15008: it has no such port"),
        (
            "10.200.0.1:15008",
            "refuse loop: 10.200.0.1:15008: port 15008 is the agent's own in every pod of the mesh",
        ),
        ("10.1.0.3:15008", "plain 10.1.0.3:15008 to legacy, learn"),
        ("198.51.100.1:15008", "plain 198.51.100.1:15008 to unknown, learn"),
        // Nobody that is known: inside the ranges it may be a pod of the mesh one day.
        ("10.1.0.9:80", "plain 10.1.0.9:80 to unknown"),
        ("10.200.0.1:80", "plain 10.200.0.1:80 to unknown"),
        ("[fd00:9::1]:80", "plain [fd00:9::1]:80 to unknown"),
        ("198.51.100.1:443", "plain 198.51.100.1:443 to unknown, learn"),
        ("[2001:db8::1]:443", "plain [2001:db8::1]:443 to unknown, learn"),
        // Nowhere.
        ("127.0.0.1:80", "refuse bad_target: 127.0.0.1 is no address of another pod"),
        ("[::1]:80", "refuse bad_target: ::1 is no address of another pod"),
        ("[::ffff:127.0.0.1]:80", "refuse bad_target: 127.0.0.1 is no address of another pod"),
        ("0.0.0.0:80", "refuse bad_target: 0.0.0.0 is no address of another pod"),
        ("[::]:80", "refuse bad_target: :: is no address of another pod"),
        ("224.0.0.1:80", "refuse bad_target: 224.0.0.1 is no address of another pod"),
    ] {
        assert_eq!(told(&dial(small_mesh(), to)), expected, "{to}");
    }
}

#[test]
fn unknown_destinations_may_be_refused() {
    let state = || State { unknown: UnknownDestinations::Refuse, ..small_mesh() };
    for (to, expected) in [
        (
            "10.200.0.1:80",
            "refuse no_endpoint: 10.200.0.1 is in the mesh's ranges, but neither a workload's address nor a service's",
        ),
        ("198.51.100.1:443", "plain 198.51.100.1:443 to unknown, learn"),
        ("10.1.0.3:5432", "plain 10.1.0.3:5432 to legacy, learn"),
        ("10.1.0.2:80", "hbone 10.1.0.2:80 via 10.1.0.2:15008 as server to server"),
    ] {
        assert_eq!(told(&dial(state(), to)), expected, "{to}");
    }
}

#[test]
fn nothing_is_routed_before_anything_is_known() {
    let store = Store::new();
    let route =
        route(&store.current(), &client(), OriginalDst("192.0.2.1:80".parse().unwrap()), &mut rand::rng());
    assert_eq!(told(&route), "refuse no_endpoint: nothing is known of the mesh yet");
}

#[test]
fn who_must_be_proven() {
    let server = |name: &str, ip: &str| member("shop/web", &[], workload(name, &[ip]));
    let with = |names: Vec<SpiffeId>| {
        let web = Service { subject_alt_names: names, ..service("web", &["10.96.0.1/32"], &[(80, 80)]) };
        let state = mesh(vec![server("web", "10.1.0.4")], vec![web]);
        match dial(state, "10.96.0.1:80") {
            Route::Hbone { expected, .. } => expected.to_vec(),
            other => panic!("{other:?}"),
        }
    };
    let (web, alt, zoo) = (id("shop", "web"), id("shop", "alt"), id("zoo", "a"));
    assert_eq!(with(vec![]), std::slice::from_ref(&web));
    assert_eq!(with(vec![web.clone()]), std::slice::from_ref(&web));
    // Whatever their order, so that tunnels are shared.
    assert_eq!(with(vec![zoo.clone(), alt.clone(), zoo.clone()]), [alt.clone(), web.clone(), zoo.clone()]);
    assert_eq!(with(vec![alt.clone(), zoo.clone()]), [alt, web, zoo]);
}

#[test]
fn which_endpoints_are_used() {
    let endpoint = |name: &str, ip: &str| member("shop/web", &[], workload(name, &[ip]));
    let ok = || endpoint("ok", "10.1.0.10");
    let ill = || Workload { health: Health::Unhealthy, ..endpoint("ill", "10.1.0.11") };
    let idle = || Workload { capacity: 0, ..endpoint("idle", "10.1.0.12") };
    let far = || Workload { network: "elsewhere".into(), ..endpoint("far", "10.1.0.13") };
    let bare = || member("shop/web", &[], workload("bare", &[]));
    let other = || member("shop/other", &[], workload("other", &["10.1.0.14"]));
    let web = || service("web", &["10.96.0.1/32"], &[(80, 80)]);
    let lenient = || Service { allow_unhealthy: true, ..web() };
    for (workloads, web, expected) in [
        (vec![ok(), ill(), idle(), far(), bare(), other()], web(), vec!["ok"]),
        (vec![ok(), ill(), idle(), far(), bare(), other()], lenient(), vec!["ill", "ok"]),
        (vec![ill(), other()], web(), vec![]),
        (vec![ill()], lenient(), vec!["ill"]),
    ] {
        let snapshot = Snapshot::build(1, mesh(workloads, vec![web]));
        let names: Vec<&str> = snapshot.endpoints("shop/web", 80).map(|(w, _)| &*w.name).collect();
        assert_eq!(names, expected);
    }
    let why = dial(mesh(vec![ill(), idle(), far(), bare()], vec![web()]), "10.96.0.1:80");
    assert_eq!(
        told(&why),
        "refuse no_endpoint: service shop/web port 80: endpoints: 1 unhealthy, 1 in another network, \
         1 of capacity 0, 1 without an address"
    );
}

#[test]
fn where_the_client_is_counts_as_the_service_says() {
    use crate::model::workload::{BalancingMode, LoadBalancing, Locality, LocalityScope};
    let at = |region: &str, zone: &str, node: &str, w: Workload| Workload {
        locality: Locality { region: region.into(), zone: zone.into(), subzone: "".into() },
        node: node.into(),
        ..w
    };
    let endpoint = |name: &str, ip: &str| member("shop/web", &[], workload(name, &[ip]));
    let me = || at("eu", "eu-1", "n1", workload("client", &["10.1.0.1"]));
    let node = || at("eu", "eu-1", "n1", endpoint("node", "10.1.0.10"));
    let zone = || at("eu", "eu-1", "n2", endpoint("zone", "10.1.0.11"));
    let region = || at("eu", "eu-2", "n3", endpoint("region", "10.1.0.12"));
    // Its zone and node are named like ours, but it is elsewhere.
    let far = || at("us", "eu-1", "n1", endpoint("far", "10.1.0.13"));
    let scopes = vec![LocalityScope::Region, LocalityScope::Zone, LocalityScope::Node];
    let chosen = |mode, workloads: Vec<Workload>, with_me: bool| {
        let load_balancing = LoadBalancing { mode, routing_preference: scopes.clone() };
        let web = Service { load_balancing, ..service("web", &["10.96.0.1/32"], &[(80, 80)]) };
        let mine = with_me.then(me);
        let snapshot = Snapshot::build(1, mesh(workloads.into_iter().chain(mine).collect(), vec![web]));
        let mut rng = StdRng::seed_from_u64(7);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            match route(&snapshot, &client(), OriginalDst("10.96.0.1:80".parse().unwrap()), &mut rng) {
                Route::Hbone { workload, .. } => seen.insert(workload.name.to_string()),
                other => seen.insert(told(&other)),
            };
        }
        seen.into_iter().collect::<Vec<_>>().join(" ")
    };
    let (all, failover, strict) =
        (BalancingMode::Unspecified, BalancingMode::Failover, BalancingMode::Strict);
    let too_far =
        "refuse no_endpoint: service shop/web port 80: no endpoint is as near as its routing preference asks";
    assert_eq!(chosen(all, vec![node(), zone(), region(), far()], true), "far node region zone");
    assert_eq!(chosen(failover, vec![node(), zone(), region(), far()], true), "node");
    assert_eq!(chosen(failover, vec![zone(), region(), far()], true), "zone");
    assert_eq!(chosen(failover, vec![region(), far()], true), "region");
    assert_eq!(chosen(failover, vec![far()], true), "far");
    assert_eq!(chosen(strict, vec![node(), zone(), region(), far()], true), "node");
    assert_eq!(chosen(strict, vec![zone(), region(), far()], true), too_far);
    // Nobody knows where we are.
    assert_eq!(chosen(failover, vec![zone(), far()], false), "far zone");
    assert_eq!(chosen(strict, vec![node()], false), too_far);
}

#[test]
fn services_of_other_namespaces_by_canonical_and_visibility() {
    use crate::model::workload::Visibility;
    let of = |namespace: &str, canonical, visibility| Service {
        namespace: namespace.into(),
        canonical,
        visibility,
        ..service("web.example", &["10.96.0.1/32"], &[(80, 80)])
    };
    let (public, private) = (Visibility::Public, Visibility::Namespace);
    let vip = "10.96.0.1".parse().unwrap();
    let snapshot = Snapshot::build(
        1,
        mesh(vec![], vec![of("bar", false, public), of("baz", true, private), of("zoo", true, public)]),
    );
    for (client, expected) in [("bar", "bar"), ("baz", "baz"), ("shop", "zoo")] {
        assert_eq!(&*snapshot.service_by_vip(vip, client).unwrap().namespace, expected, "{client}");
    }
    // Not even where its address could be left alone: that would be plaintext to pods of the mesh.
    let hidden = mesh(vec![workload("client", &["10.1.0.1"])], vec![of("baz", true, private)]);
    assert_eq!(
        told(&dial(hidden, "10.96.0.1:80")),
        "refuse no_endpoint: service baz/web.example port 80: it is for clients of its own namespace only"
    );
}

#[test]
fn capacity_is_a_weight() {
    let endpoint = |name: &str, ip: &str, capacity| Workload {
        capacity,
        ..member("shop/web", &[], workload(name, &[ip]))
    };
    let workloads = vec![
        endpoint("a", "10.1.0.10", 1),
        endpoint("b", "10.1.0.11", 3),
        endpoint("c", "10.1.0.12", 0),
        endpoint("d", "10.1.0.13", u32::MAX),
    ];
    let snapshot =
        |workloads| Snapshot::build(1, mesh(workloads, vec![service("web", &["10.96.0.1/32"], &[(80, 80)])]));
    let tally = |snapshot: &Snapshot| {
        let mut rng = StdRng::seed_from_u64(7);
        let mut seen = BTreeMap::<String, u32>::new();
        for _ in 0..10_000 {
            match route(snapshot, &client(), OriginalDst("10.96.0.1:80".parse().unwrap()), &mut rng) {
                Route::Hbone { workload, .. } => *seen.entry(workload.name.to_string()).or_default() += 1,
                other => panic!("{other:?}"),
            }
        }
        seen
    };
    let two = tally(&snapshot(workloads[..3].to_vec()));
    assert_eq!(two.keys().collect::<Vec<_>>(), ["a", "b"]);
    // 2,500 ± 43 (one sigma) of 10,000; the seed is fixed.
    assert!((2300..2700).contains(&two["a"]), "{two:?}");
    let huge = tally(&snapshot(workloads));
    assert_eq!(huge.get("d"), Some(&10_000), "{huge:?}");
}

#[test]
fn two_services_at_one_address() {
    let at = |namespace: &str| Service {
        namespace: namespace.into(),
        ..service("web.example", &["10.96.0.1/32", "10.98.0.0/16"], &[(80, 80)])
    };
    let snapshot = Snapshot::build(1, mesh(vec![], vec![at("zoo"), at("shop"), at("bar")]));
    for (from, expected) in [("shop", "shop"), ("zoo", "zoo"), ("other", "bar")] {
        for ip in ["10.96.0.1", "10.98.1.2"] {
            let found = snapshot.service_by_vip(ip.parse().unwrap(), from).unwrap();
            assert_eq!(&*found.namespace, expected, "from {from} to {ip}");
        }
    }
    let hosts: Vec<_> = snapshot.services_by_host("web.example").map(|s| s.key()).collect();
    assert_eq!(hosts, ["bar/web.example", "shop/web.example", "zoo/web.example"]);
    assert_eq!(snapshot.service_by_key("zoo/web.example").unwrap().key(), "zoo/web.example");
    assert!(snapshot.service_by_key("zoo/other").is_none());
}

#[test]
fn the_more_specific_vip_wins() {
    let services = vec![
        service("wide", &["10.96.0.0/16"], &[]),
        service("narrow", &["10.96.1.0/24"], &[]),
        service("exact", &["10.96.1.1/32"], &[]),
    ];
    let snapshot = Snapshot::build(1, mesh(vec![], services));
    for (ip, expected) in [("10.96.1.1", "exact"), ("10.96.1.2", "narrow"), ("10.96.2.1", "wide")] {
        assert_eq!(
            &*snapshot.service_by_vip(ip.parse().unwrap(), "shop").unwrap().hostname,
            expected,
            "{ip}"
        );
    }
    assert!(snapshot.service_by_vip("10.97.0.1".parse().unwrap(), "shop").is_none());
}

#[test]
fn two_workloads_at_one_address() {
    let pod = || workload("pod", &["10.1.0.5"]);
    let external = || Workload { uid: "external".into(), ..workload("external", &["10.1.0.5"]) };
    let unmeshed = || plain("unmeshed", &["10.1.0.5"]);
    for (workloads, expected) in [
        (vec![pod(), external()], "pod"),
        (vec![external(), pod()], "pod"),
        (vec![unmeshed(), external()], "unmeshed"),
        (vec![unmeshed(), pod()], "pod"),
        (vec![external(), unmeshed(), pod()], "pod"),
    ] {
        let snapshot = Snapshot::build(1, mesh(workloads, vec![]));
        assert_eq!(&*snapshot.workload("10.1.0.5".parse().unwrap()).unwrap().name, expected);
    }
}

#[test]
fn a_pod_is_the_workload_of_its_address_name_and_identity() {
    let same = workload("client", &["10.1.0.1"]);
    let second_address = workload("client", &["fd00:1::1"]);
    let renamed = Workload { name: "other".into(), ..same.clone() };
    let moved = Workload { namespace: "zoo".into(), ..same.clone() };
    let other_account = Workload { identity: id("shop", "admin"), ..same.clone() };
    let elsewhere = Workload { addresses: ips(&["10.1.0.99"]), ..same.clone() };
    for (workload, known) in [
        (same, true),
        (second_address, true),
        (renamed, false),
        (moved, false),
        (other_account, false),
        (elsewhere, false),
    ] {
        let snapshot = Snapshot::build(1, mesh(vec![workload.clone()], vec![]));
        assert_eq!(snapshot.workload_of(&client()).is_some(), known, "{workload:?}");
        // Nobody may connect to a pod of which it is not known what policies it has.
        assert_eq!(snapshot.inbound_policy(&client()).blocked().is_none(), known, "{workload:?}");
    }
}

#[test]
fn policy_follows_the_present_workload() {
    let named = |policies: &[&str]| Workload {
        policies: policies.iter().map(|key| Arc::from(*key)).collect(),
        ..workload("client", &["10.1.0.1"])
    };
    let deny_all = Policy {
        kind: Kind::Authorization,
        namespace: "shop".into(),
        name: "closed".into(),
        scope: Scope::WorkloadSelector,
        action: Action::Deny,
        groups: vec![Group::default()],
        dry_run: false,
        defect: None,
    };
    let build = |workload| {
        Snapshot::build(1, State { policies: vec![deny_all.clone()], ..mesh(vec![workload], vec![]) })
    };
    let names = |snapshot: &Snapshot, workload: &Workload| -> Vec<String> {
        snapshot.policies_for(workload).policy_names().map(ToString::to_string).collect()
    };
    let (open, closed) = (named(&[]), named(&["shop/closed"]));
    assert_eq!(names(&build(open.clone()), &open), [""; 0]);
    // Whoever holds the description of before is told what holds now.
    assert_eq!(names(&build(closed), &open), ["shop/closed"]);
    let gone = Snapshot::build(1, mesh(vec![], vec![]));
    assert!(gone.policies_for(&open).blocked().is_some());
}

#[test]
fn what_the_kernel_is_told() {
    let KernelDestinations { known, ranges } = Snapshot::build(1, small_mesh()).kernel_destinations();
    let expected = |text: &str| match text {
        "leave" => Destination::Leave,
        _ => Destination::Capture,
    };
    let rows: BTreeMap<IpAddr, Destination> = [
        ("10.1.0.1", "capture"),
        ("fd00:1::1", "capture"),
        ("10.1.0.2", "capture"),
        ("fd00:1::2", "capture"),
        ("10.1.0.3", "leave"),
        ("192.0.2.7", "leave"),
        ("10.1.0.4", "capture"),
        ("fd00:1::4", "capture"),
        ("10.1.0.5", "capture"),
        ("10.1.0.6", "leave"),
        ("10.96.0.1", "capture"),
        ("fd00:96::1", "capture"),
        ("10.96.0.2", "capture"),
        ("10.96.0.3", "capture"),
        ("10.96.0.5", "capture"),
    ]
    .into_iter()
    .map(|(ip, what)| (ip.parse().unwrap(), expected(what)))
    .collect();
    assert_eq!(known, rows);
    let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["10.0.0.0/8", "10.97.0.0/16", "fd00::/16"]);
}

/// What the kernel leaves alone the agent must not have wanted to see, and nothing that goes to a pod
/// of the mesh is left alone.
#[test]
fn the_kernel_leaves_alone_only_what_goes_plain() {
    let snapshot = Snapshot::build(1, small_mesh());
    let KernelDestinations { known, ranges } = snapshot.kernel_destinations();
    for n in 0..=u16::MAX {
        // Pods, services, ranges and outside addresses are all in these blocks.
        let [a, b] = n.to_be_bytes();
        for ip in [IpAddr::from([10, 1, a, b]), IpAddr::from([10, 96, a, b]), IpAddr::from([192, 0, a, b])] {
            let by_range = if ranges.iter().any(|range| range.contains(&ip)) {
                Destination::Capture
            } else {
                Destination::Leave
            };
            let verdict = known.get(&ip).copied().unwrap_or(by_range);
            let route = route(
                &snapshot,
                &client(),
                OriginalDst(SocketAddr::new(ip, 80)),
                &mut StdRng::seed_from_u64(1),
            );
            let learn = matches!(route, Route::Plain { learn: true, .. });
            assert_eq!(verdict == Destination::Leave, learn, "{ip}: {verdict:?}, {route:?}");
        }
    }
}

#[test]
fn the_store_counts_revisions_and_tells_everyone() {
    let store = Store::new();
    let mut early = store.subscribe();
    assert!(!early.borrow_and_update().is_synced());
    assert_eq!(store.current().trust_domain(), None);
    assert_eq!(store.publish(small_mesh()).revision(), 1);
    assert_eq!(store.clone().publish(mesh(vec![], vec![])).revision(), 2);
    assert!(early.has_changed().unwrap());
    let latest = early.borrow_and_update().clone();
    assert_eq!((latest.revision(), latest.is_synced(), latest.workloads().len()), (2, true, 0));
    assert_eq!(store.subscribe().borrow().revision(), 2);
    assert_eq!(latest.local_pods().map(|pod| pod.name.to_string()).collect::<Vec<_>>(), ["client"]);
    assert!(latest.local_pod(&PodUid("client".into())).is_some());
}

#[test]
fn refusals_carry_the_cause_for_metrics() {
    let cause = |to| match dial(small_mesh(), to) {
        Route::Refuse(cause, _) => Some(cause),
        _ => None,
    };
    assert_eq!(cause("10.96.0.1:1"), Some(Cause::NoEndpoint));
    assert_eq!(cause("10.1.0.2:15008"), Some(Cause::Loop));
    assert_eq!(cause("127.0.0.1:80"), Some(Cause::BadTarget));
    assert_eq!(cause("10.1.0.2:80"), None);
}

#[test]
fn the_kernel_leaves_alone_what_is_both_a_services_and_a_plain_workloads() {
    let workload = plain("plain", &["10.0.0.9"]);
    let both = service("both.mesh", &["10.0.0.9/32", "10.0.0.8/32"], &[(80, 80)]);
    let known = Snapshot::build(1, mesh(vec![workload], vec![both])).kernel_destinations().known;
    assert_eq!(known[&"10.0.0.9".parse::<IpAddr>().unwrap()], Destination::Leave);
    assert_eq!(known[&"10.0.0.8".parse::<IpAddr>().unwrap()], Destination::Capture);
}

#[test]
fn an_address_of_another_network_is_nobodys_here() {
    let far = Workload { network: "far".into(), ..workload("far", &["10.0.0.9"]) };
    let route = dial(mesh(vec![far], vec![]), "10.0.0.9:80");
    assert!(matches!(route, Route::Plain { workload: None, learn: false, .. }), "{route:?}");
}
