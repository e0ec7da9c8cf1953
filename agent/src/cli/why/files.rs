//! The Kubernetes objects in files and folders.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::discovery::manifest::{self, Manifest, Refused};
use crate::model::TrustDomain;
use crate::policy::Object;

/// Reads every file, and standard input for `-`; of a folder those that end in .yaml, .yml or .json, folders in it included.
pub(crate) fn read(paths: &[PathBuf], trust_domain: &TrustDomain) -> anyhow::Result<Manifest> {
    let mut objects = Vec::new();
    for file in list(paths)? {
        one(&file, &mut objects)?;
    }
    Manifest::new(objects, trust_domain).map_err(|refused| lines(&refused))
}

/// The same with a pod for each Deployment, Job … that none of the pods is of.
pub(crate) fn read_with_templates(paths: &[PathBuf], trust_domain: &TrustDomain) -> anyhow::Result<Manifest> {
    let mut manifest = read(paths, trust_domain)?;
    manifest.add_templates(trust_domain).map_err(|refused| lines(&refused))?;
    Ok(manifest)
}

fn lines(refused: &[Refused]) -> anyhow::Error {
    let lines: Vec<String> = refused.iter().map(ToString::to_string).collect();
    anyhow::anyhow!("{}", lines.join("\n"))
}

/// The files that are read.
pub(crate) fn list(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for path in paths {
        if is_standard_input(path) {
            all.push(path.clone());
            continue;
        }
        let files = files(path, 0)?;
        if files.is_empty() {
            bail!(
                "{} has no file that ends in .yaml, .yml or .json; name the folder that has them, or a file",
                path.display()
            );
        }
        all.extend(files);
    }
    Ok(all)
}

const DEEPEST: usize = 16;

fn files(path: &Path, depth: usize) -> anyhow::Result<Vec<PathBuf>> {
    let at = |call| move || format!("{call} {} failed", path.display());
    let found = std::fs::metadata(path).with_context(|| {
        format!("reading {} failed; -f takes a file, a folder, or - for standard input", path.display())
    })?;
    if !found.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    if depth > DEEPEST {
        bail!("{} is nested too deep; name the folder itself", path.display());
    }
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(path).with_context(at("listing"))? {
        entries.push(entry.with_context(at("listing"))?.path());
    }
    entries.sort();
    let mut found = Vec::new();
    for entry in entries {
        let manifest = entry.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
        if entry.is_dir() {
            found.extend(files(&entry, depth + 1)?);
        } else if manifest {
            found.push(entry);
        }
    }
    Ok(found)
}

fn one(file: &Path, objects: &mut Vec<Object>) -> anyhow::Result<()> {
    let text = if is_standard_input(file) {
        let mut text = Vec::new();
        std::io::stdin().lock().read_to_end(&mut text).context("reading standard input failed")?;
        text
    } else {
        std::fs::read(file).with_context(|| format!("reading {} failed", file.display()))?
    };
    let text = String::from_utf8(text).with_context(|| format!("{} is not UTF-8", file.display()))?;
    let name = file.display();
    let hint = unrendered(file, &text).map_or(String::new(), |hint| format!("; {hint}"));
    let read = manifest::read(&text).map_err(|e| anyhow::anyhow!("{name}:{e}{hint}"))?;
    for object in read {
        objects.push(object.map_err(|e| anyhow::anyhow!("{name}: {e}{hint}"))?);
    }
    Ok(())
}

fn is_standard_input(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// What to do about a file that objects are only made from.
fn unrendered(file: &Path, text: &str) -> Option<&'static str> {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if name.starts_with("kustomization.") || text.contains("kustomize.config.k8s.io/") {
        return Some("render it first: kubectl kustomize FOLDER | … -f -");
    }
    let of_chart = name.starts_with("values") || name == "Chart.yaml" || text.contains("{{");
    of_chart.then_some("a Helm chart has to be rendered first: helm template CHART | … -f -")
}
