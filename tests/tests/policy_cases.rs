//! The cases of `cases/`, asked as `underpass why -f` would.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use serde::Deserialize;
use serde_json::Value;
use underpass::discovery::ask::{Asked, Offline};
use underpass::discovery::manifest::{self, Manifest};
use underpass::discovery::yaml;
use underpass::model::TrustDomain;
use underpass::policy::{Object, PolicySettings};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    clause: String,
    says: String,
    #[serde(default)]
    settings: PolicySettings,
    #[serde(default = "TrustDomain::cluster_local", rename = "trustDomain")]
    trust_domain: TrustDomain,
    #[serde(default)]
    resources: Vec<Value>,
    asks: Vec<Ask>,
    /// How many defects are told.
    #[serde(default)]
    defects: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Ask {
    from: String,
    #[serde(default = "api")]
    to: String,
    port: Option<Value>,
    method: Option<String>,
    path: Option<String>,
    host: Option<String>,
    #[serde(default)]
    headers: Vec<String>,
    sni: Option<String>,
    from_ip: Option<std::net::IpAddr>,
    expect: String,
    cause: Option<String>,
    by: Option<String>,
    dry_run: Option<String>,
}

fn api() -> String {
    "shop/api".into()
}

/// A clause of a dialect's specification. Some can only be shown from one side.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Clause {
    says: String,
    /// Why there is no case that allows, or none that denies.
    #[serde(default)]
    one_sided: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let cases = match cases(&folder) {
        Ok(cases) => Arc::new(cases),
        Err(e) => {
            eprintln!("error: {e:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut trials = Vec::new();
    for (at, (file, case)) in cases.iter().enumerate() {
        let (cases, folder) = (cases.clone(), folder.clone());
        let name = format!("{file}::{}::{}", case.clause, case.says.replace(' ', "_"));
        trials.push(Trial::test(name, move || tell(show(&folder, &cases[at].1))));
    }
    trials.push(Trial::test("every_clause_has_a_case_for_each_side", move || tell(covered(&folder, &cases))));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn tell(outcome: Result<()>) -> Result<(), Failed> {
    outcome.map_err(|e| format!("{e:#}").into())
}

fn cases(folder: &Path) -> Result<Vec<(String, Case)>> {
    let mut files: Vec<PathBuf> = Vec::new();
    for dialect in std::fs::read_dir(folder)? {
        let dialect = dialect?.path();
        if dialect.is_dir() {
            for file in std::fs::read_dir(dialect)? {
                files.push(file?.path());
            }
        }
    }
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let name = file.strip_prefix(folder)?.display().to_string();
        let text = std::fs::read_to_string(&file)?;
        let cases: Vec<Case> = yaml::read(&text).with_context(|| name.clone())?;
        all.extend(cases.into_iter().map(|case| (name.clone(), case)));
    }
    ensure!(!all.is_empty(), "there are no cases in {}", folder.display());
    Ok(all)
}

fn show(folder: &Path, case: &Case) -> Result<()> {
    let mut objects: BTreeMap<(String, String, String), Object> = BTreeMap::new();
    let world = manifest::read(&std::fs::read_to_string(folder.join("world.yaml"))?)?;
    let own = case.resources.iter().map(|value| Ok(Object::read(value.clone())?));
    for object in world.into_iter().map(|object| Ok(object?)).chain(own) {
        let object: Object = object.map_err(|e: anyhow::Error| e)?;
        let group = format!("{}.{}", object.kind, object.group);
        objects.insert((group, object.meta.namespace.to_string(), object.meta.name.to_string()), object);
    }
    let settings = case.settings.settings(case.trust_domain.clone());
    let manifest = Manifest::new(objects.into_values().collect(), &settings.trust_domain)
        .map_err(|refused| anyhow::anyhow!("{refused:?}"))?;
    let world = Offline::new(manifest, settings);
    for (at, ask) in case.asks.iter().enumerate() {
        let port = ask.port.as_ref().map(|port| port.as_str().map_or_else(|| port.to_string(), Into::into));
        let asked = Asked {
            from: ask.from.clone(),
            to: ask.to.clone(),
            port,
            method: ask.method.clone(),
            path: ask.path.clone(),
            host: ask.host.clone(),
            headers: ask.headers.clone(),
            sni: ask.sni.clone(),
            from_ip: ask.from_ip,
        };
        let answer = world.answer(&asked)?;
        let told = serde_json::to_string_pretty(&answer)?;
        let wrong =
            |what: &str, got: &str, want: &str| format!("asks[{at}]: {what} is {got}, not {want}:\n{told}");
        ensure!(
            answer.verdict.as_str() == ask.expect,
            wrong("the verdict", answer.verdict.as_str(), &ask.expect)
        );
        if let Some(cause) = &ask.cause {
            ensure!(answer.cause == *cause, wrong("the cause", &answer.cause, cause));
        }
        if let Some(by) = &ask.by {
            let found = answer.decided_by.iter().any(|decided| decided.starts_with(&**by));
            ensure!(found, wrong("what decided", &format!("{:?}", answer.decided_by), by));
        }
        if let Some(dry) = &ask.dry_run {
            let got = answer.dry_run.as_ref().map_or("none", |dry| dry.verdict.as_str());
            ensure!(got == dry, wrong("the dry run", got, dry));
        }
        // What is told must be what decides.
        ensure!(!answer.reason.is_empty(), "asks[{at}]: no reason is told");
    }
    if let Some(defects) = case.defects {
        let got = world.defects();
        ensure!(got.len() == defects, "{} defects instead of {defects}: {got:#?}", got.len());
    }
    Ok(())
}

/// Those of every `clauses*.yaml`: each dialect has a file of its own.
fn clauses(folder: &Path) -> Result<BTreeMap<String, Clause>> {
    let mut all = BTreeMap::new();
    for file in std::fs::read_dir(folder)? {
        let file = file?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.starts_with("clauses") || !name.ends_with(".yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&file)?;
        let own: BTreeMap<String, Clause> = yaml::read(&text).with_context(|| name.clone())?;
        for (clause, says) in own {
            ensure!(all.insert(clause.clone(), says).is_none(), "{name}: {clause} is in another file too");
        }
    }
    ensure!(!all.is_empty(), "there are no clauses in {}", folder.display());
    Ok(all)
}

fn covered(folder: &Path, cases: &[(String, Case)]) -> Result<()> {
    let clauses = clauses(folder)?;
    let mut sides: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (file, case) in cases {
        ensure!(clauses.contains_key(&case.clause), "{file}: {:?} is not in any clauses*.yaml", case.clause);
        sides.entry(&case.clause).or_default().extend(case.asks.iter().map(|ask| &*ask.expect));
    }
    let mut missing = Vec::new();
    for (name, clause) in &clauses {
        let sides = sides.get(&**name).cloned().unwrap_or_default();
        let enough = sides.len() == 2 || (clause.one_sided.is_some() && !sides.is_empty());
        if !enough {
            missing.push(format!("{name} ({}): only {sides:?}", clause.says));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!("clauses without a case for each side:\n{}", missing.join("\n"))
}
