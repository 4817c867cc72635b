//! What can be typed after `kasbah jws` and `kasbah jwt`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{CaArg, OutputArg, ttl};

#[derive(Debug, Subcommand)]
pub(crate) enum JwsCommand {
    /// Check signatures: one JSON object a line in, `ok` or `err CODE` out.
    #[command(after_help = "A line in:
  {\"keys\":[JWK,...],\"jws\":\"...\"}

Only the signature and what the key may be used for are judged, see docs/verify.md.

Example:
  kasbah jws verify --lines < questions.jsonl")]
    Verify {
        /// Read one JSON object a line from stdin.
        #[arg(long, required = true)]
        lines: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum JwtCommand {
    /// Show what stands in a token: header, claims, times. Nothing is verified.
    #[command(after_help = "Examples:
  kasbah demo token | kasbah jwt decode
  kasbah jwt decode -o json < token.txt")]
    Decode(DecodeArgs),
    /// Verify a token; every reason against it is named. Exit code 0 when it holds, 1 when not.
    ///
    /// With --lines: one JSON object a line in, `ok SUBJECT` or `err CODE` out.
    #[command(after_help = "Examples:
  kasbah agent fetch jwt --audience db | kasbah jwt verify - --audience db     by the keys of the mesh in DIR
  kasbah jwt verify - --keys jwks.json --issuer https://issuer.example.com < token.txt
  kasbah jwt verify --lines < questions.jsonl

With --lines, a line in (members but keys and jwt are optional):
  {\"keys\":[JWK,...],\"jwt\":\"...\",\"issuer\":\"...\",\"audiences\":[\"...\"],\"now\":\"2026-01-31T12:00:00Z\"}

Without --keys, the keys are the JWT authorities of the CA. See docs/verify.md for every check.")]
    Verify(JwtVerifyArgs),
    /// Have a JWT-SVID made as an administrator.
    #[command(after_help = "Examples:
  kasbah jwt mint --spiffe-id spiffe://cluster.local/ns/shop/sa/job --audience db
  kasbah jwt mint --spiffe-id spiffe://cluster.local/ns/shop/sa/job --audience db --ttl 5m -o json")]
    Mint(MintArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DecodeArgs {
    /// The token; `-` is stdin, where it stays out of lists of processes.
    #[arg(default_value = "-", hide_default_value = true)]
    pub(crate) token: String,
    #[command(flatten)]
    pub(crate) output: OutputArg,
}

#[derive(Debug, Args)]
pub(crate) struct JwtVerifyArgs {
    /// The token; `-` is stdin, where it stays out of lists of processes.
    #[arg(required_unless_present = "lines", conflicts_with = "lines")]
    pub(crate) token: Option<String>,
    /// Read one JSON object a line from stdin.
    #[arg(long, conflicts_with_all = ["keys", "issuer", "audience"])]
    pub(crate) lines: bool,
    /// The keys: a JWKS or SPIFFE bundle file [default: the JWT authorities of the CA].
    #[arg(long, value_name = "FILE")]
    pub(crate) keys: Option<PathBuf>,
    /// The issuer that must have made it.
    #[arg(long, value_name = "ISS")]
    pub(crate) issuer: Option<String>,
    /// An audience that it may be for; one of those given must be among its own.
    #[arg(long, value_name = "AUD")]
    pub(crate) audience: Vec<String>,
    #[command(flatten)]
    pub(crate) ca: CaArg,
    #[command(flatten)]
    pub(crate) output: OutputArg,
}

#[derive(Debug, Args)]
pub(crate) struct MintArgs {
    #[command(flatten)]
    pub(crate) ca: CaArg,
    /// The identity.
    #[arg(long, value_name = "ID")]
    pub(crate) spiffe_id: String,
    /// Who shall accept it; may be given more than once.
    #[arg(long, required = true, value_name = "AUD")]
    pub(crate) audience: Vec<String>,
    /// Life of the token [default: the CA's].
    #[arg(long, value_parser = ttl, value_name = "TTL")]
    pub(crate) ttl: Option<Duration>,
    #[command(flatten)]
    pub(crate) output: OutputArg,
}
