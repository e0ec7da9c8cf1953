//! What is sent means what Istio's own readers take it for, and what they would drop never makes it wider.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::model::MtlsMode;
use crate::model::workload::WorkloadMtls;
use crate::policy::{Compiled, Conn, MtlsDefaults, PolicySet, Subject};

const WEB: Option<&str> = Some("spiffe://td/ns/shop/sa/web");
const TILL: Option<&str> = Some("spiffe://other/ns/shop/sa/till");
const PLAIN: Option<&str> = None;

/// From 10.1.0.7 to 10.2.0.9:8080.
fn conn(source: Option<&str>) -> Conn {
    let ip = |text: &str| text.parse().unwrap();
    Conn::new(source.map(|id| id.parse().unwrap()), ip("10.1.0.7"), ip("10.2.0.9"), 8080)
}

fn text(match_type: MatchType) -> sent::StringMatch {
    sent::StringMatch { match_type: Some(match_type) }
}

fn exact(s: &str) -> sent::StringMatch {
    text(MatchType::Exact(s.into()))
}

fn prefix(s: &str) -> sent::StringMatch {
    text(MatchType::Prefix(s.into()))
}

fn suffix(s: &str) -> sent::StringMatch {
    text(MatchType::Suffix(s.into()))
}

fn presence() -> sent::StringMatch {
    text(MatchType::Presence(()))
}

fn range(text: &str) -> sent::Address {
    let (ip, length) = text.split_once('/').unwrap();
    let address = match ip.parse().unwrap() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    sent::Address { address, length: length.parse().unwrap() }
}

fn account(namespace: &str, name: &str) -> sent::ServiceAccountMatch {
    sent::ServiceAccountMatch { namespace: namespace.into(), service_account: name.into() }
}

fn rule(matches: Vec<sent::Match>) -> sent::Rules {
    sent::Rules { matches }
}

fn group(rules: Vec<sent::Rules>) -> sent::Group {
    sent::Group { rules }
}

fn policy(action: sent::Action, groups: Vec<sent::Group>) -> sent::Authorization {
    sent::Authorization {
        name: "p".into(),
        namespace: "own".into(),
        scope: sent::Scope::Namespace.into(),
        action: action.into(),
        groups,
        dry_run: false,
    }
}

fn named(names: &[&str]) -> sent::Match {
    sent::Match { principals: names.iter().map(|name| exact(name)).collect(), ..Default::default() }
}

const WEB_NAME: &str = "td/ns/shop/sa/web";

/// For a workload of `namespace` that names some policies.
fn compile(read: &Read, namespace: &str, names: &[&str]) -> Compiled {
    let names: Vec<Arc<str>> = names.iter().map(|key| Arc::from(*key)).collect();
    let mtls = WorkloadMtls::default();
    let set = PolicySet::new([read.policy.clone()], MtlsDefaults::default());
    set.compile(&Subject::named(namespace, &names, &mtls))
}

fn admits(read: &Read, source: Option<&str>) -> bool {
    compile(read, "own", &[]).evaluate(&conn(source), None).is_allow()
}

/// Reads what is right.
fn taken(sent: &sent::Authorization) -> Read {
    let read = read("own/p", &sent.encode_to_vec());
    assert_eq!((&read.policy.defect, &read.defects[..]), (&None, &[][..]), "{sent:?}");
    read
}

/// Which of the two actions' policies of these groups see a connection: both have to.
fn matches(groups: &[sent::Group], source: Option<&str>) -> bool {
    let allow = admits(&taken(&policy(sent::Action::Allow, groups.to_vec())), source);
    let deny = !admits(&taken(&policy(sent::Action::Deny, groups.to_vec())), source);
    assert_eq!(allow, deny, "{groups:?}");
    allow
}

#[test]
fn every_field_is_compared() {
    type Put<T> = fn(&mut sent::Match, Vec<T>);
    // What is put into a field and its negative, and whether it fits the web shop, the till, plaintext.
    fn check<T: Clone + std::fmt::Debug>(fields: [Put<T>; 2], table: Vec<(Vec<T>, [bool; 3])>) {
        for (values, fits) in table {
            for (source, fits) in [WEB, TILL, PLAIN].into_iter().zip(fits) {
                for (put, expected) in fields.into_iter().zip([fits, !fits]) {
                    let mut fields = sent::Match::default();
                    put(&mut fields, values.clone());
                    let groups = [group(vec![rule(vec![fields.clone()])])];
                    assert_eq!(matches(&groups, source), expected, "{fields:?} for {source:?}");
                }
            }
        }
    }
    check(
        [|m, v| m.namespaces = v, |m, v| m.not_namespaces = v],
        vec![
            (vec![exact("shop")], [true, true, false]),
            (vec![exact("sho"), exact("shop ")], [false; 3]),
            (vec![exact("none"), exact("shop")], [true, true, false]),
            (vec![prefix("sh")], [true, true, false]),
            (vec![suffix("op")], [true, true, false]),
            (vec![prefix("op"), suffix("sh")], [false; 3]),
            (vec![presence()], [true, true, false]),
            // Who has no identity has the empty namespace.
            (vec![exact("")], [false, false, true]),
            (vec![prefix("")], [true; 3]),
        ],
    );
    check(
        [|m, v| m.principals = v, |m, v| m.not_principals = v],
        vec![
            (vec![exact(WEB_NAME)], [true, false, false]),
            (vec![prefix("other/")], [false, true, false]),
            (vec![suffix("/sa/web")], [true, false, false]),
            (vec![suffix("/sa/web"), exact("other/ns/shop/sa/till")], [true, true, false]),
            (vec![presence()], [true, true, false]),
            (vec![exact("")], [false; 3]),
            (vec![prefix("")], [true, true, false]),
        ],
    );
    check(
        [|m, v| m.service_accounts = v, |m, v| m.not_service_accounts = v],
        vec![
            (vec![account("shop", "web")], [true, false, false]),
            (vec![account("shop", "till"), account("web", "shop")], [false, true, false]),
        ],
    );
    let addresses = |own: &'static str, other: &'static str| {
        vec![
            (vec![range(own)], [true; 3]),
            (vec![range(other)], [false; 3]),
            (vec![range(other), range(own)], [true; 3]),
            (vec![range("0.0.0.0/0")], [true; 3]),
            (vec![range("::/0")], [false; 3]),
        ]
    };
    check([|m, v| m.source_ips = v, |m, v| m.not_source_ips = v], addresses("10.1.0.0/16", "10.2.0.0/16"));
    check(
        [|m, v| m.destination_ips = v, |m, v| m.not_destination_ips = v],
        addresses("::ffff:10.2.0.9/128", "10.1.0.0/16"),
    );
    check(
        [|m, v| m.destination_ports = v, |m, v| m.not_destination_ports = v],
        vec![(vec![8080], [true; 3]), (vec![80, 8080], [true; 3]), (vec![80, 15008], [false; 3])],
    );
}

#[test]
fn groups_are_alternatives_rules_conditions_and_matches_alternatives() {
    let web = || named(&[WEB_NAME]);
    let port = |port| sent::Match { destination_ports: vec![port], ..Default::default() };
    let empty = sent::Match::default;
    for (groups, expected) in [
        (vec![], false),
        (vec![group(vec![])], true),
        (vec![group(vec![rule(vec![])])], true),
        (vec![group(vec![rule(vec![empty()])])], false),
        (vec![group(vec![rule(vec![empty(), web()])])], true),
        (vec![group(vec![rule(vec![web()])])], true),
        (vec![group(vec![rule(vec![web()]), rule(vec![port(8080)])])], true),
        (vec![group(vec![rule(vec![web()]), rule(vec![port(80)])])], false),
        (vec![group(vec![rule(vec![web()]), rule(vec![])])], true),
        (vec![group(vec![rule(vec![web()]), rule(vec![empty()])])], false),
        (vec![group(vec![rule(vec![port(80), web()])])], true),
        (vec![group(vec![rule(vec![port(80)])]), group(vec![rule(vec![web()])])], true),
        (vec![group(vec![rule(vec![port(80)])]), group(vec![rule(vec![port(81)])])], false),
        // Fields of one match have to hold together.
        (vec![group(vec![rule(vec![sent::Match { destination_ports: vec![80], ..web() }])])], false),
    ] {
        assert_eq!(matches(&groups, WEB), expected, "{groups:?}");
    }
}

#[test]
fn scope_says_whose_policy_it_is() {
    use sent::Scope::{Global, Namespace, WorkloadSelector};
    for (scope, own, other, names_it) in
        [(Global, true, true, true), (Namespace, true, false, true), (WorkloadSelector, false, false, true)]
    {
        let all = vec![group(vec![])];
        let policy = sent::Authorization { scope: scope.into(), ..policy(sent::Action::Deny, all) };
        let read = taken(&policy);
        let denies = |namespace, names: &[&str]| {
            !compile(&read, namespace, names).evaluate(&conn(WEB), None).is_allow()
        };
        assert_eq!(denies("own", &[]), own, "{scope:?}");
        assert_eq!(denies("other", &[]), other, "{scope:?}");
        assert_eq!(denies("other", &["own/p"]), names_it, "{scope:?}");
    }
}

#[test]
fn a_dry_run_is_told_of_and_decides_nothing() {
    let all = vec![group(vec![])];
    let read = taken(&sent::Authorization { dry_run: true, ..policy(sent::Action::Deny, all) });
    let compiled = compile(&read, "own", &[]);
    assert!(compiled.evaluate(&conn(WEB), None).is_allow());
    assert!(!compiled.dry_run(&conn(WEB), None).unwrap().is_allow());
}

/// istiod's policy for STRICT, and its form for one port.
#[test]
fn what_istiod_makes_of_strict_refuses_plaintext() {
    let nobody = || sent::Match { not_principals: vec![presence()], ..Default::default() };
    let other_port = sent::Match { not_destination_ports: vec![8080], ..Default::default() };
    let strict = policy(sent::Action::Deny, vec![group(vec![rule(vec![nobody()])])]);
    let but_one = policy(sent::Action::Deny, vec![group(vec![rule(vec![nobody()]), rule(vec![other_port])])]);
    let of = |policy, source| admits(&taken(policy), source);
    assert_eq!((of(&strict, WEB), of(&strict, PLAIN)), (true, false));
    assert_eq!((of(&but_one, WEB), of(&but_one, PLAIN)), (true, true));
    assert_eq!(compile(&taken(&strict), "own", &[]).mtls().mode, MtlsMode::Permissive);
}

/// A value that cannot be right, beside one that is and lets the web shop in.
#[test]
fn a_bad_value_never_makes_a_rule_wider() {
    let bytes = |n: usize, length| sent::Address { address: vec![10; n], length };
    let unset = sent::StringMatch::default;
    type Spoil = Box<dyn Fn(&mut sent::Match)>;
    fn spoil(f: impl Fn(&mut sent::Match) + 'static) -> Spoil {
        Box::new(f)
    }
    // The field, how it is spoiled, and whether a policy that denies still spares plaintext by the rest of the match.
    let table: Vec<(&str, Spoil)> = vec![
        ("namespaces[0]", spoil(move |m| m.namespaces = vec![unset(), exact("shop")])),
        ("not_namespaces[0]", spoil(move |m| m.not_namespaces = vec![unset(), exact("none")])),
        ("principals[1]", spoil(move |m| m.principals.push(unset()))),
        ("not_principals[0]", spoil(move |m| m.not_principals = vec![unset()])),
        ("source_ips[0]", spoil(move |m| m.source_ips = vec![bytes(4, 33)])),
        ("source_ips[1]", spoil(move |m| m.source_ips = vec![range("10.0.0.0/8"), bytes(0, 0)])),
        ("source_ips[0]", spoil(move |m| m.source_ips = vec![bytes(5, 8)])),
        ("not_source_ips[0]", spoil(move |m| m.not_source_ips = vec![bytes(4, 300)])),
        ("destination_ips[0]", spoil(move |m| m.destination_ips = vec![bytes(16, 129)])),
        ("not_destination_ips[0]", spoil(move |m| m.not_destination_ips = vec![bytes(15, 8)])),
        ("destination_ports[0]", spoil(|m| m.destination_ports = vec![65536 + 8080])),
        ("destination_ports[1]", spoil(|m| m.destination_ports = vec![8080, 0])),
        ("not_destination_ports[0]", spoil(|m| m.not_destination_ports = vec![65536])),
        ("service_accounts[0]", spoil(|m| m.service_accounts = vec![account("shop", "")])),
        ("not_service_accounts[0]", spoil(|m| m.not_service_accounts = vec![account("", "till")])),
    ];
    for (field, spoil) in table {
        let mut fields = named(&[WEB_NAME]);
        spoil(&mut fields);
        // The second match would hold; but what was meant by the whole is not known.
        let groups = vec![group(vec![rule(vec![fields.clone(), named(&[WEB_NAME])])])];
        let allow = read("own/p", &policy(sent::Action::Allow, groups.clone()).encode_to_vec());
        let deny = read("own/p", &policy(sent::Action::Deny, groups).encode_to_vec());
        assert!(!admits(&allow, WEB), "{field}: ALLOW {fields:?}");
        assert!(!admits(&deny, WEB), "{field}: DENY {fields:?}");
        for read in [&allow, &deny] {
            let expected = format!("groups[0].rules[0].matches[0].{field}");
            assert_eq!(read.defects.iter().map(|d| &*d.field).collect::<Vec<_>>(), [expected]);
            assert_eq!(read.policy.defect, None);
        }
    }
}

#[test]
fn of_a_list_that_says_nothing_a_policy_that_denies_keeps_the_other_fields() {
    let bad = || vec![sent::Address { address: vec![10, 0, 0, 0], length: 33 }];
    let deny = |fields| {
        let groups = vec![group(vec![rule(vec![fields])])];
        read("own/p", &policy(sent::Action::Deny, groups).encode_to_vec())
    };
    let beside_a_name = deny(sent::Match { source_ips: bad(), ..named(&[WEB_NAME]) });
    assert_eq!((admits(&beside_a_name, WEB), admits(&beside_a_name, TILL)), (false, true));
    // A match without values never holds: what is left here must not be taken for one.
    let alone = deny(sent::Match { source_ips: bad(), ..Default::default() });
    assert_eq!((admits(&alone, WEB), admits(&alone, PLAIN)), (false, false));
    let negative = deny(sent::Match { not_source_ips: bad(), ..Default::default() });
    assert_eq!((admits(&negative, WEB), admits(&negative, PLAIN)), (false, false));
}

/// A field of a newer istiod at each of the levels, from the policy down to a value.
#[test]
fn an_unknown_field_counts_as_a_condition_that_nobody_knows() {
    let wrap = |number: u8, inner: Vec<u8>| {
        let length = u8::try_from(inner.len()).unwrap();
        [vec![number << 3 | 2, length], inner].concat()
    };
    let sent = |action, level: usize| {
        // Field 100.
        let unknown = |at| if at == level { b"\xa2\x06\x01x".to_vec() } else { Vec::new() };
        let value = [exact(WEB_NAME).encode_to_vec(), unknown(4)].concat();
        let fields = [wrap(3, value), unknown(3)].concat();
        let rule = [wrap(2, fields), unknown(2)].concat();
        let group = [wrap(1, rule), unknown(1)].concat();
        [policy(action, vec![]).encode_to_vec(), wrap(5, group), unknown(0)].concat()
    };
    let places = [
        "",
        "groups[0]",
        "groups[0].rules[0]",
        "groups[0].rules[0].matches[0]",
        "groups[0].rules[0].matches[0].principals[0]",
    ];
    for (level, place) in places.into_iter().enumerate() {
        let allow = read("own/p", &sent(sent::Action::Allow, level));
        let deny = read("own/p", &sent(sent::Action::Deny, level));
        for read in [&allow, &deny] {
            let [defect] = &read.defects[..] else { panic!("{place}: {:?}", read.defects) };
            assert_eq!(&*defect.field, place);
            assert!(defect.message.contains("field 100"), "{}", defect.message);
        }
        assert_eq!((admits(&allow, WEB), admits(&allow, TILL)), (false, false), "{place}");
        // A condition beside the names may spare some of them, and nobody else.
        assert_eq!((admits(&deny, WEB), admits(&deny, TILL)), (false, level == 3), "{place}");
    }
    let clean = sent(sent::Action::Allow, usize::MAX);
    assert_eq!(read("own/p", &clean).defects, []);
}

#[test]
fn extensions_are_unknown_fields() {
    let extension = |key: &[u8]| [key, b"\x03\x0a\x01x"].concat();
    let groups = vec![group(vec![rule(vec![named(&[WEB_NAME])])])];
    let bytes = [policy(sent::Action::Allow, groups).encode_to_vec(), extension(b"\x3a")].concat();
    let read = read("own/p", &bytes);
    assert_eq!(read.defects.len(), 1);
    assert!(!admits(&read, WEB));
}

/// It cannot be told what they close, so they close everything.
#[test]
fn a_policy_that_is_not_understood_denies_all_that_it_may_be_for() {
    let good = || policy(sent::Action::Allow, vec![group(vec![])]);
    let unknown_scope = sent::Authorization { scope: 3, ..good() };
    let nameless = sent::Authorization { name: String::new(), ..good() };
    let dry = sent::Authorization { namespace: "others".into(), dry_run: true, ..good() };
    for (name, bytes) in [
        ("own/p", unknown_scope.encode_to_vec()),
        ("own/p", nameless.encode_to_vec()),
        ("own/", nameless.encode_to_vec()),
        ("own/p", dry.encode_to_vec()),
        ("others/p", good().encode_to_vec()),
        ("p", good().encode_to_vec()),
        ("own/p", b"\xff".to_vec()),
        ("own/p", b"\x0a\x05p".to_vec()),
        // The number of a text as a number.
        ("own/p", b"\x08\x01".to_vec()),
        // A group of the times before proto3.
        ("own/p", [good().encode_to_vec(), b"\xa3\x06\xa4\x06".to_vec()].concat()),
        ("own/p", Vec::new()),
    ] {
        let read = read(name, &bytes);
        assert!(read.policy.defect.is_some(), "{name} {bytes:?}");
        assert_eq!((read.defects.len(), read.policy.dry_run), (1, false), "{:?}", read.defects);
        assert_eq!(&*read.policy.key(), if name == "p" { "/p" } else { name });
        for namespace in ["own", "elsewhere"] {
            let verdict = compile(&read, namespace, &[]).evaluate(&conn(WEB), None);
            assert!(!verdict.is_allow(), "{name} {bytes:?} in {namespace}: {verdict:?}");
        }
    }
    let unknown_action = sent::Authorization { action: 2, ..good() };
    let read = read("own/p", &unknown_action.encode_to_vec());
    assert!(!admits(&read, WEB));
    // For whom it is, is known.
    assert!(compile(&read, "elsewhere", &[]).evaluate(&conn(WEB), None).is_allow());
}

#[test]
fn unknown_fields_are_found_where_they_are() {
    let none = BTreeMap::new();
    for (bytes, expected) in [
        (&b""[..], Ok(none.clone())),
        (b"\x0a\x01p\x30\x01", Ok(none.clone())),
        (b"\x30\x80", Err(unknown::Malformed)),
        (b"\x30\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", Ok(none)),
        (b"\x30\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", Err(unknown::Malformed)),
        (b"\x0a\x02p", Err(unknown::Malformed)),
        (b"\x2a\x00\x2a\x02\x40\x01", Ok([("groups[1]".to_string(), 8)].into())),
        (b"\x41\x00\x00\x00\x00\x00\x00\x00\x00", Ok([(String::new(), 8)].into())),
        (b"\x45\x00\x00\x00\x00", Ok([(String::new(), 8)].into())),
        (b"\x45\x00\x00\x00", Err(unknown::Malformed)),
    ] {
        assert_eq!(unknown::find(bytes, &AUTHORIZATION), expected, "{bytes:?}");
    }
}
