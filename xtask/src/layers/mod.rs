//! `cargo xtask layers`: a module of the agent uses only those above it in `agent/src/lib.rs`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::checkout;

mod tokens;
mod uses;

/// Check that every module of the agent uses only modules above it.
///
/// The order is that of the `mod` lines in agent/src/lib.rs. Paths are read from the source:
/// `crate::x`, grouped imports and chains of `super` that reach the crate's root.
#[derive(Args)]
pub(crate) struct Layers {}

impl Layers {
    pub(crate) fn run(self) -> Result<()> {
        let wrong = check(&checkout::root().join("agent/src"))?;
        for line in &wrong {
            println!("{line}");
        }
        match wrong.len() {
            0 => Ok(()),
            1 => bail!("a module uses one below it"),
            n => bail!("modules use others below them in {n} places"),
        }
    }
}

/// One line for each use that points downwards.
pub(crate) fn check(src: &Path) -> Result<Vec<String>> {
    let lib = src.join("lib.rs");
    let order = uses::modules(&fs::read_to_string(&lib).with_context(|| format!("read {}", lib.display()))?);
    let mut wrong = Vec::new();
    let mut files = Vec::new();
    rust_files(src, &mut files)?;
    files.sort();
    for file in files {
        let path = module_path(file.strip_prefix(src)?);
        let source = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let shown = file.strip_prefix(checkout::root()).unwrap_or(&file).display().to_string();
        wrong.extend(check_file(&shown, &path, &source, &order));
    }
    Ok(wrong)
}

fn check_file(file: &str, path: &[String], source: &str, order: &[String]) -> Vec<String> {
    let place = |name: &str| order.iter().position(|it| it == name);
    // lib.rs and main.rs stand above no one.
    let Some((own, own_place)) = path.first().and_then(|own| Some((own, place(own)?))) else {
        return Vec::new();
    };
    uses::of_root(source, path.len())
        .into_iter()
        .filter(|used| place(&used.module).is_some_and(|it| it > own_place))
        .map(|used| {
            let (line, module) = (used.line, used.module);
            format!(
                "{file}:{line}: `{own}` uses `{module}`, which stands below it in agent/src/lib.rs. Take \
                 the value as an argument or a trait of `{own}`, or move what both need to a module above"
            )
        })
        .collect()
}

/// `policy/eval.rs` is `[policy, eval]`, `policy/mod.rs` is `[policy]`, `lib.rs` is `[]`.
fn module_path(relative: &Path) -> Vec<String> {
    let mut path: Vec<String> =
        relative.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let root = path.len() == 1 && ["lib", "main"].contains(&path[0].as_str());
    if root || path.last().is_some_and(|last| last == "mod") {
        path.pop();
    }
    path
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, files)?;
        } else if path.extension().is_some_and(|it| it == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn only_uses_of_lower_modules_are_wrong() {
        let order = strings(&["model", "sys", "tls", "proxy"]);
        let table = [
            ("use crate::model::SpiffeId;", &["tls"][..], 0),
            ("use crate::tls::verify;", &["tls", "config"], 0),
            ("use crate::proxy::Outcome;", &["tls"], 1),
            ("use crate::{model::X, proxy::{a, b}};", &["sys"], 1),
            ("fn f() -> crate::proxy::Outcome {}", &["tls", "config"], 1),
            ("use super::super::proxy;", &["tls", "config"], 1),
            ("use super::proxy;", &["tls", "config"], 0),
            ("mod tests { use super::super::proxy; }", &["tls", "config"], 0),
            ("// crate::proxy", &["tls"], 0),
            ("use crate::proxy;", &[], 0),
        ];
        for (source, path, wrong) in table {
            let found = check_file("f.rs", &strings(path), source, &order);
            assert_eq!(found.len(), wrong, "{source} in {path:?}: {found:?}");
        }
    }

    #[test]
    fn a_finding_names_its_line() {
        let found = check_file("a/b.rs", &strings(&["a"]), "\n\nuse crate::b;", &strings(&["a", "b"]));
        assert!(found[0].starts_with("a/b.rs:3: `a` uses `b`"), "{found:?}");
    }

    #[test]
    fn files_have_module_paths() {
        let table = [
            ("lib.rs", &[][..]),
            ("main.rs", &[]),
            ("app.rs", &["app"]),
            ("tls/mod.rs", &["tls"]),
            ("proxy/tunnel/pool.rs", &["proxy", "tunnel", "pool"]),
        ];
        for (file, path) in table {
            assert_eq!(module_path(Path::new(file)), strings(path), "{file}");
        }
    }

    #[test]
    fn this_checkout_keeps_its_layers() {
        let wrong = check(&checkout::root().join("agent/src")).unwrap();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
