//! `underpass certs`: what the running agent holds, and what a certificate in a file is worth.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::args::{CertsArgs, CertsCommand, VerifyArgs};
use super::{Answer, client, output, show, table};
use crate::tls::{self, Crls, Rule, TrustBundles, Trusted};

pub(super) fn run(args: &CertsArgs) -> anyhow::Result<Answer> {
    if let Some(CertsCommand::Verify(verify)) = &args.command {
        return self::verify(verify);
    }
    let socket = args.query.place.socket()?;
    let identity = match (&args.identity, &args.pod) {
        (Some(identity), _) => Some(identity.clone()),
        (None, Some(pod)) => Some(identity_of(&client::ask(&socket, "GET", "/pods", "")?, pod)?),
        (None, None) => None,
    };
    let mut list = client::ask(&socket, "GET", "/certificates", "")?;
    if let (Some(identity), Some(items)) = (&identity, list.as_array_mut()) {
        items.retain(|item| item["identity"] == **identity);
    }
    let trust = client::ask(&socket, "GET", "/trust", "")?;
    let page = || show::CERTIFICATES.table(&rows(&list)) + &notes(&list, &trust, OffsetDateTime::now_utc());
    output::print(&output::render(&list, args.query.output, page)?)
}

/// What is amiss beside the certificates themselves: the clocks, and the files that peers are judged by.
pub(super) fn notes(list: &Value, trust: &Value, now: OffsetDateTime) -> String {
    let mut notes = Vec::new();
    let ahead = list.as_array().into_iter().flatten().filter_map(|item| {
        let ahead = item["issuer_ahead_seconds"].as_f64().filter(|ahead| *ahead > 0.0)?;
        Some((ahead, item["issuer"].as_str().unwrap_or_default()))
    });
    if let Some((ahead, issuer)) = ahead.max_by(|a, b| a.0.total_cmp(&b.0)) {
        notes.push(format!(
            "Clocks: the clock of the issuer ({issuer}) is ahead of this node's by {ahead:.0} s at least; compare them"
        ));
    }
    for file in trust["files"].as_array().into_iter().flatten() {
        let path = file["path"].as_str().unwrap_or_default();
        if let Some(problem) = file["problem"].as_str() {
            let since = file["accepted"].as_str().unwrap_or_default();
            notes.push(format!("Trust: {path}: {problem}; what was taken from it at {since} stays in force"));
        }
        let due = file["next_update"]
            .as_str()
            .filter(|due| OffsetDateTime::parse(due, &Rfc3339).is_ok_and(|due| due < now));
        if let Some(due) = due {
            notes.push(format!(
                "Trust: {path}: a newer list was due at {due}; certificates of its issuer are refused until it is there"
            ));
        }
    }
    notes.iter().map(|note| format!("{}\n", output::printable(note))).collect()
}

fn identity_of(pods: &Value, pod: &str) -> anyhow::Result<String> {
    let (namespace, name) = pod.split_once('/').context("--pod is NAMESPACE/NAME")?;
    let mut all = pods.as_array().into_iter().flatten();
    let found = all.find(|p| p["namespace"] == namespace && p["name"] == name);
    let identity = found.and_then(|p| p["identity"].as_str());
    identity
        .map(str::to_owned)
        .with_context(|| format!("no pod {pod} is meshed on this node; see underpass pods"))
}

/// A row for each certificate of each chain; one for an identity that has none yet.
pub(super) fn rows(list: &Value) -> Value {
    let mut rows = Vec::new();
    for item in list.as_array().into_iter().flatten() {
        let chain = item["chain"].as_array().map(Vec::as_slice).unwrap_or_default();
        if chain.is_empty() {
            rows.push(item.clone());
        }
        for link in chain {
            let mut row = item.clone();
            for field in ["serial", "not_before", "not_after", "kind"] {
                row[field] = link[field].clone();
            }
            if link["kind"] != "Leaf" {
                row["renewal_due"] = Value::Null;
                row["last_error"] = Value::Null;
                row["link_valid"] = link["valid"].clone();
            }
            rows.push(row);
        }
    }
    Value::Array(rows)
}

#[derive(Serialize)]
struct Verdict {
    file: PathBuf,
    accepted: bool,
    rules: Vec<RuleView>,
}

#[derive(Serialize)]
struct RuleView {
    rule: String,
    /// `ok`, `violated`, or `not checked`.
    verdict: &'static str,
    found: String,
}

fn verify(args: &VerifyArgs) -> anyhow::Result<Answer> {
    let now = match &args.at {
        None => SystemTime::now(),
        Some(at) => OffsetDateTime::parse(at, &Rfc3339)
            .with_context(|| format!("--at {at}: write it as 2026-08-22T09:00:00Z"))?
            .into(),
    };
    let trusted = trusted(args)?;
    let verdicts =
        args.files.iter().map(|file| judge(file, trusted.as_ref(), now)).collect::<Result<Vec<_>, _>>()?;
    let human = || verdicts.iter().map(told).collect::<Vec<_>>().join("\n");
    output::print(&output::render(&json!(verdicts), args.output, human)?)?;
    Ok(if verdicts.iter().all(|v| v.accepted) { Answer::Yes } else { Answer::No })
}

fn trusted(args: &VerifyArgs) -> anyhow::Result<Option<Trusted>> {
    let (Some(bundle), Some(domain)) = (&args.bundle, &args.trust_domain) else { return Ok(None) };
    let domain = domain.parse().with_context(|| format!("--trust-domain {domain}"))?;
    let mut bundles = TrustBundles::new();
    bundles.add_pem(&domain, &read(bundle)?).with_context(|| bundle.display().to_string())?;
    let mut revoked = Crls::default();
    for list in &args.crl {
        revoked.add(&read(list)?).with_context(|| list.display().to_string())?;
    }
    Ok(Some(Trusted { bundles, revoked }))
}

fn judge(file: &Path, trusted: Option<&Trusted>, now: SystemTime) -> anyhow::Result<Verdict> {
    let rules = match certificates(&read(file)?) {
        Ok(chain) => tls::explain(&chain, trusted, now),
        Err(found) => {
            vec![Rule { rule: "the file holds certificates, leaf first", kept: Some(false), found }]
        }
    };
    let accepted = rules.iter().all(|rule| rule.kept != Some(false));
    let rules = rules.into_iter().map(|rule| RuleView {
        rule: rule.rule.to_owned(),
        verdict: match rule.kept {
            Some(true) => "ok",
            Some(false) => "violated",
            None => "not checked",
        },
        found: rule.found,
    });
    Ok(Verdict { file: file.to_owned(), accepted, rules: rules.collect() })
}

/// PEM with one chain, or one certificate in DER; else what the file is instead.
pub(super) fn certificates(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    if bytes.first() == Some(&0x30) {
        return Ok(vec![CertificateDer::from(bytes.to_vec())]);
    }
    let chain = CertificateDer::pem_slice_iter(bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| format!("broken PEM: {e}"))?;
    if !chain.is_empty() {
        return Ok(chain);
    }
    let is_key = rustls_pki_types::PrivateKeyDer::from_pem_slice(bytes).is_ok();
    Err(if is_key {
        "a private key and no certificate"
    } else {
        "neither DER nor PEM with a CERTIFICATE section"
    }
    .into())
}

fn told(verdict: &Verdict) -> String {
    let rows = verdict.rules.iter().map(|r| vec![r.verdict.to_owned(), r.rule.clone(), r.found.clone()]);
    let summary = if verdict.accepted { "good" } else { "refused" };
    let checked = verdict.rules.iter().any(|rule| rule.verdict == "not checked");
    let but = if verdict.accepted && checked { ", as far as it was checked" } else { "" };
    let name = output::printable(&verdict.file.display().to_string());
    format!("{name}: {summary}{but}\n{}", table::table(&["VERDICT", "RULE", "FOUND"], rows))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
