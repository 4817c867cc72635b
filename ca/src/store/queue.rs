//! What waits for the writer, in two lanes: what keeps known nodes and workloads alive goes before what is new.
//!
//! Both lanes are bounded. Who finds its lane full is refused at once instead of making everybody late.

use tokio::sync::mpsc;

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
}

/// Where the writer takes them from.
pub(super) struct Waiting {
    known: mpsc::Receiver<Job>,
    new: mpsc::Receiver<Job>,
}

pub(super) fn queue(known_max: usize, new_max: usize) -> (Queue, Waiting) {
    let ((known, known_waiting), (new, new_waiting)) = (mpsc::channel(known_max), mpsc::channel(new_max));
    (Queue { known, new }, Waiting { known: known_waiting, new: new_waiting })
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

    /// Adds to the jobs of the next transaction what has come since.
    pub(super) fn fill(&mut self, jobs: &mut Vec<Job>) {
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
