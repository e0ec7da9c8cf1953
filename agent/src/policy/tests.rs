//! Each clause of the rules, allowing and denying.

use std::sync::Arc;

use super::*;
use crate::model::workload::WorkloadMtls;
use crate::model::{InboundAction, InboundPlan, MtlsMode};

const CLIENT: Option<&str> = Some("spiffe://td/ns/shop/sa/web");

/// From 10.0.0.1 to 10.2.0.9:8080.
fn conn(source: Option<&str>) -> Conn {
    Conn {
        source: source.map(|id| id.parse().unwrap()),
        source_ip: "10.0.0.1".parse().unwrap(),
        destination_ip: "10.2.0.9".parse().unwrap(),
        destination_port: 8080,
        sni: None,
    }
}

fn policy(name: &str, scope: Scope, action: Action, groups: Vec<Group>) -> Policy {
    let (namespace, name) = name.split_once('/').unwrap();
    let (namespace, name) = (namespace.into(), name.into());
    Policy { kind: Kind::Authorization, namespace, name, scope, action, groups, dry_run: false, defect: None }
}

fn group(matches: Vec<Match>) -> Group {
    Group { rules: vec![Rule { matches }], never: None }
}

/// For a workload of the namespace `own` that names the given policies.
fn compile(policies: Vec<Policy>, named: &[&str]) -> Compiled {
    let named: Vec<Arc<str>> = named.iter().map(|key| Arc::from(*key)).collect();
    let mtls = WorkloadMtls::default();
    let subject = Subject::named("own", &named, &mtls);
    PolicySet::new(policies, MtlsDefaults::default()).compile(&subject)
}

/// Whether a single ALLOW policy of this match lets `conn` in; a DENY policy of the same must then do
/// the opposite.
fn matches(m: Match, conn: &Conn) -> bool {
    let with =
        |action| compile(vec![policy("own/p", Scope::Namespace, action, vec![group(vec![m.clone()])])], &[]);
    let allowed = with(Action::Allow).evaluate(conn, None).is_allow();
    let denied = !with(Action::Deny).evaluate(conn, None).is_allow();
    assert_eq!(allowed, denied, "ALLOW and DENY see different matches in {m:?}");
    allowed
}

fn exact(s: &str) -> StringMatch {
    StringMatch::Exact(s.into())
}

fn prefix(s: &str) -> StringMatch {
    StringMatch::Prefix(s.into())
}

fn suffix(s: &str) -> StringMatch {
    StringMatch::Suffix(s.into())
}

#[test]
fn names_of_the_client() {
    use StringMatch::Presence;
    // (values, fits the client, fits a client without identity)
    let namespaces = [
        (vec![exact("shop")], true, false),
        (vec![exact("sho")], false, false),
        (vec![exact("other"), exact("shop")], true, false),
        (vec![prefix("sh")], true, false),
        (vec![prefix("hop")], false, false),
        (vec![suffix("op")], true, false),
        (vec![suffix("sho")], false, false),
        (vec![Presence], true, false),
        // A client without identity has the empty namespace.
        (vec![exact("")], false, true),
        (vec![prefix("")], true, true),
    ];
    for (values, client, nobody) in namespaces {
        let positive = Match { namespaces: values.clone(), ..Match::default() };
        let negative = Match { not_namespaces: values.clone(), ..Match::default() };
        for (source, fits) in [(CLIENT, client), (None, nobody)] {
            assert_eq!(matches(positive.clone(), &conn(source)), fits, "namespaces {values:?} {source:?}");
            assert_eq!(
                matches(negative.clone(), &conn(source)),
                !fits,
                "notNamespaces {values:?} {source:?}"
            );
        }
    }
    let principals = [
        (vec![exact("td/ns/shop/sa/web")], true),
        (vec![exact("spiffe://td/ns/shop/sa/web")], true),
        (vec![exact("other/ns/shop/sa/web")], false),
        (vec![exact("td/ns/shop/sa/we")], false),
        (vec![exact("TD/ns/shop/sa/web")], false),
        (vec![exact("x"), exact("td/ns/shop/sa/web")], true),
        (vec![prefix("td/ns/shop/")], true),
        (vec![prefix("spiffe://td/")], true),
        (vec![prefix("t")], true),
        (vec![prefix("ns/shop")], false),
        (vec![suffix("/sa/web")], true),
        (vec![suffix("/sa/we")], false),
        (vec![Presence], true),
        (vec![prefix("")], true),
    ];
    for (values, client) in principals {
        let positive = Match { principals: values.clone(), ..Match::default() };
        let negative = Match { not_principals: values.clone(), ..Match::default() };
        // No principal fits a client without identity, not even any prefix.
        for (source, fits) in [(CLIENT, client), (None, false)] {
            assert_eq!(matches(positive.clone(), &conn(source)), fits, "principals {values:?} {source:?}");
            assert_eq!(
                matches(negative.clone(), &conn(source)),
                !fits,
                "notPrincipals {values:?} {source:?}"
            );
        }
    }
    let accounts = [("shop", "web", true), ("shop", "api", false), ("other", "web", false), ("", "", false)];
    for (namespace, service_account, client) in accounts {
        let values =
            vec![ServiceAccount { namespace: namespace.into(), service_account: service_account.into() }];
        let positive = Match { service_accounts: values.clone(), ..Match::default() };
        let negative = Match { not_service_accounts: values.clone(), ..Match::default() };
        for (source, fits) in
            [(CLIENT, client), (None, false), (Some("spiffe://other/ns/shop/sa/web"), client)]
        {
            assert_eq!(
                matches(positive.clone(), &conn(source)),
                fits,
                "serviceAccounts {values:?} {source:?}"
            );
            assert_eq!(
                matches(negative.clone(), &conn(source)),
                !fits,
                "notServiceAccounts {values:?} {source:?}"
            );
        }
    }
}

#[test]
fn addresses_and_ports() {
    let source = [
        (vec!["10.0.0.1/32"], "10.0.0.1", true),
        (vec!["10.0.0.1/32"], "10.0.0.2", false),
        (vec!["192.168.0.0/16", "10.0.0.0/8"], "10.255.255.255", true),
        (vec!["10.0.0.0/8"], "11.0.0.0", false),
        (vec!["0.0.0.0/0"], "10.0.0.1", true),
        (vec!["0.0.0.0/0"], "fd00::1", false),
        (vec!["fd00::/8"], "fd12::1", true),
        (vec!["fd00::/8"], "fe80::1", false),
        (vec!["::/0"], "10.0.0.1", false),
        // The same IPv4 client through an IPv6 socket, and a range written for one.
        (vec!["10.0.0.0/8"], "::ffff:10.0.0.1", true),
        (vec!["::ffff:10.0.0.0/104"], "10.0.0.1", true),
        (vec!["::/0"], "::ffff:10.0.0.1", false),
        (vec!["10.1.2.3/8"], "10.0.0.1", true),
    ];
    for (nets, ip, fits) in source {
        let values: Vec<ipnet::IpNet> = nets.iter().map(|net| net.parse().unwrap()).collect();
        let from = Conn { source_ip: ip.parse().unwrap(), ..conn(CLIENT) };
        let to = Conn { destination_ip: ip.parse().unwrap(), ..conn(None) };
        let all = Match::default;
        assert_eq!(matches(Match { source_ips: values.clone(), ..all() }, &from), fits, "{nets:?} {ip}");
        assert_eq!(
            matches(Match { not_source_ips: values.clone(), ..all() }, &from),
            !fits,
            "not {nets:?} {ip}"
        );
        assert_eq!(
            matches(Match { destination_ips: values.clone(), ..all() }, &to),
            fits,
            "to {nets:?} {ip}"
        );
        assert_eq!(
            matches(Match { not_destination_ips: values, ..all() }, &to),
            !fits,
            "not to {nets:?} {ip}"
        );
    }
    for (ports, fits) in [(vec![8080], true), (vec![80, 8080], true), (vec![80], false), (vec![15008], false)]
    {
        let positive = Match { destination_ports: ports.clone(), ..Match::default() };
        let negative = Match { not_destination_ports: ports.clone(), ..Match::default() };
        assert_eq!(matches(positive, &conn(CLIENT)), fits, "{ports:?}");
        assert_eq!(matches(negative, &conn(CLIENT)), !fits, "not {ports:?}");
    }
}

#[test]
fn structure() {
    let hit = || Match { destination_ports: vec![8080], ..Match::default() };
    let miss = || Match { destination_ports: vec![1], ..Match::default() };
    let empty = Match::default;
    let rule = |matches: Vec<Match>| Rule { matches };
    let cases: Vec<(&str, Vec<Group>, bool)> = vec![
        ("no groups never match", vec![], false),
        ("a group without rules matches everything", vec![Group::default()], true),
        ("a rule without matches always holds", vec![Group { rules: vec![rule(vec![])], never: None }], true),
        ("a match without fields never holds", vec![group(vec![empty()])], false),
        ("nor do several", vec![group(vec![empty(), empty()])], false),
        ("but it does not spoil others", vec![group(vec![empty(), hit()])], true),
        ("groups are alternatives", vec![group(vec![miss()]), group(vec![hit()])], true),
        ("matches are alternatives", vec![group(vec![miss(), hit()])], true),
        (
            "rules must all hold",
            vec![Group { rules: vec![rule(vec![hit()]), rule(vec![hit()])], never: None }],
            true,
        ),
        (
            "one that does not is enough",
            vec![Group { rules: vec![rule(vec![hit()]), rule(vec![miss()])], never: None }],
            false,
        ),
        (
            "an empty match in a rule fails it",
            vec![Group { rules: vec![rule(vec![hit()]), rule(vec![empty()])], never: None }],
            false,
        ),
        (
            "fields must all hold",
            vec![group(vec![Match {
                namespaces: vec![exact("shop")],
                destination_ports: vec![1],
                ..empty()
            }])],
            false,
        ),
        (
            "a field and its negative",
            vec![group(vec![Match {
                destination_ports: vec![8080],
                not_destination_ports: vec![8080],
                ..empty()
            }])],
            false,
        ),
    ];
    for (what, groups, expected) in cases {
        let verdict = compile(vec![policy("own/p", Scope::Namespace, Action::Allow, groups.clone())], &[])
            .evaluate(&conn(CLIENT), None);
        assert_eq!(verdict.is_allow(), expected, "ALLOW: {what}");
        let verdict = compile(vec![policy("own/p", Scope::Namespace, Action::Deny, groups)], &[])
            .evaluate(&conn(CLIENT), None);
        assert_eq!(verdict.is_allow(), !expected, "DENY: {what}");
    }
}

#[test]
fn scopes_and_combination() {
    let all = || vec![Group::default()];
    let none = Vec::new;
    let (allow, deny) = (Action::Allow, Action::Deny);
    let (global, namespace, selector) = (Scope::Global, Scope::Namespace, Scope::WorkloadSelector);
    let cases: Vec<(&str, Vec<Policy>, &[&str], &str)> = vec![
        ("nothing applies", vec![], &[], "allowed: no ALLOW policy applies"),
        (
            "global",
            vec![policy("root/g", global, deny, all())],
            &[],
            "denied by policy root/g#0: its DENY rules match",
        ),
        (
            "own namespace",
            vec![policy("own/n", namespace, deny, all())],
            &[],
            "denied by policy own/n#0: its DENY rules match",
        ),
        (
            "another namespace",
            vec![policy("x/n", namespace, deny, all())],
            &[],
            "allowed: no ALLOW policy applies",
        ),
        (
            "selector, not named",
            vec![policy("own/s", selector, deny, all())],
            &[],
            "allowed: no ALLOW policy applies",
        ),
        (
            "selector, named",
            vec![policy("own/s", selector, deny, all())],
            &["own/s"],
            "denied by policy own/s#0: its DENY rules match",
        ),
        (
            "named from another namespace",
            vec![policy("x/n", namespace, deny, all())],
            &["x/n"],
            "denied by policy x/n#0: its DENY rules match",
        ),
        ("allowed", vec![policy("own/n", namespace, allow, all())], &[], "allowed by policy own/n#0"),
        (
            "allows nobody",
            vec![policy("own/n", namespace, allow, none())],
            &[],
            "denied: none of 1 ALLOW policies matches",
        ),
        (
            "one of two allows",
            vec![policy("own/a", namespace, allow, none()), policy("own/b", namespace, allow, all())],
            &[],
            "allowed by policy own/b#0",
        ),
        (
            "deny wins",
            vec![policy("own/a", namespace, allow, all()), policy("root/d", global, deny, all())],
            &[],
            "denied by policy root/d#0: its DENY rules match",
        ),
        (
            "a deny that does not match",
            vec![policy("own/a", namespace, allow, all()), policy("root/d", global, deny, none())],
            &[],
            "allowed by policy own/a#0",
        ),
        (
            "the selector of others does not make an allow list",
            vec![policy("own/s", selector, allow, none())],
            &[],
            "allowed: no ALLOW policy applies",
        ),
    ];
    for (what, policies, named, expected) in cases {
        let verdict = compile(policies, named).evaluate(&conn(CLIENT), None);
        assert_eq!(verdict.to_string(), expected, "{what}");
    }
}

#[test]
fn a_dry_run_decides_nothing_and_says_what_it_would() {
    let dry = |policy: Policy| Policy { dry_run: true, ..policy };
    let deny = dry(policy("own/deny", Scope::Namespace, Action::Deny, vec![Group::default()]));
    let nobody = dry(policy("own/nobody", Scope::WorkloadSelector, Action::Allow, vec![]));
    let broken = Policy { defect: Some("x".into()), ..deny.clone() };
    for (policies, named, would) in [
        (vec![deny.clone()], &[][..], "denied by policy own/deny#0: its DENY rules match"),
        (vec![nobody], &["own/nobody"], "denied: none of 1 ALLOW policies matches"),
        (vec![broken], &[], "denied by policy own/deny: it could not be understood: x"),
    ] {
        let compiled = compile(policies, named);
        assert!(compiled.evaluate(&conn(CLIENT), None).is_allow());
        assert_eq!(compiled.dry_run(&conn(CLIENT), None).map(|v| v.to_string()).as_deref(), Some(would));
        assert_eq!(compiled.kernel_plan().default, InboundAction::Steer, "the agent has to see it");
    }
    let missing = compile(vec![deny], &["own/missing"]);
    assert!(!missing.evaluate(&conn(CLIENT), None).is_allow(), "what is not known denies, dry run or not");
    assert_eq!(compile(vec![], &[]).dry_run(&conn(CLIENT), None), None);
}

#[test]
fn ignorance_denies() {
    let allow_all = policy("own/a", Scope::Namespace, Action::Allow, vec![Group::default()]);
    let defective = |action| Policy {
        defect: Some("line 3: no such field".into()),
        ..policy("own/broken", Scope::Namespace, action, vec![Group::default()])
    };
    let unrelated =
        Policy { defect: Some("x".into()), ..policy("x/broken", Scope::Namespace, Action::Allow, vec![]) };
    let cases: Vec<(&str, Compiled, &str)> = vec![
        (
            "a policy that is named and not known",
            compile(vec![allow_all.clone()], &["own/missing"]),
            "denied by policy own/missing: the workload names it, but it is not known",
        ),
        (
            "an ALLOW policy that could not be understood",
            compile(vec![allow_all.clone(), defective(Action::Allow)], &[]),
            "denied by policy own/broken: it could not be understood: line 3: no such field",
        ),
        (
            "a DENY policy that could not be understood",
            compile(vec![allow_all.clone(), defective(Action::Deny)], &[]),
            "denied by policy own/broken: it could not be understood: line 3: no such field",
        ),
        (
            "a policy that could not be understood, for others",
            compile(vec![allow_all, unrelated], &[]),
            "allowed by policy own/a#0",
        ),
        (
            "a pod whose workload is not known",
            Compiled::deny_unknown_workload(),
            "denied: the destination's own workload is not known",
        ),
    ];
    for (what, compiled, expected) in cases {
        assert_eq!(compiled.evaluate(&conn(CLIENT), None).to_string(), expected, "{what}");
        // The kernel must not let plaintext past what the agent would refuse.
        let refuses = expected.starts_with("denied");
        assert_eq!(compiled.kernel_plan().action(8080) != InboundAction::Pass, refuses, "{what}");
    }
}

fn with_mtls(defaults: MtlsDefaults, own: WorkloadMtls, policies: Vec<Policy>) -> Compiled {
    PolicySet::new(policies, defaults).compile(&Subject::named("own", &[], &own))
}

#[test]
fn the_most_specific_mode_holds() {
    use MtlsMode::{Permissive, Strict};
    let port = |mode| [(8080, mode)].into_iter().collect();
    let own = |mode, ports| WorkloadMtls { mode, ports };
    let defaults = |mesh, namespace: Option<MtlsMode>| MtlsDefaults {
        mesh,
        namespaces: namespace.map(|mode| ("own".into(), mode)).into_iter().collect(),
    };
    let none = || own(None, Default::default());
    for (defaults, own, expected) in [
        (defaults(Permissive, None), none(), None),
        (defaults(Strict, None), none(), Some("mesh")),
        (defaults(Strict, Some(Permissive)), none(), None),
        (defaults(Permissive, Some(Strict)), none(), Some("namespace")),
        (defaults(Permissive, Some(Strict)), own(Some(Permissive), Default::default()), None),
        (defaults(Permissive, Some(Permissive)), own(Some(Strict), Default::default()), Some("workload")),
        (defaults(Strict, Some(Strict)), own(Some(Strict), port(Permissive)), None),
        (defaults(Permissive, None), own(None, port(Strict)), Some("port")),
    ] {
        let compiled = with_mtls(defaults.clone(), own.clone(), vec![]);
        let expected_text = match expected {
            Some(level) => format!("denied: plaintext, and mutual TLS is STRICT (set for the {level})"),
            None => "allowed: no ALLOW policy applies".into(),
        };
        assert_eq!(compiled.evaluate(&conn(None), None).to_string(), expected_text, "{defaults:?} {own:?}");
        assert!(compiled.evaluate(&conn(CLIENT), None).is_allow(), "mutual TLS is always within the mode");
        let action = if expected.is_some() { InboundAction::Drop } else { InboundAction::Pass };
        assert_eq!(compiled.kernel_plan().action(8080), action, "{defaults:?} {own:?}");
    }
    // Another namespace's mode is not ours.
    let others =
        MtlsDefaults { mesh: Permissive, namespaces: [("other".into(), Strict)].into_iter().collect() };
    assert!(with_mtls(others, none(), vec![]).evaluate(&conn(None), None).is_allow());
}

#[test]
fn what_the_kernel_may_decide() {
    use InboundAction::{Drop, Pass, Steer};
    let plan = |default, ports: &[(u16, InboundAction)]| InboundPlan {
        default,
        ports: ports.iter().copied().collect(),
    };
    let fields = Match::default;
    let one = |action, m| vec![policy("own/p", Scope::Namespace, action, vec![group(vec![m])])];
    let strict_but_9090 = WorkloadMtls {
        mode: Some(MtlsMode::Strict),
        ports: [(9090, MtlsMode::Permissive)].into_iter().collect(),
    };
    let cases: Vec<(&str, WorkloadMtls, Vec<Policy>, InboundPlan)> = vec![
        ("no policy", WorkloadMtls::default(), vec![], plan(Pass, &[])),
        ("STRICT with an exception", strict_but_9090.clone(), vec![], plan(Drop, &[(9090, Pass)])),
        (
            "STRICT with an exception that a policy looks at",
            strict_but_9090,
            one(Action::Deny, Match { source_ips: vec!["10.0.0.0/8".parse().unwrap()], ..fields() }),
            plan(Drop, &[(9090, Steer)]),
        ),
        (
            "a DENY for one port",
            WorkloadMtls::default(),
            one(Action::Deny, Match { destination_ports: vec![80], ..fields() }),
            plan(Pass, &[(80, Steer)]),
        ),
        (
            "a DENY for all ports but one",
            WorkloadMtls::default(),
            one(Action::Deny, Match { not_destination_ports: vec![80], ..fields() }),
            plan(Steer, &[(80, Pass)]),
        ),
        (
            "a DENY that no plaintext can match",
            WorkloadMtls::default(),
            one(Action::Deny, Match { principals: vec![StringMatch::Presence], ..fields() }),
            plan(Pass, &[]),
        ),
        (
            "a DENY of everything without identity",
            WorkloadMtls::default(),
            one(Action::Deny, Match { not_principals: vec![StringMatch::Presence], ..fields() }),
            plan(Steer, &[]),
        ),
        (
            "an ALLOW that never matches",
            WorkloadMtls::default(),
            one(Action::Allow, fields()),
            plan(Steer, &[]),
        ),
        (
            "an ALLOW of one port",
            WorkloadMtls::default(),
            one(Action::Allow, Match { destination_ports: vec![80], ..fields() }),
            plan(Steer, &[(80, Pass)]),
        ),
        (
            "an ALLOW that depends on the address",
            WorkloadMtls::default(),
            one(Action::Allow, Match { not_source_ips: vec!["10.0.0.1/32".parse().unwrap()], ..fields() }),
            plan(Steer, &[]),
        ),
        (
            "an ALLOW of some identity",
            WorkloadMtls::default(),
            one(Action::Allow, Match { principals: vec![exact("td/ns/shop/sa/web")], ..fields() }),
            plan(Steer, &[]),
        ),
        (
            "an ALLOW of all",
            WorkloadMtls::default(),
            vec![policy("own/p", Scope::Global, Action::Allow, vec![Group::default()])],
            plan(Pass, &[]),
        ),
        (
            "an ALLOW of one port and a DENY of the same",
            WorkloadMtls::default(),
            vec![
                policy(
                    "own/a",
                    Scope::Global,
                    Action::Allow,
                    vec![group(vec![Match { destination_ports: vec![80, 81], ..fields() }])],
                ),
                policy(
                    "own/d",
                    Scope::Global,
                    Action::Deny,
                    vec![group(vec![Match { destination_ports: vec![80], ..fields() }])],
                ),
            ],
            plan(Steer, &[(81, Pass)]),
        ),
        (
            "port 0 is none",
            WorkloadMtls::default(),
            one(Action::Deny, Match { destination_ports: vec![0], ..fields() }),
            plan(Pass, &[]),
        ),
    ];
    for (what, mtls, policies, expected) in cases {
        assert_eq!(with_mtls(MtlsDefaults::default(), mtls, policies).kernel_plan(), expected, "{what}");
    }
}

#[test]
fn equal_policies_compile_alike_and_others_do_not() {
    let with = |ports: Vec<u16>| {
        let m = Match { destination_ports: ports, ..Match::default() };
        compile(vec![policy("own/p", Scope::Namespace, Action::Deny, vec![group(vec![m])])], &[])
    };
    assert_eq!(with(vec![80, 81]), with(vec![81, 80]));
    assert_ne!(with(vec![80]), with(vec![81]));
    assert_ne!(with(vec![]), with(vec![80]));
}

#[test]
fn a_later_policy_replaces_one_of_the_same_name() {
    let all = || vec![Group::default()];
    let policies = vec![
        policy("own/p", Scope::Namespace, Action::Deny, all()),
        policy("own/p", Scope::WorkloadSelector, Action::Deny, all()),
    ];
    assert!(compile(policies, &[]).evaluate(&conn(CLIENT), None).is_allow());
}
