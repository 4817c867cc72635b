//! Where access log lines go: one file, written in batches, rotated by size.
//!
//! Logging never holds up a proxy: when the disk is slower than the lines come, lines are dropped and counted.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::fs::{File, OpenOptions};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use crate::metrics::{DropCause, PolicyMetrics};

/// Takes lines. Clones feed the same file.
#[derive(Clone, Debug)]
pub struct LogSink {
    queue: mpsc::Sender<String>,
    queued_bytes: Arc<AtomicUsize>,
    metrics: PolicyMetrics,
}

/// Writes the lines; ends when every [`LogSink`] is gone and everything is written.
#[derive(Debug)]
pub struct LogWriter {
    queue: mpsc::Receiver<String>,
    queued_bytes: Arc<AtomicUsize>,
    target: Target,
    metrics: PolicyMetrics,
}

/// How the file is kept.
#[derive(Clone, Debug)]
pub struct LogFile {
    /// The file lines are appended to.
    pub path: PathBuf,
    /// Its size at which it becomes `PATH.1`.
    pub bytes_max: u64,
    /// How many files are kept, the current one included.
    pub files_max: u32,
}

#[derive(Debug)]
struct Target {
    settings: LogFile,
    open: Option<(File, u64)>,
    failing: bool,
}

impl LogFile {
    /// Opens the file, so that a wrong path is told at the start.
    ///
    /// # Errors
    /// When the file cannot be opened for appending.
    pub async fn open(self, metrics: PolicyMetrics) -> Result<(LogSink, LogWriter), SinkError> {
        let unwritable = |source| SinkError::Unwritable { file: self.path.clone(), source };
        if let Some(dir) = self.path.parent() {
            tokio::fs::create_dir_all(dir).await.map_err(unwritable)?;
        }
        let open = append(&self.path).await.map_err(unwritable)?;
        let (sender, queue) = mpsc::channel(QUEUE_LINES_MAX);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let sink = LogSink { queue: sender, queued_bytes: queued_bytes.clone(), metrics: metrics.clone() };
        let target = Target { settings: self, open: Some(open), failing: false };
        Ok((sink, LogWriter { queue, queued_bytes, target, metrics }))
    }
}

impl LogSink {
    /// Queues `line` (without its end), or drops and counts it.
    pub fn push(&self, line: String) {
        let bytes = line.len();
        if self.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > QUEUE_BYTES_MAX
            || self.queue.try_send(line).is_err()
        {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.metrics.dropped(DropCause::queue_full, 1);
        }
    }
}

impl LogWriter {
    /// Writes until every sink is gone.
    pub async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH_LINES_MAX);
        while self.queue.recv_many(&mut batch, BATCH_LINES_MAX).await > 0 {
            self.queued_bytes.fetch_sub(batch.iter().map(String::len).sum(), Ordering::Relaxed);
            for part in self.target.parts(&batch) {
                match self.target.write(part).await {
                    Ok(()) => _ = self.metrics.log_lines.inc_by(count(part)),
                    Err(error) => {
                        self.metrics.dropped(DropCause::write_failed, count(part));
                        self.target.failed(&error);
                    }
                }
            }
            batch.clear();
        }
    }
}

impl Target {
    /// Cuts a batch where the file must be rotated.
    fn parts<'a>(&self, batch: &'a [String]) -> Vec<&'a [String]> {
        let (mut parts, mut begin) = (Vec::new(), 0);
        let mut bytes = self.open.as_ref().map_or(0, |(_, bytes)| *bytes);
        for (at, line) in batch.iter().enumerate() {
            let line_bytes = line.len() as u64 + 1;
            if bytes > 0 && bytes + line_bytes > self.settings.bytes_max {
                if at > begin {
                    parts.push(&batch[begin..at]);
                }
                (begin, bytes) = (at, 0);
            }
            bytes += line_bytes;
        }
        parts.push(&batch[begin..]);
        parts
    }

    async fn write(&mut self, lines: &[String]) -> io::Result<()> {
        let (mut file, mut bytes) = match self.open.take() {
            Some(open) => open,
            None => append(&self.settings.path).await?,
        };
        let first = lines.first().map_or(0, |line| line.len() as u64 + 1);
        if bytes > 0 && bytes + first > self.settings.bytes_max {
            drop(file);
            self.rotate().await?;
            (file, bytes) = append(&self.settings.path).await?;
        }
        // After a failure the last line may be torn; an empty line ends it.
        let mut text = if self.failing { String::from("\n") } else { String::new() };
        for line in lines {
            text.push_str(line);
            text.push('\n');
        }
        file.write_all(text.as_bytes()).await?;
        file.flush().await?;
        self.open = Some((file, bytes + text.len() as u64));
        if std::mem::take(&mut self.failing) {
            tracing::info!(file = %self.settings.path.display(), "access log is written again");
        }
        Ok(())
    }

    /// `PATH` becomes `PATH.1`, `PATH.1` becomes `PATH.2`, and the oldest goes.
    async fn rotate(&self) -> io::Result<()> {
        let keep = self.settings.files_max.max(1) - 1;
        if keep == 0 {
            return tokio::fs::remove_file(&self.settings.path).await;
        }
        for number in (1..keep).rev() {
            let _ = tokio::fs::rename(numbered(&self.settings.path, number), numbered(&self.settings.path, number + 1))
                .await;
        }
        tokio::fs::rename(&self.settings.path, numbered(&self.settings.path, 1)).await
    }

    fn failed(&mut self, error: &io::Error) {
        self.open = None;
        if !std::mem::replace(&mut self.failing, true) {
            let file = self.settings.path.display();
            tracing::warn!(reason = "ACCESS_LOG_WRITE_FAILED", %error, %file, "access log lines are lost");
        }
    }
}

async fn append(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path).await?;
    let bytes = file.metadata().await?.len();
    Ok((file, bytes))
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn count(lines: &[String]) -> u64 {
    u64::try_from(lines.len()).unwrap_or(u64::MAX)
}

/// Why the access log cannot be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// The file cannot be opened.
    #[error("{}: the access log cannot be opened; see that its folder is writable", file.display())]
    Unwritable {
        /// Which file.
        file: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl SinkError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unwritable { .. } => "ACCESS_LOG_WRITE_FAILED",
        }
    }
}

/// Lines that wait to be written.
pub const QUEUE_LINES_MAX: usize = 16_384;
/// Bytes that wait to be written.
pub const QUEUE_BYTES_MAX: usize = 16 << 20;
/// Lines written at once.
const BATCH_LINES_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("kasbah-sink-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        dir
    }

    async fn written(path: &Path, bytes_max: u64, files_max: u32, lines: &[&str]) -> PolicyMetrics {
        let metrics = PolicyMetrics::default();
        let file = LogFile { path: path.to_owned(), bytes_max, files_max };
        let (sink, writer) = file.open(metrics.clone()).await.unwrap();
        lines.iter().for_each(|line| sink.push((*line).to_owned()));
        drop(sink);
        writer.run().await;
        metrics
    }

    fn read(path: &Path) -> Option<String> {
        std::fs::read_to_string(path).ok()
    }

    #[tokio::test]
    async fn every_line_is_written_before_the_writer_ends_and_appended_after_a_restart() {
        let path = dir("append").join("log");
        let metrics = written(&path, 1_000, 3, &["a", "b"]).await;
        assert_eq!((metrics.log_lines.get(), metrics.drops()), (2, 0));
        written(&path, 1_000, 3, &["c"]).await;
        assert_eq!(read(&path).as_deref(), Some("a\nb\nc\n"));
    }

    #[tokio::test]
    async fn the_file_is_rotated_at_its_size_and_the_oldest_goes() {
        let path = dir("rotate").join("log");
        let metrics = written(&path, 4, 3, &["a", "b", "c", "d", "e", "f", "longer", "g"]).await;
        assert_eq!(metrics.log_lines.get(), 8);
        assert_eq!(read(&path).as_deref(), Some("g\n"));
        assert_eq!(read(&numbered(&path, 1)).as_deref(), Some("longer\n"));
        assert_eq!(read(&numbered(&path, 2)).as_deref(), Some("e\nf\n"));
        assert_eq!(read(&numbered(&path, 3)), None);
    }

    #[tokio::test]
    async fn one_file_may_be_kept_alone() {
        let path = dir("alone").join("log");
        written(&path, 4, 1, &["a", "b", "c"]).await;
        assert_eq!(read(&path).as_deref(), Some("c\n"));
        assert_eq!(read(&numbered(&path, 1)), None);
    }

    #[tokio::test]
    async fn lines_beyond_the_queue_are_dropped_and_counted() {
        let metrics = PolicyMetrics::default();
        let file = LogFile { path: dir("full").join("log"), bytes_max: 1 << 30, files_max: 1 };
        let (sink, writer) = file.open(metrics.clone()).await.unwrap();
        (0..QUEUE_LINES_MAX + 7).for_each(|_| sink.push("x".into()));
        assert_eq!(metrics.drops(), 7);
        drop(sink);
        writer.run().await;
        assert_eq!(metrics.log_lines.get(), QUEUE_LINES_MAX as u64);
    }

    #[tokio::test]
    async fn bytes_beyond_the_queue_are_dropped_and_counted() {
        let metrics = PolicyMetrics::default();
        let file = LogFile { path: dir("bytes").join("log"), bytes_max: 1 << 30, files_max: 1 };
        let (sink, _writer) = file.open(metrics.clone()).await.unwrap();
        sink.push("x".repeat(QUEUE_BYTES_MAX));
        assert_eq!(metrics.drops(), 0);
        sink.push("y".into());
        assert_eq!(metrics.drops(), 1);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_written_is_counted_and_taken_up_again() {
        let path = dir("fail").join("log");
        let metrics = PolicyMetrics::default();
        let file = LogFile { path: path.clone(), bytes_max: 4, files_max: 2 };
        let (_sink, mut writer) = file.open(metrics.clone()).await.unwrap();
        let lines = ["abc".to_owned()];
        writer.target.write(&lines).await.unwrap();
        // The rotated name is taken by a folder, so that rotation fails.
        std::fs::create_dir_all(numbered(&path, 1).join("x")).unwrap();
        let error = writer.target.write(&lines).await.unwrap_err();
        writer.target.failed(&error);
        std::fs::remove_dir_all(numbered(&path, 1)).unwrap();
        writer.target.write(&lines).await.unwrap();
        assert_eq!(read(&path).as_deref(), Some("\nabc\n"));
        assert_eq!(read(&numbered(&path, 1)).as_deref(), Some("abc\n"));
    }

    #[tokio::test]
    async fn a_wrong_path_is_told_at_the_start() {
        let file = LogFile { path: "/proc/nowhere/log".into(), bytes_max: 1, files_max: 1 };
        let error = file.open(PolicyMetrics::default()).await.unwrap_err();
        assert_eq!(error.reason(), "ACCESS_LOG_WRITE_FAILED");
    }
}
