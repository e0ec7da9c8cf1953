//! The measurements, and the order in which rounds take them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Plan;
use super::cost;
use super::site::{DRAIN, ECHO, HTTP, JUDGED, Kind, Reach, Site};
use crate::load::round_trip::Say;
use crate::load::{self, Times, bulk, round_trip, short};
use nix::unistd::Pid;

pub(super) struct Test {
    pub(super) name: &'static str,
    what: What,
    /// Client, server and agents on one processor: what is left is the length of the path, without the
    /// price of waking another one, which a virtual machine makes dear and random.
    pinned: bool,
}

#[derive(Clone, Copy)]
enum What {
    RoundTrips {
        connections: usize,
    },
    Short {
        at_once: usize,
    },
    Bulk {
        streams: usize,
    },
    /// Requests of HTTP/1.1 to this port.
    Requests {
        port: u16,
        connections: usize,
    },
}

pub(super) const TESTS: [Test; 12] = [
    Test { name: "rr1p", what: What::RoundTrips { connections: 1 }, pinned: true },
    Test { name: "rr1", what: What::RoundTrips { connections: 1 }, pinned: false },
    Test { name: "rr64", what: What::RoundTrips { connections: 64 }, pinned: false },
    Test { name: "crr1p", what: What::Short { at_once: 1 }, pinned: true },
    Test { name: "crr1", what: What::Short { at_once: 1 }, pinned: false },
    Test { name: "crr16", what: What::Short { at_once: 16 }, pinned: false },
    Test { name: "tp1", what: What::Bulk { streams: 1 }, pinned: false },
    Test { name: "tp8", what: What::Bulk { streams: 8 }, pinned: false },
    requests("http1p", HTTP, 1, true),
    requests("judged1p", JUDGED, 1, true),
    requests("http64", HTTP, 64, false),
    requests("judged64", JUDGED, 64, false),
];

const fn requests(name: &'static str, port: u16, connections: usize, pinned: bool) -> Test {
    Test { name, what: What::Requests { port, connections }, pinned }
}

/// One measurement on one path. What does not apply is absent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sample {
    pub(super) p50_us: Option<f64>,
    pub(super) p99_us: Option<f64>,
    pub(super) per_second: Option<f64>,
    pub(super) gbit: Option<f64>,
    /// Seconds of the agents' processor time for a request, a connection or a GB.
    pub(super) agent: Option<f64>,
    /// The same of the whole machine, load and all.
    pub(super) machine: Option<f64>,
}

/// A column: whose path (index of the site, none for plain TCP), and how far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Column {
    pub(super) site: Option<usize>,
    pub(super) cross: bool,
}

/// Per round, by test and column.
#[derive(Default)]
pub(super) struct Rounds(pub(super) Vec<BTreeMap<(&'static str, Column), Sample>>);

pub(super) fn columns(sites: usize) -> Vec<Column> {
    let sites = std::iter::once(None).chain((0..sites).map(Some));
    sites.flat_map(|site| [false, true].map(|cross| Column { site, cross })).collect()
}

impl Rounds {
    pub(super) fn take(&mut self, plan: &Plan, sites: &[Site]) -> Result<()> {
        let mut round = BTreeMap::new();
        for test in TESTS.iter().filter(|t| plan.tests.is_empty() || plan.tests.iter().any(|n| n == t.name)) {
            for column in columns(sites.len()) {
                let site = &sites[column.site.unwrap_or(0)];
                let sample = measure(plan, site, test, column)
                    .with_context(|| format!("{} on {} ({column:?})", test.name, site.name))?;
                round.insert((test.name, column), sample);
            }
        }
        self.0.push(round);
        Ok(())
    }

    /// The last round in one line.
    pub(super) fn last_word(&self) -> String {
        let Some(round) = self.0.last() else { return String::new() };
        let word = |((test, column), sample): (&(&str, Column), &Sample)| {
            let value = sample.gbit.map(|g| format!("{g:.1} Gbit/s"));
            let value = value.or_else(|| sample.p50_us.map(|us| format!("{us:.0} us")))?;
            column.cross.then(|| format!("{test} {}{value}", column.site.map_or("plain ", |_| "")))
        };
        round.iter().filter_map(word).collect::<Vec<_>>().join(", ")
    }
}

fn measure(plan: &Plan, site: &Site, test: &Test, column: Column) -> Result<Sample> {
    if !test.pinned {
        return measure_here(plan, site, test, column);
    }
    pin(site, &[plan.cpu])?;
    let sample = measure_here(plan, site, test, column);
    pin(site, &cost::all_cpus())?;
    sample
}

fn pin(site: &Site, cpus: &[usize]) -> Result<()> {
    cost::keep_processes_on(&site.product.pids()?, cpus)?;
    for echo in site.echo.values() {
        load::keep_on(echo.tid(), cpus).context("pinning an echo server")?;
    }
    Ok(())
}

fn measure_here(plan: &Plan, site: &Site, test: &Test, column: Column) -> Result<Sample> {
    let kind = if column.site.is_some() { Kind::Mesh } else { Kind::Direct };
    let reach = if column.cross { Reach::CrossNode } else { Reach::SameNode };
    let (client, server) = site.ends(kind, reach);
    let pids = if kind == Kind::Mesh { site.product.pids()? } else { vec![] };
    let (agent, machine) = (cost::of_processes(&pids)?, cost::of_machine()?);
    let run = || -> io::Result<(Sample, f64)> {
        if test.pinned {
            load::keep_on(Pid::from_raw(0), &[plan.cpu])?;
        }
        match test.what {
            What::RoundTrips { connections } => {
                let to = site.address(server, ECHO);
                Ok(timed(plan, round_trip::measure(&round_trips(plan, to, connections, Say::Echo(128)))?))
            }
            What::Requests { port, connections } => {
                let to = site.address(server, port);
                Ok(timed(plan, round_trip::measure(&round_trips(plan, to, connections, Say::Http))?))
            }
            What::Short { at_once } => {
                let to = site.address(server, ECHO);
                Ok(timed(plan, short::measure(&short::Plan { to, at_once, warm: plan.warm, run: plan.run })?))
            }
            What::Bulk { streams } => {
                let to = site.address(server, DRAIN);
                let (bytes, took) = bulk::measure(to, &site.drain[server], streams, plan.warm, plan.run)?;
                let gbytes = bytes as f64 / 1e9;
                let gbit = gbytes * 8.0 / took.as_secs_f64();
                // The warm-up's bytes cost too.
                Ok((Sample { gbit: Some(gbit), ..Sample::default() }, gbytes * with_warmup(plan)))
            }
        }
    };
    let (mut sample, work) = client.ns.run(run).context("measuring")?;
    let machine = cost::of_machine()? - machine;
    sample.machine = Some(machine.as_secs_f64() / work);
    if kind == Kind::Mesh {
        let agent: Duration = cost::of_processes(&pids)? - agent;
        sample.agent = Some(agent.as_secs_f64() / work);
    }
    Ok(sample)
}

fn round_trips(plan: &Plan, to: SocketAddr, connections: usize, say: Say) -> round_trip::Plan {
    round_trip::Plan { to, connections, say, warm: plan.warm, run: plan.run }
}

/// The sample and how much work was done, warm-up included.
fn timed(plan: &Plan, mut times: Times) -> (Sample, f64) {
    let sample = Sample {
        p50_us: Some(times.p50_us()),
        p99_us: Some(times.p99_us()),
        per_second: Some(times.count() as f64 / plan.run.as_secs_f64()),
        ..Sample::default()
    };
    (sample, times.count() as f64 * with_warmup(plan))
}

fn with_warmup(plan: &Plan) -> f64 {
    1.0 + plan.warm.as_secs_f64() / plan.run.as_secs_f64()
}
