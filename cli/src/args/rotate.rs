//! What can be typed after `kasbah ca rotate`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{CaArg, OutputArg, ttl};

#[derive(Debug, Args)]
pub(crate) struct RotateArgs {
    /// One step; without it the whole rotation is run.
    #[arg(value_enum, value_name = "STEP")]
    pub(crate) step: Option<RotateStep>,
    #[command(flatten)]
    pub(crate) ca: CaArg,
    /// What is replaced: the root of X.509-SVIDs, or the key of JWT-SVIDs or WIT-SVIDs.
    #[arg(long, value_enum, default_value = "x509")]
    pub(crate) kind: RotateKind,
    /// Do not ask before a whole rotation.
    #[arg(long, short = 'y')]
    pub(crate) yes: bool,
    /// Do not wait for this node in this rotation (its SPIFFE ID, or how that ends); may be given more than once.
    #[arg(long, value_name = "NAME")]
    pub(crate) waive: Vec<String>,
    /// Only say what a rotation would do, what each step waits for, and what is at risk.
    #[arg(long, conflicts_with_all = ["compromised", "yes"])]
    pub(crate) plan: bool,
    /// The old one is in wrong hands: each step waits for --grace only, then goes on without those who lag.
    #[arg(long)]
    pub(crate) compromised: bool,
    /// How long each step of a --compromised rotation waits.
    #[arg(long, default_value = "10s", value_parser = ttl, value_name = "TIME")]
    pub(crate) grace: Duration,
    /// Check a receipt that was kept in this file; no CA is asked.
    #[arg(long, value_name = "FILE")]
    pub(crate) verify: Option<PathBuf>,
    /// The authority to taint or revoke [default: the one that is being replaced].
    #[arg(long, value_name = "ID")]
    pub(crate) authority: Option<String>,
    /// How long to watch a whole rotation; the server goes on by itself.
    #[arg(long, default_value = "10m", value_parser = ttl, value_name = "TIME")]
    pub(crate) wait: Duration,
    #[command(flatten)]
    pub(crate) output: OutputArg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RotateStep {
    /// Publish a new authority, which signs nothing yet.
    Prepare,
    /// Let it sign, once every node has acknowledged it.
    Activate,
    /// Have everything replaced that the old one signed.
    Taint,
    /// Drop the old one from the bundle, once everything is replaced.
    Revoke,
    /// Show how far the rotation is and who holds it up.
    Status,
    /// Go back to where the rotation began.
    Abort,
    /// Print the signed receipt of the newest rotation, or check one with --verify.
    Receipt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RotateKind {
    /// The root, with the intermediate below it.
    X509,
    /// The key that signs JWT-SVIDs.
    Jwt,
    /// The key that signs WIT-SVIDs.
    Wit,
}
