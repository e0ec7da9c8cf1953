//! Finds a rustc that can build `core` for BPF.
//!
//! BPF is a tier-3 target: rustc ships no `core` for it, so cargo builds one from the library
//! source, which must be of the very same version (1.96's source fails with 1.95 and 1.97).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::packages;
use crate::process;

/// Debian's own toolchain with its source, under names that do not clash with rustup's.
const DEBIAN: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// A rustc with its library source.
pub(super) struct Rustc {
    pub(super) path: PathBuf,
    pub(super) cargo: PathBuf,
    pub(super) release: String,
    pub(super) llvm: u32,
}

/// rustup's nightly first, then any rustc that has its source, then Debian's packages.
pub(super) fn find_or_install() -> Result<Rustc> {
    if let Some(found) = nightly().or_else(any_with_source) {
        return Ok(found);
    }
    if packages::may_install() {
        packages::install(&DEBIAN)?;
        if let Some(found) = any_with_source() {
            return Ok(found);
        }
    }
    super::refuse(
        "no rustc has its library source, which the kernel programs need",
        &[
            "rustup toolchain install nightly --component rust-src".to_owned(),
            format!("{}    # or, on Debian", packages::command(&DEBIAN)),
        ],
    )
}

/// Whether `cargo -Z build-std` would find this rustc's library source.
pub(super) fn has_source(rustc: &Path) -> bool {
    // <sysroot>/bin/rustc in rustup's layout and in Debian's.
    let Some(sysroot) = rustc.parent().and_then(Path::parent) else { return false };
    sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
}

/// rustup's nightly, with the source component added when that is all it lacks.
fn nightly() -> Option<Rustc> {
    let rustc = rustup_rustc("nightly")?;
    if !has_source(&rustc) {
        let mut add = Command::new("rustup");
        add.args(["component", "add", "rust-src", "--toolchain", "nightly"]);
        // The network may be closed: the next choice must not wait long for this one.
        if let Err(error) = process::step("add rust-src to rustup's nightly", || {
            process::run_bounded(&mut add, Duration::from_secs(60))
        }) {
            eprintln!("    {error}; looking for another rustc");
        }
    }
    with_source(rustc)
}

/// Any other toolchain of rustup's, or a rustc in `PATH`.
fn any_with_source() -> Option<Rustc> {
    let listed = process::output(Command::new("rustup").args(["toolchain", "list"])).unwrap_or_default();
    let of_rustup = listed.lines().filter_map(|line| rustup_rustc(line.split_whitespace().next()?));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path: Vec<PathBuf> = std::env::split_paths(&path).map(|dir| dir.join("rustc")).collect();
    of_rustup.chain(in_path).find_map(with_source)
}

fn rustup_rustc(toolchain: &str) -> Option<PathBuf> {
    let path = process::output(Command::new("rustup").args(["which", "rustc", "--toolchain", toolchain]));
    Some(PathBuf::from(path.ok()?.trim()))
}

fn with_source(rustc: PathBuf) -> Option<Rustc> {
    let cargo = rustc.with_file_name("cargo");
    if !has_source(&rustc) || !cargo.exists() {
        return None;
    }
    let said = process::output(Command::new(&rustc).arg("-vV")).ok()?;
    let field = |name: &str| said.lines().find_map(|line| line.strip_prefix(name));
    Some(Rustc {
        release: field("release: ")?.to_owned(),
        llvm: field("LLVM version: ")?.split('.').next()?.parse().ok()?,
        path: rustc,
        cargo,
    })
}
