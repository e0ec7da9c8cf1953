//! What may be typed after `underpass analyze`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::args::{Output, Place};
use crate::cli::why::MeshArgs;

const EXAMPLES: &str = "\
Examples:
  underpass analyze -f k8s/                  before it is applied
  underpass analyze -f k8s/ -f rbac.yaml -o json
  underpass analyze --live                   what the agent of this node knows of the mesh

Exit codes:
  0  nothing of severity error or warning was found
  4  an error or a warning was found
  1  it could not be looked at; 2: the command line is wrong; 3: no agent answers at the socket (--live)

docs/analyze.md lists the codes.";

/// Policies, and the pods that they are for.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct AnalyzeArgs {
    /// Kubernetes YAML or JSON with Namespaces, Pods (or Deployments and the like) and policies, a file or a folder
    /// of them; may be repeated
    #[arg(
        short = 'f',
        long = "file",
        value_name = "FILE|DIR",
        required_unless_present = "live",
        conflicts_with = "live"
    )]
    pub files: Vec<PathBuf>,
    /// Ask the running agent about the mesh as it is now
    #[arg(long, conflicts_with = "MeshArgs")]
    pub live: bool,
    #[command(flatten)]
    pub place: Place,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    #[command(flatten)]
    pub mesh: MeshArgs,
}
