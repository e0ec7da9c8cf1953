//! `underpass migrate report`: whom STRICT would refuse.

use clap::Args;
use serde_json::Value;

use crate::cli::args::{Output, Place};
use crate::cli::show::text;
use crate::cli::{Answer, client, output, table};

const EXAMPLES: &str = "\
Examples:
  underpass migrate report              of the connections that this node's agent carries now
  underpass migrate report -o json

Exit codes:
  0  nothing would be refused
  3  something would be
  1  it could not be looked at; 2: the command line is wrong";

/// Which agent is asked.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReportArgs {
    #[command(flatten)]
    pub place: Place,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

pub(super) fn run(args: &ReportArgs) -> anyhow::Result<Answer> {
    // Wrapped, so that an agent that is not there does not end in the exit code of a refusal.
    let all =
        client::ask(&args.place.socket()?, "GET", "/connections", "").map_err(|e| anyhow::anyhow!("{e}"))?;
    let refused: Vec<&Value> = all.as_array().into_iter().flatten().filter(|one| is_plaintext(one)).collect();
    output::print(&output::render(&refused, args.output, || told(&refused))?)?;
    Ok(if refused.is_empty() { Answer::Yes } else { Answer::Denied })
}

fn is_plaintext(connection: &Value) -> bool {
    connection["direction"] == "inbound" && connection["mtls"] != true
}

fn told(refused: &[&Value]) -> String {
    let end = |one: &Value, end: &str| {
        let name =
            format!("{}/{}", text(one, &format!("/{end}/namespace")), text(one, &format!("/{end}/workload")));
        if name == "/" { text(one, &format!("/{end}/addr")) } else { name }
    };
    let row = |one: &&Value| vec![end(one, "source"), end(one, "destination"), "plaintext".into()];
    table::table(&["FROM", "TO", "REASON"], refused.iter().map(row).collect::<Vec<_>>())
}
