//! An orderly stop. Draining comes first: nothing new is taken, what lives goes on. The cut comes when
//! the deadline passes, or when somebody asks a second time.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::LifecycleError;

#[derive(Clone)]
pub struct Shutdown {
    drain: CancellationToken,
    cut: CancellationToken,
    deadline: Duration,
    reason: Arc<std::sync::OnceLock<String>>,
}

impl Shutdown {
    /// `deadline` is how long connections may go on after the stop was asked for.
    pub fn new(deadline: Duration) -> Self {
        Self {
            drain: CancellationToken::new(),
            cut: CancellationToken::new(),
            deadline,
            reason: Arc::default(),
        }
    }

    /// Begins to drain, and cuts when the deadline has passed; asked again, cuts at once.
    /// Needs a Tokio runtime.
    pub fn stop(&self, reason: &str) {
        if self.reason.set(reason.to_owned()).is_err() {
            tracing::warn!(reason, "asked to stop again: cutting what is still open");
            self.cut.cancel();
            return;
        }
        tracing::info!(reason, deadline = ?self.deadline, "stopping: no new connections");
        self.drain.cancel();
        let (cut, deadline) = (self.cut.clone(), self.deadline);
        tokio::spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(deadline) => cut.cancel(),
                () = cut.cancelled() => {}
            }
        });
    }

    /// Cancelled when nothing new may be taken: listeners close, tunnels send GOAWAY.
    pub fn draining(&self) -> &CancellationToken {
        &self.drain
    }

    /// Cancelled when what is still open must end, recorded as `Cause::Drained`. Always after
    /// [`Self::draining`].
    pub fn cut(&self) -> &CancellationToken {
        &self.cut
    }

    /// Why the agent stops, once it does.
    pub fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }
}

/// SIGTERM and SIGINT, taken over from their default action.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on these signals no longer end the process by themselves.
    pub fn take() -> Result<Self, LifecycleError> {
        let listen =
            |kind, name| signal(kind).map_err(|source| LifecycleError::Signal { signal: name, source });
        Ok(Self {
            terminate: listen(SignalKind::terminate(), "SIGTERM")?,
            interrupt: listen(SignalKind::interrupt(), "SIGINT")?,
        })
    }

    /// Asks `shutdown` to stop at each signal, forever.
    pub async fn stop(mut self, shutdown: Shutdown) {
        loop {
            let name = tokio::select! {
                _ = self.terminate.recv() => "SIGTERM",
                _ = self.interrupt.recv() => "SIGINT",
            };
            shutdown.stop(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal as Number, raise};

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn drains_then_cuts_at_the_deadline() {
        let shutdown = Shutdown::new(HOUR);
        assert!(!shutdown.draining().is_cancelled());
        let begun = tokio::time::Instant::now();
        shutdown.stop("test");
        assert!(shutdown.draining().is_cancelled());
        assert!(!shutdown.cut().is_cancelled());
        assert_eq!(shutdown.reason(), Some("test"));
        shutdown.cut().cancelled().await;
        assert_eq!(begun.elapsed().as_secs(), HOUR.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn asked_twice_cuts_at_once_and_keeps_the_first_reason() {
        let shutdown = Shutdown::new(HOUR);
        shutdown.stop("first");
        shutdown.stop("second");
        assert!(shutdown.cut().is_cancelled());
        assert_eq!(shutdown.reason(), Some("first"));
    }

    #[tokio::test]
    async fn signals_drain_and_the_second_one_cuts() {
        let shutdown = Shutdown::new(HOUR);
        let signals = Signals::take().unwrap();
        let task = tokio::spawn(signals.stop(shutdown.clone()));
        raise(Number::SIGTERM).unwrap();
        shutdown.draining().cancelled().await;
        assert!(!shutdown.cut().is_cancelled());
        raise(Number::SIGINT).unwrap();
        shutdown.cut().cancelled().await;
        assert_eq!(shutdown.reason(), Some("SIGTERM"));
        task.abort();
    }
}
