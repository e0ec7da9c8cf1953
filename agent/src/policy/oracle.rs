//! The rules of evaluation once more, as slowly and literally as they are stated, and a search for
//! policies and connections on which the compiled form disagrees.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::model::workload::WorkloadMtls;
use crate::model::{InboundAction, MtlsMode, SpiffeId};

fn allowed(mesh: &Mesh, conn: &Conn) -> bool {
    let applies = |policy: &&Policy| match policy.scope {
        Scope::Global => true,
        Scope::Namespace if *policy.namespace == *OWN_NAMESPACE => true,
        _ => mesh.named.contains(&policy.key()),
    };
    let in_force: Vec<&Policy> =
        mesh.policies.iter().filter(|policy| !policy.dry_run).filter(applies).collect();
    let known = |key: &Arc<str>| mesh.policies.iter().any(|policy| policy.key() == *key);
    if !mesh.named.iter().all(known) || in_force.iter().any(|policy| policy.defect.is_some()) {
        return false;
    }
    if conn.source.is_none() && mode(mesh, conn.destination_port) == MtlsMode::Strict {
        return false;
    }
    let (deny, allow): (Vec<&Policy>, Vec<&Policy>) =
        in_force.into_iter().partition(|policy| policy.action == Action::Deny);
    let denied = deny.iter().any(|policy| matches(policy, conn));
    !denied && (allow.is_empty() || allow.iter().any(|policy| matches(policy, conn)))
}

fn mode(mesh: &Mesh, port: u16) -> MtlsMode {
    if let Some(mode) = mesh.mtls.ports.get(&port) {
        return *mode;
    }
    let namespace = mesh.defaults.namespaces.get(OWN_NAMESPACE).copied();
    mesh.mtls.mode.or(namespace).unwrap_or(mesh.defaults.mesh)
}

fn matches(policy: &Policy, conn: &Conn) -> bool {
    let rule = |rule: &Rule| rule.matches.is_empty() || rule.matches.iter().any(|m| holds(m, conn));
    policy.groups.iter().any(|group| group.rules.iter().all(rule))
}

fn holds(m: &Match, conn: &Conn) -> bool {
    if *m == Match::default() {
        return false;
    }
    let namespace = conn.source.as_ref().map_or(String::new(), |id| id.namespace().to_string());
    let principal = conn.source.as_ref().map(|id| id.to_string().replace("spiffe://", ""));
    let is_namespace = |value: &StringMatch| fits(value, &namespace);
    let is_principal = |value: &StringMatch| principal.as_ref().is_some_and(|p| fits(value, p));
    let is_account = |value: &ServiceAccount| {
        conn.source.as_ref().is_some_and(|id| {
            *value.namespace == *id.namespace() && *value.service_account == *id.service_account()
        })
    };
    let from = |net: &IpNet| net.contains(&conn.source_ip);
    let to = |net: &IpNet| net.contains(&conn.destination_ip);
    let port = |port: &u16| *port == conn.destination_port;
    (m.namespaces.is_empty() || m.namespaces.iter().any(is_namespace))
        && !m.not_namespaces.iter().any(is_namespace)
        && (m.principals.is_empty() || m.principals.iter().any(is_principal))
        && !m.not_principals.iter().any(is_principal)
        && (m.service_accounts.is_empty() || m.service_accounts.iter().any(is_account))
        && !m.not_service_accounts.iter().any(is_account)
        && (m.source_ips.is_empty() || m.source_ips.iter().any(from))
        && !m.not_source_ips.iter().any(from)
        && (m.destination_ips.is_empty() || m.destination_ips.iter().any(to))
        && !m.not_destination_ips.iter().any(to)
        && (m.destination_ports.is_empty() || m.destination_ports.iter().any(port))
        && !m.not_destination_ports.iter().any(port)
}

fn fits(value: &StringMatch, text: &str) -> bool {
    let plain = |s: &str| s.replace("spiffe://", "");
    match value {
        StringMatch::Exact(s) => text == plain(s),
        StringMatch::Prefix(s) => text.starts_with(&plain(s)),
        StringMatch::Suffix(s) => text.ends_with(&plain(s)),
        StringMatch::Presence => !text.is_empty(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn compiled_policies_decide_as_the_rules_say(mesh in meshes(), conns in prop::collection::vec(conns(), 8)) {
        let compiled = mesh.compile();
        for conn in conns {
            let verdict = compiled.evaluate(&conn, None);
            prop_assert_eq!(verdict.is_allow(), allowed(&mesh, &conn), "{:?} for {:?}", verdict, conn);
        }
    }

    #[test]
    fn the_kernel_never_decides_otherwise(mesh in meshes(), conns in prop::collection::vec(conns(), 8)) {
        let plan = mesh.compile().kernel_plan();
        for conn in conns {
            let plaintext = Conn { source: None, ..conn };
            match plan.action(plaintext.destination_port) {
                InboundAction::Pass => prop_assert!(allowed(&mesh, &plaintext), "passed: {:?}", plaintext),
                InboundAction::Drop => prop_assert!(!allowed(&mesh, &plaintext), "dropped: {:?}", plaintext),
                InboundAction::Steer => {}
            }
        }
    }

    #[test]
    fn a_dry_run_says_what_would_be(mesh in meshes(), conn in conns()) {
        let mut enforced = mesh.clone();
        enforced.policies.iter_mut().for_each(|policy| policy.dry_run = false);
        if let Some(would) = mesh.compile().dry_run(&conn, None) {
            prop_assert_eq!(would.is_allow(), allowed(&enforced, &conn));
        } else {
            prop_assert_eq!(allowed(&mesh, &conn), allowed(&enforced, &conn));
        }
    }

    #[test]
    fn a_dry_run_of_plaintext_is_seen(mesh in meshes(), conn in conns()) {
        let plaintext = Conn { source: None, ..conn };
        let compiled = mesh.compile();
        let denied = compiled.dry_run(&plaintext, None).is_some_and(|would| !would.is_allow());
        if compiled.kernel_plan().action(plaintext.destination_port) == InboundAction::Pass {
            prop_assert!(!denied, "passed unseen: {:?}", plaintext);
        }
    }

    #[test]
    fn one_more_policy_to_name_never_widens(mesh in meshes(), conn in conns(), unknown in any::<bool>()) {
        let mut more = mesh.clone();
        if unknown {
            more.named.push("a/not-there".into());
        } else {
            more.policies.push(Policy { action: Action::Deny, ..defective() });
        }
        let (before, after) = (mesh.compile().evaluate(&conn, None), more.compile().evaluate(&conn, None));
        prop_assert!(before.is_allow() || !after.is_allow());
        prop_assert!(!after.is_allow());
    }
}

const OWN_NAMESPACE: &str = "a";

#[derive(Clone, Debug)]
struct Mesh {
    policies: Vec<Policy>,
    defaults: MtlsDefaults,
    named: Vec<Arc<str>>,
    mtls: WorkloadMtls,
}

impl Mesh {
    fn compile(&self) -> Compiled {
        let set = PolicySet::new(self.policies.clone(), self.defaults.clone());
        set.compile(&Subject::named(OWN_NAMESPACE, &self.named, &self.mtls))
    }
}

fn defective() -> Policy {
    Policy {
        kind: Kind::Authorization,
        namespace: "root".into(),
        name: "defective".into(),
        scope: Scope::Global,
        action: Action::Allow,
        groups: Vec::new(),
        dry_run: false,
        defect: Some("it cannot be read".into()),
    }
}

fn meshes() -> impl Strategy<Value = Mesh> {
    let policies = prop::collection::vec(policy(), 0..4).prop_map(|mut policies| {
        for (at, policy) in policies.iter_mut().enumerate() {
            policy.name = format!("p{at}").into();
        }
        policies
    });
    let named = subsequence(vec!["a/p0", "a/p1", "b/p0", "b/p1"], 0..2);
    // One that nobody knows denies everything, so most of the time all are known.
    let only_known = prop::bool::weighted(0.9);
    let strict = |share| {
        prop::bool::weighted(share).prop_map(|strict| match strict {
            true => MtlsMode::Strict,
            false => MtlsMode::Permissive,
        })
    };
    let ports = prop::collection::btree_map(ports(), strict(0.5), 0..2);
    let modes =
        (strict(0.1), prop::option::weighted(0.2, strict(0.5)), prop::option::weighted(0.2, strict(0.5)));
    (policies, named, only_known, modes, ports).prop_map(|(policies, named, only_known, modes, ports)| {
        let (mesh, namespace, mode) = modes;
        let is_known = |key: &&str| policies.iter().any(|policy| *policy.key() == **key);
        Mesh {
            named: named.into_iter().filter(|key| !only_known || is_known(key)).map(Arc::from).collect(),
            defaults: MtlsDefaults {
                mesh,
                namespaces: namespace.map(|mode| (OWN_NAMESPACE.into(), mode)).into_iter().collect(),
            },
            mtls: WorkloadMtls { mode, ports },
            policies,
        }
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let scope = select(vec![Scope::Global, Scope::Namespace, Scope::WorkloadSelector]);
    let action = select(vec![Action::Allow, Action::Deny]);
    let rule = prop::collection::vec(fields(), 0..3).prop_map(|matches| Rule { matches });
    let group = prop::collection::vec(rule, 0..3).prop_map(|rules| Group { rules, never: None });
    let groups = prop::collection::vec(group, 0..3);
    let defect = prop::option::weighted(0.05, Just(Arc::from("it cannot be read")));
    let dry_run = prop::bool::weighted(0.2);
    (select(vec!["a", "b"]), scope, action, groups, dry_run, defect).prop_map(
        |(namespace, scope, action, groups, dry_run, defect)| Policy {
            kind: Kind::Authorization,
            namespace: namespace.into(),
            name: "".into(),
            scope,
            action,
            groups,
            dry_run,
            defect,
        },
    )
}

/// Most fields of most matches are empty, as in life.
fn fields() -> impl Strategy<Value = Match> {
    let names = || few(string_match(vec!["a", "b", "ab", ""]));
    let principals =
        || few(string_match(vec!["td/ns/a/sa/x", "spiffe://td/ns/a/sa/x", "td/ns/a", "sa/x", "x", ""]));
    let account = || (select(vec!["a", "b"]), select(vec!["x", "y"]));
    let accounts = || {
        few(account()
            .prop_map(|(ns, sa)| ServiceAccount { namespace: ns.into(), service_account: sa.into() }))
    };
    let nets = || {
        few(select(vec!["10.0.0.1/32", "10.0.0.0/24", "10.0.0.0/8", "0.0.0.0/0", "fd00::/64", "::/0"]))
            .prop_map(|nets| nets.into_iter().map(|net| net.parse::<IpNet>().unwrap()).collect::<Vec<_>>())
    };
    let ports = || few(ports());
    let identity = (names(), names(), principals(), principals(), accounts(), accounts());
    let addresses = (nets(), nets(), nets(), nets(), ports(), ports());
    (identity, addresses).prop_map(|(identity, addresses)| Match {
        namespaces: identity.0,
        not_namespaces: identity.1,
        principals: identity.2,
        not_principals: identity.3,
        service_accounts: identity.4,
        not_service_accounts: identity.5,
        source_ips: addresses.0,
        not_source_ips: addresses.1,
        destination_ips: addresses.2,
        not_destination_ips: addresses.3,
        destination_ports: addresses.4,
        not_destination_ports: addresses.5,
        ..Match::default()
    })
}

fn few<T: std::fmt::Debug>(one: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    let several = prop::collection::vec(one, 1..3);
    prop::option::weighted(0.15, several).prop_map(Option::unwrap_or_default)
}

fn string_match(texts: Vec<&'static str>) -> impl Strategy<Value = StringMatch> {
    (0..4, select(texts)).prop_map(|(kind, text)| match kind {
        0 => StringMatch::Exact(text.into()),
        1 => StringMatch::Prefix(text.into()),
        2 => StringMatch::Suffix(text.into()),
        _ => StringMatch::Presence,
    })
}

fn ports() -> impl Strategy<Value = u16> {
    select(vec![80, 81, 443])
}

fn conns() -> impl Strategy<Value = Conn> {
    let ids = vec!["spiffe://td/ns/a/sa/x", "spiffe://td/ns/b/sa/y", "spiffe://other/ns/ab/sa/x"];
    let source = prop::option::weighted(0.7, select(ids));
    let ip = || select(vec!["10.0.0.1", "10.0.0.2", "10.1.0.1", "fd00::1", "fd01::1"]);
    (source, ip(), ip(), select(vec![80, 81, 443, 8080])).prop_map(|(source, from, to, port)| Conn {
        source: source.map(|id| id.parse::<SpiffeId>().unwrap()),
        source_ip: from.parse::<IpAddr>().unwrap(),
        destination_ip: to.parse::<IpAddr>().unwrap(),
        destination_port: port,
        sni: None,
    })
}

/// The search above is worth nothing if everything it finds is alike.
#[test]
fn the_search_covers_both_answers() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..2000 {
        let mesh = meshes().new_tree(&mut runner).unwrap().current();
        let conn = conns().new_tree(&mut runner).unwrap().current();
        let verdict = match mesh.compile().evaluate(&conn, None) {
            Verdict::Allow { by } if !by.is_empty() => "allowed by a policy".to_string(),
            Verdict::Allow { .. } => "allowed by default".to_string(),
            Verdict::Deny { why, .. } => {
                format!("{why:?}").split(['(', ' ']).next().unwrap_or_default().to_string()
            }
        };
        if mesh
            .compile()
            .dry_run(&conn, None)
            .is_some_and(|would| would.is_allow() != mesh.compile().evaluate(&conn, None).is_allow())
        {
            *seen.entry("a dry run that disagrees".into()).or_default() += 1;
        }
        *seen.entry(verdict).or_default() += 1;
        let plan = mesh.compile().kernel_plan();
        for port in [80, 8080] {
            *seen.entry(format!("{:?}", plan.action(port))).or_default() += 1;
        }
    }
    for what in [
        "a dry run that disagrees",
        "allowed by a policy",
        "allowed by default",
        "DenyMatched",
        "NoAllowMatched",
        "Strict",
        "UnknownPolicy",
        "Defective",
        "Pass",
        "Steer",
        "Drop",
    ] {
        assert!(seen.get(what).is_some_and(|n| *n >= 40), "too few {what}: {seen:?}");
    }
}
