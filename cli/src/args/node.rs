//! What can be typed after `kasbah node`.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::{CaArg, OutputArg, moment, ttl};

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List attested nodes.
    #[command(after_help = "Examples:
  kasbah node list --attestation-type k8s_psat --selector k8s_psat:cluster:prod
  kasbah node list --expired
  kasbah node list --expires-before 24h")]
    List {
        #[command(flatten)]
        ca: CaArg,
        #[command(flatten)]
        filter: NodeFilterArgs,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Show one node.
    #[command(after_help = "Example:\n  kasbah node show spiffe://cluster.local/spire/agent/join_token/NAME")]
    Show {
        #[command(flatten)]
        ca: CaArg,
        /// The agent's SPIFFE ID.
        id: String,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Forget a node: its agent must attest again.
    #[command(after_help = "Example:\n  kasbah node evict spiffe://cluster.local/spire/agent/join_token/NAME")]
    Evict {
        #[command(flatten)]
        ca: CaArg,
        /// The agent's SPIFFE ID.
        id: String,
    },
    /// Forget nodes whose SVIDs ran out long ago. Banned nodes stay, and so do nodes that could not attest again.
    #[command(after_help = "Examples:
  kasbah node purge --expired-for 7d --dry-run
  kasbah node purge --expired-for 7d")]
    Purge {
        #[command(flatten)]
        ca: CaArg,
        /// For how long the SVID must have been expired.
        #[arg(long, value_parser = ttl, value_name = "TIME")]
        expired_for: Duration,
        /// Forget also nodes that attested by trust on first use: whoever comes first under their names is believed.
        #[arg(long)]
        include_tofu: bool,
        /// Only show which.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Refuse a node from now on.
    #[command(after_help = "Example:\n  kasbah node ban spiffe://cluster.local/spire/agent/join_token/NAME")]
    Ban {
        #[command(flatten)]
        ca: CaArg,
        /// The agent's SPIFFE ID.
        id: String,
    },
}

/// Which nodes.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct NodeFilterArgs {
    /// Only nodes that attested in this way, such as `join_token` or `k8s_psat`.
    #[arg(long, value_name = "TYPE")]
    pub(crate) attestation_type: Option<String>,
    /// Only nodes with this selector; all given ones must be among theirs.
    #[arg(long = "selector", value_name = "TYPE:VALUE")]
    pub(crate) selectors: Vec<String>,
    /// Only nodes that are (or, with `false`, are not) banned.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) banned: Option<bool>,
    /// Only nodes that may (or, with `false`, may not) attest again.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) can_reattest: Option<bool>,
    /// Only nodes whose SVID ends before this time (RFC 3339), or within this time from now, such as `24h`.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) expires_before: Option<i64>,
    /// Only nodes whose SVID has ended.
    #[arg(long, conflicts_with = "expires_before")]
    pub(crate) expired: bool,
}
