//! Which CA an administration verb talks to, and as whom.

use std::path::PathBuf;

use clap::Args;

use super::DirArg;

/// Which CA an administration verb talks to.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct CaArg {
    #[command(flatten)]
    pub(crate) dir: DirArg,
    /// The CA's admin socket [default: that of DIR].
    #[arg(long, value_name = "PATH", conflicts_with = "server")]
    pub(crate) socket: Option<PathBuf>,
    /// A CA elsewhere, over mTLS. Who you are is told by --cert and --key, or by the Workload API (SPIFFE_ENDPOINT_SOCKET).
    #[arg(long, env = "KASBAH_SERVER", value_name = "HOST:PORT", help_heading = REMOTE)]
    pub(crate) server: Option<String>,
    /// Your X.509-SVID (PEM, leaf first).
    #[arg(long, value_name = "FILE", requires_all = ["key", "server"], help_heading = REMOTE)]
    pub(crate) cert: Option<PathBuf>,
    /// Its key (PEM, PKCS#8).
    #[arg(long, value_name = "FILE", requires_all = ["cert", "server"], help_heading = REMOTE)]
    pub(crate) key: Option<PathBuf>,
    /// The trust domain's roots (PEM), to know the CA by [default: that of DIR with --cert, that of the Workload API otherwise].
    #[arg(long, value_name = "FILE", requires = "server", help_heading = REMOTE)]
    pub(crate) bundle: Option<PathBuf>,
}

const REMOTE: &str = "Another machine's CA";
