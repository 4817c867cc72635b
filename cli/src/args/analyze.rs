//! What can be typed after `kasbah analyze`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use discovery::analysis::{Level, Suppression};

use super::OutputArg;

pub(super) const ANALYZE_EXAMPLES: &str = "Examples:
  kasbah analyze .kasbah/config                          everything, as one set
  kasbah analyze mesh/ apps/ --failure-threshold Warning
  kasbah analyze mesh/ --output-threshold Warning --suppress 'IST0134=ServiceEntry shop/*'
  kasbah analyze mesh/ --analyzer gateway.ConflictingGatewayAnalyzer -o json
  kasbah analyze -L                                      every code and which analyzer tells it

A document keeps codes from being told about it by the annotation galley.istio.io/analyze-suppress: IST0107,IST0002 (or *).
Documents that are no YAML are named on stderr, and all others are analysed.

Exit code 0 when nothing reaches the threshold, 79 when something does, 65 when a document could not be read (but with
--ignore-unknown), 64 for wrong usage.";

#[derive(Debug, Args)]
pub(crate) struct AnalyzeArgs {
    /// Files or folders.
    #[arg(required_unless_present = "list")]
    pub(crate) paths: Vec<PathBuf>,
    /// The least level that makes the exit code 79.
    #[arg(long, value_enum, default_value = "Error", ignore_case = true, value_name = "LEVEL")]
    pub(crate) failure_threshold: Threshold,
    /// The least level that is printed.
    #[arg(long, value_enum, default_value = "Info", ignore_case = true, value_name = "LEVEL")]
    pub(crate) output_threshold: Threshold,
    /// Leave out a code for documents, as `CODE=KIND NS/NAME` with `*` for any text; may be given more than once.
    #[arg(short = 'S', long, value_parser = Suppression::parse, value_name = "CODE=RESOURCE")]
    pub(crate) suppress: Vec<Suppression>,
    /// Run this analyzer only; may be given more than once.
    #[arg(long, value_name = "NAME")]
    pub(crate) analyzer: Vec<String>,
    /// A file with the mesh configuration alone, as in `data.mesh` of the ConfigMap `istio`.
    #[arg(long, alias = "meshConfigFile", value_name = "FILE")]
    pub(crate) mesh_config: Option<PathBuf>,
    /// Do not mind documents that are no YAML or say no kind, such as values of charts.
    #[arg(long)]
    pub(crate) ignore_unknown: bool,
    /// Print every code with its analyzer instead.
    #[arg(short = 'L', long = "list-analyzers")]
    pub(crate) list: bool,
    #[command(flatten)]
    pub(crate) output: OutputArg,
}

/// A level by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Threshold {
    /// Worth knowing.
    #[value(name = "Info")]
    Info,
    /// Probably not what was meant.
    #[value(name = "Warning")]
    Warning,
    /// It does not work, or protects nobody.
    #[value(name = "Error")]
    Error,
}

impl Threshold {
    pub(crate) fn level(self) -> Level {
        match self {
            Self::Info => Level::Info,
            Self::Warning => Level::Warning,
            Self::Error => Level::Error,
        }
    }
}
