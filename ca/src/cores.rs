//! The same work for many items on several cores, with the outcomes in the order of the items.
//!
//! It runs off the threads that serve connections, and in the whole process on no more threads at once than there are cores.
//! Whoever comes while all are busy waits for one of them.

use std::sync::{Arc, LazyLock};
use std::thread;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::refusal::Refusal;
use crate::store::StoreError;

/// Does `work` for each item. Few items are not worth another thread.
///
/// # Errors
/// When the process ends meanwhile.
pub(crate) async fn each<T, R>(items: Vec<T>, work: impl Fn(T) -> R + Send + Sync + 'static) -> Result<Vec<R>, Refusal>
where
    T: Send + 'static,
    R: Send + 'static,
{
    let shares = items.len() / SHARE_MIN;
    if shares < 2 {
        return Ok(items.into_iter().map(work).collect());
    }
    let ended = || Refusal::Store(StoreError::Closed);
    let mut permits = vec![FREE.clone().acquire_owned().await.map_err(|_| ended())?];
    while permits.len() < shares
        && let Ok(permit) = FREE.clone().try_acquire_owned()
    {
        permits.push(permit);
    }
    let share = items.len().div_ceil(permits.len());
    let (mut rest, work) = (items.into_iter(), Arc::new(work));
    let begin = |permit| {
        let (part, work): (Vec<T>, _) = (rest.by_ref().take(share).collect(), work.clone());
        spawn_blocking(move || {
            let done: Vec<R> = part.into_iter().map(&*work).collect();
            drop(permit);
            done
        })
    };
    let parts: Vec<_> = permits.into_iter().map(begin).collect();
    let mut done = Vec::new();
    for part in parts {
        done.append(&mut part.await.map_err(|_| ended())?);
    }
    Ok(done)
}

/// Threads that may work.
static FREE: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    Arc::new(Semaphore::new(cores.min(THREADS_MAX)))
});
/// The fewest items for a thread: a millisecond of signatures.
const SHARE_MIN: usize = 8;
/// The most threads, however many cores there are.
const THREADS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn outcomes_come_in_the_order_of_items_however_many() {
        for count in [0, 1, 2 * SHARE_MIN - 1, 2 * SHARE_MIN, 2 * SHARE_MIN + 1, 500] {
            let items: Vec<usize> = (0..count).collect();
            let done = each(items.clone(), |item| item * 2).await.unwrap();
            assert_eq!(done, items.iter().map(|item| item * 2).collect::<Vec<_>>());
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn all_together_use_no_more_threads_than_there_are_cores() {
        static NOW: AtomicUsize = AtomicUsize::new(0);
        static MOST: AtomicUsize = AtomicUsize::new(0);
        let work = |_: usize| {
            MOST.fetch_max(NOW.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::sleep(Duration::from_micros(200));
            NOW.fetch_sub(1, Ordering::SeqCst);
        };
        let all = (0..8).map(|_| each((0..100).collect(), work));
        for outcome in futures_util::future::join_all(all).await {
            assert_eq!(outcome.unwrap().len(), 100);
        }
        let cores = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let most = MOST.load(Ordering::SeqCst);
        assert!((1..=cores).contains(&most), "{most} of {cores}");
    }
}
