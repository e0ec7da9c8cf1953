//! The `main` of a file of stories that share one world.
//!
//! A world (namespaces, agents) costs a second or two, a story often less. So a file's stories run one
//! after the other in one world; after a failed one the world is made afresh, since nobody knows what it
//! left.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::root;

/// What the stories of one file share.
pub trait World: Send + Sized + 'static {
    fn build() -> Result<Self>;

    /// What helps to understand a failure: ends of logs, say.
    fn diagnose(&self) -> String {
        String::new()
    }
}

/// One story: it fails by an error or by a panic.
pub type Story<W> = (&'static str, fn(&mut W) -> Result<()>);

/// Runs the stories as the test harness does (`--list`, filters, exit code). Without root each one is
/// counted as ignored, or fails when root is required.
pub fn run<W: World>(stories: &[Story<W>]) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let world: Arc<Mutex<Option<W>>> = Arc::default();
    let trials = stories
        .iter()
        .map(|(name, story)| {
            let (world, story) = (world.clone(), *story);
            Trial::ignorable_test(*name, move || tell(&world, story))
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Before the process ends, which would not drop it.
    drop(world.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit_code()
}

fn tell<W: World>(world: &Mutex<Option<W>>, story: fn(&mut W) -> Result<()>) -> Result<Completion, Failed> {
    if let Some(why) = root::missing() {
        if root::required() {
            return Err(format!("{why}, and {} is set", root::REQUIRE).into());
        }
        return Ok(Completion::ignored_with(why));
    }
    let mut slot = world.lock().unwrap_or_else(PoisonError::into_inner);
    if slot.is_none() {
        *slot = Some(W::build().context("building the world").map_err(|e| format!("{e:#}"))?);
    }
    let Some(shared) = slot.as_mut() else { return Err("no world".into()) };
    match catch_unwind(AssertUnwindSafe(|| story(shared))) {
        Ok(Ok(())) => Ok(Completion::Completed),
        Ok(Err(e)) => {
            let report = format!("{e:#}\n{}", shared.diagnose());
            *slot = None;
            Err(report.into())
        }
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
            let report = format!("{said}\n{}", shared.diagnose());
            *slot = None;
            Err(report.into())
        }
    }
}
