//! The workspace's test programs: built once by cargo, then run one after the other.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::tally::Tally;
use super::{Must, agent, expect_success};
use crate::build::cargo;
use crate::{checkout, process, setup};

/// A test program hangs rather than works when it takes longer.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// One test program.
pub(crate) struct Program {
    /// The package, or the story's file.
    pub(crate) name: String,
    pub(crate) executable: PathBuf,
    story: bool,
    /// Where cargo would run it.
    folder: PathBuf,
}

/// Builds every test program of the workspace.
pub(crate) fn build() -> Result<Vec<Program>> {
    let mut tests = cargo("test");
    tests.args(["--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    let out = tests.stderr(Stdio::inherit()).output().context("start cargo test")?;
    expect_success(&process::line(&tests), out.status)?;
    let messages = String::from_utf8_lossy(&out.stdout);
    // By path, to run in the same order every time.
    let programs: BTreeMap<PathBuf, Program> = messages
        .lines()
        .filter_map(|line| program(&serde_json::from_str(line).ok()?))
        .map(|program| (program.executable.clone(), program))
        .collect();
    Ok(programs.into_values().collect())
}

fn program(message: &Value) -> Option<Program> {
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?;
    let kinds = message["target"]["kind"].as_array()?;
    if message["profile"]["test"] != true {
        return None;
    }
    Some(Program {
        name: message["target"]["name"].as_str()?.to_owned(),
        executable: PathBuf::from(message["executable"].as_str()?),
        story: kinds.iter().any(|kind| kind == "test") && folder == checkout::root().join("tests"),
        folder: folder.to_owned(),
    })
}

/// The tests beside the code, and those of single programs.
pub(super) fn units(programs: &[Program], must: Must, tally: &mut Tally) -> Result<()> {
    let mut failed = Vec::new();
    for program in programs.iter().filter(|program| !program.story) {
        let mut own = Tally::default();
        // Shows what passing tests print, which is where one says that it skipped itself.
        let result = run(program, must, &["--show-output"], false, &mut own);
        if own != Tally::default() {
            eprintln!("    {}: {own}", program.name);
        }
        if let Err(error) = result {
            eprintln!("    {error:#}");
            failed.push(program.name.as_str());
        }
        *tally = std::mem::take(tally) + &own;
    }
    if !failed.is_empty() {
        bail!("tests failed in {}", failed.join(", "));
    }
    Ok(())
}

/// The examples in documentation comments.
pub(super) fn examples(tally: &mut Tally) -> Result<()> {
    let mut doc = cargo("test");
    doc.args(["--workspace", "--doc", "--quiet"]);
    let out = doc.stderr(Stdio::inherit()).output().context("start cargo test")?;
    let said = String::from_utf8_lossy(&out.stdout);
    for line in said.lines() {
        // One summary a package; an example that is marked `ignore` is prose, and no skip.
        let mut own = Tally::default();
        own.read(line);
        tally.passed += own.passed;
        tally.failed += own.failed;
    }
    if !out.status.success() {
        eprint!("{said}");
    }
    expect_success(&process::line(&doc), out.status)
}

/// The node stories, one program for each file of them.
pub(crate) fn stories(programs: &[Program]) -> impl Iterator<Item = &Program> {
    programs.iter().filter(|program| program.story)
}

/// Runs one file of node stories.
pub(super) fn story(program: &Program, must: Must, tally: &mut Tally) -> Result<()> {
    // Stories share the machine's network: one at a time.
    let result = run(program, must, &["--test-threads=1", "--show-output"], true, tally);
    if tally.skipped > 0 && !process::is_root() {
        tally.reasons.insert("needs root".to_owned());
    }
    result
}

fn run(program: &Program, must: Must, arguments: &[&str], live: bool, tally: &mut Tally) -> Result<()> {
    let mut command = Command::new(&program.executable);
    command.args(arguments).current_dir(&program.folder);
    command.env("UNDERPASS_BIN", agent()).env("UNDERPASS_PYTHON", setup::python::interpreter());
    if must.run_everything {
        command.env("UNDERPASS_REQUIRE_ROOT", "1");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", program.executable.display()))?;
    let (send, lines) = mpsc::channel();
    forward(child.stdout.take(), send.clone());
    forward(child.stderr.take(), send);

    let deadline = Instant::now() + LIMIT;
    let mut kept = Vec::new();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                tally.read(&line);
                if live {
                    eprintln!("    | {line}");
                } else {
                    kept.push(line);
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                child.kill()?;
                child.wait()?;
                show(&kept);
                bail!("{} was killed after {} s", program.name, LIMIT.as_secs());
            }
        }
    }
    let status = child.wait()?;
    if !status.success() {
        show(&kept);
    }
    expect_success(&program.name, status)
}

fn forward(stream: Option<impl Read + Send + 'static>, to: Sender<String>) {
    let Some(stream) = stream else { return };
    std::thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            if to.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
}

fn show(lines: &[String]) {
    for line in lines {
        eprintln!("    | {line}");
    }
}
