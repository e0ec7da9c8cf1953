//! `underpass ca`: an authority's files, made and replaced.

mod rotate;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::args::Output;
use super::{Answer, output};
use crate::ca::RootView;
use crate::ca::hierarchy::{self, INTERMEDIATE_LIFETIME, ROOT_KEY, ROOT_LIFETIME};
use crate::ca::kubernetes::SecretName;
use crate::ca::rotation::Secret;
use crate::lifecycle::dumps;
use crate::model::{TrustDomain, units};

#[derive(Debug, Subcommand)]
pub(super) enum CaCommand {
    /// Make a root: alone to be kept offline (--root), or a whole authority for the impatient
    #[command(after_help = INIT_HELP)]
    Init(Init),
    /// Make an issuing certificate under a root, in a folder that a controller signs from
    #[command(after_help = INTERMEDIATE_HELP)]
    Intermediate(IntermediateArgs),
    /// Make the papers by which a controller knows a node outside Kubernetes
    #[command(after_help = NODE_HELP)]
    Node(Node),
    /// Replace the root that a mesh rests on, in five steps and without a connection failing
    Rotate(rotate::RotateArgs),
}

const INIT_HELP: &str = "\
With --root, DIR gets root-key.pem (mode 0600) and root-cert.pem. Run it on a machine that is offline, or on
removable media; the key is needed again only for `underpass ca intermediate` and `underpass ca rotate`.

Without --root, FOLDER gets a root and an issuing certificate together, ready for `underpass controller`.
Whoever reads that folder can be anybody in the mesh until the root is replaced.

Nothing that is there is overwritten.";

const INTERMEDIATE_HELP: &str = "\
FOLDER gets ca-cert.pem, ca-key.pem, cert-chain.pem and root-cert.pem, as in Istio's cacerts secret. A running
controller takes them in without a restart. Files that were there are kept as *.old; root-cert.pem, if it is
there, must hold the root already, and stays as it is.

With --secret the first three are replaced in the authority's secret, by one change that is made only if nobody
else has changed it meanwhile. Its other keys stay, the number that rotations count among them: a secret that
is made anew lacks it, and agents refuse what they are told then. It needs `get` and `patch` on the secret.";

const NODE_HELP: &str = "\
DIR gets node.key (mode 0600) and node.pem, for the agent's configuration. The printed pin goes into the
controller's configuration, under the node's name.";

#[derive(Debug, Args)]
pub(super) struct Init {
    /// Make the root alone, to be kept offline
    #[arg(long)]
    root: bool,
    /// Where to: a new folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The mesh's trust domain
    #[arg(long, value_name = "TD", default_value = "cluster.local")]
    trust_domain: TrustDomain,
    /// How long the root is valid, as 10y, 3650d or 24h [default: 10y]
    #[arg(long, value_name = "TIME", value_parser = time)]
    lifetime: Option<Duration>,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Args)]
pub(super) struct IntermediateArgs {
    /// The folder of the root, with its key
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// The folder that the controller signs from
    #[arg(long, value_name = "FOLDER", required_unless_present = "secret", conflicts_with = "secret")]
    out: Option<PathBuf>,
    /// The secret that the controller signs from, instead of a folder
    #[arg(long, value_name = "NAMESPACE/NAME")]
    secret: Option<SecretName>,
    /// The way to the secret's API server, as of `underpass ca rotate`
    #[arg(long, value_name = "FILE", requires = "secret", conflicts_with = "out")]
    kubeconfig: Option<PathBuf>,
    /// The mesh's trust domain; with --secret what its certificate says, which this may only repeat
    #[arg(long, value_name = "TD", required_unless_present = "secret")]
    trust_domain: Option<TrustDomain>,
    /// How long it is valid, as 1y, 90d or 24h; its root's end comes first [default: 1y]
    #[arg(long, value_name = "TIME", value_parser = time)]
    lifetime: Option<Duration>,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Args)]
pub(super) struct Node {
    /// The node's name
    name: String,
    /// Where to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

pub(super) fn run(command: &CaCommand) -> anyhow::Result<Answer> {
    dumps::forbid();
    match command {
        CaCommand::Init(args) if args.root => init_root(args),
        CaCommand::Init(args) => init_all(args),
        CaCommand::Intermediate(args) => intermediate(args),
        CaCommand::Node(args) => node(args),
        CaCommand::Rotate(args) => rotate::run(args),
    }
}

fn init_root(args: &Init) -> anyhow::Result<Answer> {
    let lifetime = args.lifetime.unwrap_or(ROOT_LIFETIME);
    let root = hierarchy::make_root(&args.out, Some(&args.trust_domain), lifetime, SystemTime::now())?;
    let value = json!({ "folder": args.out, "root": shown(&root) });
    let text = format!(
        "made the root {}\n  sha256  {}\n  until   {}\n  key     {} (keep it offline, and a copy of it)\n\
         next: underpass ca intermediate --root {} --out FOLDER --trust-domain {}\n",
        root.subject,
        root.sha256,
        date(root.not_after),
        args.out.join(ROOT_KEY).display(),
        args.out.display(),
        args.trust_domain,
    );
    output::print(&output::render(&value, args.output, || text)?)
}

fn init_all(args: &Init) -> anyhow::Result<Answer> {
    let (now, folder) = (SystemTime::now(), &args.out);
    let lifetime = args.lifetime.unwrap_or(ROOT_LIFETIME);
    hierarchy::make_root(folder, Some(&args.trust_domain), lifetime, now)?;
    let made = hierarchy::make_intermediate(folder, folder, &args.trust_domain, INTERMEDIATE_LIFETIME, now)?;
    eprintln!(
        "warning: the root's key is in {folder}, beside the key that signs every day: whoever reads that folder \
         can be anybody in the mesh for as long as the root is trusted. For an offline root, make one elsewhere \
         with `underpass ca init --root --out DIR`, then move to it, with nobody noticing, by \
         `underpass ca rotate run --ca {folder} --new-root DIR --controller SOCKET`",
        folder = folder.display(),
    );
    print_made(folder, &made, args.output)
}

fn intermediate(args: &IntermediateArgs) -> anyhow::Result<Answer> {
    let lifetime = args.lifetime.unwrap_or(INTERMEDIATE_LIFETIME);
    let now = SystemTime::now();
    let (root, domain) = (&args.root, args.trust_domain.as_ref());
    if let Some(name) = &args.secret {
        let kubeconfig = args.kubeconfig.clone().or_else(rotate::usual_kubeconfig);
        let secret = Secret::open(name, kubeconfig.as_deref())?;
        let made = hierarchy::make_intermediate_in(root, &secret, domain, lifetime, now)?;
        return print_made(&PathBuf::from(format!("secret {name}")), &made, args.output);
    }
    let folder = args.out.as_ref().context("name the authority by --out or --secret")?;
    let domain = domain.context("name the mesh's trust domain by --trust-domain")?;
    let made = hierarchy::make_intermediate(root, folder, domain, lifetime, now)?;
    print_made(folder, &made, args.output)
}

fn print_made(folder: &std::path::Path, made: &hierarchy::Made, form: Output) -> anyhow::Result<Answer> {
    let value = json!({
        "folder": folder, "root": shown(&made.root), "issuing": shown(&made.issuing), "kept": made.kept,
    });
    let mut text = format!(
        "made the issuing certificate {}\n  under   {}\n  until   {}\n  folder  {}\n",
        made.issuing.subject,
        made.root.subject,
        date(made.issuing.not_after),
        folder.display(),
    );
    for kept in &made.kept {
        text += &format!("  kept    {}\n", kept.display());
    }
    output::print(&output::render(&value, form, || text)?)
}

fn node(args: &Node) -> anyhow::Result<Answer> {
    let papers = hierarchy::make_node(&args.name, &args.out, SystemTime::now())?;
    let value = json!({
        "name": args.name, "certificate": papers.certificate, "key": papers.key, "pin": papers.pin,
    });
    // The pin alone, to be caught by a script.
    output::print(&output::render(&value, args.output, || format!("{}\n", papers.pin))?)
}

fn shown(root: &RootView) -> Value {
    json!({ "sha256": root.sha256, "subject": root.subject, "notAfter": date(root.not_after) })
}

/// As 2036-01-31T12:00:00Z.
pub(super) fn date(at: SystemTime) -> String {
    let at = time::OffsetDateTime::from(at).replace_nanosecond(0).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    at.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

/// A duration of the configuration, or whole days or years.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    const DAY: u64 = 24 * 3600;
    let whole = |digits: &str, unit: u64| {
        let count = digits.parse::<u64>().ok().filter(|n| (1..=36_500).contains(n));
        count
            .map(|n| Duration::from_secs(n * unit))
            .ok_or_else(|| format!("{text:?} is no number of days or years"))
    };
    let found = match (text.strip_suffix('d'), text.strip_suffix('y')) {
        (Some(days), _) => whole(days, DAY)?,
        (_, Some(years)) => whole(years, 365 * DAY)?,
        _ => units::duration::parse(text).map_err(|e| format!("{e}, or 90d, or 10y"))?,
    };
    let most = Duration::from_secs(100 * 365 * DAY);
    if (Duration::from_secs(1)..=most).contains(&found) { Ok(found) } else { Err("1s to 100y".into()) }
}
