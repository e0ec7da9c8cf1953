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
use crate::{build_ebpf, checkout, process, setup};

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
    /// A command to run in place of `underpass check` and the demo; its program must be one of the
    /// workspace's binaries, or `ip`.
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

/// What the machine runs when nothing else is named: one command per line.
const STORY: &str = "underpass check\nunderpass-demo\n";

impl Vm {
    pub(crate) fn run(self) -> Result<()> {
        let series: &[Series] = match self.kernel {
            Choice::V6_1 => &[Series::V6_1],
            Choice::V6_12 => &[Series::V6_12],
            Choice::All => &Series::ALL,
        };
        let commands = match self.command.is_empty() {
            true => STORY.to_owned(),
            false => self.command.join(" ") + "\n",
        };
        prepare()?;
        for series in series {
            process::step(&format!("Linux {series}"), || {
                boot(*series, &commands, Duration::from_secs(self.limit), self.verbose)
            })?;
        }
        Ok(())
    }
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

/// Boots a kernel and runs the agent's check and the demo in it. Everything is built already.
pub(crate) fn tell_story(series: Series) -> Result<()> {
    boot(series, STORY, Duration::from_secs(600), false)
}

/// Sees that the kernel is there.
pub(crate) fn fetch(series: Series) -> Result<()> {
    kernel::find_or_download(series, &folder(series)).map(drop)
}

fn prepare() -> Result<()> {
    setup::vm_tools()?;
    build_ebpf::ensure()?;
    binaries(Profile::Dev, &[])
}

fn boot(series: Series, commands: &str, limit: Duration, verbose: bool) -> Result<()> {
    let folder = folder(series);
    let kernel = kernel::find_or_download(series, &folder)?;
    let initramfs = folder.join("initramfs");
    initramfs::write(&initramfs, &kernel, commands)?;
    let console = folder.join("console.log");
    let ended = qemu::run(&kernel.image, &initramfs, &console, limit, verbose)?;
    match ended {
        qemu::Ended::Status(0) => Ok(()),
        bad => {
            if !verbose {
                show_tail(&console)?;
            }
            bail!("Linux {series}: {bad}; the whole console is in {}", console.display())
        }
    }
}

fn folder(series: Series) -> PathBuf {
    checkout::target(&format!("vm/{series}"))
}

fn show_tail(console: &Path) -> Result<()> {
    const LINES: usize = 60;
    let bytes = std::fs::read(console).with_context(|| format!("read {}", console.display()))?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    for line in &lines[lines.len().saturating_sub(LINES)..] {
        eprintln!("    | {line}");
    }
    Ok(())
}
