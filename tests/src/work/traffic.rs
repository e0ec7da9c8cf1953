//! Connections that are made all the time while something else happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use super::talk;
use crate::{Cluster, wait};

/// Short connections in both directions, all the time.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Traffic {
    /// Between two pods that serve echo on this port: one family in one direction, the other in the other.
    pub fn start(cluster: &Cluster, pods: [&str; 2], port: u16) -> Self {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let threads = [(pods[0], pods[1], false), (pods[1], pods[0], true)].map(|(from, to, v6)| {
            let (ns, to) = (cluster.ns(from).clone(), cluster.addr(to, port, v6));
            let (stop, done) = (stop.clone(), done.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let so_far = done.fetch_add(1, Ordering::Relaxed);
                    talk::echo_once(&ns, to).with_context(|| format!("connection {so_far} to {to}"))?;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(())
            })
        });
        Self { stop, done, threads: threads.into() }
    }

    /// Waits until more of them were made, which began after this.
    pub fn goes_on(&self) -> Result<()> {
        let before = self.done.load(Ordering::Relaxed);
        wait::until_true(wait::PATIENCE, "more connections were made", || {
            self.done.load(Ordering::Relaxed) > before + 20
        })
    }

    /// That none failed; says how many there were.
    pub fn end(mut self) -> Result<usize> {
        self.goes_on()?;
        self.stop.store(true, Ordering::Relaxed);
        for thread in std::mem::take(&mut self.threads) {
            thread.join().map_err(|_| anyhow::anyhow!("a traffic thread panicked"))??;
        }
        Ok(self.done.load(Ordering::Relaxed))
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
