//! What can be typed after `kasbah cert` to revoke.

use clap::{Args, Subcommand};
use identity::revocation::RevocationReason;

use super::{CaArg, OutputArg};

#[derive(Debug, Args)]
#[group(id = "revoked", required = true, multiple = false, args = ["what", "spiffe_id", "entry", "node"])]
pub(crate) struct RevokeArgs {
    /// A serial number, the SHA-256 of a certificate or token (hexadecimal), or a file with a certificate or token.
    #[arg(value_name = "SERIAL|FILE")]
    pub(crate) what: Option<String>,
    /// All live SVIDs of this identity. Its entries go on issuing.
    #[arg(long, value_name = "ID")]
    pub(crate) spiffe_id: Option<String>,
    /// All live SVIDs of this entry, which issues no more.
    #[arg(long, value_name = "ID")]
    pub(crate) entry: Option<String>,
    /// The SVIDs of this node and everything that it had issued; the node is banned.
    #[arg(long, value_name = "ID")]
    pub(crate) node: Option<String>,
    /// Why, as RFC 5280 has it: keyCompromise, superseded, cessationOfOperation, privilegeWithdrawn, affiliationChanged, …
    #[arg(long, value_parser = reason, value_name = "REASON")]
    pub(crate) reason: RevocationReason,
    /// Do not ask.
    #[arg(long, short = 'y')]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) ca: CaArg,
    #[command(flatten)]
    pub(crate) output: OutputArg,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RevocationsCommand {
    /// Show what is revoked and has not expired, newest first.
    #[command(after_help = "Examples:
  kasbah cert revocations list
  kasbah cert revocations list --spiffe-id spiffe://cluster.local/ns/default/sa/cart -o json")]
    List {
        /// Of this identity only.
        #[arg(long, value_name = "ID")]
        spiffe_id: Option<String>,
        /// Not more than so many.
        #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
        #[command(flatten)]
        ca: CaArg,
        #[command(flatten)]
        output: OutputArg,
    },
}

fn reason(text: &str) -> Result<RevocationReason, String> {
    RevocationReason::parse(text).ok_or_else(|| {
        let names: Vec<&str> = RevocationReason::ALL.iter().map(|reason| reason.name()).collect();
        format!("not a reason of RFC 5280; one of {}", names.join(", "))
    })
}

pub(crate) const REVOKE_EXAMPLES: &str = "Examples:
  kasbah cert revoke 3f2a…c1 --reason keyCompromise
  kasbah cert revoke svid.pem --reason superseded --yes
  kasbah cert revoke --spiffe-id spiffe://cluster.local/ns/default/sa/cart --reason keyCompromise
  kasbah cert revoke --entry ENTRY_ID --reason cessationOfOperation
  kasbah cert revoke --node spiffe://cluster.local/spire/agent/join_token/… --reason keyCompromise

What it hits is shown before anything is changed. Without a terminal, --yes is needed.";
