//! What can be typed after `kasbah bundle`.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};

use super::{CaArg, OutputArg};

#[derive(Debug, Subcommand)]
pub(crate) enum BundleCommand {
    /// Print the trust domain's own bundle.
    #[command(after_help = "Examples:
  kasbah bundle show > bundle.pem
  kasbah bundle show --format spiffe           for `kasbah bundle set` in another trust domain")]
    Show {
        #[command(flatten)]
        ca: CaArg,
        /// PEM certificates or SPIFFE JSON.
        #[arg(long, value_enum, default_value = "pem")]
        format: BundleFormat,
    },
    /// List the bundles of other trust domains, or print one of them.
    #[command(after_help = "Examples:
  kasbah bundle list
  kasbah bundle list --id other.org --format spiffe")]
    List {
        #[command(flatten)]
        ca: CaArg,
        /// Only that of this trust domain, whole.
        #[arg(long, value_name = "TD")]
        id: Option<String>,
        /// Print the bundles themselves, as PEM certificates or SPIFFE JSON.
        #[arg(long, value_enum)]
        format: Option<BundleFormat>,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Create or replace the bundle of another trust domain.
    #[command(after_help = "Examples:
  kasbah bundle set --id other.org --format spiffe --path other.json
  kasbah bundle show --format spiffe --dir /other | kasbah bundle set --id other.org --format spiffe")]
    Set {
        #[command(flatten)]
        ca: CaArg,
        /// Whose bundle it is.
        #[arg(long, value_name = "TD")]
        id: String,
        /// PEM certificates or SPIFFE JSON.
        #[arg(long, value_enum, default_value = "pem")]
        format: BundleFormat,
        /// The bundle [default: stdin].
        #[arg(long, value_name = "FILE")]
        path: Option<PathBuf>,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Trust authorities of this trust domain that sign elsewhere, while their workloads move here.
    #[command(after_help = "Examples:
  kasbah bundle append --path istio-root.pem
  spire-server bundle show -format spiffe | kasbah bundle append --format spiffe
  kasbah ca keys                                           their IDs, old and offline
  kasbah ca rotate taint --authority ID                    first step of dropping one; then revoke")]
    Append {
        #[command(flatten)]
        ca: CaArg,
        /// PEM certificates or SPIFFE JSON.
        #[arg(long, value_enum, default_value = "pem")]
        format: BundleFormat,
        /// Their bundle [default: stdin].
        #[arg(long, value_name = "FILE")]
        path: Option<PathBuf>,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Delete the bundle of another trust domain.
    #[command(after_help = "Examples:
  kasbah bundle delete --id other.org                      refused while entries federate with it
  kasbah bundle delete --id other.org --mode dissociate    those entries no longer federate with it")]
    Delete {
        #[command(flatten)]
        ca: CaArg,
        /// Whose bundle.
        #[arg(long, value_name = "TD")]
        id: String,
        /// What becomes of entries that federate with it.
        #[arg(long, value_enum, default_value = "restrict")]
        mode: DeleteMode,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BundleFormat {
    /// X.509 authorities as PEM.
    Pem,
    /// The SPIFFE bundle document (JWKS).
    Spiffe,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeleteMode {
    /// Delete nothing while there are such entries.
    Restrict,
    /// Delete the entries too.
    Delete,
    /// Keep the entries, without the trust domain.
    Dissociate,
}
