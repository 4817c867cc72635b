//! The series of one worker, and their sum at the scrape.
//!
//! A worker finds a series by small ids and adds without a lock; the lock is taken only to add a series and to read
//! them all. The number of series is bounded: what comes later is counted under `other`.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::cells::{Cell64, Histogram, HistogramSum};
use super::labels::{BaseLabels, Outcome, Reporter, Security, ServiceLabels, Spoken, WorkloadLabels};

/// What is counted of HTTP requests with one label set.
#[derive(Debug, Default)]
pub(crate) struct HttpSeries {
    pub(crate) requests: Cell64,
    pub(crate) duration: Histogram,
    pub(crate) request_bytes: Histogram,
    pub(crate) response_bytes: Histogram,
    pub(crate) request_messages: Cell64,
    pub(crate) response_messages: Cell64,
}

/// What is counted of TCP connections with one label set.
#[derive(Debug, Default)]
pub(crate) struct TcpSeries {
    pub(crate) opened: Cell64,
    pub(crate) closed: Cell64,
    pub(crate) sent: Cell64,
    pub(crate) received: Cell64,
}

/// The series of one worker as the scrape sees them.
#[derive(Debug, Default)]
pub(crate) struct Shard {
    http: Mutex<Vec<(String, Arc<HttpSeries>)>>,
    tcp: Mutex<Vec<(String, Arc<TcpSeries>)>>,
    folded: AtomicU64,
}

/// The worker's own way to its series.
#[derive(Debug)]
pub(crate) struct ShardWriter {
    shard: Arc<Shard>,
    bases: RefCell<Vec<BaseLabels>>,
    ids: RefCell<HashMap<BaseLabels, BaseId>>,
    http: RefCell<HashMap<(BaseId, Outcome), Arc<HttpSeries>, Fast>>,
    tcp: RefCell<HashMap<BaseId, Arc<TcpSeries>, Fast>>,
}

/// A base label set, known to one worker by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BaseId(u32);

impl ShardWriter {
    pub(crate) fn new(shard: Arc<Shard>) -> Self {
        let other = BaseLabels {
            reporter: Reporter::Destination,
            source: other(),
            destination: other(),
            service: ServiceLabels { host: Some("other".into()), ..ServiceLabels::default() },
            spoken: Spoken::Http,
            security: Security::Unknown,
        };
        Self {
            shard,
            bases: RefCell::new(vec![other]),
            ids: RefCell::default(),
            http: RefCell::default(),
            tcp: RefCell::default(),
        }
    }

    /// The number of a label set; slow, so callers keep it per connection and cluster.
    pub(crate) fn base(&self, labels: BaseLabels) -> BaseId {
        if let Some(id) = self.ids.borrow().get(&labels) {
            return *id;
        }
        let mut bases = self.bases.borrow_mut();
        if bases.len() >= SERIES_MAX {
            self.shard.folded.fetch_add(1, Ordering::Relaxed);
            return OTHER;
        }
        let id = BaseId(u32::try_from(bases.len()).unwrap_or(0));
        bases.push(labels.clone());
        self.ids.borrow_mut().insert(labels, id);
        id
    }

    /// The series of requests that ended so.
    pub(crate) fn http(&self, base: BaseId, outcome: Outcome) -> Arc<HttpSeries> {
        if let Some(series) = self.http.borrow().get(&(base, outcome)) {
            return series.clone();
        }
        let mut known = self.http.borrow_mut();
        let base = if known.len() >= SERIES_MAX { OTHER } else { base };
        let outcome = if known.len() >= SERIES_MAX { FOLDED } else { outcome };
        if base == OTHER {
            self.shard.folded.fetch_add(1, Ordering::Relaxed);
        }
        let series = known.entry((base, outcome)).or_insert_with(|| {
            let series = Arc::new(HttpSeries::default());
            let labels = self.labels(base).render(Some(&outcome));
            lock(&self.shard.http).push((labels, series.clone()));
            series
        });
        series.clone()
    }

    /// The series of TCP connections of this base.
    pub(crate) fn tcp(&self, base: BaseId) -> Arc<TcpSeries> {
        let mut known = self.tcp.borrow_mut();
        let series = known.entry(base).or_insert_with(|| {
            let series = Arc::new(TcpSeries::default());
            lock(&self.shard.tcp).push((self.labels(base).render(None), series.clone()));
            series
        });
        series.clone()
    }

    fn labels(&self, base: BaseId) -> BaseLabels {
        self.bases.borrow()[base.0 as usize].clone()
    }
}

/// Writes the sum over all workers as OpenMetrics families.
pub(crate) fn render(shards: &[Arc<Shard>], out: &mut String) {
    render_http(shards, out);
    render_tcp(shards, out);
    let folded: u64 = shards.iter().map(|shard| shard.folded.load(Ordering::Relaxed)).sum();
    let _ = writeln!(out, "# TYPE kasbah_metric_series_folded counter");
    let _ = writeln!(out, "kasbah_metric_series_folded_total {folded}");
}

#[derive(Default)]
struct HttpSum {
    requests: u64,
    request_messages: u64,
    response_messages: u64,
    duration: HistogramSum,
    request_bytes: HistogramSum,
    response_bytes: HistogramSum,
}

fn render_http(shards: &[Arc<Shard>], out: &mut String) {
    let mut sums = BTreeMap::<String, HttpSum>::new();
    for shard in shards {
        for (labels, series) in lock(&shard.http).iter() {
            let sum = sums.entry(labels.clone()).or_default();
            sum.requests += series.requests.read();
            sum.request_messages += series.request_messages.read();
            sum.response_messages += series.response_messages.read();
            series.duration.read_into(&mut sum.duration);
            series.request_bytes.read_into(&mut sum.request_bytes);
            series.response_bytes.read_into(&mut sum.response_bytes);
        }
    }
    counter(out, "istio_requests", sums.iter().map(|(l, s)| (l, s.requests)));
    let grpc = |sums: &BTreeMap<String, HttpSum>, pick: fn(&HttpSum) -> u64| -> Vec<(String, u64)> {
        sums.iter().map(|(l, s)| (l.clone(), pick(s))).filter(|(_, n)| *n > 0).collect()
    };
    let messages = grpc(&sums, |s| s.request_messages);
    counter(out, "istio_request_messages", messages.iter().map(|(l, n)| (l, *n)));
    let messages = grpc(&sums, |s| s.response_messages);
    counter(out, "istio_response_messages", messages.iter().map(|(l, n)| (l, *n)));
    for (name, pick) in [
        ("istio_request_duration_milliseconds", (|s| &s.duration) as fn(&HttpSum) -> &HistogramSum),
        ("istio_request_bytes", |s| &s.request_bytes),
        ("istio_response_bytes", |s| &s.response_bytes),
    ] {
        let _ = writeln!(out, "# TYPE {name} histogram");
        for (labels, sum) in &sums {
            pick(sum).write(out, name, labels);
        }
    }
}

fn render_tcp(shards: &[Arc<Shard>], out: &mut String) {
    let mut sums = BTreeMap::<String, [u64; 4]>::new();
    for shard in shards {
        for (labels, series) in lock(&shard.tcp).iter() {
            let sum = sums.entry(labels.clone()).or_default();
            for (total, cell) in sum.iter_mut().zip([&series.opened, &series.closed, &series.sent, &series.received]) {
                *total += cell.read();
            }
        }
    }
    for (at, name) in [
        "istio_tcp_connections_opened",
        "istio_tcp_connections_closed",
        "istio_tcp_sent_bytes",
        "istio_tcp_received_bytes",
    ]
    .into_iter()
    .enumerate()
    {
        counter(out, name, sums.iter().map(|(labels, sum)| (labels, sum[at])));
    }
}

fn counter<'a>(out: &mut String, name: &str, samples: impl Iterator<Item = (&'a String, u64)>) {
    let _ = writeln!(out, "# TYPE {name} counter");
    for (labels, value) in samples {
        let _ = writeln!(out, "{name}_total{{{labels}}} {value}");
    }
}

fn other() -> WorkloadLabels {
    WorkloadLabels { workload: Some("other".into()), ..WorkloadLabels::default() }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A quick hash for keys that no peer chooses.
pub(crate) type Fast = BuildHasherDefault<FastHasher>;

/// Multiply and rotate, word by word.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FastHasher(u64);

impl Hasher for FastHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, word: u8) {
        self.write_u64(word.into());
    }

    fn write_u16(&mut self, word: u16) {
        self.write_u64(word.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x51_7c_c1_b7_27_22_0a_95);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
}

const OTHER: BaseId = BaseId(0);
const FOLDED: Outcome = Outcome { code: 0, grpc_status: None, flags: "-" };
/// Label sets of one worker, beyond which everything is `other`.
const SERIES_MAX: usize = 4000;

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(workload: &str, spoken: Spoken) -> BaseLabels {
        let source = WorkloadLabels { workload: Some(workload.into()), ..WorkloadLabels::default() };
        BaseLabels {
            reporter: Reporter::Source,
            source,
            destination: WorkloadLabels::default(),
            service: ServiceLabels::default(),
            spoken,
            security: Security::None,
        }
    }

    #[test]
    fn workers_add_up_at_the_scrape() {
        let shards = [Arc::new(Shard::default()), Arc::new(Shard::default())];
        for shard in &shards {
            let writer = ShardWriter::new(shard.clone());
            let base = writer.base(labels("test", Spoken::Http));
            assert_eq!(base, writer.base(labels("test", Spoken::Http)));
            let series = writer.http(base, Outcome { code: 200, grpc_status: None, flags: "-" });
            series.requests.add(2);
            series.duration.record(3);
            let tcp = writer.tcp(writer.base(labels("test", Spoken::Tcp)));
            tcp.opened.add(1);
            tcp.sent.add(100);
        }
        let mut out = String::new();
        render(&shards, &mut out);
        let line = |name: &str| out.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert!(line("istio_requests_total").ends_with(" 4"));
        assert!(line("istio_request_duration_milliseconds_count").ends_with(" 2"));
        assert!(line("istio_tcp_connections_opened_total").ends_with(" 2"));
        assert!(line("istio_tcp_sent_bytes_total").ends_with(" 200"));
        assert!(!out.contains("istio_request_messages_total{"));
    }

    #[test]
    fn many_label_sets_fold_into_one() {
        let shard = Arc::new(Shard::default());
        let writer = ShardWriter::new(shard.clone());
        for n in 0..SERIES_MAX + 50 {
            let base = writer.base(labels(&format!("w{n}"), Spoken::Http));
            writer.http(base, Outcome { code: 200, grpc_status: None, flags: "-" }).requests.add(1);
        }
        assert!(lock(&shard.http).len() <= SERIES_MAX);
        let mut out = String::new();
        render(&[shard], &mut out);
        assert!(out.contains("source_workload=\"other\""));
        assert!(!out.contains("kasbah_metric_series_folded_total 0\n"));
    }
}
