//! The first process of `cargo xtask vm`'s machines: makes the file systems and devices that programs
//! expect, runs the commands in `/commands`, says how they ended, and powers off.

use std::ffi::CStr;
use std::fs::{self, File};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

fn main() -> Result<()> {
    // Also started by hand, where powering off would be a surprise.
    ensure!(std::process::id() == 1, "vm-init is the first process of a virtual machine");
    let status = match prepare().and_then(|()| run_all()) {
        Ok(status) => status,
        Err(error) => {
            println!("vm-init: {error:#}");
            1
        }
    };
    // xtask reads this line from the console.
    println!("vm-init: commands ended with status {status}");
    nix::unistd::sync();
    match reboot(RebootMode::RB_POWER_OFF)? {}
}

/// Runs every command, and returns the exit status of the first that fails, else 0.
fn run_all() -> Result<i32> {
    let mut first_failure = 0;
    for line in fs::read_to_string("/commands").context("read /commands")?.lines() {
        let mut words = line.split_whitespace();
        let Some(program) = words.next() else { continue };
        println!("vm-init: {line}");
        let mut command = Command::new(program);
        command.args(words).env_clear().envs(ENVIRONMENT);
        let status = command.status().with_context(|| format!("start {line}"))?;
        println!("vm-init: `{line}` ended with {status}");
        if !status.success() && first_failure == 0 {
            first_failure = status.code().unwrap_or(1);
        }
    }
    Ok(first_failure)
}

const ENVIRONMENT: [(&str, &str); 5] = [
    ("PATH", "/bin"),
    ("HOME", "/root"),
    ("UNDERPASS_BIN", "/bin/underpass"),
    ("UNDERPASS_REQUIRE_ROOT", "1"),
    ("RUST_BACKTRACE", "1"),
];

fn prepare() -> Result<()> {
    for (kind, at) in FILE_SYSTEMS {
        fs::create_dir_all(at).with_context(|| format!("create {at}"))?;
        mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount {kind} at {at}"))?;
    }
    load_modules()?;
    let up = Command::new("/bin/ip").args(["link", "set", "lo", "up"]).status().context("start ip")?;
    ensure!(up.success(), "ip link set lo up ended with {up}");
    println!("vm-init: Linux {}", fs::read_to_string("/proc/sys/kernel/osrelease")?.trim());
    Ok(())
}

/// bpffs is left to the agent, which mounts it where it is missing.
const FILE_SYSTEMS: [(&str, &str); 6] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("cgroup2", "/sys/fs/cgroup"),
];

/// In the order of their names, which xtask chose so that what a module needs comes first.
fn load_modules() -> Result<()> {
    let mut files: Vec<_> = fs::read_dir("/modules")
        .context("list /modules")?
        .map(|entry| entry.map(|it| it.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    const NO_PARAMETERS: &CStr = c"";
    for file in files {
        let module = File::open(&file).with_context(|| format!("open {}", file.display()))?;
        finit_module(&module, NO_PARAMETERS, ModuleInitFlags::empty())
            .with_context(|| format!("load {}", file.display()))?;
    }
    Ok(())
}
