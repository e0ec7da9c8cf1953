//! `underpass migrate`: moving workloads into the mesh without refusing what works today.

mod exceptions;
mod gather;
mod judge;
mod report;
mod rollback;
mod status;
mod suggest;
#[cfg(test)]
mod tests;

use clap::Subcommand;

use super::Answer;

/// Steps of a migration, each a question or a change that says first what it opens.
#[derive(Debug, Subcommand)]
pub(super) enum MigrateCommand {
    /// Say which of the observed connections STRICT, or a given set of policies, would refuse
    Report(Box<report::ReportArgs>),
    /// Say how far policy is enforced, workload by workload, and by which Enforcement
    Status(Box<status::StatusArgs>),
    /// Take a phase back: say what that opens, ask, and print the Enforcement that does it
    Rollback(Box<rollback::RollbackArgs>),
    /// Print AuthorizationPolicies for a namespace that admit what was observed in mutual TLS, and nobody else
    Suggest(suggest::SuggestArgs),
    /// List who may stay in plaintext, to what, why, and until when
    Exceptions(Box<exceptions::ExceptionsArgs>),
}

pub(super) fn run(command: &MigrateCommand) -> anyhow::Result<Answer> {
    match command {
        MigrateCommand::Report(args) => report::run(args),
        MigrateCommand::Status(args) => status::run(args),
        MigrateCommand::Rollback(args) => rollback::run(args),
        MigrateCommand::Suggest(args) => suggest::run(args),
        MigrateCommand::Exceptions(args) => exceptions::run(args),
    }
}
