//! `underpass ca rotate`: replaces the root that a mesh rests on, step by step.

mod place;

use std::collections::BTreeSet;
use std::fmt::{Display, Write};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use self::place::Place;
pub(super) use self::place::usual_kubeconfig;
use super::super::args::Output;
use super::super::output::{print, printable, render};
use super::super::{Answer, ClientError, client};
use crate::ca::hierarchy::{self, INTERMEDIATE_LIFETIME};
use crate::ca::kubernetes::Keys;
use crate::ca::rotation::{
    Blocked, ControllerView, Folder, Observed, Phase, Record, Site, Standing, judge, root_ids,
};
use crate::ca::{Authority, AuthorityConfig, Source};
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
    #[command(flatten)]
    place: Place,
    /// The admin socket of a controller; each of them, where there are several
    #[arg(long = "controller", value_name = "SOCKET")]
    controllers: Vec<PathBuf>,
    /// The admin socket of a controller of another cluster under the same root, with an authority of its own:
    /// its agents must trust what ours will show them, and not rest on a root that goes; each of them
    #[arg(long = "also-trusts", value_name = "SOCKET")]
    elsewhere: Vec<PathBuf>,
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
    let site = r.place.look()?;
    let Some(record) = site.record()? else { return idle(r) };
    let standing = r.judge(&*site, &record)?;
    r.show(&record, &standing, None)
}

fn next(r: &Rotation) -> anyhow::Result<Answer> {
    r.check_without()?;
    let site = r.place.open()?;
    let Some(record) = site.record()? else { return r.begin(&*site) };
    site.settle(&record)?;
    let standing = r.judge_twice(&*site, &record)?;
    if !standing.next.is_empty() {
        r.show(&record, &standing, Some("not done: the next step has to wait"))?;
        return Ok(Answer::No);
    }
    match r.forward(&*site, &record)? {
        Some(record) => r.done(&record),
        None => r.finished(),
    }
}

fn back(r: &Rotation) -> anyhow::Result<Answer> {
    r.check_without()?;
    let site = r.place.open()?;
    let Some(record) = site.record()? else {
        bail!("no rotation is under way in {}: there is no step to take back", r.place)
    };
    site.settle(&record)?;
    let standing = r.judge(&*site, &record)?;
    if !standing.back.is_empty() {
        r.show(&record, &standing, Some("not taken back: something would break"))?;
        return Ok(Answer::No);
    }
    match site.back(&record)? {
        Some(record) => r.done(&record),
        None => r.say("the rotation was taken back as a whole"),
    }
}

fn all(r: &Rotation) -> anyhow::Result<Answer> {
    r.check_without()?;
    let site = r.place.open()?;
    let mut record = match site.record()? {
        Some(record) => record,
        None => {
            r.begin(&*site)?;
            site.record()?.context("the rotation that was begun is gone")?
        }
    };
    site.settle(&record)?;
    let mut told: Option<Standing> = None;
    loop {
        // A controller that restarts answers again soon, and so does an API server.
        let looked = site.look_again().map_err(anyhow::Error::from);
        if looked.is_ok() {
            let held = site.record()?;
            ensure!(
                held.as_ref() == Some(&record),
                "the rotation in {} was changed by somebody else",
                r.place
            );
        }
        let standing = match looked.and_then(|()| r.judge_twice(&*site, &record)) {
            Ok(standing) => standing,
            Err(e) => {
                print(&format!("{}\n", printable(&format!("{e:#}"))))?;
                std::thread::sleep(r.every);
                continue;
            }
        };
        if standing.next.is_empty() {
            record = match r.forward(&*site, &record)? {
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
            r.place
        )),
        _ => print(&render(&json!({"phase": null}), r.output, String::new)?),
    }
}

impl Rotation {
    fn begin(&self, site: &dyn Site) -> anyhow::Result<Answer> {
        let Some(dir) = &self.new_root else {
            bail!(
                "no rotation is under way in {}: name a new root by --new-root DIR (`underpass ca init --root --out DIR` makes one)",
                self.place
            )
        };
        let path = dir.join("root-cert.pem");
        let pem = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let own = site.keys()?;
        self.check_root(&own, &pem).with_context(|| format!("{} cannot be a root", path.display()))?;
        // What is there must work: the way back leads to it.
        self.authority(&own)?;
        self.done(&site.name(&pem)?)
    }

    /// Does the step that follows; `None` when it was the last.
    fn forward(&self, site: &dyn Site, record: &Record) -> anyhow::Result<Option<Record>> {
        Ok(Some(match record.phase {
            Phase::Named => site.trust_both(record)?,
            Phase::BothTrusted => self.issue_anew(site, record)?,
            Phase::NewIssues => {
                rests_on_new(record, &self.authority(&site.keys()?)?, &self.place)?;
                site.withdraw_old(record)?
            }
            Phase::OldWithdrawn => {
                site.finish()?;
                return Ok(None);
            }
        }))
    }

    fn issue_anew(&self, site: &dyn Site, record: &Record) -> anyhow::Result<Record> {
        let (own, now) = (site.keys()?, SystemTime::now());
        if let Some(ready) = &self.intermediate {
            let (with, shown) = (Folder::look(ready).keys()?, ready.display());
            let source = Source::Folder(ready.clone());
            let authority = open(source, self.domain(&own, Some((shown.to_string(), &with)))?, &with)?;
            return self.issue_from(site, record, &with, &authority, &shown);
        }
        let domain = self.domain(&own, None)?;
        let Some(dir) = self.new_root.as_ref().filter(|dir| dir.join("root-key.pem").exists()) else {
            bail!(
                "the third step needs an issuing certificate under the new root. Where the root's key is:\n    underpass ca intermediate --root DIR --out FOLDER --trust-domain {domain}\nThen, with that folder: underpass ca rotate next --intermediate FOLDER …"
            )
        };
        let root = hierarchy::Root::open(dir, now)?;
        let with = hierarchy::Intermediate::make(&root, &domain, INTERMEDIATE_LIFETIME, now)?.keys();
        let authority = open(Source::Folder(dir.clone()), domain, &with)?;
        self.issue_from(site, record, &with, &authority, &dir.display())
    }

    fn issue_from(
        &self,
        site: &dyn Site,
        record: &Record,
        with: &Keys,
        authority: &Authority,
        shown: &dyn Display,
    ) -> anyhow::Result<Record> {
        rests_on_new(record, authority, shown)?;
        let [new, own] =
            [authority, &self.authority(&site.keys()?)?].map(|a| a.state().borrow().authority.clone());
        ensure!(
            new != own,
            "{shown} has the key that signs already: agents and controllers could not tell the two apart. Make one with a key of its own"
        );
        Ok(site.issue_anew(record, with)?)
    }

    fn check_root(&self, own: &Keys, pem: &str) -> anyhow::Result<()> {
        let (mut bundles, domain) = (TrustBundles::new(), self.domain(own, None)?);
        bundles.add_pem(&domain, pem.as_bytes())?;
        let root = bundles.roots(&domain).next().context("no certificate")?;
        crate::ca::check_root(root, SystemTime::now()).map_err(anyhow::Error::msg)?;
        Ok(())
    }

    /// What signs at present.
    fn authority(&self, own: &Keys) -> anyhow::Result<Authority> {
        open(self.place.source()?, self.domain(own, None)?, own)
    }

    /// What the authority issues for. One for another trust domain than this rotation's would have its
    /// certificates refused by every agent.
    fn domain(&self, own: &Keys, other: Option<(String, &Keys)>) -> anyhow::Result<TrustDomain> {
        let stated = |shown: String, keys: &Keys| -> anyhow::Result<_> {
            let pem = keys.get("ca-cert.pem").with_context(|| format!("{shown} has no ca-cert.pem"))?;
            let domain = hierarchy::stated_domain(pem).map_err(anyhow::Error::msg);
            let domain = domain.with_context(|| format!("ca-cert.pem of {shown} is unusable"))?;
            Ok((shown, domain))
        };
        let mut said = vec![
            ("--trust-domain".to_owned(), self.trust_domain.clone()),
            stated(self.place.to_string(), own)?,
        ];
        if let Some((shown, keys)) = other {
            said.push(stated(shown, keys)?);
        }
        one_domain(&said)
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
    fn judge_twice(&self, site: &dyn Site, record: &Record) -> anyhow::Result<Standing> {
        let first = self.judge(site, record)?;
        if record.phase != Phase::NewIssues || !first.next.is_empty() {
            return Ok(first);
        }
        std::thread::sleep(SECOND_LOOK);
        self.judge(site, record)
    }

    fn observe(&self) -> anyhow::Result<Observed> {
        let all = |sockets: &[PathBuf]| -> anyhow::Result<Vec<_>> {
            sockets.iter().map(|socket| ask(socket)).collect()
        };
        Ok(Observed { controllers: all(&self.controllers)?, elsewhere: all(&self.elsewhere)? })
    }

    fn judge(&self, site: &dyn Site, record: &Record) -> anyhow::Result<Standing> {
        let observed = self.observe()?;
        // A folder that does not fit together blocks what needs it, and not the way back.
        let authority = site.keys().map_err(anyhow::Error::from).and_then(|own| self.authority(&own));
        let authority = authority.map(|a| a.state().borrow().authority.clone());
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

fn ask(socket: &Path) -> anyhow::Result<(String, ControllerView)> {
    let answer = match client::ask(socket, "GET", "/agents", "") {
        Err(ClientError::Absent { path, source }) => bail!(
            "no controller answers at {}: {source}; start it with `underpass controller --config FILE`, or name \
             its admin.socket with --controller",
            path.display()
        ),
        answer => {
            answer.with_context(|| format!("the controller at {} cannot be asked", socket.display()))?
        }
    };
    let view = serde_json::from_value(answer).with_context(|| {
        format!("what {} says of agents does not parse; is it a controller?", socket.display())
    })?;
    Ok((socket.display().to_string(), view))
}

fn open(source: Source, domain: TrustDomain, keys: &Keys) -> anyhow::Result<Authority> {
    let config = AuthorityConfig { source, ..AuthorityConfig::new("", domain) };
    Ok(Authority::open_keys(&config, keys, Clock::system())?)
}

fn rests_on_new(record: &Record, authority: &Authority, shown: &dyn Display) -> anyhow::Result<()> {
    let root = authority.state().borrow().root.clone();
    ensure!(
        root_ids(&record.new_root).is_ok_and(|new| new == [root]),
        "{shown} does not rest on the new root"
    );
    Ok(())
}

/// A name that nobody knows leaves nobody out: the operator would believe that a node is left out which is
/// not, or has named another one than was meant.
fn check_names(without: &[String], observed: &Observed) -> anyhow::Result<()> {
    let all = observed.controllers.iter().chain(&observed.elsewhere);
    let agents = all.flat_map(|(_, c)| c.agents.iter().map(|a| a.node.as_str()));
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
