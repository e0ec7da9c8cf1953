//! Each clause of the rules, allowing and denying.

use std::sync::Arc;

use super::*;
use crate::model::workload::WorkloadMtls;
use crate::model::{InboundAction, InboundPlan, MtlsMode};

const CLIENT: Option<&str> = Some("spiffe://td/ns/shop/sa/web");

/// From 10.0.0.1 to 10.2.0.9:8080.
fn conn(source: Option<&str>) -> Conn {
    Conn {
        at_source: None,
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

/// A machine of a federated domain: it has a name and a trust domain, and neither namespace nor account.
#[test]
fn a_client_that_is_no_service_account_is_known_by_its_name_only() {
    const MACHINE: Option<&str> = Some("spiffe://partner.example/billing/api");
    /// As close to the account shop/web as a path may come.
    const LOOKALIKES: [&str; 6] = [
        "spiffe://td/ns/shop/sa/web/extra",
        "spiffe://td/x/ns/shop/sa/web",
        "spiffe://td/NS/shop/sa/web",
        "spiffe://td/ns/shop/SA/web",
        "spiffe://td/shop/web",
        "spiffe://td/ns/shop",
    ];
    let positive = |principal: StringMatch| Match { principals: vec![principal], ..Match::default() };
    let negative = |principal: StringMatch| Match { not_principals: vec![principal], ..Match::default() };
    for (principal, fits) in [
        (exact("partner.example/billing/api"), true),
        (exact("spiffe://partner.example/billing/api"), true),
        (prefix("partner.example/"), true),
        (prefix("spiffe://partner.example/billing/"), true),
        (suffix("/billing/api"), true),
        (StringMatch::Presence, true),
        (exact("partner.example/billing"), false),
        (exact("partner.example/billing/api/"), false),
        (exact("billing/api"), false),
        (exact("Partner.example/billing/api"), false),
        (prefix("partner.example/ns/"), false),
        (suffix("/sa/api"), false),
    ] {
        assert_eq!(matches(positive(principal.clone()), &conn(MACHINE)), fits, "{principal:?}");
        assert_eq!(matches(negative(principal.clone()), &conn(MACHINE)), !fits, "not {principal:?}");
    }
    let domain = || vec![exact("partner.example")];
    assert!(matches(Match { trust_domains: domain(), ..Match::default() }, &conn(MACHINE)));
    assert!(!matches(Match { not_trust_domains: domain(), ..Match::default() }, &conn(MACHINE)));

    let account = || vec![ServiceAccount { namespace: "shop".into(), service_account: "web".into() }];
    let nobody = || vec![ServiceAccount { namespace: "".into(), service_account: "".into() }];
    let linkerd = |name| Match { linkerd_identities: vec![name], ..Match::default() };
    for client in LOOKALIKES.into_iter().chain(MACHINE) {
        let from = conn(Some(client));
        for names in [exact("shop"), prefix("s"), suffix("p"), StringMatch::Presence, exact("billing")] {
            let (names, other) = (vec![names.clone()], vec![names]);
            assert!(!matches(Match { namespaces: names, ..Match::default() }, &from), "{client}: {other:?}");
            assert!(matches(Match { not_namespaces: other, ..Match::default() }, &from), "{client}");
        }
        for accounts in [account(), nobody()] {
            let (accounts, other) = (accounts.clone(), accounts);
            assert!(!matches(Match { service_accounts: accounts, ..Match::default() }, &from), "{client}");
            assert!(matches(Match { not_service_accounts: other, ..Match::default() }, &from), "{client}");
        }
        assert!(!matches(positive(exact("td/ns/shop/sa/web")), &from), "{client}");
        for name in [
            exact("web.shop.serviceaccount.identity.linkerd.td"),
            suffix(".shop.serviceaccount.identity.linkerd.td"),
            suffix(".serviceaccount.identity.linkerd.partner.example"),
            StringMatch::Presence,
        ] {
            assert!(!matches(linkerd(name.clone()), &from), "{client}: {name:?}");
        }
    }
    // Many accounts are found by the path.
    let mut many = account();
    many.extend(
        (0..100).map(|n| ServiceAccount { namespace: format!("n{n}").into(), service_account: "a".into() }),
    );
    let groups: Vec<Group> = many
        .into_iter()
        .map(|one| group(vec![Match { service_accounts: vec![one], ..Match::default() }]))
        .collect();
    let compiled = compile(vec![policy("own/p", Scope::Namespace, Action::Allow, groups)], &[]);
    assert!(compiled.evaluate(&conn(CLIENT), None).is_allow());
    for client in LOOKALIKES.into_iter().chain(MACHINE) {
        assert!(!compiled.evaluate(&conn(Some(client)), None).is_allow(), "{client}");
    }
    // And whoever asks why hears it.
    let told = compiled.explain(&conn(MACHINE), None).considered;
    let because = &told[0].rules[0].because;
    assert!(
        because.starts_with("source.serviceAccounts: a client that is no service account is "),
        "{because}"
    );
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

const GET: Asked = Asked { method: "GET", host: "Shop.Example:80", path: "/api/orders", headers: &[] };

#[derive(Clone, Copy)]
struct Asked {
    method: &'static str,
    host: &'static str,
    path: &'static str,
    headers: &'static [(&'static str, &'static [u8])],
}

impl Asked {
    fn with<T>(self, ask: impl FnOnce(&Request<'_>) -> T) -> T {
        let mut headers = http::HeaderMap::new();
        for (name, value) in self.headers {
            headers.append(*name, http::HeaderValue::from_bytes(value).unwrap());
        }
        let Self { method, host, path, .. } = self;
        ask(&Request { method, host, path, query: Some("q=1"), headers: &headers })
    }

    fn of(self, compiled: &Compiled) -> Verdict {
        self.with(|request| compiled.evaluate(&conn(CLIENT), Some(request)))
    }
}

/// As [`matches`], for a request; whatever it says, a connection alone must leave it open.
fn request_matches(m: &Match, asked: Asked) -> bool {
    let with =
        |action| compile(vec![policy("own/p", Scope::Namespace, action, vec![group(vec![m.clone()])])], &[]);
    let (allow, deny) = (with(Action::Allow), with(Action::Deny));
    assert_eq!(asked.of(&allow).is_allow(), !asked.of(&deny).is_allow(), "{m:?}");
    for compiled in [&allow, &deny] {
        assert_eq!(compiled.on_connection(&conn(CLIENT)), Connection::PerRequest, "{m:?}");
        let unread = compiled.evaluate(&conn(CLIENT), None);
        assert!(matches!(unread, Verdict::Deny { why: Why::NotHttp, .. }), "{m:?}: {unread}");
        assert_eq!(compiled.kernel_plan().default, InboundAction::Steer, "{m:?}");
        assert!(compiled.needs_http(8080));
    }
    asked.of(&allow).is_allow()
}

#[test]
fn fields_of_requests() {
    use StringMatch::Presence;
    let template = |text: &str| PathMatch::Template(PathTemplate::parse(text).unwrap());
    let path = PathMatch::String;
    let no_host = Asked { host: "", ..GET };
    let hosts = [
        (vec![exact("shop.example:80")], GET, true),
        (vec![exact("SHOP.EXAMPLE:80")], GET, true),
        (vec![exact("shop.example")], GET, false),
        (vec![prefix("SHOP.")], GET, true),
        (vec![suffix(":80")], GET, true),
        (vec![suffix(":8080")], GET, false),
        (vec![Presence], GET, true),
        (vec![Presence], no_host, false),
        (vec![exact("")], no_host, true),
    ];
    for (values, asked, fits) in hosts {
        let (one, none) = (values.clone(), values);
        assert_eq!(
            request_matches(&Match { hosts: one.clone(), ..Match::default() }, asked),
            fits,
            "{one:?}"
        );
        let negative = Match { not_hosts: none, ..Match::default() };
        assert_eq!(request_matches(&negative, asked), !fits, "not {one:?}");
    }
    let methods = [(vec![exact("GET")], true), (vec![exact("get")], false), (vec![prefix("G")], true)];
    for (values, fits) in methods {
        let positive = Match { methods: values.clone(), ..Match::default() };
        assert_eq!(request_matches(&positive, GET), fits, "{values:?}");
        let negative = Match { not_methods: values.clone(), ..Match::default() };
        assert_eq!(request_matches(&negative, GET), !fits, "not {values:?}");
    }
    let paths = [
        (vec![path(exact("/api/orders"))], true),
        // Without its query, and with regard to case.
        (vec![path(exact("/api/orders?q=1"))], false),
        (vec![path(exact("/API/orders"))], false),
        (vec![path(prefix("/api/"))], true),
        (vec![path(suffix("/orders"))], true),
        (vec![path(Presence)], true),
        (vec![template("/api/{*}")], true),
        (vec![template("/{*}")], false),
        (vec![template("/{**}/orders")], true),
        // The slash before it has to be there.
        (vec![template("/api/orders/{**}")], false),
        (vec![template("/x/{**}"), path(exact("/api/orders"))], true),
    ];
    for (values, fits) in paths {
        let positive = Match { paths: values.clone(), ..Match::default() };
        assert_eq!(request_matches(&positive, GET), fits, "{values:?}");
        let negative = Match { not_paths: values.clone(), ..Match::default() };
        assert_eq!(request_matches(&negative, GET), !fits, "not {values:?}");
    }
}

#[test]
fn headers() {
    use StringMatch::Presence;
    let once = Asked { headers: &[("x-v", b"1")], ..GET };
    let twice = Asked { headers: &[("x-v", b"1"), ("x-v", b"2")], ..GET };
    let empty = Asked { headers: &[("x-v", b"")], ..GET };
    let odd = Asked { headers: &[("x-v", b"1\xff")], ..GET };
    let cases = [
        ("x-v", vec![exact("1")], once, true),
        ("x-v", vec![exact("2"), exact("1")], once, true),
        ("x-v", vec![Presence], once, true),
        // A second one does not hide behind the first.
        ("x-v", vec![exact("1")], twice, false),
        ("x-v", vec![exact("1,2")], twice, true),
        ("x-v", vec![prefix("1")], twice, true),
        ("x-v", vec![suffix("2")], twice, true),
        // Sent and empty is not the same as not sent.
        ("x-v", vec![exact("")], empty, true),
        ("x-v", vec![prefix("")], empty, true),
        ("x-v", vec![Presence], empty, false),
        ("x-v", vec![exact("")], GET, false),
        ("x-v", vec![prefix("")], GET, false),
        ("x-v", vec![Presence], GET, false),
        // What is no text is compared all the same.
        ("x-v", vec![prefix("1")], odd, true),
        ("x-v", vec![exact("1")], odd, false),
        ("host", vec![exact("Shop.Example:80")], GET, true),
        (":authority", vec![prefix("Shop.")], GET, true),
        (":method", vec![exact("GET")], GET, true),
        (":path", vec![exact("/api/orders?q=1")], GET, true),
    ];
    for (name, values, asked, fits) in cases {
        let header = |one_of: Vec<StringMatch>, none_of| Match {
            headers: vec![HeaderMatch { name: name.into(), one_of, none_of }],
            ..Match::default()
        };
        assert_eq!(request_matches(&header(values.clone(), vec![]), asked), fits, "{name} {values:?}");
        assert_eq!(request_matches(&header(vec![], values.clone()), asked), !fits, "{name} not {values:?}");
    }
    // All of several have to hold, and one without values is none.
    let header = |name: &str, values: Vec<StringMatch>| HeaderMatch {
        name: name.into(),
        one_of: values,
        none_of: vec![],
    };
    let with = |headers| Match { headers, ..Match::default() };
    let both = with(vec![header("x-v", vec![exact("1")]), header("x-w", vec![exact("1")])]);
    assert!(!request_matches(&both, once));
    let all = compile(
        vec![policy(
            "own/p",
            Scope::Namespace,
            Action::Allow,
            vec![group(vec![with(vec![header("x-v", vec![])])])],
        )],
        &[],
    );
    assert!(!once.of(&all).is_allow(), "a match in which nothing has values never holds");
}

#[test]
fn other_names_of_the_client() {
    let cases: Vec<(&str, Match, Match, bool, bool)> = vec![
        (
            "trust domain",
            Match { trust_domains: vec![exact("td")], ..Match::default() },
            Match { not_trust_domains: vec![exact("td")], ..Match::default() },
            true,
            false,
        ),
        (
            "no trust domain",
            Match { trust_domains: vec![exact("")], ..Match::default() },
            Match { not_trust_domains: vec![exact("")], ..Match::default() },
            false,
            true,
        ),
        (
            "remote address",
            Match { remote_ips: vec!["10.0.0.0/24".parse().unwrap()], ..Match::default() },
            Match { not_remote_ips: vec!["10.0.0.0/24".parse().unwrap()], ..Match::default() },
            true,
            true,
        ),
        (
            "no server name",
            Match { snis: vec![StringMatch::Presence], ..Match::default() },
            Match { not_snis: vec![StringMatch::Presence], ..Match::default() },
            false,
            false,
        ),
    ];
    for (what, positive, negative, client, nobody) in cases {
        for (source, fits) in [(CLIENT, client), (None, nobody)] {
            assert_eq!(matches(positive.clone(), &conn(source)), fits, "{what} {source:?}");
            assert_eq!(matches(negative.clone(), &conn(source)), !fits, "not {what} {source:?}");
        }
    }
    let sni = Conn { sni: Some("db.example".into()), ..conn(None) };
    assert!(matches(Match { snis: vec![suffix(".example")], ..Match::default() }, &sni));
    for (value, fits) in [
        (exact("web.shop.serviceaccount.identity.linkerd.td"), true),
        (exact("web.shop.serviceaccount.identity.other.td"), false),
        (suffix(".shop.serviceaccount.identity.linkerd.td"), true),
        (StringMatch::Presence, true),
        (prefix(""), true),
    ] {
        let m = Match { linkerd_identities: vec![value.clone()], ..Match::default() };
        assert_eq!(matches(m.clone(), &conn(CLIENT)), fits, "{value:?}");
        assert!(!matches(m, &conn(None)), "{value:?}");
    }
}

#[test]
fn what_cannot_be_evaluated_never_matches() {
    let never = Group { never: Some("it wants a token".into()), ..Group::default() };
    let with = |action| policy("own/p", Scope::Namespace, action, vec![never.clone()]);
    let allow = compile(vec![with(Action::Allow)], &[]);
    assert!(!allow.evaluate(&conn(CLIENT), None).is_allow());
    let told = allow.explain(&conn(CLIENT), None).considered;
    assert!(told[0].rules[0].because.contains("it wants a token"), "{told:?}");
    // Beside others it takes nothing away.
    let both = Policy { groups: vec![never.clone(), Group::default()], ..with(Action::Allow) };
    let verdict = compile(vec![both], &[]).evaluate(&conn(CLIENT), None);
    assert_eq!(verdict.to_string(), "allowed by policy own/p#1");
}

#[test]
fn an_audit_decides_nothing_and_is_seen() {
    let audit = policy("own/a", Scope::Namespace, Action::Audit, vec![Group::default()]);
    let compiled = compile(vec![audit], &[]);
    assert!(compiled.evaluate(&conn(None), None).is_allow());
    let told: Vec<_> = compiled.audited(&conn(None), None).iter().map(ToString::to_string).collect();
    assert_eq!(told, ["own/a#0"]);
    assert_eq!(compiled.kernel_plan().default, InboundAction::Steer);
}

#[test]
fn http_is_read_only_on_ports_that_need_it() {
    let request = |ports: Vec<u16>, not_ports: Vec<u16>| Match {
        methods: vec![exact("GET")],
        destination_ports: ports,
        not_destination_ports: not_ports,
        ..Match::default()
    };
    let port = |port| Match { destination_ports: vec![port], ..Match::default() };
    let cases: Vec<(&str, Vec<Rule>, bool, bool)> = vec![
        ("everywhere", vec![Rule { matches: vec![request(vec![], vec![])] }], true, true),
        ("on one port", vec![Rule { matches: vec![request(vec![80], vec![])] }], true, false),
        ("on all but one", vec![Rule { matches: vec![request(vec![], vec![80])] }], false, true),
        (
            "on one port by another rule",
            vec![Rule { matches: vec![request(vec![], vec![])] }, Rule { matches: vec![port(80)] }],
            true,
            false,
        ),
        (
            "beside another port",
            vec![Rule { matches: vec![request(vec![80], vec![]), port(81)] }],
            true,
            false,
        ),
        ("never", vec![Rule { matches: vec![request(vec![80], vec![80])] }], false, false),
        ("nothing of requests", vec![Rule { matches: vec![port(80)] }], false, false),
    ];
    for (what, rules, on_80, on_81) in cases {
        for action in [Action::Allow, Action::Deny, Action::Audit] {
            let groups = vec![Group { rules: rules.clone(), never: None }];
            let compiled = compile(vec![policy("own/p", Scope::Namespace, action, groups)], &[]);
            assert_eq!((compiled.needs_http(80), compiled.needs_http(81)), (on_80, on_81), "{what}");
        }
    }
}

#[test]
fn an_explanation_says_which_field_decided() {
    let m = Match { namespaces: vec![exact("test"), prefix("dev")], ..Match::default() };
    let ports = Match { destination_ports: vec![8080], not_namespaces: vec![exact("x")], ..Match::default() };
    let policies = vec![
        policy("own/a", Scope::Namespace, Action::Allow, vec![group(vec![m]), group(vec![ports])]),
        policy(
            "own/d",
            Scope::Namespace,
            Action::Deny,
            vec![group(vec![Match {
                methods: vec![exact("DELETE")],
                hosts: vec![exact("a.example")],
                ..Match::default()
            }])],
        ),
    ];
    let compiled = compile(policies, &["own/missing"]);
    let told = GET.with(|request| compiled.explain(&conn(CLIENT), Some(request)));
    let because: Vec<_> = told
        .considered
        .iter()
        .flat_map(|c| {
            c.rules.iter().map(move |rule| format!("{} {} {}", c.resource, rule.matched, rule.because))
        })
        .collect();
    assert_eq!(
        because,
        [
            r#"own/d false to.methods: "GET" is none of [DELETE]"#,
            r#"own/a false source.namespaces: "shop" is none of [test, dev*]"#,
            r#"own/a true to.ports: 8080 is one of [8080], source.notNamespaces: "shop" is none of [x]"#,
        ]
    );
    let json = serde_json::to_value(&told).unwrap();
    assert_eq!(json["verdict"], "deny");
    assert_eq!(json["cause"], "unknown_policy");
    assert_eq!(json["by"][0], "own/missing");
    assert_eq!(json["considered"][0]["resource"], "own/missing");
    assert_eq!(json["considered"][2]["rules"][1]["matched"], true);
    let unread = compiled.explain(&conn(CLIENT), None);
    assert_eq!(
        unread.considered[1].rules[0].because,
        "to.methods: depends on the request, of [DELETE], to.hosts: depends on the request, of [a.example]"
    );
}

/// How many matches were compared.
fn cost<T>(decide: impl FnOnce() -> T) -> (T, usize) {
    let before = super::matcher::JUDGED.get();
    let answer = decide();
    (answer, super::matcher::JUDGED.get() - before)
}

/// One way in which many rules differ from each other.
type Differing = fn(usize) -> Match;

const DIFFERING: &[(&str, Differing)] = &[
    ("namespace", |n| Match { namespaces: vec![exact(&format!("n{n}"))], ..Match::default() }),
    ("principal", |n| Match { principals: vec![exact(&format!("td/ns/n{n}/sa/a"))], ..Match::default() }),
    ("principal's prefix", |n| Match {
        principals: vec![prefix(&format!("td/ns/n{n}/"))],
        ..Match::default()
    }),
    ("account", |n| Match {
        service_accounts: vec![ServiceAccount {
            namespace: "n".into(),
            service_account: format!("a{n}").into(),
        }],
        ..Match::default()
    }),
    ("Linkerd identity", |n| Match {
        linkerd_identities: vec![prefix(&format!("a{n}.n"))],
        ..Match::default()
    }),
    ("source", |n| Match {
        source_ips: vec![format!("172.16.{}.{}/32", n / 256, n % 256).parse().unwrap()],
        ..Match::default()
    }),
    ("destination", |n| Match {
        destination_ips: vec![format!("172.16.{}.{}/32", n / 256, n % 256).parse().unwrap()],
        ..Match::default()
    }),
    ("server name", |n| Match { snis: vec![exact(&format!("h{n}"))], ..Match::default() }),
    ("port and source", |n| Match {
        destination_ports: vec![8080],
        source_ips: vec![format!("172.16.{}.{}/32", n / 256, n % 256).parse().unwrap()],
        ..Match::default()
    }),
    ("port", |n| Match { destination_ports: vec![u16::try_from(10_000 + n).unwrap()], ..Match::default() }),
    ("path of one client's", |n| Match {
        namespaces: vec![exact("shop")],
        paths: vec![PathMatch::String(prefix(&format!("/p{n}/")))],
        ..Match::default()
    }),
    ("path of another's", |n| Match {
        namespaces: vec![exact("other")],
        paths: vec![PathMatch::String(exact(&format!("/p{n}")))],
        ..Match::default()
    }),
    // Both of the client's occur often, and never together.
    ("client and source", |n| Match {
        namespaces: vec![exact(&if n % 20 == 0 && n >= 20 { "shop".into() } else { format!("n{}", n % 20) })],
        source_ips: vec![format!("10.0.{}.0/24", n / 20).parse().unwrap()],
        ..Match::default()
    }),
    ("client and path", |n| Match {
        namespaces: vec![exact(if n % 20 == 0 { "shop" } else { "other" })],
        paths: vec![PathMatch::String(exact(&format!("/p{}", n / 20)))],
        ..Match::default()
    }),
    ("template", |n| Match {
        paths: vec![PathMatch::Template(PathTemplate::parse(&format!("/p{n}/{{*}}")).unwrap())],
        ..Match::default()
    }),
    ("host", |n| Match { hosts: vec![suffix(&format!("{n}.Example"))], ..Match::default() }),
    ("header", |n| Match {
        headers: vec![HeaderMatch {
            name: "x-v".into(),
            one_of: vec![exact(&n.to_string())],
            none_of: vec![],
        }],
        ..Match::default()
    }),
];

#[test]
fn a_decision_looks_at_as_few_rules_among_thousands_as_among_ten() {
    let one_policy = |n: usize, action, differing: &Differing| {
        vec![policy("own/p", Scope::Namespace, action, (0..n).map(|n| group(vec![differing(n)])).collect())]
    };
    let many_policies = |n: usize, action, differing: &Differing| {
        let one =
            |n| policy(&format!("own/p{n:05}"), Scope::Namespace, action, vec![group(vec![differing(n)])]);
        (0..n).map(one).collect()
    };
    let many_matches = |n: usize, action, differing: &Differing| {
        vec![policy("own/p", Scope::Namespace, action, vec![group((0..n).map(differing).collect())])]
    };
    type Shape<'a> = (&'a str, &'a dyn Fn(usize, Action, &Differing) -> Vec<Policy>);
    let shapes: [Shape<'_>; 3] =
        [("rules", &one_policy), ("policies", &many_policies), ("matches of one rule", &many_matches)];
    for (shape, policies) in shapes {
        for (field, differing) in DIFFERING {
            for action in [Action::Allow, Action::Deny] {
                let costs = [10, 500].map(|n| {
                    let compiled = compile(policies(n, action, differing), &[]);
                    let judged = |source| {
                        let asked = GET.with(|r| cost(|| compiled.evaluate(&conn(source), Some(r))).1);
                        asked.max(cost(|| compiled.on_connection(&conn(source))).1)
                    };
                    judged(CLIENT).max(judged(None))
                });
                assert!(costs[1] <= costs[0].max(2), "{action:?} {shape} by {field}: {costs:?}");
            }
        }
    }
}

/// What is not known when the kernel's plan is made cannot be looked up.
#[test]
fn the_kernel_steers_for_many_rules_what_it_steers_for_one_of_them() {
    for (field, differing) in DIFFERING {
        for action in [Action::Allow, Action::Deny, Action::Audit] {
            let plan = |rules: Vec<Group>| {
                compile(vec![policy("own/p", Scope::Namespace, action, rules)], &[]).kernel_plan()
            };
            let all: Vec<_> = (0..20).map(|n| group(vec![differing(n)])).collect();
            for port in [8080, 10_003] {
                let steered = |rules| plan(rules).action(port) == InboundAction::Steer;
                let mut each = all.iter().map(|one| steered(vec![one.clone()]));
                let right = match action {
                    Action::Allow => each.all(|one| one),
                    Action::Deny | Action::Audit => each.any(|one| one),
                };
                assert_eq!(steered(all.clone()), right, "{action:?} by {field}");
                let matches = (0..20).map(differing).collect();
                assert_eq!(steered(vec![group(matches)]), right, "{action:?} by {field}, in one rule");
            }
        }
    }
}

#[test]
fn only_what_changed_is_compiled_again() {
    let p = |name: &str, scope, port| {
        let m = Match { destination_ports: vec![port], ..Match::default() };
        policy(name, scope, Action::Deny, vec![group(vec![m])])
    };
    let (own, other) = (p("own/p", Scope::Namespace, 1), p("other/p", Scope::Namespace, 1));
    let mtls = WorkloadMtls::default();
    let [of_own, of_other] = ["own", "other"].map(|namespace| Subject::named(namespace, &[], &mtls));
    let before = PolicySet::new([own.clone(), other.clone()], MtlsDefaults::default());
    let compiled = [&of_own, &of_other].map(|subject| before.recompile(subject, None));
    assert!(
        Arc::ptr_eq(&compiled[0].deny, &before.compile(&of_own).deny),
        "workloads with the same policies share them"
    );

    let after = before.next([p("own/p", Scope::Namespace, 2), other], MtlsDefaults::default(), None);
    let again = after.recompile(&of_own, Some(&compiled[0]));
    assert!(!Arc::ptr_eq(&again, &compiled[0]));
    assert!(!again.evaluate(&Conn { destination_port: 2, ..conn(None) }, None).is_allow());
    let again = after.recompile(&of_other, Some(&compiled[1]));
    assert!(Arc::ptr_eq(&again, &compiled[1]), "nothing of it has changed");
    assert!(Arc::ptr_eq(&after.compile(&of_other).deny, &compiled[1].deny));
    // What is gone is gone, also from what is kept.
    let none = after.next([own], MtlsDefaults::default(), None);
    let gone = none.recompile(&of_other, Some(&compiled[1]));
    assert!(gone.evaluate(&Conn { destination_port: 1, ..conn(None) }, None).is_allow());
}
