//! What waits for the writer, in two lanes: what keeps known nodes and workloads alive goes before what is new.
//!
//! Both lanes are bounded. Who finds its lane full is refused at once instead of making everybody late.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::StoreError;
use super::writer::Job;

/// How urgent a piece of writing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Renewals and issuance for whom we know, and what the authority needs itself.
    Known,
    /// Registrations, new nodes, tokens: can be asked for again.
    New,
}

/// Where jobs are put. Clones fill the same lanes.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    known: mpsc::Sender<Job>,
    new: mpsc::Sender<Job>,
    coming: Arc<AtomicUsize>,
}

/// Where the writer takes them from.
pub(super) struct Waiting {
    known: mpsc::Receiver<Job>,
    new: mpsc::Receiver<Job>,
    coming: Arc<AtomicUsize>,
}

/// Somebody signs what will be put in a moment; dropped right before.
#[derive(Debug)]
pub(crate) struct Coming(Arc<AtomicUsize>);

impl Drop for Coming {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) fn queue(known_max: usize, new_max: usize) -> (Queue, Waiting) {
    let ((known, known_waiting), (new, new_waiting)) = (mpsc::channel(known_max), mpsc::channel(new_max));
    let coming = Arc::new(AtomicUsize::new(0));
    (Queue { known, new, coming: coming.clone() }, Waiting { known: known_waiting, new: new_waiting, coming })
}

impl Queue {
    /// Puts a job into its lane.
    pub(super) fn put(&self, lane: Lane, job: Job) -> Result<(), StoreError> {
        let lane = match lane {
            Lane::Known => &self.known,
            Lane::New => &self.new,
        };
        lane.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => StoreError::Busy,
            mpsc::error::TrySendError::Closed(_) => StoreError::Closed,
        })
    }

    /// Has the next transaction wait a moment for a job that will be put in [`Lane::Known`].
    pub(super) fn coming(&self) -> Coming {
        self.coming.fetch_add(1, Ordering::Relaxed);
        Coming(self.coming.clone())
    }

    /// How many jobs wait.
    pub(super) fn length(&self) -> usize {
        [&self.known, &self.new].iter().map(|lane| lane.max_capacity() - lane.capacity()).sum()
    }
}

impl Waiting {
    /// The jobs of the next transaction, urgent ones first; none when nobody can put any more. What is new always gets
    /// some places, so that it is slow under load and not stuck.
    pub(super) async fn next(&mut self) -> Vec<Job> {
        let mut jobs = Vec::new();
        tokio::select! {
            biased;
            Some(job) = self.known.recv() => jobs.push(job),
            Some(job) = self.new.recv() => jobs.push(job),
            else => return jobs,
        }
        self.fill(&mut jobs);
        jobs
    }

    /// Adds to the jobs of the next transaction those that are about to come: a transaction costs the same for one as for many. Who is
    /// alone waits for nobody.
    pub(super) async fn gather(&mut self, jobs: &mut Vec<Job>) {
        tokio::task::yield_now().await;
        self.fill(jobs);
        let until = Instant::now() + GATHER_MAX;
        while self.coming.load(Ordering::Relaxed) > 0 && jobs.len() < BATCH_MAX - NEW_PLACES {
            let Ok(Some(job)) = tokio::time::timeout_at(until, self.known.recv()).await else { return };
            jobs.push(job);
            self.fill(jobs);
        }
    }

    fn fill(&mut self, jobs: &mut Vec<Job>) {
        take(&mut self.known, jobs, BATCH_MAX - NEW_PLACES);
        take(&mut self.new, jobs, BATCH_MAX);
    }
}

fn take(lane: &mut mpsc::Receiver<Job>, jobs: &mut Vec<Job>, up_to: usize) {
    while jobs.len() < up_to
        && let Ok(job) = lane.try_recv()
    {
        jobs.push(job);
    }
}

/// How long a transaction waits for those that are about to come.
const GATHER_MAX: Duration = Duration::from_millis(1);
/// The most jobs of one transaction.
const BATCH_MAX: usize = 256;
/// Places of a transaction that urgent jobs leave to the others.
const NEW_PLACES: usize = 32;
/// The most urgent jobs that wait.
pub(super) const KNOWN_WAITING_MAX: usize = 8_192;
/// The most other jobs that wait.
pub(super) const NEW_WAITING_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        Job::Issued { rows: Vec::new(), audit: None, reply: tokio::sync::oneshot::channel().0 }
    }

    #[tokio::test]
    async fn a_full_lane_refuses_and_the_other_does_not() {
        let (queue, mut waiting) = queue(4, 2);
        assert!(queue.put(Lane::New, job()).is_ok() && queue.put(Lane::New, job()).is_ok());
        assert_eq!(queue.put(Lane::New, job()).unwrap_err().reason(), "STORE_BUSY");
        assert!(queue.put(Lane::Known, job()).is_ok());
        assert_eq!(queue.length(), 3);
        assert_eq!(waiting.next().await.len(), 3);
        drop(queue);
        assert!(waiting.next().await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_transaction_waits_a_moment_for_those_that_are_about_to_come_and_not_for_ever() {
        let (queue, mut waiting) = queue(1_000, 1_000);
        queue.put(Lane::Known, job()).unwrap();
        let (prompt, slow) = (queue.coming(), queue.coming());
        let began = Instant::now();
        let mut jobs = waiting.next().await;
        let putting = async {
            for _ in 0..5 {
                tokio::task::yield_now().await;
            }
            drop(prompt);
            queue.put(Lane::Known, job()).unwrap();
        };
        tokio::join!(waiting.gather(&mut jobs), putting);
        // The timer counts whole milliseconds.
        assert_eq!((jobs.len(), began.elapsed() <= GATHER_MAX * 2), (2, true));
        drop(slow);
        let alone = Instant::now();
        waiting.gather(&mut jobs).await;
        assert_eq!((jobs.len(), alone.elapsed()), (2, Duration::ZERO));
    }

    #[tokio::test]
    async fn urgent_jobs_leave_some_places_to_the_others() {
        let (queue, mut waiting) = queue(1_000, 1_000);
        for _ in 0..1_000 {
            queue.put(Lane::Known, job()).unwrap();
        }
        for _ in 0..100 {
            queue.put(Lane::New, Job::Work(Box::new(Nothing))).unwrap();
        }
        let jobs = waiting.next().await;
        let new = jobs.iter().filter(|job| matches!(job, Job::Work(_))).count();
        assert_eq!((jobs.len(), new), (BATCH_MAX, NEW_PLACES));
        assert!(matches!(jobs[0], Job::Issued { .. }), "urgent ones first");
    }

    struct Nothing;

    impl super::super::writer::Work for Nothing {
        fn perform<'c>(
            &'c mut self,
            _conn: &'c mut sqlx::AnyConnection,
        ) -> futures_util::future::BoxFuture<'c, Result<super::super::writer::Effect, StoreError>> {
            Box::pin(async { Ok(super::super::writer::Effect::default()) })
        }

        fn finish(&mut self, _outcome: Result<(), StoreError>) {}
    }
}
