//! `cargo xtask build`: the kernel programs, then the agent with them inside.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::{build_ebpf, checkout, process};

/// Build the agent with the kernel programs inside.
///
/// `cargo build -p underpass-agent` builds it too, without kernel programs if there are none yet.
#[derive(Args)]
pub(crate) struct Build {
    /// Optimise, as for a release.
    #[arg(long)]
    release: bool,
}

impl Build {
    pub(crate) fn run(self) -> Result<()> {
        build_ebpf::ensure()?;
        let profile = if self.release { Profile::Release } else { Profile::Dev };
        binaries(profile, &["underpass"])?;
        println!("{}", profile.binary("underpass").display());
        Ok(())
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Profile {
    Dev,
    Release,
}

impl Profile {
    /// Where cargo puts that program.
    pub(crate) fn binary(self, name: &str) -> PathBuf {
        let folder = match self {
            Profile::Dev => "debug",
            Profile::Release => "release",
        };
        checkout::cargo_target().join(folder).join(name)
    }
}

/// Builds the workspace's binaries of these names; all but xtask if none is named.
pub(crate) fn binaries(profile: Profile, names: &[&str]) -> Result<()> {
    let mut cargo = cargo("build");
    cargo.args(WORKSPACE);
    if names.is_empty() {
        cargo.arg("--bins");
    }
    cargo.args(names.iter().flat_map(|name| ["--bin", name]));
    if let Profile::Release = profile {
        cargo.arg("--release");
    }
    process::run(&mut cargo)
}

/// Selects the workspace whatever is built of it: with fewer packages, dependencies would have other
/// features and be built once more. xtask, which is running, is left out; it brings no features.
pub(crate) const WORKSPACE: [&str; 3] = ["--workspace", "--exclude", "underpass-xtask"];

/// The cargo that started us, in the checkout's root.
pub(crate) fn cargo(verb: &str) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(checkout::root()).arg(verb);
    command
}
