//! What a process has used so far, from /proc.

use std::time::Duration;

use anyhow::{Context, Result};

/// CPU time of all its threads, and memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    /// Everything that is mapped, with the pages of the program, which processes share.
    pub(crate) resident_mib: f64,
    /// Its own data alone.
    pub(crate) own_mib: f64,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the process is gone")?;
        Ok(Self { cpu: cpu(pid)?, resident_mib: mib(&status, "VmRSS:")?, own_mib: mib(&status, "RssAnon:")? })
    }
}

/// Nanoseconds on a CPU of each thread (`schedstat`): the ticks of `stat` are too coarse for an idle process.
fn cpu(pid: u32) -> Result<Duration> {
    let mut nanos = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).context("the process is gone")? {
        let text = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        nanos += text.split_whitespace().next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanos))
}

#[allow(clippy::cast_precision_loss, reason = "megabytes")]
fn mib(status: &str, name: &'static str) -> Result<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).context(name)?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib as f64 / 1024.0)
}
