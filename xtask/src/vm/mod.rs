//! `cargo xtask vm`: the agent and the demo inside other kernels than this machine's.
//!
//! A kernel of Debian's boots under QEMU with a file system in memory that holds what was built, the
//! libraries it needs, and `vm-init` (tests/src/bin/vm-init.rs), which runs the commands.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::build::{Profile, binaries};
use crate::test::programs::{self, Program};
use crate::{build_ebpf, checkout, process, setup};

mod console;
mod cpio;
mod initramfs;
mod kernel;
mod qemu;

/// Boot Debian's kernels under QEMU, and run the agent's checks and the demo inside.
///
/// Packages are downloaded to target/vm and unpacked there; nothing is installed but QEMU itself.
/// Needs neither root nor KVM.
#[derive(Args)]
pub(crate) struct Vm {
    /// The kernel to boot.
    #[arg(long, value_enum, default_value = "all")]
    kernel: Choice,
    /// Show the console while it runs, instead of only after a failure.
    #[arg(long, short)]
    verbose: bool,
    /// Seconds that one kernel may take from power on to power off.
    #[arg(long, default_value_t = 600)]
    limit: u64,
    /// A command to run in place of `underpass check`, the demo and the kernel programs' stories. Its
    /// program is one of the workspace's binaries, a file of tests/tests, or `ip`.
    #[arg(last = true)]
    command: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
    All,
}

/// A kernel series of Debian's bookworm.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Series {
    V6_1,
    V6_12,
}

impl Vm {
    pub(crate) fn run(self) -> Result<()> {
        let series: &[Series] = match self.kernel {
            Choice::V6_1 => &[Series::V6_1],
            Choice::V6_12 => &[Series::V6_12],
            Choice::All => &Series::ALL,
        };
        setup::vm_tools()?;
        build_ebpf::ensure()?;
        binaries(Profile::Dev, &[])?;
        let programs = programs::build()?;
        let commands = match self.command.is_empty() {
            true => story(&programs),
            false => vec![self.command],
        };
        let limit = Duration::from_secs(self.limit);
        for series in series {
            process::step(&format!("Linux {series}"), || {
                boot(*series, &programs, &commands, limit, self.verbose)
            })?;
        }
        Ok(())
    }
}

/// Boots a kernel and tells the whole story in it. Everything is built already.
pub(crate) fn tell_story(series: Series, programs: &[Program]) -> Result<()> {
    boot(series, programs, &story(programs), Duration::from_secs(600), false)
}

/// What differs between kernels: what the agent finds there, what it does there with real traffic, and
/// what the kernel programs do by themselves.
fn story(programs: &[Program]) -> Vec<Vec<String>> {
    let words = |line: &str| line.split(' ').map(str::to_owned).collect();
    let mut commands: Vec<Vec<String>> = vec![words("underpass check"), words("underpass-demo")];
    let kernel = programs::stories(programs).filter(|program| {
        // Emulated, a storm of 100,000 connections takes longer than all the rest.
        program.name.starts_with("kernel_") && program.name != "kernel_storm"
    });
    commands.extend(kernel.map(|program| words(&format!("{} --test-threads=1", program.name))));
    commands
}

impl Series {
    pub(crate) const ALL: [Series; 2] = [Series::V6_1, Series::V6_12];
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Series::V6_1 => "6.1",
            Series::V6_12 => "6.12",
        })
    }
}

/// Sees that the kernel is there.
pub(crate) fn fetch(series: Series) -> Result<()> {
    kernel::find_or_download(series, &folder(series)).map(drop)
}

fn boot(
    series: Series,
    programs: &[Program],
    commands: &[Vec<String>],
    limit: Duration,
    verbose: bool,
) -> Result<()> {
    let folder = folder(series);
    let kernel = kernel::find_or_download(series, &folder)?;
    let initramfs = folder.join("initramfs");
    initramfs::write(&initramfs, &kernel, programs, commands)?;
    let console = folder.join("console.log");
    let ended = qemu::run(&kernel.image, &initramfs, &console, limit, verbose)?;
    match ended {
        qemu::Ended::Status(0) => Ok(()),
        bad => {
            if !verbose {
                show_what_failed(&console)?;
            }
            bail!("Linux {series}: {bad}; the whole console is in {}", console.display())
        }
    }
}

fn folder(series: Series) -> PathBuf {
    checkout::target(&format!("vm/{series}"))
}

fn show_what_failed(console: &Path) -> Result<()> {
    let bytes = std::fs::read(console).with_context(|| format!("read {}", console.display()))?;
    for line in console::what_failed(&String::from_utf8_lossy(&bytes)) {
        eprintln!("    | {line}");
    }
    Ok(())
}
