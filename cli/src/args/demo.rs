//! What can be typed after `kasbah demo`.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::{DirArg, ttl};

#[derive(Debug, Subcommand)]
pub(crate) enum DemoCommand {
    /// Print a token: for an end user, or (`--kind service-account`) for the CSR API.
    #[command(after_help = "Examples:
  kasbah demo token --group testers
  curl -H \"authorization: Bearer $(kasbah demo token --group testers)\" http://localhost/test
  kasbah demo token --kind service-account --namespace default --account cart")]
    Token(TokenArgs),
    /// Run one of the demo's workloads (used by `kasbah up`).
    #[command(hide = true)]
    Serve(ServeArgs),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TokenKind {
    /// An end user's JWT.
    User,
    /// A projected Kubernetes-like service account token.
    ServiceAccount,
}

#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    #[command(flatten)]
    pub(crate) dir: DirArg,
    /// Which token.
    #[arg(long, value_enum, default_value = "user")]
    pub(crate) kind: TokenKind,
    /// A group of the end user; may be given more than once.
    #[arg(long = "group", value_name = "G")]
    pub(crate) groups: Vec<String>,
    /// Namespace of the service account.
    #[arg(long, value_name = "NS", default_value = "default")]
    pub(crate) namespace: String,
    /// Service account.
    #[arg(long, value_name = "SA", required_if_eq("kind", "service-account"))]
    pub(crate) account: Option<String>,
    /// Audience of the service account token.
    #[arg(long, default_value = "istio-ca")]
    pub(crate) audience: String,
    /// Life of the token.
    #[arg(long, default_value = "1h", value_parser = ttl)]
    pub(crate) ttl: Duration,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum ServeKind {
    Helloworld,
    Test,
    External,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Which workload.
    #[arg(value_enum)]
    pub(crate) kind: ServeKind,
    /// Its loopback address.
    #[arg(long)]
    pub(crate) address: std::net::IpAddr,
    /// HTTP port.
    #[arg(long, default_value_t = 9095)]
    pub(crate) port: u16,
    /// TCP echo port (helloworld).
    #[arg(long, default_value_t = 9096)]
    pub(crate) tcp_port: u16,
    /// The sidecar's outbound listener (test).
    #[arg(long)]
    pub(crate) outbound: Option<std::net::SocketAddr>,
}
