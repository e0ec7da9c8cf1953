use clap::Parser;

use super::*;
use crate::cli::args::{Command, Underpass};
use crate::policy::analyze::{Finding, Named, Summary};

#[test]
fn what_may_be_typed() {
    for (line, good) in [
        ("underpass analyze -f a -f b", true),
        ("underpass analyze --file a -o json --root-namespace mesh", true),
        ("underpass analyze --live --socket /s", true),
        ("underpass analyze", false),
        ("underpass analyze --live -f a", false),
        ("underpass analyze --live --root-namespace mesh", false),
    ] {
        assert_eq!(Underpass::try_parse_from(line.split(' ')).is_ok(), good, "{line}");
    }
}

fn report(severity: Severity) -> Report {
    let resource =
        Named { kind: "Server.policy.linkerd.io".into(), namespace: "shop".into(), name: "web".into() };
    let finding = Finding {
        severity,
        code: "UP0205".into(),
        resource,
        field: "spec.port".into(),
        message: "no\nport".into(),
        hint: "correct it".into(),
    };
    Report {
        findings: vec![finding],
        summary: Summary { warnings: 1, pods: 2, resources: 1, ..Summary::default() },
    }
}

#[test]
fn findings_are_told_with_their_hint_and_cannot_command_the_terminal() {
    let expected = "\
warning UP0205 Server.policy.linkerd.io/shop/web spec.port
  no\\u{a}port
  hint: correct it

0 errors, 1 warning, 0 infos in 1 policy resource and 2 pods
";
    assert_eq!(told(&report(Severity::Warning)), expected);
    let json = serde_json::to_value(report(Severity::Warning)).unwrap();
    let expected = serde_json::json!({
        "findings": [{
            "code": "UP0205", "severity": "warning",
            "resource": {"kind": "Server.policy.linkerd.io", "namespace": "shop", "name": "web"},
            "field": "spec.port", "message": "no\nport", "hint": "correct it"}],
        "summary": {"errors": 0, "warnings": 1, "infos": 0, "pods": 2, "resources": 1},
    });
    assert_eq!(json, expected);
    assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report(Severity::Warning));
}

#[test]
fn the_exit_code_is_no_for_errors_and_warnings_only() {
    for (severity, expected) in
        [(Severity::Error, Answer::No), (Severity::Warning, Answer::No), (Severity::Info, Answer::Yes)]
    {
        assert_eq!(answer(&report(severity)), expected);
    }
    assert_eq!(answer(&Report::default()), Answer::Yes);
}

/// What the command comes to for a folder.
fn of(files: &[(&str, &str)]) -> anyhow::Result<Report> {
    let id = crate::model::ConnectionId::next();
    let folder = std::env::temp_dir().join(format!("up{}-analyze{id}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    for (name, text) in files {
        std::fs::write(folder.join(name), text).unwrap();
    }
    let line = ["underpass", "analyze", "-f", folder.to_str().unwrap()];
    let Command::Analyze(args) = Underpass::try_parse_from(line).unwrap().command else { panic!() };
    let report = read_files(&args);
    std::fs::remove_dir_all(&folder).unwrap();
    report
}

#[test]
fn the_pods_that_a_deployment_will_have_count() {
    let deployment = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec: {template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web}]}}}
";
    let policy = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}
";
    let report = of(&[("a.yaml", deployment), ("b.yml", policy)]).unwrap();
    assert_eq!(report.findings, []);
    assert_eq!((report.summary.pods, report.summary.resources), (1, 1));
    let refused = of(&[("a.yaml", "a: 1")]).unwrap_err();
    assert!(refused.to_string().contains("a.yaml"), "{refused}");
}

#[test]
fn of_two_files_with_one_object_the_later_name_holds() {
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop}}\n---\n";
    let mtls = |mode: &str| {
        format!(
            "{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: p, namespace: shop}}, \
             spec: {{mtls: {{mode: {mode}}}}}}}"
        )
    };
    for (first, last, plaintext) in [("STRICT", "PERMISSIVE", true), ("PERMISSIVE", "STRICT", false)] {
        let first = format!("{pod}{}", mtls(first));
        let report = of(&[("b.yaml", &mtls(last)), ("a.yaml", &first)]).unwrap();
        let has = |code: &str| report.findings.iter().any(|finding| finding.code == code);
        assert_eq!((has("UP0107"), has("UP0601")), (true, plaintext), "{last} holds: {:#?}", report.findings);
        assert_eq!(report.summary.resources, 1);
    }
}
