//! What can be typed after `kasbah ca rights` and `kasbah ca approvals`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{CaArg, OutputArg};

#[derive(Debug, Subcommand)]
pub(crate) enum RightsCommand {
    /// Check a rights file; a bad one is refused with line and column.
    #[command(after_help = "Example:\n  kasbah ca rights check rights.yaml")]
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Say whether somebody may do something, and by which role: by the rights in force, or by a file.
    #[command(after_help = "Examples:
  kasbah ca rights explain --subject spiffe://cluster.local/ops/pay --verb entry.write --spiffe-id spiffe://cluster.local/ns/pay/sa/api
  kasbah ca rights explain --file rights.yaml --subject uid:1000 --verb authority.rotate

Exits with 0 when he may and with 1 when he may not.")]
    Explain(Box<ExplainRightsArgs>),
}

#[derive(Debug, Args)]
pub(crate) struct ExplainRightsArgs {
    #[command(flatten)]
    pub(crate) ca: CaArg,
    /// A rights file; no CA is asked.
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Who: a SPIFFE ID, `uid:N`, `gid:N`, or (asking a CA) `local`.
    #[arg(long, value_name = "WHO")]
    pub(crate) subject: String,
    /// What, such as `entry.write` or `authority.rotate`.
    #[arg(long)]
    pub(crate) verb: String,
    /// For which identity.
    #[arg(long, value_name = "ID")]
    pub(crate) spiffe_id: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArg,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ApprovalsCommand {
    /// List calls that wait for a second person, and approved ones that were not made yet.
    #[command(after_help = "Example:\n  kasbah ca approvals list -o json")]
    List {
        #[command(flatten)]
        ca: CaArg,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Approve somebody else's call; he then makes it again.
    #[command(after_help = "Example:\n  kasbah ca approvals approve REQUEST_ID")]
    Approve {
        #[command(flatten)]
        ca: CaArg,
        /// The request's id.
        id: String,
    },
    /// Forget a call that waits, or take an approval back.
    #[command(after_help = "Example:\n  kasbah ca approvals deny REQUEST_ID")]
    Deny {
        #[command(flatten)]
        ca: CaArg,
        /// The request's id.
        id: String,
    },
}
