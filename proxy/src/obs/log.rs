//! Access log lines: written into a buffer per worker, brought to their files by one thread.
//!
//! A worker never waits for a disk. A full buffer drops the line and counts it. Lines are swapped out as a whole,
//! so that the worker's cost is a copy.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::counters::Counters;

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sink {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, appended to; opened again when it was moved away.
    File(PathBuf),
}

impl Sink {
    /// The sink of a path as configurations write it.
    pub(crate) fn of(path: &str) -> Self {
        match path {
            "stdout" | "/dev/stdout" | "-" => Self::Stdout,
            "stderr" | "/dev/stderr" => Self::Stderr,
            path => Self::File(path.into()),
        }
    }
}

/// A worker's own buffer for one sink.
#[derive(Debug)]
pub(crate) struct LogBuffer {
    lines: Mutex<String>,
    wake: Arc<Wake>,
    counters: Arc<Counters>,
}

/// The writer thread; dropping it writes what is left.
#[derive(Debug)]
pub(crate) struct LogWriter {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    buffers: Mutex<Vec<(Sink, Arc<LogBuffer>)>>,
    wake: Arc<Wake>,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Wake {
    asked: Mutex<bool>,
    changed: Condvar,
    ended: AtomicBool,
}

impl LogBuffer {
    /// Adds a line that `write` renders, with its line feed.
    pub(crate) fn line(&self, write: impl FnOnce(&mut String)) {
        let mut lines = lock(&self.lines);
        if lines.len() >= BUFFER_BYTES_MAX {
            self.counters.log_lines_dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let before = lines.len();
        write(&mut lines);
        let crossed = before < BUFFER_BYTES_SOON && lines.len() >= BUFFER_BYTES_SOON;
        drop(lines);
        if crossed {
            self.wake.ask();
        }
    }

    fn take(&self) -> String {
        std::mem::take(&mut *lock(&self.lines))
    }
}

impl LogWriter {
    /// Starts the thread.
    ///
    /// # Errors
    /// When no thread can be made.
    pub(crate) fn start(counters: Arc<Counters>) -> io::Result<Self> {
        let shared = Arc::new(Shared { buffers: Mutex::default(), wake: Arc::default(), counters });
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new().name("access-log".to_owned()).spawn(move || of_thread.run())?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// A buffer for `sink`, to be kept by one worker.
    pub(crate) fn buffer(&self, sink: Sink) -> Arc<LogBuffer> {
        let buffer = Arc::new(LogBuffer {
            lines: Mutex::default(),
            wake: self.shared.wake.clone(),
            counters: self.shared.counters.clone(),
        });
        lock(&self.shared.buffers).push((sink, buffer.clone()));
        buffer
    }
}

impl LogWriter {
    /// Writes what is left and ends the thread.
    pub(crate) fn finish(&self) {
        self.shared.wake.ended.store(true, Ordering::Release);
        self.shared.wake.ask();
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Wake {
    fn ask(&self) {
        *lock(&self.asked) = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let asked = lock(&self.asked);
        let (mut asked, _) = self
            .changed
            .wait_timeout_while(asked, FLUSH_EVERY, |asked| !*asked)
            .unwrap_or_else(PoisonError::into_inner);
        *asked = false;
    }
}

impl Shared {
    fn run(&self) {
        let mut files = BTreeMap::new();
        loop {
            let ended = self.wake.ended.load(Ordering::Acquire);
            self.flush(&mut files);
            if ended {
                return;
            }
            self.wake.wait();
        }
    }

    fn flush(&self, files: &mut BTreeMap<PathBuf, OpenFile>) {
        let buffers = {
            let mut buffers = lock(&self.buffers);
            // A buffer that only we hold belongs to nobody any more; it is written once more below.
            let all = buffers.clone();
            buffers.retain(|(_, buffer)| Arc::strong_count(buffer) > 2);
            all
        };
        for (sink, buffer) in buffers {
            let lines = buffer.take();
            if lines.is_empty() {
                continue;
            }
            if let Err(error) = write_lines(&sink, lines.as_bytes(), files) {
                let lost = lines.bytes().filter(|byte| *byte == b'\n').count();
                self.counters.log_lines_dropped.fetch_add(lost as u64, Ordering::Relaxed);
                tracing::warn!(?sink, %error, lost, "access log cannot be written");
            }
        }
    }
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    inode: u64,
}

fn write_lines(sink: &Sink, lines: &[u8], files: &mut BTreeMap<PathBuf, OpenFile>) -> io::Result<()> {
    match sink {
        Sink::Stdout => io::stdout().lock().write_all(lines).and_then(|()| io::stdout().flush()),
        Sink::Stderr => io::stderr().lock().write_all(lines),
        Sink::File(path) => {
            use std::os::unix::fs::MetadataExt;
            let there = std::fs::metadata(path).map(|found| found.ino()).ok();
            if files.get(path).is_none_or(|open| Some(open.inode) != there) {
                let file = OpenOptions::new().create(true).append(true).open(path)?;
                let inode = file.metadata()?.ino();
                files.insert(path.clone(), OpenFile { file, inode });
            }
            files.get_mut(path).map_or(Ok(()), |open| open.file.write_all(lines))
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lines of one worker and sink that may wait.
const BUFFER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// A buffer this full is written at once.
const BUFFER_BYTES_SOON: usize = 256 * 1024;
/// The longest a line waits.
const FLUSH_EVERY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_reach_the_file_when_the_writer_ends_and_overflow_is_counted() {
        let path = std::env::temp_dir().join(format!("kasbah-access-{}.log", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let counters = Arc::new(Counters::default());
        let writer = LogWriter::start(counters.clone()).unwrap();
        let buffer = writer.buffer(Sink::of(path.to_str().unwrap()));
        buffer.line(|out| out.push_str("one\n"));
        {
            let mut lines = lock(&buffer.lines);
            lines.push_str(&"\n".repeat(BUFFER_BYTES_MAX));
            drop(lines);
            buffer.line(|out| out.push_str("two\n"));
        }
        drop(writer);
        let text = std::fs::read(&path).unwrap();
        assert!(text.starts_with(b"one\n"));
        assert!(counters.log_lines_dropped.load(Ordering::Relaxed) <= 1);
        std::fs::remove_file(&path).unwrap();
    }
}
