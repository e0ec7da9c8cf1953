//! `cargo xtask build-ebpf`: the kernel programs, as `target/bpf/underpass.o`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::setup::{self, Bytecode};
use crate::{checkout, process};

/// Build the kernel programs into target/bpf/underpass.o.
///
/// `cargo build` embeds that object into the agent when it is there. Nothing is done when neither
/// the sources nor the tools changed since the last time.
#[derive(Args)]
pub(crate) struct BuildEbpf {
    /// Build even if nothing changed.
    #[arg(long)]
    again: bool,
}

impl BuildEbpf {
    pub(crate) fn run(self) -> Result<()> {
        if self.again {
            let _ = fs::remove_file(stamp());
        }
        ensure().map(|object| println!("{}", object.display()))
    }
}

/// Builds the kernel programs if anything changed, and returns the object's path.
pub(crate) fn ensure() -> Result<PathBuf> {
    let tools = setup::bytecode()?;
    let object = checkout::target("bpf/underpass.o");
    if object.exists() && fs::read_to_string(stamp()).is_ok_and(|built| Some(built) == sources(&tools).ok()) {
        return Ok(object);
    }
    process::step("build the kernel programs", || {
        let linked = compile(&tools)?;
        let stripped = strip(&tools, &linked)?;
        checkout::write_if_changed(&object, &fs::read(&stripped).context("read the linked object")?)
    })?;
    // Taken after the build, which may have completed Cargo.lock.
    checkout::write_if_changed(&stamp(), sources(&tools)?.as_bytes())?;
    Ok(object)
}

fn sources(tools: &Bytecode) -> Result<String> {
    let paths = ["ebpf", "common", "Cargo.toml"].map(|path| checkout::root().join(path));
    checkout::fingerprint(&paths, &format!("{} {}", tools.release, tools.linker.display()))
}

/// A cargo command on the kernel programs, with the toolchain that builds them.
pub(crate) fn cargo(tools: &Bytecode, verb: &str) -> Command {
    with_program(tools, &tools.cargo, verb)
}

/// The same, run by a program that takes cargo's arguments.
pub(crate) fn with_program(tools: &Bytecode, program: &Path, verb: &str) -> Command {
    let mut cargo = Command::new(program);
    // We were started by another cargo and perhaps another toolchain, whose settings must not leak.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_build_setting) {
            cargo.env_remove(name);
        }
    }
    cargo.current_dir(checkout::root().join("ebpf"));
    cargo.env("RUSTC", &tools.rustc).env("CARGO_TARGET_DIR", checkout::target("ebpf"));
    if !tools.release.contains("nightly") {
        // -Z flags on a stable compiler: there is no other way to a tier-3 target.
        cargo.env("RUSTC_BOOTSTRAP", "1");
    }
    cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &tools.linker);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS);
    cargo.args([verb, "--release", "--target", "bpfel-unknown-none", "-Z", "build-std=core"]);
    cargo
}

/// Debug information is where bpf-linker makes BTF from.
pub(crate) const RUSTFLAGS: &str = "-Cdebuginfo=2\x1f-Clink-arg=--btf";

fn compile(tools: &Bytecode) -> Result<PathBuf> {
    let mut cargo = cargo(tools, "build");
    cargo.arg("--message-format=json-render-diagnostics");
    let out = cargo.stderr(Stdio::inherit()).output().context("start the kernel programs' cargo")?;
    if !out.status.success() {
        bail!("`{}` ended with {}", process::line(&cargo), out.status);
    }
    String::from_utf8_lossy(&out.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .context("the crate in ebpf/ has no binary target")
}

/// Debug information is nine tenths of the object and the kernel reads none of it; symbols stay,
/// because loading needs them.
fn strip(tools: &Bytecode, linked: &Path) -> Result<PathBuf> {
    let Some(strip) = &tools.strip else {
        eprintln!("    no llvm-strip here: debug information stays in the object");
        return Ok(linked.to_owned());
    };
    let stripped = linked.with_extension("stripped.o");
    process::run(Command::new(strip).arg("-g").arg("-o").arg(&stripped).arg(linked))?;
    Ok(stripped)
}

fn is_build_setting(name: &str) -> bool {
    const KEPT: [&str; 6] =
        ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "RUSTUP_HOME", "RUST_"];
    (name.starts_with("CARGO") || name.starts_with("RUST")) && !KEPT.iter().any(|kept| name.starts_with(kept))
}

fn stamp() -> PathBuf {
    // Not in target/bpf: cargo watches that folder for the agent's sake.
    checkout::target("ebpf/underpass.stamp")
}

#[cfg(test)]
mod tests {
    use super::is_build_setting;

    #[test]
    fn only_build_settings_are_cleared() {
        let table = [
            ("CARGO", true),
            ("CARGO_ENCODED_RUSTFLAGS", true),
            ("CARGO_PKG_NAME", true),
            ("CARGO_TARGET_DIR", true),
            ("RUSTFLAGS", true),
            ("RUSTC_WRAPPER", true),
            ("RUSTUP_TOOLCHAIN", true),
            ("CARGO_HOME", false),
            ("CARGO_NET_OFFLINE", false),
            ("CARGO_REGISTRIES_MINE_INDEX", false),
            ("RUSTUP_HOME", false),
            ("RUST_BACKTRACE", false),
            ("PATH", false),
        ];
        for (name, cleared) in table {
            assert_eq!(is_build_setting(name), cleared, "{name}");
        }
    }
}
