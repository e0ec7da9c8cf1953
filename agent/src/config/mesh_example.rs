//! Writes `deploy/examples/mesh.yaml` from the types of the mesh file, and notices when they differ.

use std::collections::BTreeMap;

use super::example::explained;
use crate::discovery::file::document::{
    Document, Group, LocalPod, Locality, Match, Mesh, Policy, Protocol, Rule, Service, Workload, WorkloadMtls,
};
use crate::discovery::file::parse;
use crate::model::MtlsMode;
use crate::policy::{Action, Scope};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/mesh.yaml");

const HEAD: &str = "A mesh file, as `discovery.file` names it: a shop on two nodes, as the agent of node-1 \
                    is told of it. Only mesh, and the fields that name something, have to be there.";

#[test]
fn the_mesh_example_is_what_the_types_say() {
    let expected = explained(HEAD, &example());
    if std::env::var_os("UPDATE_EXAMPLES").is_some() {
        std::fs::write(EXAMPLE, &expected).unwrap();
    }
    let written = std::fs::read_to_string(EXAMPLE).unwrap_or_default();
    assert_eq!(
        written, expected,
        "deploy/examples/mesh.yaml differs from the types; run: UPDATE_EXAMPLES=1 cargo test -p underpass-agent --lib config::"
    );
}

#[test]
fn the_mesh_example_is_accepted_without_a_warning() {
    let state = parse(&explained(HEAD, &example())).unwrap();
    assert_eq!(state.warnings, []);
    assert_eq!(state.state.local_pods.len(), 1);
    assert_eq!(state.state.workloads.len(), 4);
}

fn example() -> Document {
    Document {
        mesh: Mesh {
            ranges: all(&["10.244.0.0/16", "10.96.0.0/12", "fd00:244::/32"]),
            namespace_mtls: BTreeMap::from([("payments".into(), MtlsMode::Strict)]),
            ..Mesh::default()
        },
        workloads: vec![web(), api("api-1", "node-2", 10), api("api-2", "node-3", 11), legacy()],
        services: vec![Service {
            name: Some("api".into()),
            namespace: "payments".into(),
            hostname: "api.payments.svc.cluster.local".into(),
            vips: all(&["10.96.0.20", "fd00:96::20"]),
            ports: BTreeMap::from([(80, 8080)]),
            subject_alt_names: Vec::new(),
            load_balancing: Default::default(),
            canonical: false,
            visibility: Default::default(),
        }],
        policies: policies(),
        resources: resources(),
        local_pods: vec![LocalPod {
            uid: "0d2c0a4e-6a3c-4a38-9a0e-6f3f0b0c7c11".into(),
            namespace: "shop".into(),
            name: "web-1".into(),
            service_account: "web".into(),
            trust_domain: None,
            netns: "/run/netns/web-1".into(),
            addresses: all(&["10.244.1.10", "fd00:244:1::10"]),
        }],
    }
}

fn web() -> Workload {
    Workload {
        uid: Some("Kubernetes//Pod/shop/web-1".into()),
        service_account: "web".into(),
        workload_ips: all(&["10.244.1.10", "fd00:244:1::10"]),
        node: "node-1".into(),
        canonical_name: Some("web".into()),
        workload_name: Some("web".into()),
        ..Workload::new("shop", "web-1", Protocol::Hbone)
    }
}

fn api(name: &str, node: &str, host: u8) -> Workload {
    Workload {
        service_account: "api".into(),
        workload_ips: all(&[&format!("10.244.2.{host}"), &format!("fd00:244:2::{host}")]),
        node: node.into(),
        canonical_name: Some("api".into()),
        workload_name: Some("api".into()),
        locality: Locality { region: "eu".into(), zone: "eu-1".into(), subzone: String::new() },
        services: BTreeMap::from([(
            "payments/api.payments.svc.cluster.local".into(),
            BTreeMap::from([(80, 8081)]),
        )]),
        authorization_policies: vec!["payments/api-from-web".into()],
        mtls: WorkloadMtls { mode: None, ports: BTreeMap::from([(9090, MtlsMode::Permissive)]) },
        ..Workload::new("payments", name, Protocol::Hbone)
    }
}

fn legacy() -> Workload {
    Workload { workload_ips: all(&["10.244.3.7"]), ..Workload::new("shop", "legacy-db", Protocol::Tcp) }
}

fn resources() -> Vec<serde_json::Value> {
    vec![serde_json::json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "no-guests", "namespace": "payments"},
        "spec": {"action": "DENY", "rules": [{"from": [{"source": {"namespaces": ["guests"]}}]}]},
    })]
}

fn policies() -> Vec<Policy> {
    let one = |fields| vec![Group { rules: vec![Rule { matches: vec![fields] }] }];
    let policy = |name: &str, scope, action, groups| Policy {
        name: name.into(),
        namespace: "payments".into(),
        scope,
        action,
        dry_run: false,
        groups,
    };
    vec![
        policy(
            "api-from-web",
            Scope::WorkloadSelector,
            Action::Allow,
            vec![
                Group {
                    rules: vec![
                        Rule {
                            matches: vec![
                                Match {
                                    principals: all(&["cluster.local/ns/shop/sa/web"]),
                                    ..Match::default()
                                },
                                Match { service_accounts: all(&["payments/audit"]), ..Match::default() },
                            ],
                        },
                        Rule { matches: vec![Match { destination_ports: vec![8081], ..Match::default() }] },
                    ],
                },
                one(Match {
                    source_ips: all(&["10.244.9.0/24"]),
                    destination_ports: vec![9090],
                    ..Match::default()
                })
                .remove(0),
            ],
        ),
        policy(
            "not-from-tests",
            Scope::Namespace,
            Action::Deny,
            one(Match { namespaces: all(&["test-*"]), ..Match::default() }),
        ),
    ]
}

fn all<T: std::str::FromStr<Err: std::fmt::Debug>>(texts: &[&str]) -> Vec<T> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}
