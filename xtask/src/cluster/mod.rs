//! `cargo xtask cluster`: a real Kubernetes on this machine, to try the agent on.
//!
//! This builds what it is made of; starting and stopping is `underpass-cluster` (tests/src/kube), so that
//! stories use the same code.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Result, anyhow};
use clap::{Args, Subcommand};

use crate::build::{Profile, binaries};
use crate::{checkout, process, setup};

mod go;
mod pins;

/// A real Kubernetes of several nodes on this machine, each node in namespaces of its own.
///
/// Needs root and Go. Its programs are built from published Go modules of pinned versions
/// (tests/cluster); there is one cluster at most on a machine.
#[derive(Args)]
pub(crate) struct Cluster {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build the cluster's programs, which `up` does too: 20 minutes on two cores the first time.
    Build,
    /// Start a control plane and nodes, and wait until all are ready.
    Up {
        /// How many nodes, besides the control plane, which is none.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
    },
    /// Remove the cluster and everything that it made.
    Down {
        /// Leave its logs, and say where they are.
        #[arg(long)]
        keep_logs: bool,
    },
    /// Show nodes, and the processes with their ids. Fails unless all is well.
    Status,
    /// Put a pod on each node, and see that they reach each other by the names of services.
    Check,
    /// Run kubectl as the cluster's administrator.
    Kubectl {
        /// Arguments for kubectl.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

impl Cluster {
    pub(crate) fn run(self) -> Result<()> {
        match self.verb {
            Verb::Build => build(),
            Verb::Up { nodes } => {
                setup::cluster_tools()?;
                build()?;
                binaries(Profile::Dev, &[PROGRAM])?;
                process::run(cluster().args(["up", "--nodes", &nodes.to_string()]))
            }
            Verb::Down { keep_logs: true } => become_cluster(&["down", "--keep-logs"], &[]),
            Verb::Down { keep_logs: false } => become_cluster(&["down"], &[]),
            Verb::Status => become_cluster(&["status"], &[]),
            Verb::Check => become_cluster(&["check"], &[]),
            Verb::Kubectl { arguments } => become_cluster(&["kubectl", "--"], &arguments),
        }
    }
}

const PROGRAM: &str = "underpass-cluster";

/// What is missing, or was built of other pins.
fn build() -> Result<()> {
    let stale = pins::stale()?;
    if stale.is_empty() {
        return Ok(());
    }
    let go = go::find()?;
    for module in stale {
        go::build(&go, module)?;
        module.note()?;
    }
    Ok(())
}

/// Ends as that command ends: its exit status is the caller's.
fn become_cluster(verb: &[&str], arguments: &[String]) -> Result<()> {
    if !Profile::Dev.binary(PROGRAM).exists() {
        binaries(Profile::Dev, &[PROGRAM])?;
    }
    let mut command = cluster();
    command.args(verb).args(arguments);
    let refused = command.exec();
    Err(anyhow!(refused).context(format!("start `{}`", process::line(&command))))
}

fn cluster() -> Command {
    let mut command = Command::new(Profile::Dev.binary(PROGRAM));
    command.env("UNDERPASS_CLUSTER_BIN", checkout::target(pins::BIN));
    command
}
