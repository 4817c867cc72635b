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

impl RotateArgs {
    /// An option that the step does not know. To pass over it would do another thing than was meant: `prepare --plan` would
    /// prepare, and `--verify FILE` alone would begin a rotation.
    pub(crate) fn misfit(&self) -> Option<&'static str> {
        use RotateStep::{Activate, Receipt, Revoke, Status, Taint};
        let step = self.step;
        if self.plan && step.is_some() {
            return Some("--plan is about a whole rotation, and takes no step");
        }
        if self.compromised && step.is_some() {
            return Some("--compromised is about a whole rotation, and takes no step");
        }
        if self.verify.is_some() && step != Some(Receipt) {
            return Some("--verify goes with the step receipt");
        }
        if self.authority.is_some() && !matches!(step, Some(Activate | Taint | Revoke)) {
            return Some("--authority goes with the steps activate, taint and revoke");
        }
        if !self.waive.is_empty() && (self.plan || matches!(step, Some(Status | Receipt))) {
            return Some("--waive changes a rotation; --plan, status and receipt only look");
        }
        None
    }
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{CaCommand, Cli, Command};

    fn misfit(line: &str) -> Option<&'static str> {
        let words = ["kasbah", "ca", "rotate"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words).unwrap().command {
            Command::Ca(CaCommand::Rotate(args)) => args.misfit(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn no_option_is_passed_over() {
        for line in [
            "prepare --plan",
            "status --compromised",
            "--verify r.json",
            "status --verify r.json",
            "--authority x",
            "prepare --authority x",
            "--plan --waive x",
            "status --waive x",
            "receipt --waive x",
        ] {
            assert!(misfit(line).is_some(), "{line}");
        }
        for line in [
            "",
            "--plan",
            "--compromised --yes --waive x",
            "activate --waive x --authority y",
            "taint --authority y",
            "receipt --verify r.json",
            "status",
        ] {
            assert_eq!(misfit(line), None, "{line}");
        }
    }
}
