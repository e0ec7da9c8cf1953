//! One run of a virtual machine, from power on to power off.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// What `vm-init` prints last, followed by the exit status of the commands.
const MARKER: &str = "vm-init: commands ended with status ";

/// How a run ended.
pub(super) enum Ended {
    /// The commands ran, and the first that failed had this exit status.
    Status(i32),
    /// The machine stopped before the commands had ended.
    Silent,
    /// The time was over, and the machine was killed.
    TooLate(Duration),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ended::Status(status) => write!(f, "a command ended with status {status}"),
            Ended::Silent => f.write_str("the machine stopped before its commands had ended"),
            Ended::TooLate(limit) => write!(f, "not done after {} s", limit.as_secs()),
        }
    }
}

/// Boots and waits for the end. The console goes to `log`, and to our error output if `verbose`.
pub(super) fn run(
    kernel: &Path,
    initramfs: &Path,
    log: &Path,
    limit: Duration,
    verbose: bool,
) -> Result<Ended> {
    let mut log = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let mut machine = Machine(start(kernel, initramfs)?);
    let console = machine.0.stdout.take().context("QEMU has no standard output")?;
    let lines = lines_of(console);
    let deadline = Instant::now() + limit;
    let mut ended = Ended::Silent;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                writeln!(log, "{line}")?;
                if verbose {
                    eprintln!("    | {line}");
                }
                if let Some(status) = status_in(&line) {
                    ended = Ended::Status(status);
                }
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(ended),
            Err(RecvTimeoutError::Timeout) => return Ok(Ended::TooLate(limit)),
        }
    }
}

fn start(kernel: &Path, initramfs: &Path) -> Result<Child> {
    let mut qemu = Command::new("qemu-system-x86_64");
    // Emulated even where there is KVM: the same everywhere, and inside other machines too.
    qemu.args(["-machine", "q35", "-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", "1024"]);
    qemu.args(["-nographic", "-no-reboot", "-nic", "none", "-append", "console=ttyS0 quiet panic=-1"]);
    qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs);
    qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start qemu-system-x86_64")
}

/// Killed and waited for, however the run ends.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn lines_of(console: ChildStdout) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            let line = without_controls(&String::from_utf8_lossy(&line));
            if send.send(line).is_err() {
                return;
            }
        }
    });
    receive
}

/// Firmware clears the screen, which would be the user's own: no control characters, and none of the
/// sequences that an escape begins.
fn without_controls(line: &str) -> String {
    let mut shown = String::new();
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        if c == '\u{1b}' && rest.next() == Some('[') {
            rest.by_ref().find(|c| ('@'..='~').contains(c));
        } else if c == '\t' || !c.is_control() {
            shown.push(c);
        }
    }
    shown
}

fn status_in(line: &str) -> Option<i32> {
    line.split_once(MARKER)?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{status_in, without_controls};

    #[test]
    fn the_status_is_read_from_the_marker() {
        let table = [
            ("vm-init: commands ended with status 0", Some(0)),
            ("\tvm-init: commands ended with status 3 ", Some(3)),
            ("vm-init: commands ended with status", None),
            ("status 0", None),
        ];
        for (line, status) in table {
            assert_eq!(status_in(line), status, "{line:?}");
        }
    }

    #[test]
    fn a_console_cannot_clear_the_screen() {
        let table = [
            ("\u{1b}c\u{1b}[?7l\u{1b}[2JBooting\r", "Booting"),
            ("a\tb\u{1b}[0;31mc\u{1b}[0m", "a\tbc"),
            ("\u{1b}", ""),
        ];
        for (line, shown) in table {
            assert_eq!(without_controls(line), shown, "{line:?}");
        }
    }
}
