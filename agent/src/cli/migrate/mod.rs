//! `underpass migrate`: moving workloads into the mesh without refusing what works today.

mod report;

use clap::Subcommand;

use super::Answer;

/// Steps of a migration, each a question or a change that says first what it opens.
#[derive(Debug, Subcommand)]
pub(super) enum MigrateCommand {
    /// Say which connections STRICT would refuse
    Report(Box<report::ReportArgs>),
}

pub(super) fn run(command: &MigrateCommand) -> anyhow::Result<Answer> {
    match command {
        MigrateCommand::Report(args) => report::run(args),
    }
}
