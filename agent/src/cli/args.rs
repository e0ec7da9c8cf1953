//! What may be typed.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::analyze::AnalyzeArgs;
use super::ca::CaCommand;
use super::migrate::MigrateCommand;
use super::why::WhyArgs;
use crate::admin::DEFAULT_SOCKET;
use crate::config::{Config, Environment};

pub(super) const EXIT_FAILED: u8 = 1;
// 2 is clap's, for a wrong command line.
pub(super) const EXIT_NO_AGENT: u8 = 3;
pub(super) const EXIT_NO: u8 = 4;
/// Of `why` and `migrate`, which have no other 3.
pub(super) const EXIT_DENIED: u8 = 3;

const EXIT_CODES: &str = "\
Exit codes:
  0  done; what was asked about is well
  1  it failed; standard error names the failing call and the next step
  2  the command line is wrong
  3  no agent answers at the socket
  4  the answer is no: the agent is not ready or found something amiss (status),
     this machine lacks what the agent needs (check), the file is refused
     (config check, mesh check, certs verify), the policies are not in order (analyze)";

pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Mutual TLS, identity and policy for every pod of a node, captured with eBPF
#[derive(Debug, Parser)]
#[command(name = "underpass", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(super) struct Underpass {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the node agent until SIGTERM
    Agent(ConfigFile),
    /// Run the controller, which issues certificates to agents, until SIGTERM
    Controller(ControllerFile),
    /// Say what this machine lacks, and what each missing thing costs
    Check(CheckArgs),
    /// Remove everything that an agent left in the kernel and in pods' namespaces; refused while it runs
    Uninstall(UninstallArgs),
    /// Show whether the agent is ready, and what is amiss
    Status(Query),
    /// List the pods of this node that are to be meshed
    Pods(Query),
    /// List the workloads of the whole mesh
    Workloads(Query),
    /// List the services of the whole mesh
    Services(Query),
    /// List the policies
    Policies(Query),
    /// List the certificates of this node's service accounts, or judge one in a file
    Certs(CertsArgs),
    /// Say what policy makes of a connection or request between two ends, and why
    Why(Box<WhyArgs>),
    /// Say what is amiss in the policies of a mesh, and what they leave open
    Analyze(Box<AnalyzeArgs>),
    /// Move workloads into the mesh: who would be refused
    Migrate {
        #[command(subcommand)]
        command: MigrateCommand,
    },
    /// List the connections that the agent carries now
    Connections(Query),
    /// Show or change what the running agent logs
    Log(LogArgs),
    /// Make an authority's roots and issuing certificates, and replace them
    Ca {
        #[command(subcommand)]
        command: CaCommand,
    },
    /// Work with configuration files
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Work with mesh files
    Mesh {
        #[command(subcommand)]
        command: MeshCommand,
    },
    /// Print the version
    Version,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print a configuration with every field, its default and its meaning
    Example {
        /// The controller's instead of the agent's
        #[arg(long)]
        controller: bool,
    },
    /// Say whether an agent would take this configuration, by line and field if not
    Check {
        /// It is a controller's and no agent's
        #[arg(long)]
        controller: bool,
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum MeshCommand {
    /// Say whether an agent would take this mesh file, by line and field if not
    Check { file: PathBuf },
}

#[derive(Debug, Args)]
pub(super) struct ConfigFile {
    /// The agent's configuration
    #[arg(long, value_name = "FILE")]
    pub(super) config: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct ControllerFile {
    /// The controller's configuration
    #[arg(long, value_name = "FILE")]
    pub(super) config: PathBuf,
}

/// A question to a running agent.
#[derive(Debug, Args)]
pub(super) struct Query {
    #[command(flatten)]
    pub(super) place: Place,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub(super) output: Output,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct CertsArgs {
    #[command(subcommand)]
    pub(super) command: Option<CertsCommand>,
    #[command(flatten)]
    pub(super) query: Query,
    /// Only this pod's
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "identity")]
    pub(super) pod: Option<String>,
    /// Only this SPIFFE id's
    #[arg(long, value_name = "ID")]
    pub(super) identity: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum CertsCommand {
    /// Say of each rule of X.509-SVIDs whether a certificate keeps it, as a peer would judge
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// PEM with a chain, leaf first, or one certificate in DER
    #[arg(required = true)]
    pub(super) files: Vec<PathBuf>,
    /// PEM file with the roots that it must chain to; without it, the path is not checked
    #[arg(long, value_name = "FILE", requires = "trust_domain")]
    pub(super) bundle: Option<PathBuf>,
    /// Whose roots these are
    #[arg(long, value_name = "NAME", requires = "bundle")]
    pub(super) trust_domain: Option<String>,
    /// The time to judge by, as 2026-08-22T09:00:00Z [default: now]
    #[arg(long, value_name = "TIME")]
    pub(super) at: Option<String>,
    /// A revocation list in PEM or DER
    #[arg(long, value_name = "FILE", requires = "bundle")]
    pub(super) crl: Vec<PathBuf>,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub(super) output: Output,
}

/// Which agent is asked.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// The agent's admin socket [default: /run/underpass/admin.sock]
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    socket: Option<PathBuf>,
    /// The agent's configuration, to find its socket by
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct LogArgs {
    /// The new filter, as RUST_LOG has it: info, or info,underpass::proxy=debug
    pub(super) filter: Option<String>,
    #[command(flatten)]
    pub(super) place: Place,
}

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The configuration that an agent would run with [default: all defaults]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub(super) output: Output,
}

#[derive(Debug, Args)]
pub(super) struct UninstallArgs {
    /// The configuration of the agent to remove
    #[arg(long, value_name = "FILE", conflicts_with_all = ["pin_root", "instance"])]
    pub(super) config: Option<PathBuf>,
    /// Where its maps and links are pinned [default: /sys/fs/bpf/underpass]
    #[arg(long, value_name = "PATH")]
    pub(super) pin_root: Option<PathBuf>,
    /// Which agent of this kernel [default: default]
    #[arg(long, value_name = "NAME")]
    pub(super) instance: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
    Yaml,
}

impl Place {
    pub(super) fn socket(&self) -> anyhow::Result<PathBuf> {
        Ok(match (&self.socket, &self.config) {
            (Some(socket), _) => socket.clone(),
            (None, Some(config)) => read_config(config)?.admin.socket,
            (None, None) => DEFAULT_SOCKET.into(),
        })
    }
}

pub(super) fn read_config(path: &Path) -> anyhow::Result<Config> {
    Ok(Config::read(path, &environment())?)
}

/// As [`read_config`]; all defaults when there is no file.
pub(super) fn read_config_or_default(path: Option<&Path>) -> anyhow::Result<Config> {
    match path {
        Some(path) => read_config(path),
        None => Config::parse("{}", &environment()).context("the default configuration is refused"),
    }
}

fn environment() -> Environment {
    let of = |name: &str| std::env::var(name).ok();
    Environment {
        node_name: of("NODE_NAME"),
        pod: of("POD_NAME").map(|name| format!("{}/{name}", of("POD_NAMESPACE").unwrap_or_default())),
        service_account: of("SERVICE_ACCOUNT"),
    }
}
