//! What can be typed after `kasbah check`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{DirArg, ttl};

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) dir: DirArg,
    /// Check this machine before a mesh is started on it.
    #[arg(long)]
    pub(crate) pre: bool,
    /// Only these, by id or the beginning of one, such as `CA` or `ID-02`; may be given more than once.
    #[arg(long, value_name = "ID")]
    pub(crate) only: Vec<String>,
    /// What makes the exit code 1.
    #[arg(long, value_enum, default_value = "fail", value_name = "RESULT")]
    pub(crate) fail_on: FailOn,
    /// Try again for so long until all is well.
    #[arg(long, value_parser = ttl, value_name = "TIME")]
    pub(crate) wait: Option<Duration>,
    /// Form of the result.
    #[arg(short = 'o', long = "output", value_enum, default_value = "table", value_name = "FORMAT")]
    pub(crate) output: CheckFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FailOn {
    /// A check that failed.
    Fail,
    /// A warning, too.
    Warn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CheckFormat {
    Table,
    Json,
    Yaml,
    /// A test report for build servers.
    Junit,
}
