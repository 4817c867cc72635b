//! The threads that serve traffic.
//!
//! Each worker is one thread with a current-thread runtime; everything it touches per request is its own: pools,
//! balancer counts, metric shard, log buffers. Accepted sockets come through a channel, to the worker with the fewest
//! connections; so do new configurations. Nothing on the path of a request takes a lock that another worker holds.

pub(crate) mod conns;
pub(crate) mod random;
pub(crate) mod state;

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::LocalSet;

use self::state::Worker;
use crate::config::Config;
use crate::process::Process;
use crate::serve;

/// A socket on its way to a worker.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) socket: TcpStream,
    pub(crate) source: SocketAddr,
    /// The name of the listener.
    pub(crate) listener: Arc<str>,
    /// Counted for the worker as long as it lives.
    pub(crate) load: Load,
}

/// What a worker is told.
pub(crate) enum Job {
    /// Serve a connection.
    Accept(Accepted),
    /// Serve by this configuration from now on; the sender is dropped when that is so.
    Config(Arc<Config>, mpsc::Sender<()>),
    /// Trust changed: judge the peers of open connections again.
    Judge,
    /// Finish what runs and take nothing new.
    Drain(Duration),
}

/// One connection's share of a worker's load.
#[derive(Debug)]
pub(crate) struct Load(Arc<AtomicUsize>);

impl Load {
    fn of(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The way to one worker.
#[derive(Clone)]
struct Handle {
    jobs: UnboundedSender<Job>,
    load: Arc<AtomicUsize>,
}

/// The way to all workers.
#[derive(Clone)]
pub(crate) struct Workers {
    handles: Arc<[Handle]>,
}

/// The threads, to be waited for at the end.
pub(crate) struct Threads(Vec<JoinHandle<()>>);

impl Workers {
    /// Starts the threads.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be made.
    pub(crate) fn start(process: &Arc<Process>, count: usize) -> io::Result<(Self, Threads)> {
        let (mut handles, mut threads) = (Vec::new(), Vec::new());
        for id in 0..count {
            let (jobs, of_worker) = mpsc::unbounded_channel();
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let process = process.clone();
            let run = move || {
                let local = LocalSet::new();
                local.block_on(&runtime, run(Worker::new(process), of_worker));
            };
            threads.push(std::thread::Builder::new().name(format!("worker-{id}")).spawn(run)?);
            handles.push(Handle { jobs, load: Arc::default() });
        }
        Ok((Self { handles: handles.into() }, Threads(threads)))
    }

    /// Hands a socket to the worker with the fewest connections. Gives up when there are `max` already.
    pub(crate) fn accept(&self, socket: TcpStream, source: SocketAddr, listener: Arc<str>, max: usize) -> bool {
        let total: usize = self.handles.iter().map(|handle| handle.load.load(Ordering::Relaxed)).sum();
        let idlest = self.handles.iter().min_by_key(|handle| handle.load.load(Ordering::Relaxed));
        let Some(handle) = idlest.filter(|_| total < max) else { return false };
        let accepted = Accepted { socket, source, listener, load: Load::of(&handle.load) };
        handle.jobs.send(Job::Accept(accepted)).is_ok()
    }

    /// Makes all workers serve by `config`; returns when they do.
    pub(crate) async fn configure(&self, config: &Arc<Config>) {
        let (done, mut all_done) = mpsc::channel(1);
        for handle in &*self.handles {
            // A worker that has ended serves nothing, so it needs no configuration.
            let _ = handle.jobs.send(Job::Config(config.clone(), done.clone()));
        }
        drop(done);
        if tokio::time::timeout(SWAP_MAX, all_done.recv()).await.is_err() {
            tracing::warn!(generation = config.generation, "a worker is slow to take the configuration");
        }
    }

    /// Makes all workers judge the peers of open connections again.
    pub(crate) fn judge(&self) {
        self.all(|| Job::Judge);
    }

    /// Makes all workers drain.
    pub(crate) fn drain(&self, within: Duration) {
        self.all(|| Job::Drain(within));
    }

    fn all(&self, job: impl Fn() -> Job) {
        for handle in &*self.handles {
            let _ = handle.jobs.send(job());
        }
    }

    /// Connections being served.
    pub(crate) fn connections(&self) -> usize {
        self.handles.iter().map(|handle| handle.load.load(Ordering::Relaxed)).sum()
    }
}

impl Threads {
    /// Waits until all have ended.
    pub(crate) fn join(self) {
        for thread in self.0 {
            if thread.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
    }
}

/// The life of one worker.
async fn run(worker: Rc<Worker>, mut jobs: UnboundedReceiver<Job>) {
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            job = jobs.recv() => match job {
                Some(Job::Accept(accepted)) => {
                    tokio::task::spawn_local(serve::connection(worker.clone(), accepted));
                }
                Some(Job::Config(config, done)) => {
                    worker.configure(config);
                    drop(done);
                }
                Some(Job::Judge) => worker.judge(),
                Some(Job::Drain(within)) => return worker.conns.drain_all(within).await,
                None => return,
            },
            _ = sweep.tick() => worker.sweep(),
        }
    }
}

/// How often connections are looked after.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How long a publication waits for a worker.
const SWAP_MAX: Duration = Duration::from_secs(2);
