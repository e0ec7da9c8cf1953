//! Finds or builds bpf-linker, which turns rustc's LLVM bitcode into one BPF object.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use super::packages;
use crate::{checkout, process};

/// The newest bpf-linker that is known to link our programs.
const VERSION: &str = "0.13.0";

/// The LLVMs that this version can be built against.
const LLVMS: [u32; 3] = [21, 22, 23];

/// In `PATH` if it is of the right version and its LLVM reads what rustc writes, else built into
/// the checkout's `target/tools`.
pub(super) fn find_or_build(rustc_llvm: u32) -> Result<PathBuf> {
    let ours = checkout::target("tools/bin/bpf-linker");
    let mut known = process::find("bpf-linker").into_iter().chain([ours.clone()]);
    match known.find(|linker| serves(linker, rustc_llvm)) {
        Some(linker) => Ok(linker),
        None => {
            build(rustc_llvm)?;
            ensure!(serves(&ours, rustc_llvm), "{} was built and does not run", ours.display());
            Ok(ours)
        }
    }
}

/// Removes debug information and keeps BTF. Any version serves.
pub(super) fn find_strip() -> Option<PathBuf> {
    let beside = LLVMS.iter().rev().map(|v| Path::new("/usr/lib").join(format!("llvm-{v}/bin/llvm-strip")));
    process::find("llvm-strip").into_iter().chain(beside).find(|strip| strip.exists())
}

fn serves(linker: &Path, rustc_llvm: u32) -> bool {
    let version = process::output(Command::new(linker).arg("--version"));
    if version.is_ok_and(|said| said.split_whitespace().last() != Some(VERSION)) {
        return false;
    }
    // A linker that has LLVM inside (a released binary) shows none here, and is the newest.
    let libraries = process::output(Command::new("ldd").arg(linker));
    libraries.is_ok_and(|said| linked_llvm(&said).is_none_or(|llvm| llvm >= rustc_llvm))
}

fn linked_llvm(ldd: &str) -> Option<u32> {
    let (_, rest) = ldd.split_once("libLLVM.so.").or_else(|| ldd.split_once("libLLVM-"))?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse().ok()
}

fn build(rustc_llvm: u32) -> Result<()> {
    let (llvm, prefix) = llvm_prefix(rustc_llvm)?;
    let tools = checkout::target("tools");
    process::step(&format!("build bpf-linker {VERSION} with LLVM {llvm} (about a minute)"), || {
        let mut cargo = crate::build::cargo("install");
        cargo.args(["bpf-linker", "--version", VERSION, "--locked", "--force"]);
        cargo.args(["--no-default-features", "--features", &format!("llvm-{llvm}")]);
        cargo.arg("--root").arg(&tools).arg("--target-dir").arg(tools.join("build"));
        // LLVM_SYS_*_PREFIX, which the linker's own build script reads, does not lead it there.
        cargo.env("LLVM_PREFIX", &prefix).env("PATH", with_first(&prefix.join("bin")));
        process::run(&mut cargo)
    })?;
    // A hundred megabytes that nothing reads again.
    let _ = std::fs::remove_dir_all(tools.join("build"));
    Ok(())
}

/// An LLVM with headers and libraries, not older than rustc's.
fn llvm_prefix(rustc_llvm: u32) -> Result<(u32, PathBuf)> {
    if let Some(found) = installed_llvm(rustc_llvm) {
        return Ok(found);
    }
    let wanted = rustc_llvm.max(22);
    let names = [format!("llvm-{wanted}-dev"), format!("libpolly-{wanted}-dev")];
    let names = [names[0].as_str(), names[1].as_str()];
    if packages::may_install() {
        packages::install(&names)?;
        if let Some(found) = installed_llvm(rustc_llvm) {
            return Ok(found);
        }
    }
    super::refuse(
        &format!("bpf-linker {VERSION} is not in PATH, and there is no LLVM {wanted} to build it with"),
        &[packages::command(&names), "cargo xtask setup".to_owned()],
    )
}

fn installed_llvm(at_least: u32) -> Option<(u32, PathBuf)> {
    let prefixes = LLVMS.into_iter().map(|v| (v, Path::new("/usr/lib").join(format!("llvm-{v}"))));
    prefixes.filter(|(v, _)| *v >= at_least).find(|(_, prefix)| {
        // Polly's static library is in llvm-config's list of what to link, in a package of its own.
        prefix.join("include/llvm-c/Core.h").exists() && prefix.join("lib/libPolly.a").exists()
    })
}

fn with_first(dir: &Path) -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(dir.to_owned()).chain(std::env::split_paths(&path));
    std::env::join_paths(all).unwrap_or(path.clone())
}

#[cfg(test)]
mod tests {
    use super::linked_llvm;

    #[test]
    fn the_linked_llvm_is_read_from_ldd() {
        let table = [
            ("\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x7f)", Some(22)),
            ("\tlibLLVM-17.so.1 => /usr/lib/libLLVM-17.so.1 (0x7f)", Some(17)),
            ("\tlibc.so.6 => /lib/libc.so.6 (0x7f)", None),
        ];
        for (said, llvm) in table {
            assert_eq!(linked_llvm(said), llvm, "{said}");
        }
    }
}
