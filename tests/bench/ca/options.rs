//! What can be asked of the CA's benchmark.

use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Options of `ca`.
#[derive(Clone, Debug)]
pub(super) struct Options {
    /// Length of a round.
    pub(super) time: Duration,
    pub(super) rounds: usize,
    /// How many certificates are issued for the measurement of memory.
    pub(super) certificates: usize,
    pub(super) entries_max: usize,
    /// How many agents wait for a new entry.
    pub(super) agents: usize,
    /// How long the idle process is watched.
    pub(super) idle: Duration,
    /// Whether a missed goal is a failure.
    pub(super) check: bool,
}

impl Options {
    pub(super) fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self {
            time: Duration::from_secs(5),
            rounds: 3,
            certificates: 50_000,
            entries_max: 100_000,
            agents: 1_000,
            idle: Duration::from_secs(30),
            check: false,
        };
        let mut words = words.iter();
        while let Some(name) = words.next() {
            if *name == "--check" {
                options.check = true;
                continue;
            }
            let value = words.next().with_context(|| format!("{name} needs a value"))?;
            let wrong = || format!("{name} {value}");
            match *name {
                "--seconds" => options.time = Duration::from_secs_f64(value.parse().with_context(wrong)?),
                "--idle-seconds" => options.idle = Duration::from_secs_f64(value.parse().with_context(wrong)?),
                "--rounds" => options.rounds = value.parse::<usize>().with_context(wrong)?.max(1),
                "--certificates" => options.certificates = value.parse().with_context(wrong)?,
                "--entries" => options.entries_max = value.parse().with_context(wrong)?,
                "--agents" => options.agents = value.parse().with_context(wrong)?,
                _ => bail!("there is no option {name}; see tests/bench/run --help"),
            }
        }
        Ok(options)
    }
}
