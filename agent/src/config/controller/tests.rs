#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/controller.yaml");
const KEY: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[test]
fn the_example_is_what_the_types_say() {
    let expected = ControllerConfig::example();
    if std::env::var_os("UPDATE_EXAMPLES").is_some() {
        std::fs::write(EXAMPLE, &expected).unwrap();
    }
    let written = std::fs::read_to_string(EXAMPLE).unwrap_or_default();
    assert_eq!(
        written, expected,
        "deploy/examples/controller.yaml differs from the types; run: UPDATE_EXAMPLES=1 cargo test -p underpass-agent --lib config::"
    );
}

#[test]
fn the_example_reads_back_as_the_defaults() {
    assert_eq!(ControllerConfig::parse(&ControllerConfig::example()), Ok(ControllerConfig::default()));
}

#[test]
fn every_field_is_explained() {
    let text = ControllerConfig::example();
    let lines: Vec<&str> = text.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let is_field = !line.trim_start().starts_with(['#', '-']) && line.contains(':');
        assert!(!is_field || lines[at - 1].trim_start().starts_with("# "), "no comment above: {line}");
    }
}

#[test]
fn nodes_are_read() {
    let text = format!(
        "trustDomain: mesh.test\nattestation:\n  nodes:\n  - name: n1\n    key: {KEY}\n    identities: [spiffe://mesh.test/ns/a/sa/b]\n"
    );
    let nodes = ControllerConfig::parse(&text).unwrap().nodes();
    assert_eq!((nodes.len(), nodes[0].key.to_string().as_str()), (1, KEY));
    assert_eq!(nodes[0].identities.len(), 1);
}

#[test]
fn the_authority_is_in_a_folder_or_in_a_secret() {
    let source = |text: &str| ControllerConfig::parse(text).unwrap().authority().source;
    assert_eq!(source("{}"), Source::Folder("/etc/underpass/ca".into()));
    assert_eq!(source("authority: {folder: /a}"), Source::Folder("/a".into()));
    let secret = source("authority: {secret: {namespace: istio-system, name: cacerts}}");
    assert_eq!(secret, Source::Secret("istio-system/cacerts".parse().unwrap()));
}

#[test]
fn the_cluster_is_believed_and_told_only_where_it_is_said() {
    let none = ControllerConfig::default();
    assert_eq!((none.cluster_nodes(), none.publish()), (None, None));
    let all = ControllerConfig::parse(
        "trustDomain: mesh.test\nattestation:\n  kubernetes:\n    audience: underpass-ca\n    serviceAccounts: [{namespace: a, name: b}]\n\
         publish: {signer: underpass.dev/ca, configMap: mesh-roots}\n",
    )
    .unwrap();
    let nodes = all.cluster_nodes().unwrap();
    assert_eq!(nodes.audiences, ["underpass-ca"]);
    assert_eq!(
        nodes.trusted.iter().map(|a| format!("{}/{}", a.namespace, a.name)).collect::<Vec<_>>(),
        ["a/b"]
    );
    let publish = all.publish().unwrap();
    assert_eq!(publish.signer.as_deref(), Some("underpass.dev/ca"));
    assert_eq!(publish.config_map.as_deref(), Some("mesh-roots"));
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let nodes = |lines: &str| format!("attestation:\n  nodes:\n{lines}");
    let node = |name: &str, last: char| format!("  - {{name: {name}, key: \"{}{last}\"}}\n", &KEY[..70]);
    let table = [
        ("listn: x".to_owned(), "1:1: listn: unknown field"),
        ("listen: 15012".into(), "1:9: listen: "),
        ("names: []".into(), "1:8: names: has at least the name"),
        ("names: [a.test, 'not a name']".into(), "1:17: names[1]: must be a DNS name or an address"),
        ("names: ['']".into(), "1:9: names[0]: must be a DNS name"),
        ("trustDomain: UPPER".into(), "1:14: trustDomain: "),
        ("authority: {folder: ''}".into(), "1:21: authority.folder: must not be empty"),
        (
            "authority: {folder: /a, secret: {namespace: n, name: s}}".into(),
            "1:33: authority.secret: stands beside a folder",
        ),
        ("authority: {secret: {namespace: n}}".into(), "1:22: authority.secret: missing field `name`"),
        (
            "authority: {secret: {namespace: N, name: s}}".into(),
            "1:21: authority.secret: \"N\" is no namespace",
        ),
        (
            "authority: {secret: {namespace: n, name: ../s}}".into(),
            "1:21: authority.secret: \"../s\" is no secret's",
        ),
        ("kubernetes: {kubeconfig: ''}".into(), "1:26: kubernetes.kubeconfig: must not be empty"),
        ("authority: {lifetime: 0s}".into(), "1:23: authority.lifetime: must be 1s to"),
        ("authority: {lifetime: 500ms}".into(), "1:23: authority.lifetime: must be 1s to"),
        ("authority: {lifetime: 24}".into(), "1:23: authority.lifetime: a duration is written like"),
        (
            "authority: {lifetime: 2h, maxLifetime: 1h}".into(),
            "1:23: authority.lifetime: is longer than maxLifetime",
        ),
        ("authority: {maxLifetime: 100000h}".into(), "1:26: authority.maxLifetime: must be 1s to"),
        ("authority: {backdate: 25h}".into(), "1:23: authority.backdate: must be 0s to"),
        ("rotation: {renewWithin: 9000h}".into(), "1:25: rotation.renewWithin: must be 0s to"),
        ("rotation: {renewWithin: 500ms}".into(), "1:25: rotation.renewWithin: must be whole seconds"),
        (
            "attestation: {kubernetes: {audience: '', serviceAccounts: [{namespace: a, name: b}]}}".into(),
            "1:38: attestation.kubernetes.audience: must not be empty",
        ),
        (
            "attestation: {kubernetes: {audience: a, serviceAccounts: []}}".into(),
            "1:58: attestation.kubernetes.serviceAccounts: has at least",
        ),
        (
            "attestation: {kubernetes: {audience: a, serviceAccounts: [{namespace: A, name: b}]}}".into(),
            "1:59: attestation.kubernetes.serviceAccounts[0]: \"A\" is no namespace",
        ),
        ("publish: {signer: underpass}".into(), "1:19: publish.signer: is a domain and a path"),
        ("publish: {configMap: ''}".into(), "1:22: publish.configMap: is 1 to 253"),
        ("tls: {profile: weak}".into(), "1:16: tls.profile: unknown variant `weak`"),
        ("admin: {socket: ''}".into(), "1:17: admin.socket: must not be empty"),
        ("admin: {address: '[::]:15012'}".into(), "1:18: admin.address: is the address of listen"),
        (nodes(&node("''", '0')), "3:12: attestation.nodes[0].name: is 1 to 253 letters"),
        (nodes(&node("a/b", '0')), "3:12: attestation.nodes[0].name: is 1 to 253 letters"),
        (nodes("  - {name: a, key: sha256:00}\n"), "3:20: attestation.nodes[0].key: a pin is `sha256:`"),
        (nodes("  - {name: a}\n"), "3:6: attestation.nodes[0]: missing field `key`"),
        (nodes("  - {name: a, key: b, keys: c}\n"), "3:23: attestation.nodes[0].keys: unknown field"),
        (
            nodes(&format!("  - {{name: a, key: \"{KEY}\", identities: [spiffe://o.test/ns/a/sa/b]}}\n")),
            "3:107: attestation.nodes[0].identities: spiffe://o.test/ns/a/sa/b is not of the trust domain cluster.local",
        ),
        (
            nodes(&format!("  - {{name: a, key: \"{KEY}\", identities: [spiffe://cluster.local/a/b]}}\n")),
            "3:107: attestation.nodes[0].identities: a service account's path is /ns/",
        ),
        (
            nodes(&format!("  - {{name: a, key: \"{KEY}\", identities: [cart]}}\n")),
            "3:108: attestation.nodes[0].identities[0]: ",
        ),
        (
            nodes(&(node("a", '0') + &node("a", '1'))),
            "3:5: attestation.nodes: two lines have the name or the key of a",
        ),
        (
            nodes(&(node("a", '0') + &node("b", '0'))),
            "3:5: attestation.nodes: two lines have the name or the key of b",
        ),
    ];
    let mut wrong = Vec::new();
    for (text, expected) in &table {
        let said = ControllerConfig::parse(text).map_or_else(|e| e.to_string(), |_| "good".into());
        if !said.starts_with(expected) {
            wrong.push(format!("{text:?} gave {said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
