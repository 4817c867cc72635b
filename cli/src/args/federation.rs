//! What can be typed after `kasbah federation`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::bundle::BundleFormat;
use super::{CaArg, OutputArg};

#[derive(Debug, Subcommand)]
pub(crate) enum FederationCommand {
    /// Federate with a trust domain: its bundle is fetched from now on.
    #[command(after_help = "Examples:
  kasbah federation create --trust-domain other.org --bundle-endpoint-url https://spire.other.org:8443/ \\
    --bundle-endpoint-profile https_web
  kasbah federation create --trust-domain other.org --bundle-endpoint-url https://10.1.2.3:8443/ \\
    --bundle-endpoint-profile https_spiffe --endpoint-spiffe-id spiffe://other.org/spire/server \\
    --trust-domain-bundle-path other.json")]
    Create {
        #[command(flatten)]
        ca: CaArg,
        /// With whom.
        #[arg(long, value_name = "TD")]
        trust_domain: String,
        /// Where its bundle is published.
        #[arg(long, value_name = "URL")]
        bundle_endpoint_url: String,
        /// How the endpoint proves itself.
        #[arg(long, value_enum, value_name = "PROFILE")]
        bundle_endpoint_profile: ProfileArg,
        #[command(flatten)]
        endpoint: EndpointArg,
        #[command(flatten)]
        output: OutputArg,
    },
    /// List relationships, with how the fetching goes.
    #[command(after_help = "Examples:\n  kasbah federation list\n  kasbah federation list -o json")]
    List {
        #[command(flatten)]
        ca: CaArg,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Show one relationship.
    #[command(after_help = "Example:\n  kasbah federation show --trust-domain other.org")]
    Show {
        #[command(flatten)]
        ca: CaArg,
        /// With whom.
        #[arg(long, value_name = "TD")]
        trust_domain: String,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Change a relationship; what is not given stays.
    #[command(after_help = "Example:
  kasbah federation update --trust-domain other.org --bundle-endpoint-url https://new.other.org/bundle")]
    Update {
        #[command(flatten)]
        ca: CaArg,
        /// With whom.
        #[arg(long, value_name = "TD")]
        trust_domain: String,
        /// Where its bundle is published.
        #[arg(long, value_name = "URL")]
        bundle_endpoint_url: Option<String>,
        /// How the endpoint proves itself.
        #[arg(long, value_enum, value_name = "PROFILE")]
        bundle_endpoint_profile: Option<ProfileArg>,
        #[command(flatten)]
        endpoint: EndpointArg,
        #[command(flatten)]
        output: OutputArg,
    },
    /// End a relationship: its bundle is taken from every workload.
    #[command(after_help = "Example:\n  kasbah federation delete --trust-domain other.org")]
    Delete {
        #[command(flatten)]
        ca: CaArg,
        /// With whom.
        #[arg(long, value_name = "TD")]
        trust_domain: String,
    },
    /// Fetch the bundle now; exits with 1 or 69 when there is none to have.
    #[command(after_help = "Example:\n  kasbah federation refresh --trust-domain other.org")]
    Refresh {
        #[command(flatten)]
        ca: CaArg,
        /// Whose.
        #[arg(long, value_name = "TD")]
        trust_domain: String,
    },
}

/// What proves an endpoint.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct EndpointArg {
    /// The endpoint's SPIFFE ID (https_spiffe).
    #[arg(long, value_name = "ID")]
    pub(crate) endpoint_spiffe_id: Option<String>,
    /// The trust domain's present bundle, to begin with.
    #[arg(long, value_name = "FILE")]
    pub(crate) trust_domain_bundle_path: Option<PathBuf>,
    /// Form of that bundle.
    #[arg(long, value_enum, default_value = "spiffe", value_name = "FORMAT")]
    pub(crate) trust_domain_bundle_format: Option<BundleFormat>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProfileArg {
    /// By a certificate of the web.
    #[value(name = "https_web")]
    Web,
    /// By an SVID.
    #[value(name = "https_spiffe")]
    Spiffe,
}
