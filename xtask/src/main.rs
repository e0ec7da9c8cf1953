//! `cargo xtask`: every command that a developer or CI runs, one file each.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod build;
mod build_ebpf;
mod checkout;
mod cluster;
mod demo;
mod layers;
mod lint;
mod process;
mod setup;
mod test;
mod vm;

/// The commands of the Underpass checkout.
///
/// Each command prepares what it needs by itself, and is quick when nothing changed.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Xtask {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Setup(setup::Setup),
    BuildEbpf(build_ebpf::BuildEbpf),
    Build(build::Build),
    Demo(demo::Demo),
    Test(test::Test),
    Lint(lint::Lint),
    Layers(layers::Layers),
    Vm(vm::Vm),
    Bench(bench::Bench),
    Cluster(cluster::Cluster),
}

fn main() -> ExitCode {
    if let Some(code) = test::fuzz::as_rustc() {
        return code;
    }
    match run(Xtask::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Setup(it) => it.run(),
        Command::BuildEbpf(it) => it.run(),
        Command::Build(it) => it.run(),
        Command::Demo(it) => it.run(),
        Command::Test(it) => it.run(),
        Command::Lint(it) => it.run(),
        Command::Layers(it) => it.run(),
        Command::Vm(it) => it.run(),
        Command::Bench(it) => it.run(),
        Command::Cluster(it) => it.run(),
    }
}
