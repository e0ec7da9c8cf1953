//! Go, which the cluster's programs are written in.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::pins::{self, MODULES, Module};
use crate::process;

/// A Go that is new enough for every module. Since 1.21 it fetches a newer one by itself where it may.
pub(super) fn find() -> Result<PathBuf> {
    let wanted = wanted()?;
    let Some(go) = process::find("go") else { bail!("there is no `go` in PATH; {}", advice(wanted)) };
    let mut version = Command::new(&go);
    version.args(["env", "GOVERSION"]).current_dir(MODULES[0].path());
    let said = process::output(&mut version).with_context(|| advice(wanted))?;
    match release(said.trim()) {
        Some(found) if found >= wanted => Ok(go),
        _ => bail!("{} is {}; {}", go.display(), said.trim(), advice(wanted)),
    }
}

fn advice((major, minor): (u32, u32)) -> String {
    format!(
        "the cluster's programs need Go {major}.{minor} or newer: install it (https://go.dev/doc/install), \
         put it into PATH, and run this again"
    )
}

/// Every program of a module. What Go has in its cache already takes seconds.
pub(super) fn build(go: &Path, module: &Module) -> Result<()> {
    let flags = module.linker_flags()?;
    for (name, package, takes) in module.programs {
        process::step(&format!("build {name} ({takes} from nothing)"), || {
            let mut build = Command::new(go);
            build.current_dir(module.path()).env("CGO_ENABLED", "0");
            build.args(["build", "-mod=readonly", "-ldflags", &flags, "-o"]);
            process::run(build.arg(pins::program(name)).arg(package))
        })?;
    }
    Ok(())
}

/// The newest release that a module's `go` line asks for.
fn wanted() -> Result<(u32, u32)> {
    let mut newest = (0, 0);
    for module in &MODULES {
        let text = module.go_mod()?;
        let line = text.lines().find_map(|line| line.strip_prefix("go ")).and_then(release);
        newest = newest.max(line.with_context(|| format!("no `go` line in {}", module.path().display()))?);
    }
    Ok(newest)
}

/// `go1.26.8` and `1.26.0` alike.
fn release(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim_start_matches("go").split('.');
    let digits = |part: &str| part.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok();
    Some((digits(parts.next()?)?, digits(parts.next()?)?))
}

#[cfg(test)]
mod tests {
    use super::release;

    #[test]
    fn releases_are_read_and_compared_as_numbers() {
        let table = [
            ("go1.26.8", Some((1, 26))),
            ("1.26.0", Some((1, 26))),
            ("go1.27rc1", Some((1, 27))),
            ("go1.9", Some((1, 9))),
            ("devel +abc", None),
            ("", None),
        ];
        for (text, found) in table {
            assert_eq!(release(text), found, "{text}");
        }
        assert!(release("go1.9") < release("go1.26"));
    }
}
