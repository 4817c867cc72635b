//! Something that is done again and again on a thread of its own, with a count of what went well and what did not.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;

/// Goes on until it is dropped.
#[derive(Debug)]
pub struct Steady {
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

/// What is shared with the thread.
#[derive(Debug, Default)]
pub struct Counts {
    stop: AtomicBool,
    answered: AtomicU64,
    failed: AtomicU64,
    reopened: AtomicU64,
    trouble: Mutex<String>,
}

/// What was seen since the start, or since [`Steady::forget`].
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// How much went well.
    pub answered: u64,
    /// How much failed.
    pub failed: u64,
    /// How often a connection that was closed in order was followed by another.
    pub reopened: u64,
    /// What the last failure was; empty when there was none.
    pub trouble: String,
}

impl Counts {
    /// Whether nobody has said that it is enough.
    pub fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Counts something that went well.
    pub fn answered(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection that was closed in order, and that another will follow.
    pub fn reopened(&self) {
        self.reopened.fetch_add(1, Ordering::Relaxed);
    }
}

impl Steady {
    /// Does `ask` again and again. It counts what goes well itself, and may go on for as long as [`Counts::goes_on`]; an error
    /// is counted here, and followed by `pause`.
    pub fn start(pause: Duration, mut ask: impl FnMut(&Counts) -> Result<()> + Send + 'static) -> Self {
        let counts = Arc::new(Counts::default());
        let shared = counts.clone();
        let thread = std::thread::spawn(move || {
            while shared.goes_on() {
                if let Err(error) = ask(&shared) {
                    *shared.trouble.lock().unwrap_or_else(PoisonError::into_inner) = format!("{error:#}");
                    shared.failed.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(pause);
                }
            }
        });
        Self { counts, thread: Some(thread) }
    }

    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        let Counts { answered, failed, reopened, trouble, .. } = &*self.counts;
        let trouble = trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let [answered, failed, reopened] = [answered, failed, reopened].map(|count| count.load(Ordering::Relaxed));
        Seen { answered, failed, reopened, trouble }
    }

    /// Begins to count anew.
    pub fn forget(&self) {
        self.counts.answered.store(0, Ordering::Relaxed);
        self.counts.failed.store(0, Ordering::Relaxed);
        self.counts.reopened.store(0, Ordering::Relaxed);
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.counts.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
