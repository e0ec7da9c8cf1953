//! Removing what a topology made: its agents, its kernel programs, its namespaces, its folder.
//!
//! Everything is found by the prefix that names it, never by memory, so that one function serves an
//! orderly end, a panic, Ctrl-C, and what a killed process left behind.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, Once};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::ip;
use crate::{kube, wait};

/// Where the things of one topology lie.
pub fn folder(prefix: &str) -> PathBuf {
    std::env::temp_dir().join(format!("underpass-{prefix}"))
}

/// Removes everything that is named `<prefix>…`. Says on standard error what it could not remove.
pub fn remove(prefix: &str) {
    let dir = folder(prefix);
    for file in files_ending(&dir, ".pid") {
        kill_recorded(&file);
    }
    for config in files_ending(&dir, ".agent.yaml") {
        uninstall(&config);
    }
    unpin(prefix);
    kube::remove_cgroups(prefix);
    let batch: String = namespaces()
        .into_iter()
        .filter(|name| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('-')))
        .map(|name| format!("netns del {name}\n"))
        .collect();
    if !batch.is_empty()
        && let Err(e) = ip("-force -batch -", &batch)
    {
        eprintln!("cleaning up: {e:#}");
    }
    let _ = std::fs::remove_dir_all(&dir);
    MADE.lock().unwrap_or_else(|p| p.into_inner()).retain(|made| made != prefix);
}

/// From now on Ctrl-C and SIGTERM remove what this process made, and end it with 130.
pub fn on_interrupt() {
    std::thread::spawn(|| {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut int), Ok(mut term)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
            eprintln!("interrupted: removing everything");
            let made = MADE.lock().unwrap_or_else(|p| p.into_inner()).clone();
            for prefix in &made {
                remove(prefix);
            }
            std::process::exit(130);
        });
    });
}

/// Prefixes of the topologies that stand.
static MADE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A topology with this prefix is about to be made.
pub(crate) fn made(prefix: &str) {
    MADE.lock().unwrap_or_else(|p| p.into_inner()).push(prefix.to_owned());
}

/// Removes, once per process, what processes that are no more left behind.
pub fn leftovers() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let folders = files_ending(&std::env::temp_dir(), "");
        let folders = folders.iter().filter_map(|p| p.file_name()?.to_str()?.strip_prefix("underpass-"));
        let mut names = namespaces();
        let pins = files_ending(Path::new(PINS), "");
        names.extend(pins.iter().filter_map(|p| Some(p.file_name()?.to_str()?.to_owned())));
        let mut prefixes: Vec<&str> =
            folders.chain(names.iter().map(String::as_str)).filter_map(prefix_of_the_dead).collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        for prefix in prefixes {
            eprintln!("removing what a killed run left: {prefix}");
            remove(prefix);
        }
    });
}

/// `up<pid>-<n>` of a name that begins so, if no such process lives.
fn prefix_of_the_dead(name: &str) -> Option<&str> {
    let rest = name.strip_prefix("up")?;
    let (pid, rest) = rest.split_once('-')?;
    let pid: i32 = pid.parse().ok()?;
    let number = rest.split('-').next()?;
    number.parse::<u32>().ok()?;
    let alive = Path::new(&format!("/proc/{pid}")).exists();
    (!alive).then(|| &name[..name.len() - rest.len() + number.len()])
}

/// The process id that a file names, and whether it still is the process that was started: the file's second
/// line is a part of its command line, since ids are used again.
pub(crate) fn recorded(file: &Path) -> Option<(i32, bool)> {
    let text = std::fs::read_to_string(file).ok()?;
    let mut lines = text.lines();
    let (pid, sought) = (lines.next()?.parse::<i32>().ok()?, lines.next()?);
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    Some((pid, String::from_utf8_lossy(&command).contains(sought)))
}

/// Kills the process that a file names, if it still is that one.
fn kill_recorded(file: &Path) {
    let Some((pid, true)) = recorded(file) else { return };
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    let gone = || {
        // A zombie of our own is as good as gone; its parent reaps it.
        std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |s| s.contains(") Z "))
    };
    if let Err(e) = wait::until_true(Duration::from_secs(10), "the killed process is gone", gone) {
        eprintln!("cleaning up: {e:#}");
    }
    let _ = std::fs::remove_file(file);
}

fn uninstall(config: &Path) {
    let Ok(binary) = crate::binary::agent() else { return };
    let log = config.with_extension("uninstall.log");
    let Ok(said) = std::fs::File::create(&log) else { return };
    let started = Command::new(binary)
        .args(["uninstall", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(said)
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(e) => return eprintln!("cleaning up: starting underpass uninstall: {e}"),
    };
    let ended = wait::until(Duration::from_secs(10), "it has ended", || child.try_wait().ok().flatten());
    match ended {
        Ok(status) if status.success() => {}
        Ok(_) => {
            let why = std::fs::read_to_string(&log).unwrap_or_default();
            eprintln!("cleaning up: underpass uninstall: {}", why.trim());
        }
        Err(_) => {
            eprintln!("cleaning up: underpass uninstall did not end, and is killed");
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Where the agents of the harness pin maps and links, one folder for each.
pub(crate) const PINS: &str = "/sys/fs/bpf/underpass";

/// Removes pins by hand: what remains where an agent's own uninstall was missing or failed. A link whose
/// pin is gone is detached.
fn unpin(prefix: &str) {
    let Ok(instances) = std::fs::read_dir(PINS) else { return };
    for instance in instances.flatten() {
        let name = instance.file_name();
        if name.to_str().and_then(|n| n.strip_prefix(prefix)).is_some_and(|rest| rest.starts_with('-')) {
            let _ = std::fs::remove_dir_all(instance.path());
        }
    }
}

fn namespaces() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return vec![] };
    entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect()
}

pub(crate) fn files_ending(dir: &Path, end: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return vec![] };
    entries.flatten().map(|e| e.path()).filter(|p| p.to_string_lossy().ends_with(end)).collect()
}
