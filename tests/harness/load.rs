//! A steady load of one HTTP/1.1 request over kept-open connections, which counts every answer and every failure. It
//! writes the request's bytes and reads just enough of the answer, so that it costs little beside what it measures.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What to send, where and how fast.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Address to connect to.
    pub address: SocketAddr,
    /// Request target and header lines, without the closing empty line.
    pub request: String,
    /// How many connections send at the same time.
    pub connections: usize,
    /// Pause of each connection between two requests; zero for as fast as answers come.
    pub pause: Duration,
    /// The status that counts as answered.
    pub expect: u16,
}

/// A load that runs on a thread of its own.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

/// What a load has seen so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests answered as expected.
    pub answered: u64,
    /// Requests that failed.
    pub failed: u64,
    /// What the failures were, with how many of each kind.
    pub failures: BTreeMap<String, u64>,
    /// Times from request to answer in microseconds, sorted; at most [`SAMPLES_MAX`].
    pub micros: Vec<u32>,
}

impl Load {
    /// Starts it.
    pub fn start(plan: Plan) -> Self {
        let shared = Arc::new(Counters::default());
        let counters = Arc::clone(&shared);
        let thread = std::thread::spawn(move || serve(&plan, &counters));
        Self { shared, thread: Some(thread) }
    }

    /// What it has seen so far.
    pub fn tally(&self) -> Tally {
        self.shared.tally()
    }

    /// Forgets what was seen so far, for a measurement after warming up.
    pub fn forget(&self) {
        self.shared.forget();
    }

    /// Stops it and tells what it has seen.
    pub fn stop(mut self) -> Tally {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.shared.tally()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Tally {
    /// The time below which the given share of the answers came.
    pub fn percentile(&self, share: f64) -> Duration {
        let last = self.micros.len().saturating_sub(1);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index below SAMPLES_MAX"
        )]
        let index = (last as f64 * share) as usize;
        Duration::from_micros(u64::from(self.micros.get(index).copied().unwrap_or_default()))
    }

    /// Expects that something was asked and nothing failed.
    ///
    /// # Errors
    /// When a request failed or none was answered.
    pub fn expect_no_failure(&self) -> Result<()> {
        if self.failed > 0 {
            bail!("{} of {} requests failed: {:?}", self.failed, self.failed + self.answered, self.failures);
        }
        if self.answered == 0 {
            bail!("no request was made");
        }
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Counters {
    stop: AtomicBool,
    answered: AtomicU64,
    failed: AtomicU64,
    failures: Mutex<BTreeMap<String, u64>>,
    micros: Mutex<Vec<u32>>,
}

impl Counters {
    fn answer(&self, took: Duration) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        let mut micros = self.micros.lock().unwrap_or_else(PoisonError::into_inner);
        if micros.len() < SAMPLES_MAX {
            micros.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
        }
    }

    fn failure(&self, error: &anyhow::Error) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        *failures.entry(format!("{error:#}")).or_default() += 1;
    }

    fn tally(&self) -> Tally {
        let mut micros = self.micros.lock().unwrap_or_else(PoisonError::into_inner).clone();
        micros.sort_unstable();
        Tally {
            answered: self.answered.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            failures: self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            micros,
        }
    }

    fn forget(&self) {
        self.micros.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.answered.store(0, Ordering::Relaxed);
        self.failed.store(0, Ordering::Relaxed);
    }
}

fn serve(plan: &Plan, counters: &Arc<Counters>) {
    let Ok(executor) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    executor.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..plan.connections {
            tasks.spawn(one_connection(plan.clone(), Arc::clone(counters)));
        }
        while tasks.join_next().await.is_some() {}
    });
}

async fn one_connection(plan: Plan, counters: Arc<Counters>) {
    let request = format!("{}\r\n\r\n", plan.request.trim_end());
    let mut connection = None;
    while !counters.stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let exchange = exchange(&plan, request.as_bytes(), &mut connection);
        let answer = match tokio::time::timeout(ANSWER_WAIT_MAX, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(anyhow::anyhow!("no answer within {ANSWER_WAIT_MAX:?}")),
        };
        match answer {
            Ok(()) => counters.answer(began.elapsed()),
            Err(error) => {
                counters.failure(&error);
                connection = None;
                tokio::time::sleep(AFTER_FAILURE).await;
            }
        }
        if !plan.pause.is_zero() {
            tokio::time::sleep(plan.pause).await;
        }
    }
}

async fn exchange(plan: &Plan, request: &[u8], connection: &mut Option<Connection>) -> Result<()> {
    let mut open = match connection.take() {
        Some(open) => open,
        None => Connection::open(plan.address).await?,
    };
    open.stream.write_all(request).await.context("the request could not be sent")?;
    let (status, close) = open.read_answer().await?;
    if status != plan.expect {
        bail!("answered {status}");
    }
    if !close {
        *connection = Some(open);
    }
    Ok(())
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.context("no connection")?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(4096) })
    }

    /// Reads one answer whole; tells its status and whether the connection closes behind it.
    async fn read_answer(&mut self) -> Result<(u16, bool)> {
        let head_len = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at + 4;
            }
            self.more().await?;
        };
        let head = Head::parse(&self.buffer[..head_len])?;
        self.buffer.drain(..head_len);
        match head.body {
            Body::Length(length) => {
                while self.buffer.len() < length {
                    self.more().await?;
                }
                self.buffer.drain(..length);
            }
            Body::Chunked => self.read_chunks().await?,
        }
        Ok((head.status, head.close))
    }

    async fn read_chunks(&mut self) -> Result<()> {
        loop {
            let line = loop {
                match find(&self.buffer, b"\r\n") {
                    Some(at) => break at,
                    None => self.more().await?,
                }
            };
            let size = std::str::from_utf8(&self.buffer[..line])?.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).context("a chunk without a size")?;
            let end = line + 2 + size + 2;
            while self.buffer.len() < end {
                self.more().await?;
            }
            self.buffer.drain(..end);
            if size == 0 {
                return Ok(());
            }
        }
    }

    async fn more(&mut self) -> Result<()> {
        if self.stream.read_buf(&mut self.buffer).await.context("the answer broke off")? == 0 {
            bail!("the connection was closed before the answer");
        }
        Ok(())
    }
}

struct Head {
    status: u16,
    close: bool,
    body: Body,
}

enum Body {
    Length(usize),
    Chunked,
}

impl Head {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes)?;
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let status = first.split(' ').nth(1).and_then(|word| word.parse().ok()).context("no status line")?;
        let mut head = Self { status, close: false, body: Body::Length(0) };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                head.body = Body::Length(value.parse()?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                head.body = Body::Chunked;
            } else if name.eq_ignore_ascii_case("connection") {
                head.close = value.eq_ignore_ascii_case("close");
            }
        }
        Ok(head)
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// How many times are kept; later answers are counted only.
pub const SAMPLES_MAX: usize = 2_000_000;
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);
const AFTER_FAILURE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    fn served_by(answer: &'static [u8]) -> Tally {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            use std::io::{Read, Write};
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0_u8; 1024];
            while stream.read(&mut buffer).is_ok_and(|n| n > 0) {
                stream.write_all(answer).unwrap();
            }
        });
        let plan = Plan {
            address,
            request: "GET / HTTP/1.1\r\nhost: a".into(),
            connections: 1,
            pause: Duration::from_millis(1),
            expect: 200,
        };
        let load = Load::start(plan);
        crate::wait::until("three answers", Duration::from_secs(10), || {
            let tally = load.tally();
            if tally.answered + tally.failed >= 3 { Ok(()) } else { bail!("{tally:?}") }
        })
        .unwrap();
        load.stop()
    }

    #[test]
    fn answers_of_both_lengths_are_read_on_one_connection() {
        served_by(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc").expect_no_failure().unwrap();
        served_by(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
            .expect_no_failure()
            .unwrap();
    }

    #[test]
    fn another_status_is_a_failure_of_its_own_kind() {
        let tally = served_by(b"HTTP/1.1 503 no\r\ncontent-length: 0\r\n\r\n");
        assert!(tally.failures.contains_key("answered 503"), "{tally:?}");
    }
}
