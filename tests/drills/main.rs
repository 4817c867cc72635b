//! Drills: what an operator is afraid of, done to a real mesh under load, with a report. `tests/drill` builds and starts it.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a drill prints its report and its progress")]

mod drill;
mod load;
mod report;
mod resting;
mod revocation;
mod rotation;
mod scene;
mod victim;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["rotation", options @ ..] => Options::parse(options).and_then(|options| rotation::run(&options)),
        ["revocation", options @ ..] => Options::parse(options).and_then(|options| revocation::run(&options)),
        _ => Err(anyhow::anyhow!("tests/drill rotation|revocation; see tests/drill --help")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What can be asked of a drill.
pub(crate) struct Options {
    /// How many rotations in a row.
    pub(crate) rotations: usize,
    /// How soon after a revocation nothing of the revoked may be accepted any more.
    pub(crate) within: Duration,
    /// Where the report goes, as Markdown and HTML.
    pub(crate) report: Option<PathBuf>,
}

impl Options {
    fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self { rotations: 10, within: Duration::from_secs(1), report: None };
        let mut words = words.iter();
        while let Some(name) = words.next() {
            let value = words.next().with_context(|| format!("{name} needs a value"))?;
            match *name {
                "--rotations" => options.rotations = value.parse().with_context(|| format!("{name} {value}"))?,
                "--within-ms" => {
                    options.within = Duration::from_millis(value.parse().with_context(|| format!("{name} {value}"))?);
                }
                "--report" => options.report = Some(PathBuf::from(value)),
                _ => bail!("there is no option {name}; see tests/drill --help"),
            }
        }
        Ok(options)
    }
}
