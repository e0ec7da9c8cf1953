//! One process of the cluster: started, known by its id afterwards, watched while something is waited for.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::places::{folder, logs};
use crate::netns::Netns;
use crate::{sweep, wait};

/// While the command that started it runs. It lives on after that, until the sweep.
pub struct Daemon {
    name: String,
    child: Child,
}

impl Daemon {
    /// Starts a process in a network namespace, with a log of its own.
    pub fn spawn(name: &str, netns: &Netns, command: &mut Command) -> Result<Self> {
        let log = File::create(log(name)).with_context(|| format!("creating the log of {name}"))?;
        // Ctrl-C is for whoever started it.
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A child is born in the namespace of the thread that makes it.
        let mut child = netns
            .run(|| command.spawn())
            .with_context(|| format!("starting {} as {name}", command.get_program().to_string_lossy()))?;
        if let Err(error) = record(name, child.id(), &command.get_program().to_string_lossy()) {
            // Nobody would find it again.
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        Ok(Self { name: name.to_owned(), child })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it is so. When it does not become so, or the process ends first, its log says why.
    pub fn wait(&mut self, patience: Duration, what: &str, mut ask: impl FnMut() -> bool) -> Result<()> {
        let child = &mut self.child;
        let done = wait::until(patience, what, || match child.try_wait() {
            Ok(Some(status)) => Some(Err(anyhow!("it ended ({status}) before {what}"))),
            _ => ask().then_some(Ok(())),
        });
        done.and_then(|ended| ended)
            .map_err(|error| anyhow!("{}: {error:#}\n{}", self.name, tail(&self.name)))
    }
}

/// Notes a process for the sweep and for `status`. What is sought is a part of its command line: ids are
/// used again.
pub fn record(name: &str, pid: u32, sought: &str) -> Result<()> {
    let path = folder().join(format!("{name}.pid"));
    fs::write(&path, format!("{pid}\n{sought}\n")).with_context(|| format!("writing {}", path.display()))
}

/// A process that was noted.
pub struct Recorded {
    pub name: String,
    pub pid: i32,
    /// Whether that id still is that process.
    pub alive: bool,
}

/// All of them, by name.
pub fn recorded() -> Vec<Recorded> {
    let one = |file: &PathBuf| {
        let (pid, alive) = sweep::recorded(file)?;
        Some(Recorded { name: file.file_stem()?.to_str()?.to_owned(), pid, alive })
    };
    let mut all: Vec<_> = sweep::files_ending(&folder(), ".pid").iter().filter_map(one).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// The process that the other one started, once it did.
pub fn child_of(parent: u32) -> Option<u32> {
    let entries = fs::read_dir("/proc").ok()?;
    let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.into_iter().find(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        parent_in(&stat) == Some(parent)
    })
}

/// The name before it may have spaces and brackets of its own.
fn parent_in(stat: &str) -> Option<u32> {
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// The end of that process's log.
pub fn tail(name: &str) -> String {
    let text = fs::read(log(name)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    format!("--- the end of {name}'s log:\n{}", lines[lines.len().saturating_sub(25)..].join("\n"))
}

fn log(name: &str) -> PathBuf {
    logs().join(format!("{name}.log"))
}

#[cfg(test)]
mod tests {
    use super::parent_in;

    #[test]
    fn the_parent_is_read_whatever_the_name() {
        let table = [
            ("12 (sh) S 7 12 12 0", Some(7)),
            ("12 (a ) S 3 (b) R 8 12", Some(8)),
            ("12 (sh", None),
            ("", None),
        ];
        for (stat, parent) in table {
            assert_eq!(parent_in(stat), parent, "{stat}");
        }
    }
}
