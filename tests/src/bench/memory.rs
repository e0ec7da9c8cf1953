//! What idle connections cost in memory.

use std::time::Duration;

use anyhow::{Context, Result};

use super::cost;
use super::site::{ECHO, Kind, Reach, Site};
use crate::load::hold;
use crate::wait;

pub(super) struct Memory {
    /// Resident KiB of both agents, freshly started.
    pub(super) idle_kib: u64,
    pub(super) connections: usize,
    /// Per connection over both ends, by how far: same node, cross node.
    pub(super) kib_each: [Option<f64>; 2],
    pub(super) held_kib: [u64; 2],
}

/// Fresh agents for each figure, so that none inherits what another has freed.
pub(super) fn measure(site: &mut Site, connections: usize) -> Result<Memory> {
    let mut memory = Memory { idle_kib: 0, connections, kib_each: [None; 2], held_kib: [0; 2] };
    for (i, reach) in [Reach::SameNode, Reach::CrossNode].into_iter().enumerate() {
        site.product.stop()?;
        site.product.start()?;
        let pids = site.product.pids()?;
        let before = settled(&pids)?;
        memory.idle_kib = before;
        if connections == 0 {
            return Ok(memory);
        }
        let (client, server) = site.ends(Kind::Mesh, reach);
        let to = site.address(server, ECHO);
        let mut held = client.ns.run(|| hold::open(to, connections)).context("opening idle connections")?;
        let after = settled(&pids)?;
        anyhow::ensure!(hold::alive(&mut held) == connections, "idle connections did not stay");
        memory.held_kib[i] = after;
        memory.kib_each[i] = Some((after as f64 - before as f64) / connections as f64);
        eprintln!("{}: {connections} idle connections: {before} KiB, then {after} KiB", site.name);
    }
    Ok(memory)
}

/// Waits until the processes' memory stops moving.
fn settled(pids: &[i32]) -> Result<u64> {
    let mut last = 0;
    wait::until(Duration::from_secs(10), "the agents' memory is settled", || {
        std::thread::sleep(Duration::from_millis(500));
        let now = cost::resident_kib(pids).ok()?;
        let still = now.abs_diff(last) < 64;
        last = now;
        still.then_some(now)
    })
}
