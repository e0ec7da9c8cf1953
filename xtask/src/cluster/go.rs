//! Go, which the cluster's programs are written in.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::pins::{self, MODULES, Module};
use crate::{process, setup};

/// A Go that is new enough for every module. Since 1.21 it fetches a newer one by itself where it may.
pub(super) fn find() -> Result<PathBuf> {
    let wanted = wanted()?;
    let shown = format!("{}.{}", wanted.0, wanted.1);
    let hint = [
        "https://go.dev/doc/install".to_owned(),
        "and see that `go version` works, then: cargo xtask cluster build".to_owned(),
    ];
    let what = "the cluster's programs are built with Go";
    let Some(go) = process::find("go") else {
        return setup::refuse(&format!("{what} {shown} or newer, and there is no `go` in PATH"), &hint);
    };
    let said = process::output(Command::new(&go).args(["env", "GOVERSION"]).current_dir(MODULES[0].path()));
    let said = said.unwrap_or_else(|error| format!("{error:#}"));
    match release(said.trim()) {
        Some(found) if found >= wanted => Ok(go),
        _ => setup::refuse(
            &format!("{what} {shown} or newer, and {} says: {}", go.display(), said.trim()),
            &hint,
        ),
    }
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
