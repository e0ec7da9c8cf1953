//! Two simulated nodes with real agents, and a story whose every claim is checked.
//! `cargo xtask demo` builds what it needs and runs it.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use underpass_tests::{demo, root, sweep};

/// Shows on two simulated nodes (network namespaces; needs root) what the mesh does, and checks it.
#[derive(Parser)]
struct Arguments {
    /// Leave everything standing afterwards and print commands to try.
    #[arg(long)]
    keep: bool,
    /// Remove what --keep left, and nothing else.
    #[arg(long, conflicts_with = "keep")]
    clean: bool,
    #[arg(long, hide = true, value_name = "POD")]
    serve: Option<String>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(why) = root::missing() {
        eprintln!("the demo {why}");
        return Ok(ExitCode::from(2));
    }
    if arguments.clean {
        demo::clean();
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(pod) = arguments.serve {
        demo::serve_forever(&pod)?;
    }
    sweep::on_interrupt();
    Ok(if demo::run(arguments.keep)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
