//! Background work that belongs to somebody.
//!
//! Tasks of a set end when the set is dropped, and one that panics is logged and noticed instead of vanishing.

use std::collections::HashMap;
use std::future::Future;

use tokio::task::{Id, JoinError, JoinSet};

use crate::shutdown::Shutdown;

/// A named set of tasks.
#[derive(Debug, Default)]
pub struct TaskSet {
    set: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The name it was spawned with.
    pub name: &'static str,
    /// Whether it panicked.
    pub panicked: bool,
}

impl TaskSet {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts `work`.
    pub fn spawn(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.reap();
        let handle = self.set.spawn(work);
        self.names.insert(handle.id(), name);
    }

    /// How many tasks have not been seen to end.
    pub fn len(&self) -> usize {
        self.set.len()
    }

    /// Whether no task is left.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Waits for the next task to end; `None` when there is none. Safe to cancel.
    pub async fn finished(&mut self) -> Option<Finished> {
        let ended = self.set.join_next_with_id().await?;
        Some(self.note(ended))
    }

    /// Serves until `shutdown`, or until the first task ends or panics: then everything is asked to end,
    /// because a process that lost a part should be started again whole. Waits for all tasks in both cases.
    ///
    /// Answers the first task that ended before it was asked to.
    pub async fn run(&mut self, shutdown: &Shutdown) -> Option<Finished> {
        let ended = shutdown.unless(self.finished()).await.flatten();
        // A task that listens may end before we hear of the request ourselves.
        let early = ended.filter(|ended| ended.panicked || !shutdown.is_requested());
        if let Some(ended) = early {
            tracing::error!(task = ended.name, panicked = ended.panicked, "task ended early, shutting down");
        }
        shutdown.trigger();
        if tokio::time::timeout(DRAIN_MAX, async { while self.finished().await.is_some() {} }).await.is_err() {
            tracing::warn!(tasks = self.len(), "tasks did not end in time, aborting them");
        }
        self.abort().await;
        early
    }

    /// Ends every task and waits until they are gone.
    pub async fn abort(&mut self) {
        self.set.abort_all();
        while self.finished().await.is_some() {}
    }

    fn reap(&mut self) {
        while let Some(ended) = self.set.try_join_next_with_id() {
            self.note(ended);
        }
    }

    fn note(&mut self, ended: Result<(Id, ()), JoinError>) -> Finished {
        let (id, panicked) = match &ended {
            Ok((id, ())) => (*id, false),
            Err(error) => (error.id(), error.is_panic()),
        };
        let name = self.names.remove(&id).unwrap_or("?");
        if panicked {
            tracing::error!(task = name, "task panicked");
        }
        Finished { name, panicked }
    }
}

/// How long [`TaskSet::run`] waits for tasks that were asked to end.
pub const DRAIN_MAX: std::time::Duration = std::time::Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_reported_with_the_name() {
        let mut tasks = TaskSet::new();
        tasks.spawn("sync", async { panic!("on purpose") });
        assert_eq!(tasks.finished().await, Some(Finished { name: "sync", panicked: true }));
        assert_eq!(tasks.finished().await, None);
    }

    #[tokio::test]
    async fn the_end_of_one_task_ends_the_others() {
        let (mut tasks, shutdown) = (TaskSet::new(), Shutdown::new());
        let asked = shutdown.clone();
        tasks.spawn("patient", async move { asked.requested().await });
        tasks.spawn("short", async {});
        assert_eq!(tasks.run(&shutdown).await, Some(Finished { name: "short", panicked: false }));
        assert!(tasks.is_empty());
    }

    #[tokio::test]
    async fn an_end_that_was_asked_for_is_not_early() {
        let (mut tasks, shutdown) = (TaskSet::new(), Shutdown::new());
        let asked = shutdown.clone();
        tasks.spawn("listening", async move { asked.requested().await });
        tokio::task::yield_now().await;
        shutdown.trigger();
        tokio::task::yield_now().await;
        assert_eq!(tasks.run(&shutdown).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_listen_is_aborted_after_the_drain_limit() {
        let (mut tasks, shutdown) = (TaskSet::new(), Shutdown::new());
        tasks.spawn("deaf", std::future::pending());
        shutdown.trigger();
        let begun = tokio::time::Instant::now();
        assert_eq!(tasks.run(&shutdown).await, None);
        assert_eq!(begun.elapsed(), DRAIN_MAX);
    }
}
