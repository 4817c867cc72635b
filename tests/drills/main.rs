//! Drills: what an operator is afraid of, done to a real mesh under load, with a report. `tests/drill` builds and starts it.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a drill prints its report and its progress")]

mod load;
mod report;
mod rotation;
mod scene;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["rotation", options @ ..] => Options::parse(options).and_then(|options| rotation::run(&options)),
        _ => Err(anyhow::anyhow!("tests/drill rotation; see tests/drill --help")),
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
    /// Where the report goes, as Markdown and HTML.
    pub(crate) report: Option<PathBuf>,
}

impl Options {
    fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self { rotations: 10, report: None };
        let mut words = words.iter();
        while let Some(name) = words.next() {
            let value = words.next().with_context(|| format!("{name} needs a value"))?;
            match *name {
                "--rotations" => options.rotations = value.parse().with_context(|| format!("{name} {value}"))?,
                "--report" => options.report = Some(PathBuf::from(value)),
                _ => bail!("there is no option {name}; see tests/drill --help"),
            }
        }
        Ok(options)
    }
}
