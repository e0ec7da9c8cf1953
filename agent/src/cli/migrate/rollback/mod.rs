//! `underpass migrate rollback`: a phase is taken back, and it is said first what that opens.

mod edit;
mod observed;
mod plan;
mod target;
#[cfg(test)]
mod tests;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;

use crate::cli::args::Place;
use crate::cli::output::printable;
use crate::cli::why::{self, MeshArgs};
use crate::cli::{Answer, output};
use crate::policy::Object;
use crate::policy::own::Phase;
use plan::Plan;
use target::Target;

const EXAMPLES: &str = "\
Examples:
  underpass migrate rollback shop -f k8s/ > phase.yaml       one phase back for the namespace shop
  underpass migrate rollback shop/app=web -f k8s/ --to Observe --yes | kubectl apply -f -
  underpass migrate rollback mesh -f k8s/mesh.yaml --in-place

A namespace that is called mesh is written mesh/.

Exit codes:
  0  the resource was printed, or written
  4  whoever was asked did not say yes
  1  it failed, or nobody can be asked; 2: the command line is wrong";

/// Whose phase, and where it is written.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RollbackArgs {
    /// mesh, a namespace, or NAMESPACE/KEY=VALUE[,KEY=VALUE] for the workloads that have these labels
    #[arg(value_name = "TARGET")]
    target: Target,
    /// Kubernetes YAML or JSON with Pods (or Deployments and the like), policies and Enforcements, a file or a
    /// folder of them; may be repeated
    #[arg(short = 'f', long = "file", value_name = "FILE|DIR", required = true)]
    files: Vec<PathBuf>,
    /// Observe or Permissive [default: the phase before]
    #[arg(long, value_name = "PHASE", value_parser = phase)]
    to: Option<Phase>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Write the resource to the file that has it, or add it to the only one, instead of printing it
    #[arg(long)]
    in_place: bool,
    #[command(flatten)]
    mesh: MeshArgs,
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(args: &RollbackArgs) -> anyhow::Result<Answer> {
    let settings = args.mesh.settings();
    let manifest = why::read_with_templates(&args.files, &settings.trust_domain)?;
    let plan = Plan::new(&manifest, &settings, &args.target, args.to)?;
    eprint!("{}", told(&args.target, &plan));
    eprint!("{}", observed::told(&args.place.socket()?, &plan));
    if !args.yes && !confirmed()? {
        eprintln!("nothing was changed");
        return Ok(Answer::No);
    }
    let yaml = output::render(&plan.document, crate::cli::args::Output::Yaml, String::new)?;
    if !args.in_place {
        return output::print(&yaml);
    }
    let object = Object::read(plan.document.clone())?;
    let file = edit::write(&args.files, &object, &yaml, plan.replaces)?;
    eprintln!("written to {}; apply it", file.display());
    Ok(Answer::Yes)
}

fn told(target: &Target, plan: &Plan) -> String {
    let mut out = format!("{target}: from {} back to {}\n", plan.before, plan.to);
    for line in &plan.opens {
        out += &format!("  {}\n", printable(line));
    }
    if plan.opens.is_empty() {
        out += "  it opens nothing: no policy of these files refuses anything there\n";
    }
    out
}

fn confirmed() -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!(
            "standard input is no terminal, so nobody can be asked whether that may be opened; add --yes if it may"
        );
    }
    eprint!("Type yes to go on: ");
    std::io::stderr().flush().context("writing to standard error failed")?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("reading the answer failed")?;
    Ok(line.trim() == "yes")
}

fn phase(text: &str) -> Result<Phase, String> {
    let known = Phase::ALL.into_iter().find(|phase| phase.as_str().eq_ignore_ascii_case(text));
    known.ok_or_else(|| "it is no phase: Observe, Permissive or Enforce".to_string())
}
