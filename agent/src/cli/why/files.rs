//! The Kubernetes objects in files and folders.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::discovery::manifest::{self, Manifest, Refused};
use crate::model::TrustDomain;
use crate::policy::Object;

/// Reads every file; of a folder those that end in .yaml, .yml or .json, folders in it included.
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
        let files = files(path, 0)?;
        if files.is_empty() {
            bail!("{} has no file that ends in .yaml, .yml or .json", path.display());
        }
        all.extend(files);
    }
    Ok(all)
}

const DEEPEST: usize = 16;

fn files(path: &Path, depth: usize) -> anyhow::Result<Vec<PathBuf>> {
    let at = |call| move || format!("{call} {} failed", path.display());
    if !std::fs::metadata(path).with_context(at("reading"))?.is_dir() {
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
    let text = std::fs::read(file).with_context(|| format!("reading {} failed", file.display()))?;
    let text = String::from_utf8(text).with_context(|| format!("{} is not UTF-8", file.display()))?;
    let read = manifest::read(&text).map_err(|e| anyhow::anyhow!("{}:{e}", file.display()))?;
    for object in read {
        objects.push(object.map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))?);
    }
    Ok(())
}
