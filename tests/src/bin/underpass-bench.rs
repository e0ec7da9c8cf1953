//! The mesh beside plain TCP on two simulated nodes. `cargo xtask bench` builds for it and runs it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use underpass_tests::{bench, root, sweep};

/// Measures the mesh against plain TCP in one run, interleaved, and prints a markdown table (needs root).
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of one measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only these measurements, with commas between them.
    #[arg(long, value_delimiter = ',', value_parser = bench::test_names())]
    tests: Vec<String>,
    /// The processor of the measurements that keep to one.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// Idle connections of the memory row; 0 leaves it out.
    #[arg(long, default_value_t = 1000)]
    idle: usize,
    /// Without the agent's access log.
    #[arg(long)]
    no_access_log: bool,
    /// Another agent beside ours, by its driver script.
    #[arg(long, value_name = "SCRIPT", requires = "agent_binary")]
    agent_driver: Option<PathBuf>,
    /// What the driver's `prepare` is given.
    #[arg(long, value_name = "FILE", requires = "agent_driver")]
    agent_binary: Option<PathBuf>,
    /// Only the other agent.
    #[arg(long, requires = "agent_driver")]
    without_ours: bool,
    /// Do not look at the wire first: for a driver that runs no mesh at all, as a control.
    #[arg(long)]
    unverified: bool,
    /// Write the table here too.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Own>,
}

#[derive(Subcommand)]
enum Own {
    /// What decisions of policy cost by the number of policies and rules, instead; and compiling them, and keeping them.
    Decisions,
    /// What one row of the decisions takes up, in bytes.
    #[command(hide = true)]
    Footprint { row: usize },
    /// For drivers: note the time, then become the command.
    #[command(hide = true)]
    Stamp {
        file: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    match &arguments.command {
        Some(Own::Stamp { file, command }) => return Err(bench::stamp(file, command)),
        Some(Own::Decisions) => {
            debug_build();
            println!("{}", bench::decisions::run()?);
            return Ok(ExitCode::SUCCESS);
        }
        Some(Own::Footprint { row }) => {
            println!("{}", bench::decisions::footprint(*row)?);
            return Ok(ExitCode::SUCCESS);
        }
        None => {}
    }
    if let Some(why) = root::missing() {
        eprintln!("the benchmark {why}");
        return Ok(ExitCode::from(2));
    }
    ensure!(arguments.seconds > 0.0, "--seconds must be positive");
    debug_build();
    sweep::on_interrupt();
    let plan = bench::Plan {
        rounds: arguments.rounds,
        run: Duration::from_secs_f64(arguments.seconds),
        warm: Duration::from_millis(300),
        tests: arguments.tests,
        cpu: arguments.cpu,
        idle: arguments.idle,
        access_log: !arguments.no_access_log,
        verify: !arguments.unverified,
        ours: !arguments.without_ours,
        other: arguments.agent_driver.zip(arguments.agent_binary),
    };
    let table = bench::run(&plan)?;
    println!("{table}");
    if let Some(path) = arguments.output {
        std::fs::write(path, table)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn debug_build() {
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build: its figures say nothing (cargo xtask bench builds for release)");
    }
}
