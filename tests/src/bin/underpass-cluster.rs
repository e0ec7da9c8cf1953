//! A real Kubernetes on this machine. `cargo xtask cluster` builds what it needs and runs it.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use underpass_tests::{kube, root, sweep};

/// Starts, shows, tries and removes a real Kubernetes whose nodes are namespaces of this machine (needs root).
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start a control plane and nodes, and wait until all are ready.
    Up {
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
    },
    /// Remove the cluster and everything that it made.
    Down {
        #[arg(long)]
        keep_logs: bool,
    },
    /// Show nodes and processes. Ends with 1 unless all is well.
    Status,
    /// Put a pod on each node, and see that they reach each other by the names of services.
    Check,
    /// Run kubectl as the cluster's administrator.
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    #[command(name = kube::init::VERB, hide = true)]
    NodeInit { node: String },
}

fn main() -> ExitCode {
    run(Arguments::parse()).unwrap_or_else(|error| {
        // Without the backtrace that anyhow's own way of ending adds: this is for users.
        eprintln!("cluster: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    if let Some(why) = root::missing() {
        eprintln!("the cluster {why}");
        return Ok(ExitCode::from(2));
    }
    match arguments.verb {
        Verb::Up { nodes } => {
            sweep::on_interrupt();
            kube::up(nodes)?;
            println!(
                "cluster: up. To try: `cargo xtask cluster check`, `cargo xtask cluster kubectl get pods -A`"
            );
        }
        Verb::Down { keep_logs } => {
            if let Some(logs) = kube::down(keep_logs)? {
                println!("cluster: the logs are in {}", logs.display());
            }
        }
        Verb::Status => return Ok(if kube::status::show()? { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        Verb::Check => kube::check::run()?,
        Verb::Kubectl { arguments } => return Err(kube::Kubectl::standing()?.exec(&arguments)),
        Verb::NodeInit { node } => kube::init::run(&node)?,
    }
    Ok(ExitCode::SUCCESS)
}
