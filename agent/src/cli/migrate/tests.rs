use clap::Parser;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::gather::add;
use super::judge::Judge;
use super::report::Report;
use super::suggest::suggest;
use crate::cli::args::{Command, Underpass};
use crate::cli::output::words;
use crate::discovery::manifest;
use crate::model::TrustDomain;
use crate::policy::{Object, Settings};
use crate::telemetry::{ObservedView, Seen, Transport};

#[test]
fn what_may_be_typed() {
    for (line, good) in [
        ("underpass migrate report", true),
        ("underpass migrate report --socket /a --socket /b --observed c --observed d -o json", true),
        ("underpass migrate report -f a -f b --strict --namespace shop --root-namespace mesh", true),
        ("underpass migrate report --root-namespace mesh", false),
        ("underpass migrate suggest shop --observed a", true),
        ("underpass migrate suggest", false),
        ("underpass migrate", false),
    ] {
        assert_eq!(Underpass::try_parse_from(line.split(' ')).is_ok(), good, "{line}");
    }
}

/// One client of a port, admitted five times.
pub(super) fn seen(identity: Option<&str>, address: &str, port: u16) -> Value {
    let id = |account: &str| format!("spiffe://cluster.local/ns/shop/sa/{account}");
    json!({
        "client": {
            "transport": if identity.is_some() { "mtls" } else { "plaintext" },
            "identity": identity.map(|text| if text.contains(':') { text.to_owned() } else { id(text) }),
            "namespace": null, "workload": null, "expectedIdentity": null,
            "addresses": [address], "fromOtherAddresses": 0,
        },
        "port": port, "destination": "10.0.2.9",
        "connections": {"allowed": 5, "denied": 0, "unreached": 0, "open": 1},
        "requests": {"allowed": 0, "denied": 0},
        "wouldDeny": 0, "would": null, "denials": [], "last": "allowed",
        "firstSeen": "2026-08-22T09:30:00.000001Z", "lastSeen": "2026-08-22T09:31:00.000001Z",
    })
}

/// With some of its fields otherwise.
pub(super) fn but(mut seen: Value, fields: &[(&str, Value)]) -> Value {
    for (pointer, value) in fields {
        *seen.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) = value.clone();
    }
    seen
}

pub(super) fn server(name: &str, labels: Value, clients: Vec<Value>) -> Value {
    json!({
        "namespace": "shop", "name": name, "identity": format!("spiffe://cluster.local/ns/shop/sa/{name}"),
        "known": true,
        "pod": {"labels": labels, "annotations": {}, "ports": [], "probes": [], "waypoint": null},
        "clients": clients,
    })
}

pub(super) fn observed(servers: Vec<Value>) -> ObservedView {
    let agent = json!({
        "node": "n1", "instance": "default", "since": "2026-08-22T09:00:00.000000Z",
        "until": "2026-08-22T10:00:00.000000Z",
        "leftOut": {"connections": 0, "denied": 0, "requestsDenied": 0}, "servers": servers,
    });
    serde_json::from_value(json!({ "agents": [agent] })).unwrap()
}

fn objects(yaml: &str) -> Vec<Object> {
    manifest::read(yaml).unwrap().into_iter().map(|object| object.unwrap()).collect()
}

fn judge(yaml: &str, strict: bool) -> Judge {
    Judge::new(objects(yaml), Settings::new(TrustDomain::cluster_local()), strict).unwrap()
}

fn report(observed: &ObservedView, yaml: &str, strict: bool) -> Report {
    Report::new(observed.clone(), &judge(yaml, strict), None, strict)
}

/// Verdict, from and port of each pair.
fn verdicts(report: &Report) -> Vec<(&'static str, &str, u16)> {
    report.pairs.iter().map(|pair| (pair.verdict, &*pair.from, pair.port)).collect()
}

fn web(clients: Vec<Value>) -> ObservedView {
    observed(vec![server("web", json!({"app": "web"}), clients)])
}

#[test]
fn strict_refuses_plaintext_that_came_through() {
    let plain = but(
        seen(None, "10.0.1.5", 80),
        &[("/client/namespace", json!("old")), ("/client/workload", json!("legacy"))],
    );
    let counts = json!({"allowed": 0, "denied": 3, "unreached": 1, "open": 0});
    let refused_today =
        but(seen(None, "10.0.1.6", 80), &[("/connections", counts), ("/last", json!("denied"))]);
    let web = web(vec![seen(Some("client"), "10.0.1.4", 80), plain, refused_today]);
    let report = report(&web, "", true);
    assert_eq!(verdicts(&report), [("refuse", "old/legacy", 80), ("admit", "shop/client", 80)]);
    assert_eq!(report.pairs[0].connections, 5);
    assert_eq!(report.pairs[0].transport, Transport::Plaintext);
    assert!(report.pairs[0].reason.contains("STRICT"), "{:?}", report.pairs[0]);
    assert_eq!(report.summary.never_admitted.pairs, 1);
    let told = report.told();
    assert!(
        told.contains("STRICT would refuse 1 pair (5 connections) and admit 1 pair (5 connections)"),
        "{told}"
    );
    assert!(told.contains("left aside: 1 pair (4 connections)"), "{told}");
    assert!(told.contains("2026-08-22T09:31:00.000001Z"), "{told}");
}

#[test]
fn instances_and_nodes_are_told_as_one_pair() {
    let mut all = web(vec![seen(None, "10.0.1.5", 80)]);
    let mut other = all.clone();
    other.agents[0].node = "n2".into();
    other.agents[0].servers[0].clients[0].last_seen = "2026-08-23T00:00:00.000000Z".into();
    add(&mut all, other.clone());
    let told = report(&all, "", true);
    assert_eq!((told.pairs.len(), told.pairs[0].connections), (1, 10));
    assert!(told.told().contains("2026-08-23"), "the last of all");

    // The same agent again has all of it again.
    add(&mut all, other.clone());
    assert_eq!(report(&all, "", true).pairs[0].connections, 10);
    other.agents[0].until = "2026-08-24T00:00:00.000000Z".into();
    other.agents[0].servers[0].clients[0].connections.allowed = 6;
    add(&mut all, other);
    assert_eq!(report(&all, "", true).pairs[0].connections, 11, "what is later counts");
}

const STRICT_BUT_WEB: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}}}
";

#[test]
fn policies_are_asked_as_the_agent_asks_them() {
    let istio = |spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
        )
    };
    let linkerd = "
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {name: web, namespace: shop}
spec: {podSelector: {matchLabels: {app: web}}, port: 80}
";
    let all = web(vec![
        seen(Some("client"), "10.0.1.4", 80),
        seen(Some("client"), "10.0.1.4", 8080),
        seen(None, "10.0.1.5", 80),
        seen(None, "10.0.1.5", 8080),
    ]);
    let refused = |yaml: &str, strict: bool| {
        let report = report(&all, yaml, strict);
        let refused = report.pairs.iter().filter(|pair| pair.verdict == "refuse");
        refused.map(|pair| format!("{}:{}", pair.from, pair.port)).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(refused("", true), "10.0.1.5:80 10.0.1.5:8080");
    assert_eq!(refused(STRICT_BUT_WEB, false), "10.0.1.5:80");
    let elsewhere = istio("{selector: {matchLabels: {app: db}}, rules: []}");
    assert_eq!(refused(&elsewhere, false), "");
    assert_eq!(refused(&elsewhere, true), "10.0.1.5:80 10.0.1.5:8080");
    // What is more specific than the mesh's mode holds.
    let open = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: shop}\nspec: {mtls: {mode: PERMISSIVE}}\n";
    assert_eq!(refused(open, true), "");
    let to_80 = istio("{rules: [{to: [{operation: {ports: [\"80\"]}}]}]}");
    assert_eq!(refused(&to_80, false), "10.0.1.5:8080 shop/client:8080");
    assert_eq!(refused(linkerd, false), "10.0.1.5:80 shop/client:80");
}

#[test]
fn what_needs_the_request_is_not_guessed() {
    let yaml = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: get, namespace: shop}
spec: {rules: [{to: [{operation: {methods: [GET]}}]}]}
";
    let report = report(&web(vec![seen(Some("client"), "10.0.1.4", 80)]), yaml, false);
    assert_eq!(verdicts(&report), [("by_request", "shop/client", 80)]);
    assert_eq!((report.summary.refused.pairs, report.summary.by_request.pairs), (0, 1));
    assert!(report.told().contains("not judged: 1 pair (5 connections), where policy looks at requests"));
}

#[test]
fn whose_labels_nobody_knew_is_not_judged_by_policies() {
    let mut all = web(vec![seen(Some("client"), "10.0.1.4", 80), seen(None, "10.0.1.5", 80)]);
    all.agents[0].servers[0].known = false;
    let by =
        |yaml, strict| verdicts(&report(&all, yaml, strict)).iter().map(|(v, ..)| *v).collect::<Vec<_>>();
    assert_eq!(by(STRICT_BUT_WEB, false), ["unknown", "unknown"]);
    assert_eq!(by("", true), ["refuse", "admit"], "STRICT asks for no label");
}

#[test]
fn each_address_of_a_client_is_judged() {
    let yaml = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec: {rules: [{from: [{source: {ipBlocks: [10.0.1.0/24]}}]}]}
";
    let addresses = ("/client/addresses", json!(["10.0.1.4", "10.0.9.4"]));
    let mixed =
        but(seen(Some("client"), "10.0.1.4", 80), &[addresses, ("/client/fromOtherAddresses", json!(7))]);
    let report = report(&web(vec![mixed]), yaml, false);
    assert_eq!(report.pairs[0].verdict, "refuse");
    assert!(report.pairs[0].reason.ends_with("(not from 10.0.1.4)"), "{:?}", report.pairs[0]);
    assert!(report.told().contains("7 connections from further addresses"), "{}", report.told());
}

#[test]
fn a_policy_that_selects_by_what_is_not_kept_is_refused() {
    for spec in [
        "{selector: {matchLabels: {pod-template-hash: abc}}}",
        "{podSelector: {matchExpressions: [{key: job-name, operator: Exists}]}}",
    ] {
        let yaml = format!(
            "apiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
        );
        let settings = Settings::new(TrustDomain::cluster_local());
        let refused = Judge::new(objects(&yaml), settings, false).err().expect("it cannot be judged");
        assert!(refused.to_string().contains("Server shop/p selects by the label"), "{refused}");
    }
}

/// What the command says for files of these contents.
fn run(arguments: &str, files: &[&str]) -> anyhow::Result<crate::cli::Answer> {
    let id = crate::model::ConnectionId::next();
    let folder = std::env::temp_dir().join(format!("up{}-migrate{id}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let mut line: Vec<String> = format!("underpass migrate {arguments}").split(' ').map(Into::into).collect();
    for (at, text) in files.iter().enumerate() {
        let path = folder.join(format!("{at}.json"));
        std::fs::write(&path, text).unwrap();
        line.extend(["--observed".into(), path.to_str().unwrap().into()]);
    }
    let Command::Migrate { command } = Underpass::try_parse_from(line).unwrap().command else { panic!() };
    let answer = super::run(&command);
    std::fs::remove_dir_all(&folder).unwrap();
    answer
}

#[test]
fn a_report_is_read_again_and_everything_else_refused_with_the_next_step() {
    use crate::cli::Answer;
    let web = web(vec![seen(None, "10.0.1.5", 80)]);
    let saved = serde_json::to_string(&report(&web, "", true)).unwrap();
    assert_eq!(run("report", &[&saved]).unwrap(), Answer::Denied);
    let raw = serde_json::to_string(&web).unwrap();
    assert_eq!(run("report -o json", &[&raw, &saved]).unwrap(), Answer::Denied);
    assert_eq!(run("suggest shop", &[&saved]).unwrap(), Answer::Yes);
    let admitted = web_of_identities();
    assert_eq!(run("report", &[&admitted]).unwrap(), Answer::Yes);
    for (arguments, files, expected) in [
        ("report", vec!["{}"], "something else than what an agent"),
        ("report", vec!["nonsense"], "is no JSON"),
        ("report", vec!["{\"agents\": []}"], "nothing was observed"),
        ("report --namespace ware", vec![&*saved], "nothing was observed in namespace ware, only in shop"),
        ("suggest ware", vec![&*saved], "nothing was observed in namespace ware, only in shop"),
        ("report --socket /nowhere/s", vec![], "no agent answers at /nowhere/s"),
        ("report --socket /nowhere/s", vec![&*saved], "--observed FILE"),
        ("report --observed /nowhere/f", vec![], "reading /nowhere/f failed"),
    ] {
        let refused = run(arguments, &files).expect_err(arguments);
        let words = words(&refused);
        assert!(words.contains(expected), "{arguments}: {words}");
        // Or its exit code would be that of a refusal.
        assert_eq!(crate::cli::exit_code(&refused), crate::cli::args::EXIT_FAILED, "{words}");
    }
}

fn web_of_identities() -> String {
    serde_json::to_string(&web(vec![seen(Some("client"), "10.0.1.4", 80)])).unwrap()
}

#[test]
fn the_suggestion_to_the_letter() {
    let metrics = json!([{"name": "http", "port": 80}, {"name": "admin", "port": 9000}]);
    let mut web = server(
        "web",
        json!({"app": "web", "version": "v1", "pod-template-hash": "abc"}),
        vec![
            seen(Some("client"), "10.0.1.4", 80),
            seen(Some("client"), "10.0.1.4", 8080),
            seen(Some("scraper"), "10.0.1.7", 9090),
            seen(None, "10.0.1.5", 80),
        ],
    );
    web["pod"]["ports"] = metrics;
    let quiet = server("quiet", json!({"app": "quiet"}), vec![seen(None, "10.0.1.5", 80)]);
    let bare =
        server("bare", json!({"pod-template-hash": "abc"}), vec![seen(Some("client"), "10.0.1.4", 80)]);
    let expected = r#"# Namespace shop: admits what was observed in mutual TLS, and nobody else.
# Observed on n1 from 2026-08-22T09:00:00.000000Z to 2026-08-22T10:00:00.000000Z.
# What came to pods on other nodes, and what comes once a month, is not among it: read before you apply.
# bare: no policy, for it has no lasting label to select it by
---
# quiet
# not admitted: 10.0.1.5 to port 80: plaintext proves no identity (5 connections; nobody knows whose address it is), last seen 2026-08-22T09:31:00.000001Z
# Nobody was seen in mutual TLS: this admits nobody.
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: "observed-quiet"
  namespace: "shop"
spec:
  selector:
    matchLabels:
      "app": "quiet"
  action: ALLOW
---
# web
# not admitted: 10.0.1.5 to port 80: plaintext proves no identity (5 connections; nobody knows whose address it is), last seen 2026-08-22T09:31:00.000001Z
# not admitted: port 9000 is declared, and nobody was seen there
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: "observed-web"
  namespace: "shop"
spec:
  selector:
    matchLabels:
      "app": "web"
  action: ALLOW
  rules:
  - from:
    - source:
        principals:
        - "cluster.local/ns/shop/sa/client"
    to:
    - operation:
        ports:
        - "80"
        - "8080"
  - from:
    - source:
        principals:
        - "cluster.local/ns/shop/sa/scraper"
    to:
    - operation:
        ports:
        - "9090"
"#;
    assert_eq!(suggest(&observed(vec![web.clone(), quiet.clone(), bare.clone()]), "shop"), expected);
    assert_eq!(suggest(&observed(vec![bare, quiet, web]), "shop"), expected, "in whatever order");
}

/// Who of these is admitted to a server by the suggestion for what was observed, as identity or address and port.
fn admitted(all: &ObservedView, callers: &[Value]) -> Vec<bool> {
    let yaml = suggest(all, "shop");
    let judge = Judge::new(objects(&yaml), Settings::new(TrustDomain::cluster_local()), false).unwrap();
    assert_eq!(judge.defects(), Vec::<String>::new(), "{yaml}");
    let server = &all.agents[0].servers[0];
    let policy = judge.compile(server);
    let asked = callers.iter().map(|caller| {
        let caller: Seen = serde_json::from_value(caller.clone()).unwrap();
        judge.judge(server, &policy, &caller) == super::judge::Judged::Admitted
    });
    asked.collect()
}

#[test]
fn only_what_policy_admits_today_gets_into_the_suggestion() {
    let counts = |allowed: u64, denied: u64, unreached: u64| {
        ("/connections", json!({"allowed": allowed, "denied": denied, "unreached": unreached, "open": 0}))
    };
    let caller = |name: &str| seen(Some(name), "10.0.1.4", 80);
    for (name, fields, expected) in [
        ("admitted", vec![], true),
        ("refused", vec![counts(0, 9, 0), ("/last", json!("denied"))], false),
        ("refused-by-now", vec![counts(9, 1, 0), ("/last", json!("denied"))], false),
        ("admitted-by-now", vec![counts(1, 9, 0)], true),
        ("nobody-listened", vec![counts(0, 0, 9), ("/last", json!(null))], false),
        ("would-be-refused", vec![("/would", json!("denied by policy p")), ("/wouldDeny", json!(5))], false),
        ("judged-by-request", vec![("/requests", json!({"allowed": 3, "denied": 0}))], false),
        ("some-requests-refused", vec![("/requests", json!({"allowed": 3, "denied": 1}))], false),
    ] {
        let row = but(caller(name), &fields);
        let all = web(vec![row.clone()]);
        assert_eq!(admitted(&all, std::slice::from_ref(&row)), [expected], "{name}");
        let told = suggest(&all, "shop");
        assert_eq!(told.contains("# not admitted"), !expected, "{told}");
    }
    // What another node saw last counts, also if nothing was decided there since.
    let mut all = web(vec![caller("twice")]);
    let mut other = web(vec![but(caller("twice"), &[counts(9, 1, 0), ("/last", json!("denied"))])]);
    other.agents[0].node = "n2".into();
    other.agents[0].servers[0].clients[0].last_seen = "2026-08-23T00:00:00.000000Z".into();
    add(&mut all, other);
    let undecided = but(
        caller("twice"),
        &[counts(0, 0, 1), ("/last", json!(null)), ("/lastSeen", json!("2026-08-24T00:00:00.000000Z"))],
    );
    let mut third = web(vec![undecided]);
    third.agents[0].node = "n3".into();
    add(&mut all, third);
    assert_eq!(admitted(&all, &[caller("twice")]), [false]);
}

#[test]
fn an_account_of_another_mesh_that_is_called_like_ours_is_not_widened() {
    let mut all = web(vec![seen(Some("client"), "10.0.1.4", 80)]);
    all.agents[0].servers[0].identity = "spiffe://prod.example/ns/shop/sa/web".parse().unwrap();
    let yaml = suggest(&all, "shop");
    assert!(!yaml.contains("principals") && yaml.contains("its principal would also name"), "{yaml}");
}

#[test]
fn a_selector_that_takes_others_too_says_so() {
    let small = server("small", json!({"app": "web"}), vec![seen(Some("a"), "10.0.1.4", 80)]);
    let large =
        server("large", json!({"app": "web", "job": "import"}), vec![seen(Some("b"), "10.0.1.4", 80)]);
    let yaml = suggest(&observed(vec![small, large]), "shop");
    assert_eq!(yaml.matches("WARNING").count(), 1, "{yaml}");
    assert!(
        yaml.contains(
            "# small\n# WARNING: these labels also select large: whom this admits, it admits there\n"
        ),
        "{yaml}"
    );
    assert!(yaml.contains("      \"app\": \"web\"\n      \"job\": \"import\"\n"), "{yaml}");
}

#[test]
fn nothing_that_others_write_gets_out_of_its_place() {
    let evil = "x\n---\napiVersion: v1\u{2028}kind: Pod\r# \u{85}\u{202e}";
    let mut all = observed(vec![
        server(
            "web",
            json!({"app": "yes", "a.b/c": "null", "bad key\n": "x", "ok": "a: b\n- c"}),
            vec![
                seen(Some("client"), "10.0.1.4", 80),
                but(
                    seen(None, "10.0.1.5", 80),
                    &[("/client/namespace", json!(evil)), ("/client/workload", json!(evil))],
                ),
                but(seen(Some("w"), "10.0.1.5", 80), &[("/would", json!(evil))]),
            ],
        ),
        server(
            evil.replace(['\n', '\r', ' ', '#', ':', '/', '\u{2028}', '\u{85}', '\u{202e}'], "-").as_str(),
            json!({"app": "b"}),
            vec![],
        ),
    ]);
    all.agents[0].node = evil.into();
    for server in &mut all.agents[0].servers {
        server.name = evil.into();
    }
    let yaml = suggest(&all, "shop");
    let objects = objects(&yaml);
    let names: Vec<_> = objects.iter().map(|object| (&*object.kind, &*object.meta.name)).collect();
    let name = "observed-x-----apiversion--v1-kind--pod";
    assert_eq!(
        names,
        [("AuthorizationPolicy", name), ("AuthorizationPolicy", &*format!("{name}-2"))],
        "{yaml}"
    );
    let selector = |at: usize| objects[at].spec["selector"]["matchLabels"].clone();
    assert_eq!([selector(0), selector(1)], [json!({"app": "yes"}), json!({"app": "b"})], "{yaml}");
    for line in yaml.lines() {
        let plain = |c: char| !c.is_control() && !('\u{2028}'..='\u{202e}').contains(&c);
        assert!(line.chars().all(plain), "{line:?}");
    }
    assert_eq!(
        admitted(&all, &[seen(Some("client"), "10.0.1.4", 80), seen(None, "10.0.1.5", 80)]),
        [true, false]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Applied, it admits everything that was observed in mutual TLS, and of everybody else nobody.
    #[test]
    fn a_suggestion_admits_what_was_observed_and_nobody_else(
        pairs in prop::collection::btree_set((0..6u8, 0..5u16), 0..12),
        label in "[a-zA-Z0-9]([a-zA-Z0-9._-]{0,10}[a-zA-Z0-9])?",
    ) {
        let caller = |who: u8, port: u16| match who {
            5 => seen(None, "10.0.1.5", 8000 + port),
            4 => seen(Some("spiffe://other.example/ns/shop/sa/c0"), "10.0.1.4", 8000 + port),
            who => seen(Some(&format!("c{who}")), "10.0.1.4", 8000 + port),
        };
        let clients: Vec<Value> = pairs.iter().map(|(who, port)| caller(*who, *port)).collect();
        let all = observed(vec![
            server("web", json!({"app": label}), clients),
            // What is observed of another opens nothing here.
            server("other", json!({"app": format!("{label}x")}), vec![caller(0, 0), caller(1, 1)]),
        ]);
        for who in 0..6 {
            for port in 0..5 {
                let expected = who != 5 && pairs.contains(&(who, port));
                prop_assert_eq!(admitted(&all, &[caller(who, port)]), [expected], "{} to {}", who, port);
            }
        }
    }
}
