//! `cargo xtask bench`: the mesh beside plain TCP, in one run, as ratios.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::build::{Profile, binaries};
use crate::{build_ebpf, process, setup};

/// Measure the mesh against plain TCP on two simulated nodes.
///
/// Needs root. Everything after `--` goes to the benchmark itself: `cargo xtask bench -- --help`;
/// `cargo xtask bench -- decisions` measures decisions of policy instead.
#[derive(Args)]
pub(crate) struct Bench {
    /// Arguments for the benchmark.
    #[arg(last = true)]
    arguments: Vec<String>,
}

impl Bench {
    pub(crate) fn run(self) -> Result<()> {
        setup::test_tools()?;
        build_ebpf::ensure()?;
        // A figure of an unoptimised build says nothing.
        binaries(Profile::Release, &["underpass", "underpass-bench"])?;
        let mut bench = Command::new(Profile::Release.binary("underpass-bench"));
        process::run(bench.env("UNDERPASS_BIN", Profile::Release.binary("underpass")).args(self.arguments))
    }
}
