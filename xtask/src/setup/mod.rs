//! `cargo xtask setup`: finds or installs what the other commands need.
//!
//! Bytecode needs a rustc that has its own library source beside it and a linker for BPF; what was
//! found is noted in `target/tools`, so that later commands need not look again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::{checkout, process};

mod linker;
pub(crate) mod packages;
pub(crate) mod python;
mod rustc;

/// Find or install the tools that building and testing need.
///
/// Packages are installed only on Debian and only as root; everything else goes into the
/// checkout's target folder. Where something may not be installed, the exact commands are printed.
#[derive(Args)]
pub(crate) struct Setup {
    /// What to prepare; all of it when nothing is named.
    #[arg(value_enum)]
    what: Vec<What>,
    /// Look for everything again, even if an earlier run found it.
    #[arg(long)]
    again: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// A rustc with its library source, and bpf-linker: what the kernel programs need.
    Bytecode,
    /// The programs that node stories and the demo run.
    Test,
    /// The programs that nodes and pods of `cargo xtask cluster` run.
    Cluster,
    /// QEMU and what unpacks Debian's kernels.
    Vm,
}

impl Setup {
    pub(crate) fn run(self) -> Result<()> {
        let wants = |what| self.what.is_empty() || self.what.contains(&what);
        if wants(What::Bytecode) {
            if self.again {
                let _ = fs::remove_file(noted());
            }
            let found = bytecode()?;
            println!("bytecode: {} {} (LLVM {})", found.rustc.display(), found.release, found.llvm);
            println!("bytecode: linker {}", found.linker.display());
        }
        if wants(What::Test) {
            test_tools()?;
            second_client()?;
            println!("test: programs are there");
        }
        if wants(What::Cluster) {
            cluster_tools()?;
            println!("cluster: programs are there");
        }
        if wants(What::Vm) {
            vm_tools()?;
            println!("vm: programs are there");
        }
        Ok(())
    }
}

/// The tools that build the kernel programs.
#[derive(Serialize, Deserialize)]
pub(crate) struct Bytecode {
    /// A rustc whose sysroot has the library source of its own version.
    pub(crate) rustc: PathBuf,
    /// The cargo that belongs to it.
    pub(crate) cargo: PathBuf,
    /// Its release, for messages: `1.97.0-nightly`.
    pub(crate) release: String,
    /// The major version of its LLVM. The linker's must not be older.
    pub(crate) llvm: u32,
    pub(crate) linker: PathBuf,
    /// Removes debug information; `None` leaves the object larger and otherwise the same.
    pub(crate) strip: Option<PathBuf>,
    /// rustc and linker as they were found: a replaced tool is looked for again.
    identity: Vec<Option<String>>,
}

/// What builds kernel programs, found now or by an earlier run.
pub(crate) fn bytecode() -> Result<Bytecode> {
    if let Some(known) = recall() {
        return Ok(known);
    }
    let rustc = rustc::find_or_install()?;
    let linker = linker::find_or_build(rustc.llvm)?;
    let found = Bytecode {
        identity: vec![checkout::identity(&rustc.path), checkout::identity(&linker)],
        strip: linker::find_strip(),
        linker,
        cargo: rustc.cargo,
        release: rustc.release,
        llvm: rustc.llvm,
        rustc: rustc.path,
    };
    let json = serde_json::to_vec_pretty(&found).context("write the tools that were found as JSON")?;
    checkout::write_if_changed(&noted(), &json)?;
    Ok(found)
}

/// `ip`, which node stories and the demo call, and the `openssl` that judges what we sign.
pub(crate) fn test_tools() -> Result<()> {
    packages::need(&[("ip", "iproute2"), ("openssl", "openssl")])
}

/// What the client of the certificate service that is not ours runs on.
pub(crate) fn second_client() -> Result<()> {
    python::find_or_make()
}

/// What boots and unpacks Debian's kernels.
pub(crate) fn vm_tools() -> Result<()> {
    packages::need(&[("ip", "iproute2"), ("qemu-system-x86_64", "qemu-system-x86"), ("xz", "xz-utils")])
}

/// What a cluster's nodes run besides its own programs, and what their pods do.
pub(crate) fn cluster_tools() -> Result<()> {
    packages::need(&[
        ("ip", "iproute2"),
        ("nft", "nftables"),
        ("runc", "runc"),
        ("busybox", "busybox-static"),
    ])?;
    let mut missing = Vec::new();
    // Debian's other busybox has the same name, and does not run where there are no libraries.
    if process::output(Command::new("ldd").arg("/bin/busybox")).is_ok() {
        missing.push("busybox-static");
    }
    if !Path::new("/usr/lib/cni/ptp").exists() {
        missing.push("containernetworking-plugins");
    }
    packages::provide(&missing)
}

/// The clippy that belongs to the kernel programs' rustc. rustup installs it by default; Debian's is
/// a small package.
pub(crate) fn clippy(tools: &Bytecode) -> Option<PathBuf> {
    let clippy = tools.cargo.with_file_name("cargo-clippy");
    let debian = tools.cargo.starts_with("/usr/bin");
    if !clippy.exists() && debian && packages::may_install() {
        packages::install(&["rust-web-clippy"]).ok()?;
    }
    clippy.exists().then_some(clippy)
}

/// cargo-deny, in `PATH` or built into the checkout's `target/tools`.
pub(crate) fn cargo_deny() -> Result<PathBuf> {
    const VERSION: &str = "0.20.2";
    let ours = checkout::target("tools/bin/cargo-deny");
    if let Some(found) = process::find("cargo-deny").or_else(|| ours.exists().then(|| ours.clone())) {
        return Ok(found);
    }
    process::step(&format!("build cargo-deny {VERSION} (about two minutes)"), || {
        // Unoptimised: it builds in half the time and reads one lock file.
        let mut cargo = crate::build::cargo("install");
        cargo.args(["cargo-deny", "--version", VERSION, "--locked", "--debug"]);
        cargo.arg("--root").arg(checkout::target("tools"));
        process::run(cargo.arg("--target-dir").arg(checkout::target("tools/build")))
    })?;
    let _ = fs::remove_dir_all(checkout::target("tools/build"));
    Ok(ours)
}

fn recall() -> Option<Bytecode> {
    let known: Bytecode = serde_json::from_slice(&fs::read(noted()).ok()?).ok()?;
    let now = vec![checkout::identity(&known.rustc), checkout::identity(&known.linker)];
    (now == known.identity && known.cargo.exists() && rustc::has_source(&known.rustc)).then_some(known)
}

fn noted() -> PathBuf {
    checkout::target("tools/bytecode.json")
}

/// Prints commands for someone to run, and fails with `what` as the reason.
fn refuse<T>(what: &str, commands: &[String]) -> Result<T> {
    let who = if process::is_root() { "" } else { " (as root)" };
    anyhow::bail!("{what}. Run{who}:\n    {}", commands.join("\n    "))
}
