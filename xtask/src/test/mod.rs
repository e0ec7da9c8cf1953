//! `cargo xtask test`: everything that is tested, each lane timed and its skips counted.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::build::{Profile, binaries};
use crate::vm::{self, Series};
use crate::{build_ebpf, demo, process, setup};

pub(crate) mod fuzz;
pub(crate) mod programs;
mod tally;

use programs::Program;
use tally::Tally;

/// Run every test: units, node stories, the demo, virtual machines, fuzzing.
///
/// What cannot run here (node stories without root, or without what builds kernel programs) is skipped
/// with its reason and counted. With --require-root, and when the variable CI is set, a skip is a failure.
#[derive(Args)]
pub(crate) struct Test {
    /// Fail if anything is skipped.
    #[arg(long)]
    require_root: bool,
    /// Run only these.
    #[arg(long, value_enum)]
    only: Vec<Lane>,
    /// Seconds for each fuzz target.
    #[arg(long, default_value_t = 5)]
    fuzz_seconds: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Lane {
    /// Tests beside the code, and examples in its documentation.
    Units,
    /// Simulated nodes with real agents, in network namespaces (root).
    Stories,
    /// The demo on this machine's kernel (root).
    Demo,
    /// The demo on other kernels, under QEMU.
    Vm,
    /// A short run of every fuzz target.
    Fuzz,
}

impl Lane {
    const ALL: [Lane; 5] = [Lane::Units, Lane::Stories, Lane::Demo, Lane::Vm, Lane::Fuzz];

    /// Its name, if it runs agents that capture.
    fn of_nodes(self) -> Option<&'static str> {
        match self {
            Lane::Units | Lane::Fuzz => None,
            Lane::Stories => Some("stories"),
            Lane::Demo => Some("demo"),
            Lane::Vm => Some("virtual machines"),
        }
    }
}

impl Test {
    pub(crate) fn run(self) -> Result<()> {
        let must = Must { run_everything: self.require_root || in_ci() };
        let wanted = |lane| self.only.is_empty() || self.only.contains(&lane);
        let mut report = Report::default();

        // A node is made with the one and captures with the other.
        let no_nodes = report.need("tools", setup::test_tools).or(report.need("bytecode's tools", bytecode));
        let no_second_client = report.need("second client's libraries", setup::second_client);
        if no_nodes.is_none() {
            report.time("kernel programs", || build_ebpf::ensure().map(drop))?;
        }
        report.time("binaries", || binaries(Profile::Dev, &[]))?;
        let programs = report.time("test programs", programs::build)?;
        for lane in Lane::ALL.into_iter().filter(|lane| wanted(*lane)) {
            if let (Some(why), Some(name)) = (&no_nodes, lane.of_nodes()) {
                report.add(name, || {
                    must.tallied(|tally| {
                        tally.skip(why);
                        Ok(())
                    })
                });
                continue;
            }
            match lane {
                Lane::Units => {
                    report.add("units", || must.tallied(|t| programs::units(&programs, must, t)));
                    report.add("documentation examples", || must.tallied(programs::examples));
                }
                Lane::Stories => {
                    for story in programs::stories(&programs) {
                        report.add(&format!("story {}", story.name), || {
                            must.tallied(|t| match &no_second_client {
                                Some(why) if story.name == "second_client" => {
                                    t.skip(why);
                                    Ok(())
                                }
                                _ => programs::story(story, must, t),
                            })
                        });
                    }
                }
                Lane::Demo => report.add("demo", || must.tallied(run_demo)),
                Lane::Fuzz => report.add("fuzzing", || must.tallied(|t| fuzz::run(self.fuzz_seconds, t))),
                Lane::Vm => {
                    for series in Series::ALL {
                        report.add(&format!("Linux {series}"), || {
                            must.tallied(|t| run_vm(series, &programs, t))
                        });
                    }
                }
            }
        }
        report.print();
        report.verdict()
    }
}

/// Whether this run may skip.
#[derive(Clone, Copy)]
struct Must {
    run_everything: bool,
}

impl Must {
    /// Runs a lane, and makes its skips a failure where nothing may be skipped.
    fn tallied(self, lane: impl FnOnce(&mut Tally) -> Result<()>) -> (Tally, Result<()>) {
        let mut tally = Tally::default();
        let mut result = lane(&mut tally);
        if result.is_ok() && self.run_everything && tally.skipped > 0 {
            result = Err(anyhow::anyhow!("{} skipped where everything was to run", tally.skipped));
        }
        (tally, result)
    }
}

fn bytecode() -> Result<()> {
    setup::bytecode().map(drop)
}

fn run_demo(tally: &mut Tally) -> Result<()> {
    if !process::is_root() {
        tally.skip("needs root");
        return Ok(());
    }
    process::run_bounded(&mut demo::command(Profile::Dev), Duration::from_secs(300))?;
    tally.passed += 1;
    Ok(())
}

fn run_vm(series: Series, programs: &[Program], tally: &mut Tally) -> Result<()> {
    // Whether it can run is one question, whether it passes another.
    if let Err(why) = setup::vm_tools().and_then(|()| vm::fetch(series)) {
        tally.skip(&format!("{why:#}"));
        return Ok(());
    }
    vm::tell_story(series, programs)?;
    tally.passed += 1;
    Ok(())
}

fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| !["", "0", "false"].contains(&value.as_str()))
}

/// What ran, how long it took and how it ended.
#[derive(Default)]
struct Report {
    rows: Vec<Row>,
}

struct Row {
    name: String,
    took: Duration,
    tally: Tally,
    failed: Option<String>,
}

impl Report {
    /// A step without which nothing else can run.
    fn time<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let result = process::step(name, work);
        self.push(name, started.elapsed(), Tally::default(), None);
        result
    }

    /// Tools without which some lanes are skipped; the reason, where they are missing.
    fn need(&mut self, name: &str, find: fn() -> Result<()>) -> Option<String> {
        let started = Instant::now();
        let missing = process::step(name, find).err().map(|why| format!("{why:#}"));
        self.push(name, started.elapsed(), Tally::default(), None);
        missing
    }

    /// A lane: the others run whether it passes or not.
    fn add(&mut self, name: &str, work: impl FnOnce() -> (Tally, Result<()>)) {
        let started = Instant::now();
        let mut tally = Tally::default();
        let result = process::step(name, || {
            let (counted, result) = work();
            tally = counted;
            result
        });
        let failed = result.err().map(|error| format!("{error:#}"));
        if let Some(why) = &failed {
            eprintln!("    {why}");
        }
        self.push(name, started.elapsed(), tally, failed);
    }

    fn push(&mut self, name: &str, took: Duration, tally: Tally, failed: Option<String>) {
        self.rows.push(Row { name: name.to_owned(), took, tally, failed });
    }

    fn print(&self) {
        println!();
        for row in &self.rows {
            let state = if row.failed.is_some() { "FAILED" } else { "" };
            println!(
                "{:>8.1} s  {:<28} {:<36} {state}",
                row.took.as_secs_f64(),
                row.name,
                row.tally.to_string()
            );
            for reason in &row.tally.reasons {
                println!("{:>12}skipped: {reason}", "");
            }
        }
        let took: Duration = self.rows.iter().map(|row| row.took).sum();
        let all = self.rows.iter().fold(Tally::default(), |sum, row| sum + &row.tally);
        println!("{:>8.1} s  {:<28} {all}", took.as_secs_f64(), "altogether");
    }

    fn verdict(&self) -> Result<()> {
        let failed: Vec<String> = self
            .rows
            .iter()
            .filter_map(|row| Some(format!("{}: {}", row.name, row.failed.as_ref()?)))
            .collect();
        match failed.is_empty() {
            true => Ok(()),
            false => bail!("failed:\n    {}", failed.join("\n    ")),
        }
    }
}

fn expect_success(what: &str, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("{what} ended with {status}");
    }
    Ok(())
}

fn agent() -> std::path::PathBuf {
    Profile::Dev.binary("underpass")
}
