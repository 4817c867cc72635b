//! Whether a process may be sent work, and if not, what it waits for.
//!
//! A part blocks readiness by name and lifts the block by dropping the guard. Being ready is the absence of
//! blocks, so a part that forgets itself cannot make an unready process look ready.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// The blocks of one process. Clones share them.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<Shared>);

/// Holds a block or a note; dropping it lifts it.
#[derive(Debug)]
#[must_use = "dropping the guard lifts the block"]
pub struct ReadyGuard {
    shared: Arc<Shared>,
    id: u64,
}

#[derive(Debug)]
struct Shared {
    blocks: Mutex<Blocks>,
    ready: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Blocks {
    next: u64,
    names: BTreeMap<u64, String>,
    /// What does not block, but should be seen to.
    notes: BTreeMap<u64, String>,
}

impl Readiness {
    /// Nothing blocks yet.
    pub fn new() -> Self {
        let (ready, _) = watch::channel(true);
        Self(Arc::new(Shared { blocks: Mutex::default(), ready }))
    }

    /// Blocks readiness under `name` until the guard is dropped.
    pub fn block(&self, name: impl Into<String>) -> ReadyGuard {
        let mut blocks = self.0.lock();
        let id = blocks.next;
        blocks.next += 1;
        blocks.names.insert(id, name.into());
        self.0.ready.send_replace(false);
        drop(blocks);
        ReadyGuard { shared: self.0.clone(), id }
    }

    /// Says something to whoever looks at readiness, without blocking it, until the guard is dropped.
    pub fn note(&self, text: impl Into<String>) -> ReadyGuard {
        let mut blocks = self.0.lock();
        let id = blocks.next;
        blocks.next += 1;
        blocks.notes.insert(id, text.into());
        drop(blocks);
        ReadyGuard { shared: self.0.clone(), id }
    }

    /// The notes, oldest first.
    pub fn notes(&self) -> Vec<String> {
        self.0.lock().notes.values().cloned().collect()
    }

    /// Whether nothing blocks.
    pub fn is_ready(&self) -> bool {
        self.0.lock().names.is_empty()
    }

    /// The names that block, oldest first.
    pub fn blocked_by(&self) -> Vec<String> {
        self.0.lock().names.values().cloned().collect()
    }

    /// Waits until nothing blocks.
    pub async fn wait_ready(&self) {
        let mut ready = self.0.ready.subscribe();
        // The sender lives in `self`, so the channel cannot close while we wait.
        let _ = ready.wait_for(|ready| *ready).await;
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for ReadyGuard {
    fn drop(&mut self) {
        let mut blocks = self.shared.lock();
        blocks.names.remove(&self.id);
        blocks.notes.remove(&self.id);
        let ready = blocks.names.is_empty();
        self.shared.ready.send_replace(ready);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_when_the_last_block_is_lifted() {
        let readiness = Readiness::new();
        assert!(readiness.is_ready());
        let (svid, sync) = (readiness.block("own SVID"), readiness.block("first sync"));
        assert_eq!(readiness.blocked_by(), ["own SVID", "first sync"]);
        drop(svid);
        assert!(!readiness.is_ready());
        drop(sync);
        readiness.wait_ready().await;
        assert!(readiness.is_ready());
    }

    #[test]
    fn a_note_is_seen_and_blocks_nothing() {
        let readiness = Readiness::new();
        let note = readiness.note("renew the intermediate");
        assert!(readiness.is_ready());
        assert_eq!(readiness.notes(), ["renew the intermediate"]);
        drop(note);
        assert!(readiness.notes().is_empty());
    }

    #[test]
    fn the_same_name_twice_is_two_blocks() {
        let readiness = Readiness::new();
        let (one, two) = (readiness.block("cluster"), readiness.block("cluster"));
        drop(one);
        assert_eq!(readiness.blocked_by(), ["cluster"]);
        drop(two);
        assert!(readiness.is_ready());
    }
}
