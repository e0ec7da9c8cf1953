//! What processes and the machine spend, as the kernel counts it.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::load;

/// Processor time of processes so far, all their threads.
pub(super) fn of_processes(pids: &[i32]) -> Result<Duration> {
    let mut ticks = 0;
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("the agent {pid} is gone"))?;
        // The second field is the name in parentheses, and may hold spaces.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        ticks += number(fields.get(11)) + number(fields.get(12));
    }
    Ok(ticks_to_time(ticks))
}

/// Processor time that the whole machine was not idle.
pub(super) fn of_machine() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let fields: Vec<&str> = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).collect();
    let all: u64 = (0..8).map(|i| number(fields.get(i))).sum();
    Ok(ticks_to_time(all - number(fields.get(3)) - number(fields.get(4))))
}

/// Resident memory of processes, in KiB.
pub(super) fn resident_kib(pids: &[i32]) -> Result<u64> {
    let mut kib = 0;
    for pid in pids {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))
            .with_context(|| format!("the agent {pid} is gone"))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
        kib += number(line.split_whitespace().next().as_ref());
    }
    Ok(kib)
}

/// Keeps every thread that the processes have now on these processors.
pub(super) fn keep_processes_on(pids: &[i32], cpus: &[usize]) -> Result<()> {
    for pid in pids {
        for task in
            fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("the agent {pid} is gone"))?
        {
            let name = task.context("listing threads")?.file_name();
            if let Some(tid) = name.to_str().and_then(|t| t.parse().ok()) {
                // A thread may have ended since.
                let _ = load::keep_on(Pid::from_raw(tid), cpus);
            }
        }
    }
    Ok(())
}

/// All processors of the machine.
pub(super) fn all_cpus() -> Vec<usize> {
    (0..std::thread::available_parallelism().map_or(1, usize::from)).collect()
}

/// Raises the soft limit of open files to the hard one, for us and the agents to come; says what it is.
pub(super) fn raise_descriptors() -> nix::Result<usize> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(usize::try_from(hard).unwrap_or(usize::MAX))
}

/// Writes CLOCK_MONOTONIC in nanoseconds to a file and becomes the command: how a driver notes the moment
/// of an agent's start. Returns only on failure.
pub fn stamp(file: &str, command: &[String]) -> anyhow::Error {
    let Some((program, arguments)) = command.split_first() else {
        return anyhow::anyhow!("stamp FILE CMD: no command");
    };
    let written = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(anyhow::Error::from).and_then(|now| {
        let nanos = now.tv_sec() * 1_000_000_000 + now.tv_nsec();
        fs::write(file, nanos.to_string()).with_context(|| format!("writing {file}"))
    });
    match written {
        Ok(()) => anyhow::Error::from(Command::new(program).args(arguments).exec()).context(program.clone()),
        Err(e) => e,
    }
}

fn number(text: Option<&&str>) -> u64 {
    text.and_then(|t| t.parse().ok()).unwrap_or(0)
}

fn ticks_to_time(ticks: u64) -> Duration {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().map_or(100, i64::cast_unsigned);
    Duration::from_secs_f64(ticks as f64 / per_second as f64)
}
