//! `cargo xtask demo`: two nodes, five pods and two agents on this machine, with evidence.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::build::{Profile, binaries};
use crate::{build_ebpf, process, setup};

/// Show the main job on two simulated nodes, and check that what is shown is true.
///
/// Needs root, for network namespaces and kernel programs. Exits with an error if any of the story
/// is untrue, and removes everything it made.
#[derive(Args)]
pub(crate) struct Demo {
    /// Leave nodes, pods and agents standing, and print commands to try.
    #[arg(long)]
    keep: bool,
    /// More arguments for the demo itself.
    #[arg(last = true)]
    more: Vec<String>,
}

impl Demo {
    pub(crate) fn run(self) -> Result<()> {
        setup::test_tools()?;
        build_ebpf::ensure()?;
        binaries(Profile::Dev, &["underpass", "underpass-demo"])?;
        let mut demo = command(Profile::Dev);
        if self.keep {
            demo.arg("--keep");
        }
        process::run(demo.args(self.more))
    }
}

/// The demo, driving the agent of the same profile.
pub(crate) fn command(profile: Profile) -> Command {
    let mut demo = Command::new(profile.binary("underpass-demo"));
    demo.env("UNDERPASS_BIN", profile.binary("underpass"));
    demo
}
