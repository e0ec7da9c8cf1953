//! `underpass ca rotate`: replaces the root that a mesh rests on, step by step.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use super::super::args::Output;
use super::super::output::{print, printable, render};
use super::super::{Answer, client};
use crate::ca::hierarchy::{self, INTERMEDIATE_LIFETIME};
use crate::ca::rotation::{
    Blocked, ControllerView, Folder, Observed, Phase, Record, Standing, judge, root_ids,
};
use crate::ca::{Authority, AuthorityConfig};
use crate::certs::Clock;
use crate::model::{TrustDomain, units};
use crate::tls::TrustBundles;

#[derive(Debug, Args)]
pub(in crate::cli) struct RotateArgs {
    #[command(subcommand)]
    command: RotateCommand,
}

#[derive(Debug, Subcommand)]
enum RotateCommand {
    /// Show the five steps: what is done, what remains, and who has not acknowledged
    Status(Rotation),
    /// Do the next step, or say what it waits for
    Next(Rotation),
    /// Take the last step back, or say what rests on it
    Back(Rotation),
    /// Do every step that is left, waiting for each to be safe; may be interrupted and begun again
    Run(Rotation),
}

#[derive(Debug, Args)]
struct Rotation {
    /// The authority's folder, as the controllers read it
    #[arg(long, value_name = "FOLDER")]
    ca: PathBuf,
    /// The admin socket of a controller; each of them, where there are several
    #[arg(long = "controller", value_name = "SOCKET")]
    controllers: Vec<PathBuf>,
    /// The trust domain that the authority issues for [default: what its ca-cert.pem says, or cluster.local
    /// where it says none]
    #[arg(long, value_name = "TD")]
    trust_domain: Option<TrustDomain>,
    /// A folder of `underpass ca init --root`: root-cert.pem begins the rotation, and root-key.pem, where
    /// it is there, signs the new issuing certificate
    #[arg(long, value_name = "DIR")]
    new_root: Option<PathBuf>,
    /// A folder of `underpass ca intermediate` under the new root, where its key is kept elsewhere
    #[arg(long, value_name = "DIR")]
    intermediate: Option<PathBuf>,
    /// A node that will never answer: what it still holds will not work any more
    #[arg(long = "force-without", value_name = "NODE")]
    without: Vec<String>,
    /// How often `run` looks again
    #[arg(long, default_value = "2s", value_parser = pause)]
    every: Duration,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Several times the interval of agents' reports.
const SECOND_LOOK: Duration = Duration::from_secs(3);

fn pause(text: &str) -> Result<Duration, String> {
    units::duration::parse(text).map_err(|e| e.to_string())
}

pub(super) fn run(args: &RotateArgs) -> anyhow::Result<Answer> {
    match &args.command {
        RotateCommand::Status(r) => status(r),
        RotateCommand::Next(r) => next(r),
        RotateCommand::Back(r) => back(r),
        RotateCommand::Run(r) => all(r),
    }
}

fn status(r: &Rotation) -> anyhow::Result<Answer> {
    r.check_without()?;
    // Not locked: `run` may hold the folder for days.
    let Some(record) = Folder::record_in(&r.ca)? else { return idle(r) };
    let standing = r.judge(&record)?;
    r.show(&record, &standing, None)
}

fn next(r: &Rotation) -> anyhow::Result<Answer> {
    r.check_without()?;
    let folder = Folder::open(&r.ca)?;
    let Some(record) = folder.record()? else { return r.begin(&folder) };
    folder.settle(&record)?;
    let standing = r.judge_twice(&record)?;
    if !standing.next.is_empty() {
        r.show(&record, &standing, Some("not done: the next step has to wait"))?;
        return Ok(Answer::No);
    }
    match r.forward(&folder, &record)? {
        Some(record) => r.done(&record),
        None => r.finished(),
    }
}

fn back(r: &Rotation) -> anyhow::Result<Answer> {
    r.check_without()?;
    let folder = Folder::open(&r.ca)?;
    let Some(record) = folder.record()? else { bail!("no rotation is under way in {}", r.ca.display()) };
    folder.settle(&record)?;
    let standing = r.judge(&record)?;
    if !standing.back.is_empty() {
        r.show(&record, &standing, Some("not taken back: something would break"))?;
        return Ok(Answer::No);
    }
    match folder.back(&record)? {
        Some(record) => r.done(&record),
        None => r.say("the rotation was taken back as a whole"),
    }
}

fn all(r: &Rotation) -> anyhow::Result<Answer> {
    r.check_without()?;
    let folder = Folder::open(&r.ca)?;
    let mut record = match folder.record()? {
        Some(record) => record,
        None => {
            r.begin(&folder)?;
            folder.record()?.context("the rotation that was begun is gone")?
        }
    };
    folder.settle(&record)?;
    let mut told: Option<Standing> = None;
    loop {
        // A controller that restarts answers again soon.
        let standing = match r.judge_twice(&record) {
            Ok(standing) => standing,
            Err(e) => {
                print(&format!("{}\n", printable(&format!("{e:#}"))))?;
                std::thread::sleep(r.every);
                continue;
            }
        };
        if standing.next.is_empty() {
            record = match r.forward(&folder, &record)? {
                Some(record) => record,
                None => return r.finished(),
            };
            r.done(&record)?;
            told = None;
        } else {
            if told.as_ref() != Some(&standing) {
                for blocked in &standing.next {
                    print(&format!("waiting: {}\n", printable(&blocked.to_string())))?;
                }
                told = Some(standing);
            }
            std::thread::sleep(r.every);
        }
    }
}

fn idle(r: &Rotation) -> anyhow::Result<Answer> {
    match r.output {
        Output::Table => print(&format!(
            "no rotation is under way in {}; `underpass ca rotate next --new-root DIR` begins one\n",
            r.ca.display()
        )),
        _ => print(&render(&json!({"phase": null}), r.output, String::new)?),
    }
}

impl Rotation {
    fn begin(&self, folder: &Folder) -> anyhow::Result<Answer> {
        let Some(dir) = &self.new_root else {
            bail!(
                "no rotation is under way in {}: name a new root by --new-root DIR (`underpass ca init --root --out DIR` makes one)",
                self.ca.display()
            )
        };
        let path = dir.join("root-cert.pem");
        let pem = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        self.check_root(&pem).with_context(|| format!("{} cannot be a root", path.display()))?;
        // What is there must work: the way back leads to it.
        self.authority(&self.ca)?;
        self.done(&folder.name(&pem)?)
    }

    /// Does the step that follows; `None` when it was the last.
    fn forward(&self, folder: &Folder, record: &Record) -> anyhow::Result<Option<Record>> {
        Ok(Some(match record.phase {
            Phase::Named => folder.trust_both(record)?,
            Phase::BothTrusted => self.issue_anew(folder, record)?,
            Phase::NewIssues => {
                self.rests_on_new(record, &self.ca)?;
                folder.withdraw_old(record)?
            }
            Phase::OldWithdrawn => {
                folder.finish()?;
                return Ok(None);
            }
        }))
    }

    fn issue_anew(&self, folder: &Folder, record: &Record) -> anyhow::Result<Record> {
        if let Some(ready) = &self.intermediate {
            return self.issue_from(folder, record, ready);
        }
        let key = self.new_root.as_ref().map(|dir| (dir, dir.join("root-key.pem")));
        let Some((dir, _)) = key.filter(|(_, key)| key.exists()) else {
            bail!(
                "the third step needs an issuing certificate under the new root. Where the root's key is:\n    underpass ca intermediate --root DIR --out FOLDER --trust-domain {}\nThen, with that folder: underpass ca rotate next --intermediate FOLDER …",
                self.domain(&self.ca)?
            )
        };
        let made = self.ca.join("rotation-made");
        let remove = || match fs::remove_dir_all(&made) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("remove {}", made.display()))
            }
            _ => Ok(()),
        };
        remove()?;
        hierarchy::make_intermediate(
            dir,
            &made,
            &self.domain(&self.ca)?,
            INTERMEDIATE_LIFETIME,
            SystemTime::now(),
        )?;
        let record = self.issue_from(folder, record, &made);
        remove()?;
        record
    }

    fn issue_from(&self, folder: &Folder, record: &Record, with: &Path) -> anyhow::Result<Record> {
        let key = self.rests_on_new(record, with)?;
        ensure!(
            key != self.authority(&self.ca)?.state().borrow().authority,
            "{} has the key that signs already: agents and controllers could not tell the two apart. Make one with a key of its own",
            with.display()
        );
        Ok(folder.issue_anew(record, with)?)
    }

    /// The key identifier of a folder's authority, if it rests on the new root.
    fn rests_on_new(&self, record: &Record, folder: &Path) -> anyhow::Result<String> {
        let state = self.authority(folder)?.state();
        let signing = state.borrow();
        ensure!(
            root_ids(&record.new_root).is_ok_and(|new| new == [signing.root.clone()]),
            "{} does not rest on the new root",
            folder.display()
        );
        Ok(signing.authority.clone())
    }

    fn check_root(&self, pem: &str) -> anyhow::Result<()> {
        let (mut bundles, domain) = (TrustBundles::new(), self.domain(&self.ca)?);
        bundles.add_pem(&domain, pem.as_bytes())?;
        let root = bundles.roots(&domain).next().context("no certificate")?;
        crate::ca::check_root(root, SystemTime::now()).map_err(anyhow::Error::msg)?;
        Ok(())
    }

    fn authority(&self, folder: &Path) -> anyhow::Result<Authority> {
        let config = AuthorityConfig::new(folder, self.domain(folder)?);
        Ok(Authority::open(&config, Clock::system())?)
    }

    /// What the folder's authority issues for. A folder for another trust domain than this rotation's would
    /// have its certificates refused by every agent.
    fn domain(&self, folder: &Path) -> anyhow::Result<TrustDomain> {
        let stated = |folder: &Path| {
            let path = folder.join("ca-cert.pem");
            let pem = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            hierarchy::stated_domain(&pem)
                .map_err(anyhow::Error::msg)
                .with_context(|| format!("{}", path.display()))
        };
        one_domain(&[
            ("--trust-domain".to_owned(), self.trust_domain.clone()),
            (self.ca.display().to_string(), stated(&self.ca)?),
            (folder.display().to_string(), stated(folder)?),
        ])
    }

    fn check_without(&self) -> anyhow::Result<()> {
        // Without a controller nothing is judged, and nobody left out.
        if self.without.is_empty() || self.controllers.is_empty() {
            return Ok(());
        }
        check_names(&self.without, &self.observe()?)
    }

    /// Before the old root goes, a second time: reports are a second old, and a handshake that had begun
    /// before the first look may be over since.
    fn judge_twice(&self, record: &Record) -> anyhow::Result<Standing> {
        let first = self.judge(record)?;
        if record.phase != Phase::NewIssues || !first.next.is_empty() {
            return Ok(first);
        }
        std::thread::sleep(SECOND_LOOK);
        self.judge(record)
    }

    fn observe(&self) -> anyhow::Result<Observed> {
        let mut observed = Observed::default();
        for socket in &self.controllers {
            let answer = client::ask(socket, "GET", "/agents", "")
                .with_context(|| format!("the controller at {} cannot be asked", socket.display()))?;
            let view: ControllerView = serde_json::from_value(answer).with_context(|| {
                format!("what {} says of agents does not parse; is it a controller?", socket.display())
            })?;
            observed.controllers.push((socket.display().to_string(), view));
        }
        Ok(observed)
    }

    fn judge(&self, record: &Record) -> anyhow::Result<Standing> {
        let observed = self.observe()?;
        // A folder that does not fit together blocks what needs it, and not the way back.
        let authority = self.authority(&self.ca).map(|a| a.state().borrow().authority.clone());
        let authority = authority.unwrap_or_default();
        let without: BTreeSet<String> = self.without.iter().cloned().collect();
        judge(record, &authority, &observed, &without).map_err(anyhow::Error::msg)
    }

    fn done(&self, record: &Record) -> anyhow::Result<Answer> {
        let (number, what) = match record.phase {
            Phase::Named => (1, "the new root is named; nobody was told of it yet"),
            Phase::BothTrusted => (2, "agents are told to trust both roots"),
            Phase::NewIssues => (3, "certificates are issued under the new root"),
            Phase::OldWithdrawn => (5, "the old root is withdrawn"),
        };
        self.say(&format!("step {number} of 5: {what}"))
    }

    fn finished(&self) -> anyhow::Result<Answer> {
        self.say("the rotation is complete: everything rests on the new root")
    }

    fn say(&self, what: &str) -> anyhow::Result<Answer> {
        for node in &self.without {
            print(&format!("warning: node {} was not waited for\n", printable(node)))?;
        }
        print(&format!("{what}\n"))
    }

    fn show(&self, record: &Record, standing: &Standing, first: Option<&str>) -> anyhow::Result<Answer> {
        let view =
            View { phase: record.phase, steps: steps(standing), next: &standing.next, back: &standing.back };
        let table = || {
            let mut out = first.map_or(String::new(), |line| format!("{line}\n"));
            for step in &view.steps {
                let _ = writeln!(out, "  {}  {:<8}  {}", step.number, step.state, step.what);
                for blocked in &step.waits_for {
                    let _ = writeln!(out, "                 {}", printable(blocked));
                }
            }
            if !standing.back.is_empty() {
                let _ = writeln!(out, "The last step cannot be taken back now:");
                for blocked in &standing.back {
                    let _ = writeln!(out, "                 {}", printable(&blocked.to_string()));
                }
            }
            out
        };
        print(&render(&view, self.output, table)?)
    }
}

/// A name that nobody knows leaves nobody out: the operator would believe that a node is left out which is
/// not, or has named another one than was meant.
fn check_names(without: &[String], observed: &Observed) -> anyhow::Result<()> {
    let agents = observed.controllers.iter().flat_map(|(_, c)| c.agents.iter().map(|a| a.node.as_str()));
    let mut known: BTreeSet<&str> = observed.nodes();
    known.extend(agents);
    for name in without {
        let names = || known.iter().copied().collect::<Vec<_>>().join(", ");
        ensure!(
            known.contains(name.as_str()),
            "--force-without {name}: no controller expects or has seen a node of that name; there {}",
            if known.is_empty() { "is none".to_owned() } else { format!("are {}", printable(&names())) }
        );
    }
    Ok(())
}

/// What they agree on, each of which may say nothing.
fn one_domain(sayings: &[(String, Option<TrustDomain>)]) -> anyhow::Result<TrustDomain> {
    let mut said = sayings.iter().filter_map(|(who, domain)| Some((who, domain.as_ref()?)));
    let Some((first, domain)) = said.next() else { return Ok(TrustDomain::default()) };
    for (who, other) in said {
        ensure!(
            other == domain,
            "{first} says the trust domain {domain}, and {who} says {other}: one is the wrong one"
        );
    }
    Ok(domain.clone())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct View<'a> {
    phase: Phase,
    steps: Vec<Step>,
    next: &'a [Blocked],
    back: &'a [Blocked],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Step {
    number: u8,
    what: &'static str,
    /// `done`, `waits`, `ready` or `later`.
    state: &'static str,
    waits_for: Vec<String>,
}

fn steps(standing: &Standing) -> Vec<Step> {
    let whats = [
        "a new root is named",
        "agents trust both roots",
        "certificates are issued under the new root",
        "everything rests on the new root",
        "the old root is withdrawn, and no agent trusts it",
    ];
    // The one that is being waited for, or can be done.
    let current = match standing.phase {
        Phase::Named => 2,
        Phase::BothTrusted if !standing.next.is_empty() => 2,
        Phase::BothTrusted => 3,
        Phase::NewIssues if !standing.next.is_empty() => 4,
        Phase::NewIssues | Phase::OldWithdrawn => 5,
    };
    (1..)
        .zip(whats)
        .map(|(number, what)| {
            let here = number == current;
            let state = match number {
                n if n < current => "done",
                n if n > current => "later",
                _ if standing.next.is_empty() => "ready",
                _ => "waits",
            };
            let waits_for =
                if here { standing.next.iter().map(ToString::to_string).collect() } else { vec![] };
            Step { number, what, state, waits_for }
        })
        .collect()
}

#[cfg(test)]
mod tests;
