//! An HTTP connection manager as one worker runs it: its configuration, the route table of now, its logs and buckets.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use routing::access_log::{AccessLog, LogSink};
use routing::format::LogContext;
use routing::hcm::{HttpConnectionManager, RouteSource};
use routing::route::RouteTable;

use crate::config::Config;
use crate::conn::Conn;
use crate::obs::labels::{BaseLabels, Reporter, ServiceLabels, Spoken, WorkloadLabels};
use crate::obs::log::{LogBuffer, Sink};
use crate::obs::shard::{BaseId, Fast};
use crate::rpc::access_log::Entries;
use crate::worker::state::Worker;

/// The state of one connection manager on one worker.
#[derive(Debug)]
pub(crate) struct HcmState {
    pub(crate) config: Arc<HttpConnectionManager>,
    table: RefCell<Option<Arc<RouteTable>>>,
    pub(crate) logs: Vec<LogOutput>,
    bases: RefCell<HashMap<(u64, Spoken), BaseId, Fast>>,
}

/// One access log and where this worker writes it.
#[derive(Debug)]
pub(crate) struct LogOutput {
    log: Arc<AccessLog>,
    to: LogWay,
}

#[derive(Debug)]
enum LogWay {
    Lines(Arc<LogBuffer>),
    Service(Rc<Entries>),
}

impl LogOutput {
    /// The outputs for the logs of a configuration, or the proxy's own where it names none.
    pub(crate) fn all(worker: &Rc<Worker>, logs: &[Arc<AccessLog>]) -> Vec<Self> {
        let own = worker.own_log().filter(|_| logs.iter().all(|log| matches!(log.sink, LogSink::Grpc(_))));
        logs.iter().chain(own).filter_map(|log| Self::new(worker, log)).collect()
    }

    /// Nothing for standard output where the settings want no access log.
    fn new(worker: &Rc<Worker>, log: &Arc<AccessLog>) -> Option<Self> {
        let lines = |sink| LogWay::Lines(worker.log_buffer(sink));
        let to = match &log.sink {
            LogSink::File(path) => lines(Sink::of(&path.to_string_lossy())),
            LogSink::Stdout => lines(worker.stdout_sink()?),
            LogSink::Stderr => lines(Sink::Stderr),
            LogSink::Grpc(target) => LogWay::Service(Entries::new(worker, target.clone())),
        };
        Some(Self { log: log.clone(), to })
    }

    /// Writes one entry, if the log wants it.
    pub(crate) fn write(&self, context: &LogContext<'_>, dice: u64) {
        if !self.log.wants(context, dice) {
            return;
        }
        match &self.to {
            LogWay::Lines(buffer) => buffer.line(|out| self.log.render(context, out)),
            LogWay::Service(entries) => entries.push(context),
        }
    }
}

impl HcmState {
    pub(crate) fn new(worker: &Rc<Worker>, config: Arc<HttpConnectionManager>, now: &Config) -> Self {
        let logs = LogOutput::all(worker, &config.access_logs);
        let state = Self { config, table: RefCell::default(), logs, bases: RefCell::default() };
        state.follow(now);
        state
    }

    /// Takes the route table of a new configuration.
    pub(crate) fn follow(&self, config: &Config) {
        *self.table.borrow_mut() = match &self.config.routes {
            RouteSource::Rds(name) => config.routes.get(name).cloned(),
            RouteSource::Inline(table) => Some(table.clone()),
        };
    }

    /// The route table of now.
    pub(crate) fn table(&self) -> Option<Arc<RouteTable>> {
        self.table.borrow().clone()
    }

    /// The labels of a request that never got a cluster.
    pub(crate) fn labels(&self, conn: &Conn, spoken: Spoken) -> BaseId {
        let key = (conn.labels_key, spoken);
        if let Some(base) = self.bases.borrow().get(&key) {
            return *base;
        }
        let worker = &conn.worker;
        let (source, destination) = ends(conn, WorkloadLabels::default());
        let base = worker.series.base(BaseLabels {
            reporter: if conn.inbound { Reporter::Destination } else { Reporter::Source },
            source,
            destination,
            service: ServiceLabels::default(),
            spoken,
            security: conn.security,
        });
        self.bases.borrow_mut().insert(key, base);
        base
    }
}

/// Source and destination of a request: one of them is the workload beside us.
pub(crate) fn ends(conn: &Conn, upstream: WorkloadLabels) -> (WorkloadLabels, WorkloadLabels) {
    let own = conn.worker.own_labels();
    if conn.inbound { (conn.peer_labels.clone(), own) } else { (own, upstream) }
}
