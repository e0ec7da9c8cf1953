//! `cargo xtask lint`: format, clippy, dependencies and layers, for the host's code and the kernel's.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

use crate::build::cargo;
use crate::layers::Layers;
use crate::{build_ebpf, checkout, process, setup};

/// Check format, clippy, dependencies and layers. Changes nothing.
#[derive(Args)]
pub(crate) struct Lint {
    /// Leave the dependencies out: cargo-deny takes minutes to build the first time.
    #[arg(long)]
    no_deny: bool,
}

type Check = fn() -> Result<()>;

impl Lint {
    pub(crate) fn run(self) -> Result<()> {
        let mut checks: Vec<(&str, Check)> = vec![
            ("layers", || Layers {}.run()),
            ("format", format),
            ("clippy", clippy),
            ("clippy of the kernel programs", clippy_ebpf),
        ];
        if !self.no_deny {
            checks.push(("dependencies", deny));
        }
        // All of them, so that one run shows everything there is to do.
        let mut failed = Vec::new();
        for (name, check) in checks {
            if let Err(error) = process::step(name, check) {
                eprintln!("    {error:#}");
                failed.push(name);
            }
        }
        if !failed.is_empty() {
            bail!("lint found something in: {}", failed.join(", "));
        }
        Ok(())
    }
}

/// Crates outside the workspace that hold code of ours.
const APART: [&str; 1] = ["ebpf/Cargo.toml"];

fn format() -> Result<()> {
    process::run(cargo("fmt").args(["--all", "--check"]))?;
    for manifest in present(&APART) {
        process::run(cargo("fmt").arg("--check").arg("--manifest-path").arg(manifest))?;
    }
    Ok(())
}

fn clippy() -> Result<()> {
    // The agent reads differently with kernel programs inside.
    build_ebpf::ensure()?;
    let mut clippy = cargo("clippy");
    clippy.args(["--workspace", "--all-targets"]);
    if process::find("c++").is_some() {
        clippy.args(["--features", "underpass-fuzz/libfuzzer"]);
    }
    process::run(clippy.args(["--", "-D", "warnings"]))
}

fn clippy_ebpf() -> Result<()> {
    let tools = setup::bytecode()?;
    let Some(clippy) = setup::clippy(&tools) else {
        eprintln!("    {} {} has no clippy: rustc's own warnings only", tools.rustc.display(), tools.release);
        return process::run(
            build_ebpf::cargo(&tools, "check").env("CARGO_ENCODED_RUSTFLAGS", deny_warnings()),
        );
    };
    let mut command = build_ebpf::with_program(&tools, &clippy, "clippy");
    process::run(command.env("CARGO", &tools.cargo).args(["--", "-D", "warnings"]))
}

fn deny_warnings() -> String {
    format!("{}\x1f-Dwarnings", build_ebpf::RUSTFLAGS)
}

fn deny() -> Result<()> {
    let deny = setup::cargo_deny()?;
    let mut checks = vec!["licenses", "bans", "sources"];
    let mut fetch = Command::new(&deny);
    match process::output(fetch.current_dir(checkout::root()).args(["fetch", "db"])) {
        Ok(_) => checks.push("advisories"),
        Err(_) => eprintln!("    not checked: advisories, whose database could not be fetched"),
    }
    for manifest in present(&["Cargo.toml"]).chain(present(&APART)) {
        let mut check = Command::new(&deny);
        check.args(["--log-level", "error", "--manifest-path"]).arg(manifest);
        check.arg("--config").arg(checkout::root().join("deny.toml"));
        process::run(check.arg("check").args(&checks))?;
    }
    Ok(())
}

fn present<'a>(manifests: &'a [&'a str]) -> impl Iterator<Item = PathBuf> + 'a {
    manifests.iter().map(|it| checkout::root().join(it)).filter(|path| path.exists())
}
