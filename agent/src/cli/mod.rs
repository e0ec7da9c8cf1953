//! The operator's command line: it starts the agent, asks a running one, and judges a machine or a file
//! without one.

mod agent;
mod analyze;
mod args;
mod ca;
mod certs;
mod check;
mod client;
mod controller;
mod files;
mod migrate;
mod output;
mod show;
mod status;
mod table;
mod uninstall;
mod why;

use std::process::ExitCode;

use clap::Parser;

use args::{Command, ConfigCommand, MeshCommand, Underpass};
use client::ClientError;

/// What a command came to, when it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Yes,
    /// It was asked whether something is well, and it is not. The output says why.
    No,
    /// Policy denies what was asked about.
    Denied,
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    // Prints usage and ends with 2 when the command line is wrong.
    let command = Underpass::parse().command;
    match run(command) {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(args::EXIT_NO),
        Ok(Answer::Denied) => ExitCode::from(args::EXIT_DENIED),
        Err(e) => {
            eprintln!("error: {}", output::words(&e));
            ExitCode::from(exit_code(&e))
        }
    }
}

fn run(command: Command) -> anyhow::Result<Answer> {
    match command {
        Command::Agent(args) => agent::run(&args.config),
        Command::Controller(args) => controller::run(&args.config),
        Command::Check(args) => check::run(&args),
        Command::Uninstall(args) => uninstall::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Pods(args) => show::run(&show::PODS, &args),
        Command::Workloads(args) => show::run(&show::WORKLOADS, &args),
        Command::Services(args) => show::run(&show::SERVICES, &args),
        Command::Policies(args) => show::run(&show::POLICIES, &args),
        Command::Certs(args) => certs::run(&args),
        Command::Connections(args) => show::run(&show::CONNECTIONS, &args),
        Command::Log(args) => status::log(&args),
        Command::Ca { command } => ca::run(&command),
        Command::Config { command: ConfigCommand::Example { controller } } => files::example(controller),
        Command::Config { command: ConfigCommand::Check { controller, file } } => {
            files::check_config(&file, controller)
        }
        Command::Mesh { command: MeshCommand::Check { file } } => files::check_mesh(&file),
        Command::Why(args) => why::run(&args),
        Command::Analyze(args) => analyze::run(&args),
        Command::Migrate { command } => migrate::run(&command),
        Command::Version => output::print(&format!("underpass {}\n", args::VERSION)),
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Absent { .. }) => args::EXIT_NO_AGENT,
        _ => args::EXIT_FAILED,
    }
}

#[cfg(test)]
mod tests;
