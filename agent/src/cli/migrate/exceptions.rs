//! `underpass migrate exceptions`: who may stay in plaintext, to what, why, and until when.

use std::path::PathBuf;

use clap::Args;

use crate::cli::args::{Output, Place};
use crate::cli::why::{self, MeshArgs};
use crate::cli::{Answer, client, output, table};
use crate::discovery::ask::Offline;
use crate::discovery::exceptions::Listed;

const EXAMPLES: &str = "\
Examples:
  underpass migrate exceptions                what this node's agent knows of the mesh
  underpass migrate exceptions -f k8s/ -o json

The state is: in-force, lapses-soon (within 14 days), lapsed, or defective: not understood, it admits nobody.";

/// Where they are read from.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ExceptionsArgs {
    /// Kubernetes YAML or JSON with PlaintextExceptions, a file or a folder of them; may be repeated. Without it the
    /// running agent is asked
    #[arg(short = 'f', long = "file", value_name = "FILE|DIR")]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub place: Place,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

pub(super) fn run(args: &ExceptionsArgs) -> anyhow::Result<Answer> {
    let all = if args.files.is_empty() { ask_agent(args)? } else { read_files(args)? };
    output::print(&output::render(&all, args.output, || told(&all))?)
}

fn read_files(args: &ExceptionsArgs) -> anyhow::Result<Vec<Listed>> {
    let settings = args.mesh.settings();
    Ok(Offline::new(why::read(&args.files, &settings.trust_domain)?, settings).listed_exceptions())
}

fn ask_agent(args: &ExceptionsArgs) -> anyhow::Result<Vec<Listed>> {
    // Wrapped, so that it ends with the same code as the other commands of a migration.
    let answer =
        client::ask(&args.place.socket()?, "GET", "/exceptions", "").map_err(|e| anyhow::anyhow!("{e}"))?;
    client::understood(answer)
}

fn told(all: &[Listed]) -> String {
    let row = |one: &Listed| {
        let ports: Vec<String> = one.ports.iter().map(ToString::to_string).collect();
        let to = if one.selector.is_empty() && one.defects.is_empty() { "all" } else { &one.selector };
        let why = if one.defects.is_empty() { one.reason.clone() } else { one.defects.join("; ") };
        vec![
            one.namespace.clone(),
            one.name.clone(),
            one.state.to_string(),
            one.until.clone(),
            one.from.join(" or "),
            to.to_owned(),
            ports.join(","),
            why,
        ]
    };
    const HEADERS: [&str; 8] = ["NAMESPACE", "NAME", "STATE", "UNTIL", "FROM", "TO", "PORTS", "REASON"];
    table::table(&HEADERS, all.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Command, Underpass};
    use crate::cli::migrate::MigrateCommand;
    use crate::policy::own::Standing;

    const ALL: &str = "
apiVersion: underpass.io/v1alpha1
kind: PlaintextException
metadata: {name: batch, namespace: shop}
spec:
  selector: {matchLabels: {app: db}}
  from: [{namespaces: [batch], ipBlocks: [10.9.0.0/16]}, {serviceAccounts: [jobs]}]
  ports: [5432, 5433]
  reason: \"old\\njobs\"
  until: 9999-01-31T00:00:00Z
---
apiVersion: underpass.io/v1alpha1
kind: PlaintextException
metadata: {name: gone, namespace: shop}
spec: {from: [{namespaces: [batch]}], ports: [80], reason: r, until: \"2020-01-31T00:00:00+01:00\"}
---
apiVersion: underpass.io/v1alpha1
kind: PlaintextException
metadata: {name: broken, namespace: shop}
spec: {from: [{namespaces: [batch]}], ports: [80], until: \"2020-01-31T00:00:00Z\"}
";

    #[test]
    fn files_are_listed_with_each_exceptions_state() {
        let id = crate::model::ConnectionId::next();
        let file = std::env::temp_dir().join(format!("up{}-exceptions{id}.yaml", std::process::id()));
        std::fs::write(&file, ALL).unwrap();
        let line = ["underpass", "migrate", "exceptions", "-f", file.to_str().unwrap()];
        let Command::Migrate { command: MigrateCommand::Exceptions(args) } =
            Underpass::try_parse_from(line).unwrap().command
        else {
            panic!()
        };
        let all = read_files(&args);
        std::fs::remove_file(&file).unwrap();
        let all = all.unwrap();
        let states: Vec<_> = all.iter().map(|one| (&*one.name, one.state)).collect();
        let expected =
            [("batch", Standing::InForce), ("broken", Standing::Defective), ("gone", Standing::Lapsed)];
        assert_eq!(states, expected);
        let told = told(&all);
        let rows: Vec<Vec<&str>> = told
            .lines()
            .map(|line| line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        let from = "namespaces [batch], ipBlocks [10.9.0.0/16] or serviceAccounts [shop/jobs]";
        let (ends, lapsed) = ("9999-01-31T00:00:00Z", "2020-01-31T00:00:00+01:00");
        let missing = "spec.reason: it is missing; it admits nobody";
        assert_eq!(
            rows[1..],
            [
                ["shop", "batch", "in force", ends, from, "app=db", "5432,5433", "old\\u{a}jobs"],
                ["shop", "broken", "defective", "-", "-", "-", "-", missing],
                ["shop", "gone", "lapsed", lapsed, "namespaces [batch]", "all", "80", "r"],
            ]
        );
        let json = serde_json::to_value(&all).unwrap();
        assert_eq!((&json[1]["state"], &json[0]["state"]), (&"defective".into(), &"in-force".into()));
        assert_eq!(serde_json::from_value::<Vec<Listed>>(json).unwrap(), all);
    }
}
