//! `cargo xtask`: every command that a developer or CI runs, one file each.

use anyhow::Result;
use clap::{Parser, Subcommand};

mod build_ebpf;
mod checkout;
mod process;
mod setup;

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
}

fn main() -> Result<()> {
    match Xtask::parse().command {
        Command::Setup(it) => it.run(),
        Command::BuildEbpf(it) => it.run(),
    }
}
