//! The rules of evaluation once more, as slowly and literally as they are stated, and a search for
//! policies and connections on which the compiled form disagrees.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::model::workload::WorkloadMtls;
use crate::model::{InboundAction, MtlsMode, SpiffeId};

/// One request, or none: what is sent is not HTTP.
type Asked<'a> = Option<&'a Requested>;

#[derive(Clone, Debug)]
struct Requested {
    method: String,
    host: String,
    path: String,
    query: Option<String>,
    headers: Vec<(String, String)>,
}

impl Requested {
    fn header_map(&self) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in &self.headers {
            map.append(HeaderName::try_from(name.as_str()).unwrap(), value.parse().unwrap());
        }
        map
    }

    fn with<T>(&self, ask: impl FnOnce(&Request<'_>) -> T) -> T {
        let headers = self.header_map();
        ask(&Request {
            method: &self.method,
            host: &self.host,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &headers,
        })
    }
}

fn evaluate(compiled: &Compiled, conn: &Conn, asked: Asked<'_>) -> Verdict {
    match asked {
        None => compiled.evaluate(conn, None),
        Some(requested) => requested.with(|request| compiled.evaluate(conn, Some(request))),
    }
}

fn allowed(mesh: &Mesh, conn: &Conn, asked: Asked<'_>) -> bool {
    let in_force: Vec<&Policy> = mesh.applying().filter(|policy| !policy.dry_run).collect();
    let known = |key: &Arc<str>| mesh.policies.iter().any(|policy| policy.key() == *key);
    if !mesh.named.iter().all(known) || in_force.iter().any(|policy| policy.defect.is_some()) {
        return false;
    }
    if conn.source.is_none() && mode(mesh, conn.destination_port) == MtlsMode::Strict {
        return false;
    }
    let of = |action| in_force.iter().filter(move |policy| policy.action == action);
    // What nobody can know does not help to get in, and does not help to get past a DENY.
    if of(Action::Deny).any(|policy| matches(policy, conn, asked, true)) {
        return false;
    }
    if of(Action::Allow).next().is_some() {
        return of(Action::Allow).any(|policy| matches(policy, conn, asked, false));
    }
    match mesh.stance {
        Stance::Allow => true,
        Stance::Mtls => conn.source.is_some(),
        Stance::Deny => false,
    }
}

fn mode(mesh: &Mesh, port: u16) -> MtlsMode {
    if let Some(mode) = mesh.mtls.ports.get(&port) {
        return *mode;
    }
    let namespace = mesh.defaults.namespaces.get(OWN_NAMESPACE).copied();
    mesh.mtls.mode.or(namespace).unwrap_or(mesh.defaults.mesh)
}

fn matches(policy: &Policy, conn: &Conn, asked: Asked<'_>, unknown: bool) -> bool {
    policy.groups.iter().any(|group| group_holds(group, conn, asked, unknown))
}

fn group_holds(group: &Group, conn: &Conn, asked: Asked<'_>, unknown: bool) -> bool {
    let rule =
        |rule: &Rule| rule.matches.is_empty() || rule.matches.iter().any(|m| holds(m, conn, asked, unknown));
    group.never.is_none() && group.rules.iter().all(rule)
}

fn holds(m: &Match, conn: &Conn, asked: Asked<'_>, unknown: bool) -> bool {
    let no_headers = m.headers.iter().all(|header| header.one_of.is_empty() && header.none_of.is_empty());
    if no_headers && (Match { headers: vec![], ..m.clone() }) == Match::default() {
        return false;
    }
    let id = conn.source.as_ref();
    // Of `spiffe:`, nothing, the trust domain, `ns`, the namespace, `sa` and the account.
    let pieces: Vec<String> =
        id.map(|id| id.to_string().split('/').map(String::from).collect()).unwrap_or_default();
    let account_of = match pieces.iter().map(|piece| &**piece).collect::<Vec<_>>()[..] {
        ["spiffe:", "", _, "ns", namespace, "sa", account] => Some((namespace, account)),
        _ => None,
    };
    let namespace = account_of.map_or(String::new(), |(namespace, _)| namespace.to_string());
    let domain = id.map_or(String::new(), |id| id.trust_domain().to_string());
    let sni = conn.sni.as_ref().map_or(String::new(), |sni| sni.to_string());
    let principal = |value: &StringMatch| {
        id.is_some_and(|id| fits(&respell(value, |text| text.replace("spiffe://", "")), &id.to_string()[9..]))
    };
    let linkerd = |value: &StringMatch| {
        account_of.is_some_and(|(namespace, account)| {
            fits(value, &format!("{account}.{namespace}.serviceaccount.identity.linkerd.{domain}"))
        })
    };
    let account = |value: &ServiceAccount| {
        account_of.is_some_and(|(namespace, account)| {
            format!("{}/{}", value.namespace, value.service_account) == format!("{namespace}/{account}")
        })
    };
    let host = |value: &StringMatch| {
        let lower = |text: &str| text.to_lowercase();
        asked.is_some_and(|asked| fits(&respell(value, lower), &lower(&asked.host)))
    };
    let method = |value: &StringMatch| asked.is_some_and(|asked| fits(value, &asked.method));
    let path = |value: &PathMatch| {
        asked.is_some_and(|asked| match value {
            PathMatch::String(value) => fits(value, &asked.path),
            PathMatch::Template(template) => {
                let template = template.to_string();
                let segments: Vec<&str> = template.split('/').collect();
                fits_template(&segments, &asked.path.split('/').collect::<Vec<_>>())
            }
        })
    };
    let is = |given: &str| {
        let given = given.to_string();
        move |value: &StringMatch| fits(value, &given)
    };
    let from = |net: &IpNet| net.contains(&conn.source_ip);
    let to = |net: &IpNet| net.contains(&conn.destination_ip);
    let port = |port: &u16| *port == conn.destination_port;

    let of_connection = list(&m.namespaces, &m.not_namespaces, is(&namespace))
        && list(&m.trust_domains, &m.not_trust_domains, is(&domain))
        && list(&m.snis, &m.not_snis, is(&sni))
        && list(&m.principals, &m.not_principals, principal)
        && list(&m.linkerd_identities, &[], linkerd)
        && list(&m.service_accounts, &m.not_service_accounts, account)
        && list(&m.source_ips, &m.not_source_ips, from)
        && list(&m.remote_ips, &m.not_remote_ips, from)
        && list(&m.destination_ips, &m.not_destination_ips, to)
        && list(&m.destination_ports, &m.not_destination_ports, port);
    let of_request = match asked {
        None => {
            let requires = [&m.hosts, &m.not_hosts, &m.methods, &m.not_methods].iter().any(|v| !v.is_empty())
                || !(m.paths.is_empty() && m.not_paths.is_empty() && no_headers);
            unknown || !requires
        }
        Some(asked) => {
            list(&m.hosts, &m.not_hosts, host)
                && list(&m.methods, &m.not_methods, method)
                && list(&m.paths, &m.not_paths, path)
                && m.headers.iter().all(|header| {
                    let sent = sent(asked, &header.name);
                    let fits = |value: &StringMatch| sent.as_ref().is_some_and(|sent| fits(value, sent));
                    list(&header.one_of, &header.none_of, fits)
                })
        }
    };
    of_connection && of_request
}

fn list<V>(one_of: &[V], none_of: &[V], fits: impl Fn(&V) -> bool) -> bool {
    (one_of.is_empty() || one_of.iter().any(&fits)) && !none_of.iter().any(fits)
}

fn sent(asked: &Requested, name: &str) -> Option<String> {
    let of_its_own = match name {
        ":authority" | "host" => Some(asked.host.clone()),
        ":method" => Some(asked.method.clone()),
        ":path" if asked.query.is_none() => Some(asked.path.clone()),
        ":path" => Some([&asked.path, "?", asked.query.as_ref()?].concat()),
        _ => None,
    };
    if of_its_own.is_some() {
        return of_its_own.filter(|value| !value.is_empty());
    }
    let values: Vec<&str> =
        asked.headers.iter().filter(|(sent, _)| sent == name).map(|(_, value)| value.as_str()).collect();
    (!values.is_empty()).then(|| values.join(","))
}

fn fits(value: &StringMatch, text: &str) -> bool {
    match value {
        StringMatch::Exact(s) => text == &**s,
        StringMatch::Prefix(s) => text.starts_with(&**s),
        StringMatch::Suffix(s) => text.ends_with(&**s),
        StringMatch::Presence => !text.is_empty(),
    }
}

fn respell(value: &StringMatch, spell: impl Fn(&str) -> String) -> StringMatch {
    match value {
        StringMatch::Exact(s) => StringMatch::Exact(spell(s).into()),
        StringMatch::Prefix(s) => StringMatch::Prefix(spell(s).into()),
        StringMatch::Suffix(s) => StringMatch::Suffix(spell(s).into()),
        StringMatch::Presence => StringMatch::Presence,
    }
}

fn fits_template(template: &[&str], path: &[&str]) -> bool {
    match (template, path) {
        ([], []) => true,
        // As Istio's reference shows it: a slash at the end is in what it stands for.
        (["{**}", ""], _) => path.len() > 1,
        (["{**}", rest @ ..], _) => (1..=path.len()).any(|n| fits_template(rest, &path[n..])),
        (["{*}", rest @ ..], [given, path @ ..]) => !given.is_empty() && fits_template(rest, path),
        ([text, rest @ ..], [given, path @ ..]) => text == given && fits_template(rest, path),
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn compiled_policies_decide_as_the_rules_say(
        mesh in meshes(),
        conns in prop::collection::vec(conns(), 4),
        requests in prop::collection::vec(requests(), 3),
    ) {
        let compiled = mesh.compile();
        for conn in conns {
            for asked in requests.iter().map(Some).chain([None]) {
                let verdict = evaluate(&compiled, &conn, asked);
                let right = allowed(&mesh, &conn, asked);
                prop_assert_eq!(verdict.is_allow(), right, "{:?} for {:?}, {:?}", verdict, conn, asked);
            }
        }
    }

    #[test]
    fn a_verdict_names_the_first_rule_that_matches(mesh in meshes(), conn in conns(), request in requests()) {
        let compiled = mesh.compile();
        for asked in [Some(&request), None] {
            let verdict = evaluate(&compiled, &conn, asked);
            let deny = match &verdict {
                Verdict::Deny { why: Why::DenyMatched, .. } => true,
                Verdict::Allow { by } if !by.is_empty() => false,
                _ => continue,
            };
            let action = if deny { Action::Deny } else { Action::Allow };
            // By what applies to whom, and then by name.
            let mut policies: Vec<&Policy> = mesh.applying().filter(|p| p.action == action && !p.dry_run).collect();
            policies.sort_by_key(|policy| (mesh.place(policy), policy.key()));
            let first = policies.iter().find_map(|policy| {
                let at = policy.groups.iter().position(|group| group_holds(group, &conn, asked, false))?;
                Some(format!("{}#{at}", policy.key()))
            });
            prop_assert_eq!(verdict.by().map(ToString::to_string), first);
        }
    }

    #[test]
    fn what_is_said_of_a_connection_holds_for_every_request(
        mesh in meshes(),
        conn in conns(),
        requests in prop::collection::vec(requests(), 8),
    ) {
        let compiled = mesh.compile();
        let said = compiled.on_connection(&conn);
        for asked in requests.iter().map(Some).chain([None]) {
            let allow = evaluate(&compiled, &conn, asked).is_allow();
            match &said {
                Connection::Allow(_) => prop_assert!(allow, "{:?}", asked),
                Connection::Deny(_) => prop_assert!(!allow, "{:?}", asked),
                Connection::PerRequest => {}
            }
        }
        if said == Connection::PerRequest {
            prop_assert!(compiled.needs_http(conn.destination_port));
        }
    }

    #[test]
    fn an_explanation_agrees_with_the_verdict(mesh in meshes(), conn in conns(), request in requests()) {
        let compiled = mesh.compile();
        for asked in [Some(&request), None] {
            let explained = match asked {
                None => compiled.explain(&conn, None),
                Some(requested) => requested.with(|request| compiled.explain(&conn, Some(request))),
            };
            prop_assert_eq!(&explained.verdict, &evaluate(&compiled, &conn, asked));
            for considered in &explained.considered {
                let Some(policy) = mesh.policies.iter().find(|p| p.resource() == *considered.resource) else {
                    prop_assert!(considered.note.is_some() && considered.action.is_none());
                    continue;
                };
                let unknown = policy.action == Action::Deny;
                for (group, trace) in policy.groups.iter().zip(&considered.rules) {
                    prop_assert_eq!(trace.matched, group_holds(group, &conn, asked, unknown), "{:?}", trace);
                    prop_assert!(!trace.because.is_empty());
                }
                prop_assert_eq!(considered.rules.len(), policy.groups.len());
            }
            prop_assert!(mesh.applying().count() <= explained.considered.len());
        }
    }

    #[test]
    fn an_audit_tells_of_what_matches(mesh in meshes(), conn in conns(), request in requests()) {
        let compiled = mesh.compile();
        let told = request.with(|request| compiled.audited(&conn, Some(request)));
        let audits = |p: &&Policy| p.action == Action::Audit && !p.dry_run;
        let right = mesh.applying().filter(audits).filter(|p| matches(p, &conn, Some(&request), false));
        prop_assert_eq!(told.len(), right.count());
    }

    #[test]
    fn the_kernel_never_decides_otherwise(
        mesh in meshes(),
        conns in prop::collection::vec(conns(), 4),
        request in requests(),
    ) {
        let compiled = mesh.compile();
        let plan = compiled.kernel_plan();
        for conn in conns {
            let plaintext = Conn { source: None, ..conn };
            for asked in [Some(&request), None] {
                match plan.action(plaintext.destination_port) {
                    InboundAction::Pass => {
                        prop_assert!(allowed(&mesh, &plaintext, asked), "passed: {:?}", plaintext);
                        let told = request.with(|request| compiled.audited(&plaintext, Some(request)));
                        prop_assert!(told.is_empty(), "passed unseen by an audit: {:?}", plaintext);
                    }
                    InboundAction::Drop => {
                        prop_assert!(!allowed(&mesh, &plaintext, asked), "dropped: {:?}", plaintext);
                    }
                    InboundAction::Steer => {}
                }
            }
        }
    }

    #[test]
    fn a_dry_run_says_what_would_be(mesh in meshes(), conn in conns(), request in requests()) {
        let mut enforced = mesh.clone();
        enforced.policies.iter_mut().for_each(|policy| policy.dry_run = false);
        let compiled = mesh.compile();
        for asked in [Some(&request), None] {
            let would = match asked {
                None => compiled.dry_run(&conn, None),
                Some(requested) => requested.with(|request| compiled.dry_run(&conn, Some(request))),
            };
            let right = allowed(&enforced, &conn, asked);
            match would {
                Some(would) => prop_assert_eq!(would.is_allow(), right),
                None => prop_assert_eq!(allowed(&mesh, &conn, asked), right),
            }
        }
    }

    #[test]
    fn a_dry_run_of_plaintext_is_seen(mesh in meshes(), conn in conns(), request in requests()) {
        let plaintext = Conn { source: None, ..conn };
        let compiled = mesh.compile();
        let would = request.with(|request| compiled.dry_run(&plaintext, Some(request)));
        let denied = would.is_some_and(|would| !would.is_allow());
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
    stance: Stance,
}

impl Mesh {
    fn compile(&self) -> Compiled {
        let set = PolicySet::new(self.policies.clone(), self.defaults.clone());
        let compiled = set.compile(&Subject::named(OWN_NAMESPACE, &self.named, &self.mtls));
        compiled.with(|compiled| compiled.stance = self.stance)
    }

    fn applying(&self) -> impl Iterator<Item = &Policy> {
        self.policies.iter().filter(|policy| match policy.scope {
            Scope::Global => true,
            Scope::Namespace if *policy.namespace == *OWN_NAMESPACE => true,
            _ => self.named.contains(&policy.key()),
        })
    }

    /// The mesh's policies before the namespace's before those that it names.
    fn place(&self, policy: &Policy) -> usize {
        match policy.scope {
            Scope::Global => 0,
            Scope::Namespace if *policy.namespace == *OWN_NAMESPACE => 1,
            _ => 2 + self.named.iter().position(|key| *key == policy.key()).unwrap_or(0),
        }
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
    let policies = prop::collection::vec(policy(), 0..5).prop_map(|mut policies| {
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
    let stance = prop_oneof![8 => Just(Stance::Allow), 1 => Just(Stance::Mtls), 1 => Just(Stance::Deny)];
    let parts = (policies, named, only_known, modes, ports, stance);
    parts.prop_map(|(policies, named, only_known, modes, ports, stance)| {
        let (mesh, namespace, mode) = modes;
        let is_known = |key: &&str| policies.iter().any(|policy| *policy.key() == **key);
        Mesh {
            named: named.into_iter().filter(|key| !only_known || is_known(key)).map(Arc::from).collect(),
            defaults: MtlsDefaults {
                mesh,
                namespaces: namespace.map(|mode| (OWN_NAMESPACE.into(), mode)).into_iter().collect(),
            },
            mtls: WorkloadMtls { mode, ports },
            stance,
            policies,
        }
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let scope = select(vec![Scope::Global, Scope::Namespace, Scope::WorkloadSelector]);
    let action = select(vec![Action::Allow, Action::Allow, Action::Deny, Action::Deny, Action::Audit]);
    let rule = prop::collection::vec(fields(), 0..3).prop_map(|matches| Rule { matches });
    let never = prop::option::weighted(0.05, Just(Arc::from("of a token")));
    let group = (prop::collection::vec(rule, 0..3), never).prop_map(|(rules, never)| Group { rules, never });
    let groups = few_of(0.9, group);
    let defect = prop::option::weighted(0.05, Just(Arc::from("it cannot be read")));
    let dry_run = prop::bool::weighted(0.2);
    let parts = (select(vec!["a", "b"]), scope, action, alike(groups), dry_run, defect);
    parts.prop_map(|(namespace, scope, action, groups, dry_run, defect)| Policy {
        kind: Kind::Authorization,
        namespace: namespace.into(),
        name: "".into(),
        scope,
        action,
        groups,
        dry_run,
        defect,
    })
}

/// Now and then all matches name one of a kind, so that all are found by it.
fn alike(groups: impl Strategy<Value = Vec<Group>>) -> impl Strategy<Value = Vec<Group>> {
    let nets = select(vec!["10.0.0.1/32", "10.0.0.2/32", "10.1.0.0/16", "fd00::/64", "10.3.0.0/16"]);
    let snis = string_match(vec!["db", "d", "b"]);
    let paths = string_match(vec!["/api/", "/api/orders", "orders"]);
    let one = (nets, snis, paths, ports());
    (groups, 0..12, prop::collection::vec(one, 12)).prop_map(|(mut groups, kind, values)| {
        let matches = groups.iter_mut().flat_map(|group| &mut group.rules).flat_map(|rule| &mut rule.matches);
        for (m, (net, sni, path, port)) in matches.zip(values.into_iter().cycle()) {
            match kind {
                0 => m.source_ips = vec![net.parse().unwrap()],
                1 => m.destination_ips = vec![net.parse().unwrap()],
                2 => m.snis = vec![sni],
                3 => m.paths = vec![PathMatch::String(path)],
                4 => m.destination_ports = vec![port],
                _ => {}
            }
        }
        groups
    })
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
    let domains = || few(string_match(vec!["td", "other", "t", ""]));
    let snis = || few(string_match(vec!["db", "d", "b", ""]));
    let linkerd = few(string_match(vec![
        "x.a.serviceaccount.identity.linkerd.td",
        "x.",
        ".linkerd.td",
        "y.b.serviceaccount.identity.linkerd.td",
    ]));
    let hosts = || few_of(0.12, string_match(vec!["shop.example", "Shop.Example:80", "SHOP", ":80", ""]));
    let methods = || few_of(0.12, string_match(vec!["GET", "POST", "get", "P"]));
    let path =
        string_match(vec!["/", "/api/", "/api/orders", "orders", ""]).prop_map(PathMatch::String).boxed();
    let template = select(vec!["/api/{*}", "/{**}/orders", "/api/{**}", "/{*}/{**}", "/api/{**}/"])
        .prop_map(|text| PathMatch::Template(PathTemplate::parse(text).unwrap()))
        .boxed();
    let paths = || few_of(0.12, prop_oneof![3 => path.clone(), 1 => template.clone()]);
    let values = || few_of(0.6, string_match(vec!["1", "2", "1,2", ""]));
    let header = (select(vec!["x-v", "x-w", "host", ":path"]), values(), values());
    let headers = few_of(
        0.12,
        header.prop_map(|(name, one_of, none_of)| HeaderMatch { name: name.into(), one_of, none_of }),
    );
    let identity = (names(), names(), principals(), principals(), accounts(), accounts());
    let addresses = (nets(), nets(), nets(), nets(), ports(), ports());
    let others = (domains(), domains(), nets(), nets(), snis(), snis(), linkerd);
    let request = (hosts(), hosts(), methods(), methods(), paths(), paths(), headers);
    (identity, addresses, others, request).prop_map(|(identity, addresses, others, request)| Match {
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
        trust_domains: others.0,
        not_trust_domains: others.1,
        remote_ips: others.2,
        not_remote_ips: others.3,
        snis: others.4,
        not_snis: others.5,
        linkerd_identities: others.6,
        hosts: request.0,
        not_hosts: request.1,
        methods: request.2,
        not_methods: request.3,
        paths: request.4,
        not_paths: request.5,
        headers: request.6,
    })
}

fn few<T: std::fmt::Debug>(one: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    few_of(0.07, one)
}

/// Now and then so many that they are found by hash.
fn few_of<T: std::fmt::Debug>(share: f64, one: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    let many = prop::bool::weighted(0.15);
    let several = (prop::collection::vec(one, 10), 1..3_usize, many).prop_map(|(mut all, n, many)| {
        all.truncate(if many { 10 } else { n });
        all
    });
    prop::option::weighted(share, several).prop_map(Option::unwrap_or_default)
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
    let ids = vec![
        "spiffe://td/ns/a/sa/x",
        "spiffe://td/ns/b/sa/y",
        "spiffe://other/ns/ab/sa/x",
        "spiffe://other/billing/api",
        "spiffe://td/ns/a/sa/x/y",
        "spiffe://td/v/ns/a/sa/x",
    ];
    let source = prop::option::weighted(0.7, select(ids));
    let ip = || select(vec!["10.0.0.1", "10.0.0.2", "10.1.0.1", "fd00::1", "fd01::1"]);
    let sni = prop::option::weighted(0.3, select(vec!["db", "b"]));
    let parts = (source, ip(), ip(), select(vec![80, 81, 443, 8080]), sni);
    parts.prop_map(|(source, from, to, port, sni)| Conn {
        at_source: None,
        source: source.map(|id| id.parse::<SpiffeId>().unwrap()),
        source_ip: from.parse::<IpAddr>().unwrap(),
        destination_ip: to.parse::<IpAddr>().unwrap(),
        destination_port: port,
        sni: sni.map(Arc::from),
    })
}

fn requests() -> impl Strategy<Value = Requested> {
    let method = select(vec!["GET", "POST", "get"]);
    let host = select(vec!["shop.example", "SHOP.example:80", "Shop", ""]);
    let path = select(vec!["/", "/api/", "/api/orders", "/api/x/orders", "*", "/api"]);
    let query = prop::option::weighted(0.3, select(vec!["q", ""]));
    let header = (select(vec!["x-v", "x-w"]), select(vec!["1", "2", "1,2", ""]));
    let headers = prop::collection::vec(header, 0..4);
    (method, host, path, query, headers).prop_map(|(method, host, path, query, headers)| Requested {
        method: method.into(),
        host: host.into(),
        path: path.into(),
        query: query.map(Into::into),
        headers: headers.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
    })
}

/// The search above is worth nothing if everything it finds is alike.
#[test]
fn the_search_covers_both_answers() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..3000 {
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
        let said = match mesh.compile().on_connection(&conn) {
            Connection::Allow(_) => "allowed whatever is requested",
            Connection::Deny(_) => "denied whatever is requested",
            Connection::PerRequest => "per request",
        };
        *seen.entry(said.to_string()).or_default() += 1;
        let request = requests().new_tree(&mut runner).unwrap().current();
        if said == "per request" {
            let allow = evaluate(&mesh.compile(), &conn, Some(&request)).is_allow();
            *seen.entry(format!("{said}: {allow}")).or_default() += 1;
        }
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
        "NotHttp",
        "DefaultDeny",
        "allowed whatever is requested",
        "denied whatever is requested",
        "per request: true",
        "per request: false",
        "Pass",
        "Steer",
        "Drop",
    ] {
        assert!(seen.get(what).is_some_and(|n| *n >= 40), "too few {what}: {seen:?}");
    }
}
