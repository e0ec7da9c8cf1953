//! The benchmark: what the mesh costs beside plain TCP, in one run on one machine.
//!
//! Each round takes every measurement once on each path, one path right after the other, so that a noisy
//! machine disturbs all alike. Ratios are taken within a round, and their median is reported.

mod cost;
pub mod decisions;
mod memory;
mod product;
mod rounds;
mod rows;
mod site;
mod table;
mod verify;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use product::Product;
use rounds::Rounds;
use site::Site;

pub use cost::stamp;

/// What is measured, and how long.
#[derive(Clone, Debug)]
pub struct Plan {
    pub rounds: usize,
    /// Of one measurement.
    pub run: Duration,
    /// Before each, not measured.
    pub warm: Duration,
    /// Names of [`test_names`]; empty for all.
    pub tests: Vec<String>,
    /// The processor of the measurements that use only one.
    pub cpu: usize,
    /// Connections of the memory row; 0 leaves it out.
    pub idle: usize,
    pub access_log: bool,
    /// Look at the wire before measuring.
    pub verify: bool,
    /// Measure our own agent.
    pub ours: bool,
    /// Another agent: its driver script and its binary.
    pub other: Option<(PathBuf, PathBuf)>,
}

/// The measurements, by the names that `--tests` takes.
pub fn test_names() -> Vec<&'static str> {
    rounds::TESTS.iter().map(|t| t.name).collect()
}

/// Runs everything; progress on standard error. The answer is a markdown table with a head.
///
/// # Errors
/// An agent did not start, a connection broke, or the wire did not show what was to be measured.
pub fn run(plan: &Plan) -> Result<String> {
    let limit = cost::raise_descriptors().context("raising the limit of open files")?;
    let mut sites = vec![];
    if plan.ours {
        sites.push(Site::build("underpass", |t, m| Product::ours(t, m, plan.access_log))?);
    }
    if let Some((driver, binary)) = &plan.other {
        let name = driver.parent().and_then(|p| p.file_name()).unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        sites.push(Site::build(&name, |t, _| Product::driven(t, driver, binary))?);
    }
    for site in &mut sites {
        eprintln!("{}: starting its agents", site.name);
        site.product.start()?;
        if plan.verify {
            verify::check(site)?;
        }
    }
    let mut measured = Rounds::default();
    for round in 1..=plan.rounds {
        measured.take(plan, &sites)?;
        eprintln!("round {round} of {}: {}", plan.rounds, measured.last_word());
    }
    let mut memories = vec![];
    for site in &mut sites {
        memories.push(memory::measure(site, plan.idle.min(limit / 4))?);
    }
    Ok(table::print(plan, &sites, &measured, &memories))
}
