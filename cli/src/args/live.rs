//! What can be typed after the verbs that look at a running mesh: `edges`, `top`, `blast-radius`, `bug-report`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{DirArg, OutputArg, ttl};

pub(super) const EDGES_EXAMPLES: &str = "Examples:
  kasbah edges
  kasbah edges --plain                       only what is not mTLS
  kasbah edges -o json
  kasbah edges --watch 2s";

#[derive(Debug, Args)]
pub(crate) struct EdgesArgs {
    #[command(flatten)]
    pub(crate) dir: DirArg,
    /// Only edges that are not mTLS.
    #[arg(long)]
    pub(crate) plain: bool,
    /// Look again and again, until interrupted; with JSON one document a line.
    #[arg(long, value_parser = ttl, value_name = "TIME", num_args = 0..=1, default_missing_value = "2s")]
    pub(crate) watch: Option<Duration>,
    #[command(flatten)]
    pub(crate) output: OutputArg,
}

pub(super) const TOP_EXAMPLES: &str = "Examples:
  kasbah top                                 on a terminal: `q` or Ctrl-C leaves
  kasbah top --every 5s
  kasbah top --once -o json                  one look, for programs";

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    #[command(flatten)]
    pub(crate) dir: DirArg,
    /// How long each look lasts: rates are those of this time.
    #[arg(long, default_value = "2s", value_parser = ttl, value_name = "TIME")]
    pub(crate) every: Duration,
    /// Look once.
    #[arg(long)]
    pub(crate) once: bool,
    #[command(flatten)]
    pub(crate) output: OutputArg,
}

pub(super) const BLAST_RADIUS_EXAMPLES: &str = "Examples:
  kasbah blast-radius spiffe://cluster.local/ns/default/sa/test
  kasbah blast-radius spiffe://cluster.local/ns/default/sa/test --config ./documents -o json

What policies say is judged without sending anything: for each service whether some request of this identity could \
    pass (`yes`), none can (`no`), or it depends on path, method, token or the like (`depends`).";

#[derive(Debug, Args)]
pub(crate) struct BlastRadiusArgs {
    /// The identity.
    #[arg(value_name = "SPIFFE_ID")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) dir: DirArg,
    /// Operator documents: files or folders [default: those of DIR].
    #[arg(long, value_name = "PATH")]
    pub(crate) config: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) output: OutputArg,
}

pub(super) const BUG_REPORT_EXAMPLES: &str = "Examples:
  kasbah bug-report
  kasbah bug-report --output report.tar.gz --dir /tmp/mesh

Keys, tokens and passwords are removed. Names, addresses and SPIFFE IDs stay: look before you send it.";

#[derive(Debug, Args)]
pub(crate) struct BugReportArgs {
    #[command(flatten)]
    pub(crate) dir: DirArg,
    /// The file to write [default: kasbah-report-TIME.tar.gz]; an existing one is not replaced.
    #[arg(long, value_name = "FILE.tar.gz")]
    pub(crate) output: Option<PathBuf>,
}
