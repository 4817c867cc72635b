//! What can be typed about keys and certificates of the authority that come from elsewhere.

use std::path::PathBuf;

use clap::Args;

use super::{CaArg, OutputArg};

#[derive(Debug, Args)]
pub(crate) struct CaKeysArgs {
    #[command(flatten)]
    pub(crate) ca: CaArg,
    #[command(flatten)]
    pub(crate) output: OutputArg,
}

#[derive(Debug, Args)]
pub(crate) struct CaImportArgs {
    /// The authority's own certificate (PEM); others may follow it.
    #[arg(long, value_name = "FILE")]
    pub(crate) cert: PathBuf,
    /// Its private key (PEM: PKCS#8, PKCS#1 or SEC1; PKCS#8 may be encrypted).
    #[arg(long, value_name = "FILE")]
    pub(crate) key: PathBuf,
    /// File with the passphrase of an encrypted key.
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) way: WayArgs,
    #[command(flatten)]
    pub(crate) ca: CaArg,
    #[command(flatten)]
    pub(crate) output: OutputArg,
}

/// What leads from a certificate to its root.
#[derive(Debug, Args)]
pub(crate) struct WayArgs {
    /// What stands between the certificate and its root (PEM).
    #[arg(long, value_name = "FILE")]
    pub(crate) chain: Option<PathBuf>,
    /// The root (PEM); not needed when the authority knows it.
    #[arg(long, value_name = "FILE")]
    pub(crate) root: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CaCsrArgs {
    /// Where the CSR is written (PEM) [default: standard output].
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// A new key in the place of the one that waits for its certificate.
    #[arg(long)]
    pub(crate) new_key: bool,
    /// Settings file of an authority that has not begun yet (`custody.offline_root`).
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) ca: CaArg,
}

#[derive(Debug, Args)]
pub(crate) struct CaInstallArgs {
    /// The certificate that was signed for the CSR (PEM); others may follow it.
    #[arg(long, value_name = "FILE")]
    pub(crate) cert: PathBuf,
    #[command(flatten)]
    pub(crate) way: WayArgs,
    /// Settings file of an authority that has not begun yet (`custody.offline_root`).
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) ca: CaArg,
    #[command(flatten)]
    pub(crate) output: OutputArg,
}

#[derive(Debug, Args)]
pub(crate) struct CaSignerArgs {
    /// Folder with the keys, one file each; only its owner may read it.
    #[arg(long, value_name = "DIR")]
    pub(crate) keys: PathBuf,
    /// Unix socket to serve at.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: PathBuf,
    /// Mode of the socket, octal: who may use it may have anything signed.
    #[arg(long, default_value = "600", value_name = "MODE", value_parser = mode)]
    pub(crate) mode: u32,
}

fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).map_err(|_| "an octal mode such as 660".to_owned())?;
    if mode & 0o007 == 0 && mode <= 0o777 {
        Ok(mode)
    } else {
        Err("others must have no rights, such as in 660".to_owned())
    }
}
