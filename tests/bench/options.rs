//! What can be asked of the benchmark.

use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Options of `proxy`.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) time: Duration,
    pub(crate) rounds: usize,
    pub(crate) connections: usize,
    /// The limit for ours in microseconds of CPU time per request.
    pub(crate) max_micros: Option<f64>,
}

impl Options {
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self { time: Duration::from_secs(5), rounds: 3, connections: 32, max_micros: None };
        for pair in words.chunks(2) {
            let [name, value] = pair else { bail!("{} needs a value", pair.join(" ")) };
            let wrong = || format!("{name} {value}");
            match *name {
                "--seconds" => options.time = Duration::from_secs_f64(value.parse().with_context(wrong)?),
                "--rounds" => options.rounds = value.parse().with_context(wrong)?,
                "--connections" => options.connections = value.parse().with_context(wrong)?,
                "--max-micros" => options.max_micros = Some(value.parse().with_context(wrong)?),
                _ => bail!("there is no option {name}; see tests/bench/run --help"),
            }
        }
        Ok(options)
    }
}

/// Connections open, memory grows to its size, the CPU's clock rises.
pub(crate) const WARM_UP: Duration = Duration::from_millis(1_000);
