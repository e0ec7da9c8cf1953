//! The way from a finished record to the log's file: a bounded buffer, and a thread that writes it out
//! in batches.
//!
//! No line is lost while the output takes bytes. When its reader falls behind, first new connections
//! wait ([`LogQueue::room`]); only if those that are already open finish so many lines that the buffer
//! doubles does [`LogQueue::push`] hold its thread.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::TelemetryError;

pub(super) struct LogQueue {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

/// Numbers for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct QueueStats {
    pub(super) queued_bytes: u64,
    pub(super) lines: u64,
    pub(super) lost_lines: u64,
}

struct Shared {
    state: Mutex<State>,
    /// For the writer: there is something to do.
    work: Condvar,
    /// For everybody who waits on the writer: it has written something.
    progress: Condvar,
    /// The asynchronous counterpart of `progress`, for `room`.
    drained: Notify,
    congested: AtomicBool,
    soft_limit: usize,
}

#[derive(Default)]
struct State {
    pending: Vec<u8>,
    /// Bytes that were ever pushed, and that were ever dealt with.
    pushed: u64,
    done: u64,
    lines: u64,
    lost_lines: u64,
    writer: Writer,
    /// Somebody waits for a flush: no lingering.
    urgent: bool,
    stop: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Writer {
    #[default]
    Busy,
    /// Waits for the first byte.
    Idle,
    /// Has seen a byte, and waits a little for more to write with it.
    Lingering,
}

/// A batch is written when it has this many bytes, or its first byte is this old.
const BATCH: usize = 64 << 10;
const LINGER: Duration = Duration::from_millis(10);
const LAST_FLUSH: Duration = Duration::from_secs(5);

impl LogQueue {
    pub(super) fn start(
        output: impl Write + Send + 'static,
        soft_limit: usize,
    ) -> Result<Self, TelemetryError> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            progress: Condvar::new(),
            drained: Notify::new(),
            congested: AtomicBool::new(false),
            soft_limit: soft_limit.max(BATCH),
        });
        let for_writer = Arc::clone(&shared);
        let writer = thread::Builder::new()
            .name("access-log".into())
            .spawn(move || for_writer.write_out(output))
            .map_err(TelemetryError::Writer)?;
        Ok(Self { shared, writer: Some(writer) })
    }

    /// Queues one line, newline included.
    pub(super) fn push(&self, line: &[u8]) {
        let shared = &*self.shared;
        let hard_limit = shared.soft_limit * 2;
        let mut state = shared.lock();
        while state.outstanding() > 0 && state.outstanding() + line.len() > hard_limit {
            state = wait(&shared.progress, state);
        }
        state.pending.extend_from_slice(line);
        state.pushed += line.len() as u64;
        state.lines += 1;
        if state.outstanding() > shared.soft_limit {
            shared.congested.store(true, Ordering::Release);
        }
        let wake = match state.writer {
            Writer::Idle => true,
            Writer::Lingering => state.pending.len() >= BATCH,
            Writer::Busy => false,
        };
        drop(state);
        if wake {
            shared.work.notify_one();
        }
    }

    /// Waits until the buffer is below its soft limit.
    pub(super) async fn room(&self) {
        while self.shared.congested.load(Ordering::Acquire) {
            let drained = self.shared.drained.notified();
            tokio::pin!(drained);
            // Registers before the second look, or a drain between the two would be missed.
            drained.as_mut().enable();
            if self.shared.congested.load(Ordering::Acquire) {
                drained.await;
            }
        }
    }

    pub(super) fn flush(&self) {
        let mut state = self.shared.lock();
        let target = state.pushed;
        while state.done < target {
            state.urgent = true;
            self.shared.work.notify_one();
            state = wait(&self.shared.progress, state);
        }
    }

    pub(super) fn flush_within(&self, limit: Duration) -> Result<(), TelemetryError> {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        let target = state.pushed;
        while state.done < target {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Err(TelemetryError::Unflushed { limit, left: state.outstanding() });
            };
            state.urgent = true;
            self.shared.work.notify_one();
            state = self.shared.progress.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    pub(super) fn stats(&self) -> QueueStats {
        let state = self.shared.lock();
        QueueStats {
            queued_bytes: state.outstanding() as u64,
            lines: state.lines,
            lost_lines: state.lost_lines,
        }
    }
}

impl Drop for LogQueue {
    /// Writes what is left. A stuck reader does not hold up the process's end for longer than this.
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_one();
        let written = self.flush_within(LAST_FLUSH).is_ok();
        if let Some(writer) = self.writer.take().filter(|_| written) {
            let _ = writer.join();
        }
    }
}

impl State {
    /// Bytes that are pending or being written.
    fn outstanding(&self) -> usize {
        usize::try_from(self.pushed - self.done).unwrap_or(usize::MAX)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_out(&self, mut output: impl Write) {
        let mut batch = Vec::with_capacity(BATCH);
        while self.next_batch(&mut batch) {
            let lost = write_all(&mut output, &batch);
            let mut state = self.lock();
            state.done += batch.len() as u64;
            state.lost_lines += lost;
            if state.outstanding() <= self.soft_limit {
                self.congested.store(false, Ordering::Release);
                self.drained.notify_waiters();
            }
            drop(state);
            self.progress.notify_all();
        }
    }

    /// Takes what is pending; false when there is nothing and will be nothing.
    fn next_batch(&self, batch: &mut Vec<u8>) -> bool {
        batch.clear();
        // One burst must not cost its memory forever.
        batch.shrink_to(4 * BATCH);
        let mut state = self.lock();
        while state.pending.is_empty() {
            if state.stop {
                return false;
            }
            state.urgent = false;
            state.writer = Writer::Idle;
            state = wait(&self.work, state);
        }
        let deadline = Instant::now() + LINGER;
        while state.pending.len() < BATCH && !state.urgent && !state.stop {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { break };
            state.writer = Writer::Lingering;
            state = self.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.writer = Writer::Busy;
        std::mem::swap(&mut state.pending, batch);
        true
    }
}

/// Gives back how many lines could not be written.
fn write_all(output: &mut impl Write, mut bytes: &[u8]) -> u64 {
    while !bytes.is_empty() {
        match output.write(bytes) {
            Ok(0) => return report_loss(bytes, &io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // Standard output may be a pipe that somebody else made non-blocking.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => thread::sleep(LINGER),
            Err(e) => return report_loss(bytes, &e),
        }
    }
    // Only a test's output buffers; files ignore this.
    if let Err(e) = output.flush() {
        tracing::error!("flush of the access log failed: {e}");
    }
    0
}

fn report_loss(bytes: &[u8], why: &io::Error) -> u64 {
    let lines = bytes.iter().filter(|b| **b == b'\n').count() as u64;
    tracing::error!(
        lines,
        "write to the access log failed: {why}; these lines are lost. Check the reader of the agent's standard output, or the disk"
    );
    lines
}

fn wait<'a>(condvar: &Condvar, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
    condvar.wait(state).unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
