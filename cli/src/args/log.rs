//! What can be typed after `kasbah log` and `kasbah audit`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use super::{CaArg, OutputArg, ttl};

#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// Print the newest signed tree head; keep it for `log verify --since`.
    #[command(after_help = "Example:\n  kasbah log head -o json > head.json")]
    Head {
        #[command(flatten)]
        ca: CaArg,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Prove that an SVID is in the log.
    #[command(
        after_help = "Example:\n  kasbah log prove $(kasbah audit list --action issue.x509 -o json | jq -r '.[0].target')"
    )]
    Prove {
        #[command(flatten)]
        ca: CaArg,
        /// Serial (hex) of a certificate, or SHA-256 (hex) of a token.
        serial: String,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Check the log: all of it, that it continues an earlier head, or a file without a CA. Exit code 1 when it does not hold.
    #[command(after_help = "Examples:
  kasbah log verify                                  every leaf, every record, the signed root
  kasbah log verify --since head.json                nothing that was there is changed or gone
  kasbah log verify --file log.jsonl --since head.json")]
    Verify {
        #[command(flatten)]
        ca: CaArg,
        /// A head that `log head -o json` printed, or an earlier export.
        #[arg(long, value_name = "FILE")]
        since: Option<PathBuf>,
        /// An exported log; no CA is asked.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Write the whole log into a file that can be verified anywhere.
    #[command(after_help = "Example:\n  kasbah log export log.jsonl && kasbah log verify --file log.jsonl")]
    Export {
        #[command(flatten)]
        ca: CaArg,
        /// Where to.
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// List records, newest first.
    #[command(after_help = "Examples:
  kasbah audit list --since 1h
  kasbah audit list --action entry                   all that was done to entries
  kasbah audit list --id spiffe://cluster.local/ns/default/sa/cart -o json")]
    List {
        #[command(flatten)]
        ca: CaArg,
        /// Only what happened within this time.
        #[arg(long, value_parser = ttl, value_name = "TIME")]
        since: Option<Duration>,
        /// Only what this one did: a SPIFFE ID, or `local`.
        #[arg(long)]
        actor: Option<String>,
        /// Only this act, such as `entry.create`, or this kind of acts, such as `entry`.
        #[arg(long)]
        action: Option<String>,
        /// Only what concerns this identity.
        #[arg(long, value_name = "SPIFFE_ID")]
        id: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
        #[command(flatten)]
        output: OutputArg,
    },
}
