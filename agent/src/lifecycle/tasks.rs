//! Tasks that are joined by name. One that ends is told to whoever asks, also when it panicked: a
//! listener that died silently would look like an agent that works.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};

#[derive(Default)]
pub struct TaskGroup {
    tasks: JoinSet<Result<(), BoxError>>,
    names: HashMap<Id, String>,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A task that is over.
#[derive(Debug)]
pub struct Ended {
    pub name: String,
    pub outcome: Outcome,
}

#[derive(Debug)]
pub enum Outcome {
    Done,
    Failed(BoxError),
    /// With the panic's message.
    Panicked(String),
    Cancelled,
}

impl TaskGroup {
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task. `name` is for the operator.
    pub fn spawn<F, E>(&mut self, name: impl Into<String>, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError> + 'static,
    {
        let handle = self.tasks.spawn(async move { task.await.map_err(Into::into) });
        self.names.insert(handle.id(), name.into());
    }

    /// The next task that ends; `None` when none is left.
    pub async fn next(&mut self) -> Option<Ended> {
        let joined = self.tasks.join_next_with_id().await?;
        Some(self.ended(joined))
    }

    /// Waits for every task. Those that are not over after `limit` are aborted, and are in the answer
    /// as [`Outcome::Cancelled`].
    pub async fn join(mut self, limit: Duration) -> Vec<Ended> {
        let mut ended = Vec::new();
        let all = async {
            while let Some(one) = self.next().await {
                ended.push(one);
            }
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            self.tasks.abort_all();
            while let Some(one) = self.next().await {
                ended.push(one);
            }
        }
        ended
    }

    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    fn ended(&mut self, joined: Result<(Id, Result<(), BoxError>), JoinError>) -> Ended {
        let (id, outcome) = match joined {
            Ok((id, Ok(()))) => (id, Outcome::Done),
            Ok((id, Err(e))) => (id, Outcome::Failed(e)),
            Err(e) => (e.id(), if e.is_panic() { panicked(e) } else { Outcome::Cancelled }),
        };
        Ended { name: self.names.remove(&id).unwrap_or_default(), outcome }
    }
}

fn panicked(e: JoinError) -> Outcome {
    let payload = e.into_panic();
    let message = payload
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned());
    Outcome::Panicked(message.unwrap_or_default())
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, outcome } = self;
        match outcome {
            Outcome::Done => write!(f, "{name} is over"),
            Outcome::Failed(e) => write!(f, "{name} failed: {e}"),
            Outcome::Panicked(message) => write!(f, "{name} panicked: {message}"),
            Outcome::Cancelled => write!(f, "{name} did not end in time and was aborted"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::io;

    #[tokio::test]
    async fn says_which_task_ended_and_how() {
        let mut group = TaskGroup::new();
        group.spawn("worker", async { Ok::<_, Infallible>(()) });
        assert_eq!(group.next().await.unwrap().to_string(), "worker is over");
        group.spawn("source", async { Err(io::Error::other("no such file")) });
        assert_eq!(group.next().await.unwrap().to_string(), "source failed: no such file");
        group.spawn("listener", async {
            if true {
                panic!("gone");
            }
            Ok::<_, Infallible>(())
        });
        let ended = group.next().await.unwrap().to_string();
        assert!(ended.starts_with("listener panicked: ") && ended.contains("gone"), "{ended}");
        assert!(group.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn join_waits_for_the_willing_and_aborts_the_rest() {
        let mut group = TaskGroup::new();
        group.spawn("quick", async { Ok::<_, Infallible>(()) });
        group.spawn("stuck", std::future::pending::<Result<(), Infallible>>());
        let mut ended: Vec<_> =
            group.join(Duration::from_secs(5)).await.iter().map(ToString::to_string).collect();
        ended.sort();
        assert_eq!(ended, ["quick is over", "stuck did not end in time and was aborted"]);
    }
}
