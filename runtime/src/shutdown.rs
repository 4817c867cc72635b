//! How a process is asked to end: once, by a signal or by its owner.

use std::future::Future;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A request to end that any number of parts can wait for. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// One that only [`Shutdown::trigger`] sets off.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that SIGTERM or SIGINT sets off; a second signal ends the process at once.
    ///
    /// # Errors
    /// When the process may not install signal handlers.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::new();
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let asked = shutdown.clone();
        tokio::spawn(async move {
            let name = tokio::select! { _ = term.recv() => "SIGTERM", _ = int.recv() => "SIGINT" };
            tracing::info!(signal = name, "shutdown requested");
            asked.trigger();
            tokio::select! { _ = term.recv() => (), _ = int.recv() => () }
            tracing::warn!("second signal, ending without draining");
            std::process::exit(EXIT_IMPATIENT);
        });
        Ok(shutdown)
    }

    /// Asks everything that waits to end.
    pub fn trigger(&self) {
        self.0.cancel();
    }

    /// Whether the end was asked for.
    pub fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until the end is asked for.
    pub async fn requested(&self) {
        self.0.cancelled().await;
    }

    /// A request that follows this one, but can be triggered alone.
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }

    /// Runs `work` until it is done or the end is asked for; `None` in the second case.
    pub async fn unless<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.0.run_until_cancelled(work).await
    }
}

/// 128 + SIGINT, as shells report it.
const EXIT_IMPATIENT: i32 = 130;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everyone_who_waits_is_told_once_and_for_good() {
        let shutdown = Shutdown::new();
        let (other, child) = (shutdown.clone(), shutdown.child());
        assert_eq!(shutdown.unless(async { 1 }).await, Some(1));
        shutdown.trigger();
        other.requested().await;
        child.requested().await;
        assert_eq!(other.unless(std::future::pending::<u8>()).await, None);
    }

    #[tokio::test]
    async fn a_child_does_not_end_its_parent() {
        let shutdown = Shutdown::new();
        shutdown.child().trigger();
        assert!(!shutdown.is_requested());
    }
}
