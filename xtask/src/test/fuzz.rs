//! A short run of every fuzz target.
//!
//! The targets are ordinary binaries of the workspace. Only the workspace's own crates are compiled
//! again for them, with counters at every branch; dependencies are those of the other tests, so this
//! needs stable Rust and half a minute where cargo-fuzz needs nightly and a second build of everything.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use super::tally::Tally;
use crate::build::{Profile, WORKSPACE, cargo};
use crate::setup::packages;
use crate::{checkout, process};

/// The binaries of tests/fuzz, whose seeds are in folders of the same names.
const TARGETS: [&str; 9] = [
    "authorization",
    "chain",
    "crl",
    "csr",
    "hbone_request",
    "http_requests",
    "kubernetes",
    "mesh_file",
    "spiffe_id",
];

/// Set while cargo builds the targets: xtask then stands between cargo and rustc.
const AS_RUSTC: &str = "UNDERPASS_XTASK_AS_RUSTC";

/// Runs every target for `seconds`, starting from its seeds.
pub(super) fn run(seconds: u32, tally: &mut Tally) -> Result<()> {
    // libFuzzer is C++, and the one thing here that is.
    if let Err(why) = packages::need(&[("c++", "g++")]) {
        tally.skip(&format!("{why:#}"));
        return Ok(());
    }
    build()?;
    for target in TARGETS {
        one(target, seconds)?;
        tally.passed += 1;
    }
    Ok(())
}

fn build() -> Result<()> {
    let mut build = cargo("build");
    build.args(WORKSPACE).args(["--features", "underpass-fuzz/libfuzzer"]);
    build.args(TARGETS.iter().flat_map(|target| ["--bin", target]));
    build.env("RUSTC_WORKSPACE_WRAPPER", copy_of_xtask()?).env(AS_RUSTC, "1").env("CARGO_INCREMENTAL", "0");
    process::run(&mut build)
}

/// Cargo may replace the file that we were started from.
fn copy_of_xtask() -> Result<PathBuf> {
    let copy = checkout::target("fuzz/xtask-as-rustc");
    let content = fs::read("/proc/self/exe").context("read xtask's own program")?;
    if checkout::write_if_changed(&copy, &content)? {
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    }
    Ok(copy)
}

fn one(target: &str, seconds: u32) -> Result<()> {
    let folder = checkout::target("fuzz").join(target);
    let corpus = folder.join("corpus");
    fs::create_dir_all(&corpus).with_context(|| format!("create {}", corpus.display()))?;
    let mut fuzzer = Command::new(Profile::Dev.binary(target));
    fuzzer.arg(format!("-max_total_time={seconds}")).args(["-timeout=5", "-rss_limit_mb=1024"]);
    fuzzer.arg(format!("-artifact_prefix={}/", folder.display()));
    fuzzer.arg(&corpus).arg(checkout::root().join("tests/fuzz/seeds").join(target));

    let out = fuzzer.output().with_context(|| format!("start `{}`", process::line(&fuzzer)))?;
    let said = String::from_utf8_lossy(&out.stderr);
    if !out.status.success() {
        eprintln!("{said}");
        bail!("{target} ended with {}; the input that did it is in {}", out.status, folder.display());
    }
    // Without counters it would try inputs blindly, and find next to nothing.
    let counters = said.lines().find(|line| line.contains("inline 8-bit counters"));
    let done = said.lines().rev().find(|line| line.starts_with("Done "));
    let (Some(_), Some(done)) = (counters, done) else {
        eprintln!("{said}");
        bail!("{target} ran without coverage counters, or did not say how often");
    };
    eprintln!("    {target}: {done}");
    Ok(())
}

/// When cargo runs xtask in rustc's place: becomes rustc, with coverage counters for our crates.
pub(crate) fn as_rustc() -> Option<ExitCode> {
    std::env::var_os(AS_RUSTC)?;
    let mut arguments = std::env::args_os().skip(1);
    let rustc = arguments.next()?;
    let arguments: Vec<OsString> = arguments.collect();
    let mut command = Command::new(rustc);
    command.args(&arguments);
    if counts(&arguments) {
        command.args(COVERAGE);
    }
    let error = command.exec();
    eprintln!("xtask as rustc: {}: {error}", process::line(&command));
    Some(ExitCode::FAILURE)
}

/// What cargo-fuzz passes, less what nightly alone has.
const COVERAGE: [&str; 6] = [
    "-Ccodegen-units=1",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Build scripts run without libFuzzer, which is where the counters report to; and cargo's questions
/// to the compiler compile nothing.
fn counts(arguments: &[OsString]) -> bool {
    let name = arguments.iter().position(|it| it == "--crate-name").and_then(|at| arguments.get(at + 1));
    name.is_some_and(|name| name != "build_script_build" && name != "___")
}

#[cfg(test)]
mod tests {
    use super::counts;
    use std::ffi::OsString;

    #[test]
    fn build_scripts_and_questions_are_left_alone() {
        let table: [(&[&str], bool); 4] = [
            (&["--crate-name", "underpass", "--edition=2024"], true),
            (&["--crate-name", "build_script_build"], false),
            (&["-", "--crate-name", "___", "--print=file-names"], false),
            (&["-vV"], false),
        ];
        for (arguments, expected) in table {
            let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            assert_eq!(counts(&arguments), expected, "{arguments:?}");
        }
    }
}
