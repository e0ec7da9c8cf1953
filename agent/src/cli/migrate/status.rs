//! `underpass migrate status`: how far policy is enforced, workload by workload.

use std::path::PathBuf;

use clap::Args;

use crate::cli::args::{Output, Place};
use crate::cli::why::{self, MeshArgs};
use crate::cli::{Answer, client, output, table};
use crate::discovery::ask::Offline;
use crate::discovery::phases::WorkloadPhase;

const EXAMPLES: &str = "\
Examples:
  underpass migrate status             what the agent of this node knows of the mesh
  underpass migrate status -f k8s/     what the files say, before they are applied

Exit codes:
  0  everything that policy says is enforced everywhere
  4  somewhere it is not
  1  it could not be looked at; 2: the command line is wrong; 3: no agent answers at the socket";

/// Where the pods and their Enforcements are.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct StatusArgs {
    /// Kubernetes YAML or JSON with Pods (or Deployments and the like) and Enforcements, a file or a folder of
    /// them; may be repeated. Without it the running agent is asked
    #[arg(short = 'f', long = "file", value_name = "FILE|DIR")]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub place: Place,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

pub(super) fn run(args: &StatusArgs) -> anyhow::Result<Answer> {
    let phases = if args.files.is_empty() { ask_agent(args)? } else { read_files(args)? };
    output::print(&output::render(&phases, args.output, || told(&phases))?)?;
    let enforced = phases.iter().all(|one| one.phase == crate::policy::own::Phase::Enforce);
    Ok(if enforced { Answer::Yes } else { Answer::No })
}

fn ask_agent(args: &StatusArgs) -> anyhow::Result<Vec<WorkloadPhase>> {
    let answer = client::ask(&args.place.socket()?, "GET", "/phases", "")?;
    client::understood(answer)
}

fn read_files(args: &StatusArgs) -> anyhow::Result<Vec<WorkloadPhase>> {
    let settings = args.mesh.settings();
    let manifest = why::read_with_templates(&args.files, &settings.trust_domain)?;
    Ok(Offline::new(manifest, settings).phases())
}

fn told(phases: &[WorkloadPhase]) -> String {
    let row = |one: &WorkloadPhase| {
        vec![
            one.namespace.to_string(),
            one.workload.to_string(),
            one.pods.to_string(),
            one.phase.to_string(),
            one.level.clone().unwrap_or_default(),
            one.resource.clone().unwrap_or_default(),
        ]
    };
    table::table(
        &["NAMESPACE", "WORKLOAD", "PODS", "PHASE", "LEVEL", "BY"],
        phases.iter().map(row).collect::<Vec<_>>(),
    )
}
