//! What a mesh file may say, what it may not, and that no text is too strange.

use std::collections::BTreeMap;
use std::str::FromStr;

use proptest::prelude::*;
use proptest::sample::select;

use super::document::{
    Document, Group, HealthPolicy, LoadBalancing, Locality, Match, Mesh, Policy, Protocol, Rule, Service,
    Workload, WorkloadMtls,
};
use super::scalar::{Cidr, Pattern};
use super::*;
use crate::discovery::{Snapshot, State, UnknownDestinations};
use crate::model::workload::{
    BalancingMode, Health, LocalityScope, NetworkMode, PortMapping, TunnelProtocol, Visibility, WorkloadType,
};
use crate::model::{MtlsMode, TrustDomain};
use crate::policy::{Action, Scope};

const POD: &str = "\
mesh: {ranges: [10.0.0.0/8]}
workloads:
- name: web-1
  namespace: shop
  workloadIps: [10.1.0.1]
  protocol: HBONE
localPods:
- uid: one
  namespace: shop
  name: web-1
  netns: /run/netns/web-1
  addresses: [10.1.0.1]
";

fn state(text: &str) -> State {
    parse(text).unwrap_or_else(|error| panic!("{error}\n{text}")).state
}

#[test]
fn what_is_left_out_has_istios_defaults() {
    let state = state(POD);
    let workload = &state.workloads[0];
    assert_eq!(&*workload.uid, "Kubernetes//Pod/shop/web-1");
    assert_eq!(workload.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/default");
    assert_eq!(&*workload.network, "");
    assert_eq!(&*workload.cluster, "Kubernetes");
    assert_eq!((&*workload.canonical_name, &*workload.canonical_revision), ("web-1", "latest"));
    assert_eq!((workload.capacity, workload.health), (1, Health::Healthy));
    assert_eq!(workload.network_mode, NetworkMode::Standard);
    assert_eq!(workload.workload_type, WorkloadType::Pod);
    assert_eq!(state.mtls.mesh, MtlsMode::Permissive);
    assert_eq!(state.unknown, UnknownDestinations::Passthrough);
    assert_eq!(state.local_pods[0].identity, workload.identity);
}

#[test]
fn what_is_said_arrives() {
    let state = state(
        "\
mesh: {trustDomain: td, network: net1, mtls: STRICT, namespaceMtls: {zoo: PERMISSIVE}, unknownDestinations: REFUSE}
workloads:
- uid: vm-1
  name: vm
  namespace: zoo
  serviceAccount: keeper
  trustDomain: other
  workloadIps: ['::ffff:10.1.0.1', 'fd00::1']
  protocol: NONE
  network: net2
  networkMode: HOST_NETWORK
  node: n1
  clusterId: c1
  canonicalName: cn
  canonicalRevision: r1
  workloadType: CRONJOB
  workloadName: wn
  status: UNHEALTHY
  locality: {region: r, zone: z, subzone: s}
  capacity: 7
  services: {zoo/gate.example: {80: 8080}}
  authorizationPolicies: [zoo/p]
  mtls: {mode: STRICT, ports: {9090: PERMISSIVE}}
services:
- namespace: zoo
  hostname: gate.example
  vips: [10.96.0.1, 10.97.0.1/16]
  ports: {80: 0}
  subjectAltNames: ['spiffe://td/ns/a/sa/b']
  loadBalancing: {healthPolicy: ALLOW_ALL, mode: STRICT, routingPreference: [ZONE, NETWORK]}
  canonical: true
  visibility: NAMESPACE
policies:
- {name: p, namespace: zoo, scope: WORKLOAD_SELECTOR, action: DENY, groups: [{rules: [{matches: [{namespaces: ['*']}]}]}]}
",
    );
    assert_eq!((state.trust_domain.as_str(), &*state.network), ("td", "net1"));
    assert_eq!(
        (state.mtls.mesh, state.mtls.namespaces.get("zoo")),
        (MtlsMode::Strict, Some(&MtlsMode::Permissive))
    );
    assert_eq!(state.unknown, UnknownDestinations::Refuse);
    let w = &state.workloads[0];
    assert_eq!(w.identity.to_string(), "spiffe://other/ns/zoo/sa/keeper");
    let addresses: Vec<String> = w.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.1.0.1", "fd00::1"]);
    assert_eq!((w.protocol, w.network_mode), (TunnelProtocol::None, NetworkMode::HostNetwork));
    let names =
        [&w.uid, &w.network, &w.node, &w.cluster, &w.canonical_name, &w.canonical_revision, &w.workload_name];
    assert_eq!(names.map(|name| &**name), ["vm-1", "net2", "n1", "c1", "cn", "r1", "wn"]);
    assert_eq!((w.workload_type, w.health, w.capacity), (WorkloadType::Cronjob, Health::Unhealthy, 7));
    assert_eq!([&w.locality.region, &w.locality.zone, &w.locality.subzone].map(|s| &**s), ["r", "z", "s"]);
    assert_eq!(w.services["zoo/gate.example"], [PortMapping { service_port: 80, target_port: 8080 }]);
    assert_eq!(w.policies, [std::sync::Arc::from("zoo/p")]);
    assert_eq!((w.mtls.mode, w.mtls.ports.get(&9090)), (Some(MtlsMode::Strict), Some(&MtlsMode::Permissive)));
    let s = &state.services[0];
    assert_eq!((&*s.name, s.key().as_str(), s.allow_unhealthy), ("gate", "zoo/gate.example", true));
    assert_eq!(s.vips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.96.0.1/32", "10.97.0.0/16"]);
    assert_eq!(s.ports, [PortMapping { service_port: 80, target_port: 0 }]);
    assert_eq!((s.canonical, s.visibility), (true, Visibility::Namespace));
    let preference = vec![LocalityScope::Zone, LocalityScope::Network];
    let balancing = (s.load_balancing.mode, s.load_balancing.routing_preference.clone());
    assert_eq!(balancing, (BalancingMode::Strict, preference));
    assert_eq!(s.subject_alt_names[0].to_string(), "spiffe://td/ns/a/sa/b");
    let p = &state.policies[0];
    assert_eq!((&*p.key(), p.scope, p.action), ("zoo/p", Scope::WorkloadSelector, Action::Deny));
    assert_eq!(p.groups[0].rules[0].matches[0].namespaces, [crate::policy::StringMatch::Presence]);
}

/// Each edit of a good file breaks it, and the complaint is where the edit was.
#[test]
fn bad_edits_are_refused_with_their_place() {
    let with = |from: &str, to: &str| {
        assert!(POD.contains(from), "{from}");
        POD.replacen(from, to, 1)
    };
    let more = |text: &str| POD.to_string() + text;
    let workload = |text: &str| with("localPods:", &format!("{text}\nlocalPods:"));
    let mut wrong = Vec::new();
    let another = "- {name: b, namespace: shop, protocol: HBONE";
    for (text, expected) in [
        // Syntax and types.
        (String::new(), "1:1: unexpected end of file"),
        ("workloads: []".into(), "1:1: missing field `mesh`"),
        ("mesh: {}\n---\nmesh: {}\n".into(), "3:1: "),
        (with("  protocol: HBONE", "  protocl: HBONE"), "6:3: workloads[0].protocl: unknown field `protocl`"),
        (with("  protocol: HBONE\n", ""), "5:3: workloads[0]: missing field `protocol`"),
        (with("HBONE", "hbone"), "6:13: workloads[0].protocol: unknown variant `hbone`"),
        (with("mesh: {", "mesh: {trustDomain: Td, "), "1:21: mesh.trustDomain: a trust domain is"),
        (
            with("10.0.0.0/8", "10.0.0.0/33"),
            "1:17: mesh.ranges[0]: \"10.0.0.0/33\" is neither an IP address nor a range",
        ),
        (
            with("[10.1.0.1]", "[10.1.0.1, 10.1.0]"),
            "5:27: workloads[0].workloadIps[1]: \"10.1.0\" is not an IP address",
        ),
        (
            with("[10.1.0.1]", "[10.1.0.1/32]"),
            "5:17: workloads[0].workloadIps[0]: \"10.1.0.1/32\" is not an IP address",
        ),
        (with("  protocol: HBONE", "  protocol: HBONE\n  capacity: -1"), "7:13: workloads[0].capacity: "),
        (
            with("  protocol: HBONE", "  protocol: HBONE\n  name: twice"),
            "7:3: workloads[0]: duplicate mapping key",
        ),
        (
            with("  protocol: HBONE", "  protocol: HBONE\n  services: {shop/a: {99999: 1}}"),
            "7:23: workloads[0].services.shop/a: invalid u16",
        ),
        // Names and identities.
        (with("name: web-1", "name: ''"), "3:9: workloads[0].name: must not be empty"),
        (with("namespace: shop", "namespace: sh/op"), "4:14: workloads[0].namespace: \"sh/op\" is no name"),
        (
            with("  protocol: HBONE", "  protocol: HBONE\n  serviceAccount: a b"),
            "7:19: workloads[0].serviceAccount: a path segment",
        ),
        (
            with("  protocol: HBONE", "  protocol: HBONE\n  uid: ''"),
            "7:8: workloads[0].uid: must not be empty",
        ),
        // Twice the same.
        (
            workload(&format!("{another}, uid: Kubernetes//Pod/shop/web-1}}")),
            "7:52: workloads[1].uid: workloads[0] has the uid",
        ),
        (
            workload("- {name: web-1, namespace: shop, protocol: TCP}"),
            "7:3: workloads[1].uid: workloads[0] has the uid",
        ),
        (
            workload(&format!("{another}, workloadIps: [10.1.0.1]}}")),
            "7:61: workloads[1].workloadIps[0]: 10.1.0.1 already belongs to workloads[0] (shop/web-1)",
        ),
        (
            workload(&format!("{another}, workloadIps: ['::ffff:10.1.0.1']}}")),
            "7:61: workloads[1].workloadIps[0]: 10.1.0.1 already",
        ),
        (
            with("[10.1.0.1]\n  protocol", "[10.1.0.1, 10.1.0.1]\n  protocol"),
            "5:27: workloads[0].workloadIps[1]: 10.1.0.1 already",
        ),
        (
            more("services: [{namespace: a, hostname: b}, {namespace: a, hostname: b}]"),
            "13:66: services[1].hostname: services[0] is \"a/b\" already",
        ),
        (
            more("services: [{namespace: a, hostname: b, vips: [10.1.0.1]}]"),
            "5:17: workloads[0].workloadIps[0]: 10.1.0.1 already belongs to services[0] (a/b)",
        ),
        (
            more(
                "services: [{namespace: a, hostname: b, vips: [10.9.0.0/16]}, {namespace: a, hostname: c, vips: [10.9.1.1/16]}]",
            ),
            "13:97: services[1].vips[0]: 10.9.0.0/16 already belongs to services[0]",
        ),
        (
            more(
                "policies: [{name: p, namespace: a, scope: GLOBAL, action: DENY}, {name: p, namespace: a, scope: GLOBAL, action: ALLOW}]",
            ),
            "13:73: policies[1].name: policies[0] is \"a/p\" already",
        ),
        (
            more("- {uid: one, namespace: shop, name: web-1, netns: /x, addresses: [10.1.0.1]}"),
            "13:9: localPods[1].uid: localPods[0] has it already; 13:67: localPods[1].addresses[0]: localPods[0] has it already",
        ),
        (
            more(
                "- {uid: two, namespace: shop, name: web-1, netns: /run/netns/web-1, addresses: [10.1.0.1]}",
            ),
            "13:51: localPods[1].netns: localPods[0] has it already",
        ),
        // References and ports.
        (
            with("  protocol: HBONE", "  protocol: HBONE\n  services: {shop/gone: {}}"),
            "7:25: workloads[0].services.shop/gone: there is no service \"shop/gone\"",
        ),
        (
            with("  protocol: HBONE", "  protocol: HBONE\n  services: {gone: {}}"),
            "7:20: workloads[0].services.gone: is written as namespace/name",
        ),
        (
            with("  protocol: HBONE", "  protocol: HBONE\n  authorizationPolicies: [gone]"),
            "7:27: workloads[0].authorizationPolicies[0]: is written as namespace/name",
        ),
        (
            more("services: [{namespace: a, hostname: b, ports: {0: 80}}]"),
            "13:51: services[0].ports.0: 0 is no port",
        ),
        (
            more("services: [{namespace: a, hostname: b, ports: {80: 15008}}]"),
            "13:52: services[0].ports.80: target port 15008 is the agent's own",
        ),
        (
            with("  protocol: HBONE", "  protocol: HBONE\n  mtls: {ports: {0: STRICT}}"),
            "7:21: workloads[0].mtls.ports.0: 0 is no port",
        ),
        (
            more(
                "policies: [{name: p, namespace: a, scope: GLOBAL, action: DENY, groups: [{rules: [{matches: [{destinationPorts: [0]}]}]}]}]",
            ),
            "13:114: policies[0].groups[0].rules[0].matches[0].destinationPorts[0]: 0 is no port",
        ),
        (
            more(
                "policies: [{name: p, namespace: a, scope: GLOBAL, action: DENY, groups: [{rules: [{matches: [{principals: ['a*b']}]}]}]}]",
            ),
            "13:108: policies[0].groups[0].rules[0].matches[0].principals[0]: \"a*b\": a * may only stand",
        ),
        (
            more("policies: [{name: p, namespace: a, scope: MESH, action: DENY}]"),
            "13:43: policies[0].scope: unknown variant `MESH`",
        ),
        (
            more("policies: [{name: p, namespace: a, scope: GLOBAL, action: CUSTOM}]"),
            "13:59: policies[0].action: unknown variant `CUSTOM`",
        ),
        // Addresses that nobody else can dial.
        (
            with("[10.1.0.1]", "[127.0.0.1]"),
            "5:17: workloads[0].workloadIps[0]: 127.0.0.1 is no address that others can dial",
        ),
        (with("[10.1.0.1]", "['::']"), "5:17: workloads[0].workloadIps[0]: :: is no address"),
        (
            more("services: [{namespace: a, hostname: b, vips: [224.0.0.1]}]"),
            "13:47: services[0].vips[0]: 224.0.0.1 is no address",
        ),
        // Pods of this node.
        (
            with("  addresses: [10.1.0.1]", "  addresses: []"),
            "12:14: localPods[0].addresses: a pod has at least one address",
        ),
        (
            with("  addresses: [10.1.0.1]", "  addresses: [10.1.0.2]"),
            "12:15: localPods[0].addresses[0]: no workload of this network has 10.1.0.2",
        ),
        (
            with("  addresses: [10.1.0.1]", "  addresses: [10.1.0.1, 10.1.0.2]"),
            "12:25: localPods[0].addresses[1]: no workload of this network has 10.1.0.2",
        ),
        (with("/run/netns/web-1", "netns/web-1"), "11:10: localPods[0].netns: must be an absolute path"),
        (with("- uid: one", "- uid: ''"), "8:8: localPods[0].uid: must not be empty"),
        (
            with("  addresses:", "  serviceAccount: admin\n  addresses:"),
            "13:15: localPods[0].addresses[0]: 10.1.0.1 is that of workload shop/web-1 with the identity spiffe://cluster.local/ns/shop/sa/default, not of shop/web-1 with spiffe://cluster.local/ns/shop/sa/admin",
        ),
        (
            with("  protocol: HBONE", "  protocol: HBONE\n  network: elsewhere"),
            "13:15: localPods[0].addresses[0]: no workload of this network has 10.1.0.1",
        ),
        (
            with("  protocol: HBONE", "  protocol: HBONE\n  networkMode: HOST_NETWORK"),
            "13:15: localPods[0].addresses[0]: no workload of this network has 10.1.0.1",
        ),
    ] {
        let told = parse(&text).map_or_else(|error| error.to_string(), |_| "accepted".into());
        if !told.starts_with(expected) {
            wrong.push(format!("expected {expected}\ngot      {told}\n{text}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_doubtful_is_accepted_with_a_warning() {
    let named = POD.replace("  protocol: HBONE", "  protocol: HBONE\n  authorizationPolicies: [shop/gone]");
    let plain = POD.replace("HBONE", "TCP");
    let unused =
        format!("{POD}policies: [{{name: p, namespace: a, scope: WORKLOAD_SELECTOR, action: DENY}}]");
    let empty = format!(
        "{POD}policies: [{{name: p, namespace: a, scope: GLOBAL, action: DENY, groups: [{{rules: [{{matches: [{{}}]}}]}}]}}]"
    );
    let port = POD.replace("  protocol: HBONE", "  protocol: HBONE\n  services: {a/b: {81: 81}}")
        + "services: [{namespace: a, hostname: b, ports: {80: 80}}]";
    for (text, expected) in [
        (POD.to_string(), vec![]),
        (
            named,
            vec![
                "7:27: workloads[0].authorizationPolicies[0]: there is no policy \"shop/gone\": nobody may connect to the workload",
            ],
        ),
        (
            plain,
            vec![
                "12:15: localPods[0].addresses[0]: its workload says protocol TCP: peers will send it plaintext",
            ],
        ),
        (
            unused,
            vec![
                "13:19: policies[0].name: applies to nothing: no workload names it in authorizationPolicies",
            ],
        ),
        (empty, vec!["13:94: policies[0].groups[0].rules[0].matches[0]: a match without fields never holds"]),
        (port, vec!["7:24: workloads[0].services.a/b.81: service \"a/b\" has no port 81"]),
    ] {
        let warnings: Vec<String> = parse(&text).unwrap().warnings.iter().map(ToString::to_string).collect();
        assert_eq!(warnings, expected, "{text}");
    }
}

#[test]
fn capitals_in_host_names_make_no_difference() {
    let text = POD.replace("  protocol: HBONE", "  protocol: HBONE\n  services: {shop/WEB.example: {}}")
        + "services: [{namespace: shop, hostname: Web.Example, vips: [10.9.0.1], ports: {80: 8080}}]";
    let snapshot = Snapshot::build(1, parse(&text).unwrap().state);
    let found: Vec<_> = snapshot.services_by_host("web.example").map(|s| s.key()).collect();
    assert_eq!(found, ["shop/web.example"]);
    assert_eq!(snapshot.endpoints("shop/web.example", 80).count(), 1);

    let twice = POD
        .replace("  protocol: HBONE", "  protocol: HBONE\n  services: {shop/WEB: {}, shop/web: {}}")
        + "services: [{namespace: shop, hostname: web}]";
    assert!(parse(&twice).unwrap_err().to_string().contains("twice"));
}

#[test]
fn addresses_may_recur_where_they_do_not_clash() {
    let elsewhere = POD.replace(
        "localPods:",
        "- {name: b, namespace: shop, protocol: HBONE, network: elsewhere, workloadIps: [10.1.0.1]}\nlocalPods:",
    );
    let shared = POD.replace(
        "localPods:",
        "- {name: b, namespace: shop, protocol: TCP, networkMode: HOST_NETWORK, workloadIps: [10.1.0.9]}\n\
         - {name: c, namespace: shop, protocol: TCP, networkMode: HOST_NETWORK, workloadIps: [10.1.0.9]}\nlocalPods:",
    );
    for text in [elsewhere, shared] {
        assert_eq!(parse(&text).map(|s| s.warnings).unwrap(), [], "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_document_reads_back_as_it_was_written(document in documents()) {
        let text = serde_saphyr::to_string(&document).unwrap();
        let read: Document = crate::discovery::yaml::read(&text).unwrap();
        prop_assert_eq!(read, document, "{}", text);
    }

    #[test]
    fn a_sound_document_is_accepted(document in documents()) {
        let text = serde_saphyr::to_string(&document).unwrap();
        let parsed = parse(&text);
        prop_assert!(parsed.is_ok(), "{}\n{}", parsed.unwrap_err(), text);
        let state = parsed.unwrap().state;
        prop_assert_eq!(state.workloads.len(), document.workloads.len());
        prop_assert_eq!(state.policies.len(), document.policies.len());
        prop_assert_eq!(state.services.len(), document.services.len());
        crate::discovery::Snapshot::build(1, state).kernel_destinations();
    }

    #[test]
    fn no_text_is_too_strange(text in any::<String>()) {
        let _ = parse(&text);
    }

    #[test]
    fn no_damage_is_too_strange(at in any::<prop::sample::Index>(), len in 0..20_usize, with in "[\\x00-\\x7f\u{85}\u{2028}é]{0,6}") {
        let chars: Vec<char> = POD.chars().collect();
        let start = at.index(chars.len());
        let end = (start + len).min(chars.len());
        let damaged: String =
            chars[..start].iter().copied().chain(with.chars()).chain(chars[end..].iter().copied()).collect();
        if let Err(FileError::Invalid(invalid)) = parse(&damaged) {
            prop_assert!(!invalid.problems.is_empty());
        }
    }
}

/// Consistent documents: names are unique, references lead somewhere, addresses do not clash.
fn documents() -> impl Strategy<Value = Document> {
    let mode = || select(vec![MtlsMode::Strict, MtlsMode::Permissive]);
    let mesh = (
        prop::collection::vec(cidr(), 0..3),
        mode(),
        prop::collection::btree_map(name(), mode(), 0..2),
        select(vec![UnknownDestinations::Passthrough, UnknownDestinations::Refuse]),
    )
        .prop_map(|(ranges, mtls, namespace_mtls, unknown_destinations)| Mesh {
            ranges,
            mtls,
            namespace_mtls,
            unknown_destinations,
            ..Mesh::default()
        });
    let policies = prop::collection::vec(policy(), 0..3);
    let services = prop::collection::vec((prop::option::of(name()), ports(), any::<bool>()), 0..3);
    let workloads = prop::collection::vec(workload(), 0..4);
    (mesh, policies, services, workloads).prop_map(|(mesh, mut policies, services, mut workloads)| {
        for (n, policy) in policies.iter_mut().enumerate() {
            policy.name = format!("p{n}");
        }
        let services: Vec<Service> = services
            .into_iter()
            .enumerate()
            .map(|(n, (name, ports, all))| Service {
                name,
                namespace: "shop".into(),
                hostname: format!("s{n}.example"),
                vips: vec![
                    format!("10.96.0.{n}").parse().unwrap(),
                    format!("fd96:{n}::/32").parse().unwrap(),
                ],
                ports,
                subject_alt_names: vec!["spiffe://td/ns/a/sa/b".parse().unwrap()],
                load_balancing: LoadBalancing {
                    health_policy: if all { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy },
                    mode: if all { BalancingMode::Failover } else { BalancingMode::Strict },
                    routing_preference: vec![LocalityScope::Region, LocalityScope::Subzone],
                },
                canonical: all,
                visibility: if all { Visibility::Public } else { Visibility::Namespace },
            })
            .collect();
        for (n, workload) in workloads.iter_mut().enumerate() {
            workload.name = format!("w{n}");
            workload.workload_ips = vec![format!("10.1.0.{n}").parse().unwrap()];
            workload.services =
                services.iter().skip(n).map(|s| (format!("shop/{}", s.hostname), BTreeMap::new())).collect();
            workload.authorization_policies =
                policies.iter().skip(n).map(|p| format!("{}/{}", p.namespace, p.name)).collect();
        }
        Document { mesh, workloads, services, policies, resources: Vec::new(), local_pods: Vec::new() }
    })
}

fn workload() -> impl Strategy<Value = Workload> {
    let what = (
        select(vec![Protocol::Hbone, Protocol::Tcp]),
        select(vec![Health::Healthy, Health::Unhealthy]),
        select(vec![NetworkMode::Standard, NetworkMode::HostNetwork]),
        select(vec![WorkloadType::Deployment, WorkloadType::Job]),
        any::<u32>(),
    );
    let texts =
        (prop::option::of(text()), text(), prop::option::of(text()), text(), prop::option::of(text()));
    let own = (
        name(),
        prop::option::of(Just(TrustDomain::cluster_local())),
        prop::option::of(Just(MtlsMode::Strict)),
    );
    (what, texts, own).prop_map(|(what, texts, own)| Workload {
        status: what.1,
        network_mode: what.2,
        workload_type: what.3,
        capacity: what.4,
        canonical_name: texts.0,
        canonical_revision: texts.1.clone(),
        workload_name: texts.2,
        node: texts.3,
        network: texts.4,
        locality: Locality { region: texts.1, ..Locality::default() },
        service_account: own.0,
        trust_domain: own.1,
        mtls: WorkloadMtls { mode: own.2, ports: BTreeMap::from([(80, MtlsMode::Permissive)]) },
        ..Workload::new("shop", "", what.0)
    })
}

pub(super) fn policy() -> impl Strategy<Value = Policy> {
    let account = || parsed(select(vec!["shop/web", "shop/till", "null/1"]));
    let port = || 1..=u16::MAX;
    let names = (few(pattern()), few(pattern()), few(pattern()), few(pattern()));
    let addresses = (few(cidr()), few(cidr()), few(cidr()), few(cidr()));
    let accounts = (few(account()), few(account()));
    let ports = (few(port()), few(port()));
    let fields = (names, addresses, accounts, ports).prop_map(|(names, addresses, accounts, ports)| Match {
        namespaces: names.0,
        not_namespaces: names.1,
        principals: names.2,
        not_principals: names.3,
        source_ips: addresses.0,
        not_source_ips: addresses.1,
        destination_ips: addresses.2,
        not_destination_ips: addresses.3,
        service_accounts: accounts.0,
        not_service_accounts: accounts.1,
        destination_ports: ports.0,
        not_destination_ports: ports.1,
    });
    let rule = prop::collection::vec(fields, 0..3).prop_map(|matches| Rule { matches });
    let group = prop::collection::vec(rule, 0..3).prop_map(|rules| Group { rules });
    let scope = select(vec![Scope::Global, Scope::Namespace, Scope::WorkloadSelector]);
    let action = select(vec![Action::Allow, Action::Deny]);
    (name(), scope, action, any::<bool>(), prop::collection::vec(group, 0..3)).prop_map(
        |(namespace, scope, action, dry_run, groups)| {
            let name = String::new();
            Policy { name, namespace, scope, action, dry_run, groups }
        },
    )
}

fn few<T: std::fmt::Debug>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    prop::collection::vec(of, 0..3)
}

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9][a-z0-9.-]{0,8}".prop_filter("a path segment", |name| name != "." && name != "..")
}

/// What YAML could take for something else.
fn text() -> impl Strategy<Value = String> {
    let tricky = [
        "",
        "~",
        "null",
        "yes",
        "No",
        "0x10",
        "1e3",
        "1:2",
        "- a",
        "# x",
        "{}",
        "'",
        "\"",
        " a ",
        "a: b",
        "*x",
        "&x",
        "!x",
        "\u{7f}é\n\tz",
    ];
    prop_oneof![select(tricky.to_vec()).prop_map(String::from), any::<String>()]
}

fn pattern() -> impl Strategy<Value = Pattern> {
    parsed(select(vec!["*", "a*", "*/sa/b", "td/ns/a/sa/b", "spiffe://td/ns/a/sa/b", "null", "1"]))
}

fn cidr() -> impl Strategy<Value = Cidr> {
    parsed(select(vec!["10.0.0.0/8", "192.0.2.7", "0.0.0.0/0", "fd00::/8", "2001:db8::1", "::/0"]))
}

fn ports() -> impl Strategy<Value = BTreeMap<u16, u16>> {
    prop::collection::btree_map(1..=u16::MAX, 0..15_000_u16, 0..3)
}

fn parsed<T: FromStr<Err: std::fmt::Debug> + std::fmt::Debug>(
    texts: impl Strategy<Value = &'static str>,
) -> impl Strategy<Value = T> {
    texts.prop_map(|text| text.parse().unwrap())
}
