//! What can be typed after `kasbah cert`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use rustix::process::Signal;

use super::revoke::{REVOKE_EXAMPLES, RevocationsCommand, RevokeArgs};
use super::{CaArg, DirArg, OutputArg, ttl};
use crate::verbs::cert::Left;

#[derive(Debug, Subcommand)]
pub(crate) enum CertCommand {
    /// Revoke SVIDs before their end: one, or all of an identity, an entry or a node.
    #[command(after_help = REVOKE_EXAMPLES)]
    Revoke(RevokeArgs),
    /// What is revoked.
    #[command(subcommand)]
    Revocations(RevocationsCommand),
    /// Show a certificate and explain it: chain, trust, profile, life left, and what will renew it.
    #[command(
        after_help = "TARGET is a PEM file, `-` for stdin, HOST:PORT, `unix:PATH` of a Workload API, or a workload of the mesh in DIR.

Examples:
  kasbah cert show helloworld                            what the sidecar of a workload presents
  kasbah cert show svid.pem --bundle bundle.pem
  kasbah cert show 127.0.0.1:8443 --server-name localhost -o json
  kasbah cert show 127.0.0.1:5432 --starttls postgres
  kasbah cert show unix:.kasbah/run/agent.sock           what this process would get"
    )]
    Show {
        #[command(flatten)]
        target: TargetArgs,
        #[command(flatten)]
        output: OutputArg,
    },
    /// List the certificates and keys of the mesh in DIR: who has them, when they end, when they are renewed.
    #[command(after_help = "Examples:
  kasbah cert list
  kasbah cert list --expires-in 33% -o json     those with less than a third of their life left")]
    List {
        #[command(flatten)]
        dir: DirArg,
        /// Only those with less left: a time such as `1h`, or a share of the whole life such as `33%`.
        #[arg(long, value_name = "TIME|PERCENT")]
        expires_in: Option<Left>,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Print a line whenever a certificate is replaced, until interrupted.
    #[command(after_help = "Examples:
  kasbah cert watch helloworld
  kasbah cert watch /etc/app/svid.pem --count 1 && systemctl reload app")]
    Watch {
        #[command(flatten)]
        target: TargetArgs,
        /// How often to look.
        #[arg(long, default_value = "1s", value_parser = ttl, value_name = "TIME")]
        every: Duration,
        /// End after so many replacements.
        #[arg(long, value_name = "N")]
        count: Option<u64>,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Whether a certificate should be renewed: exit code 0 when it should, 1 when not yet.
    #[command(after_help = "Examples:
  kasbah cert needs-renewal svid.pem                     less than half of its life left?
  kasbah cert needs-renewal svid.pem --expires-in 33% && renew-it
  kasbah cert needs-renewal 127.0.0.1:8443 --expires-in 24h")]
    NeedsRenewal {
        #[command(flatten)]
        target: TargetArgs,
        /// Less left than this is too little: a time such as `1h`, or a share of the whole life such as `33%`.
        #[arg(long, value_name = "TIME|PERCENT", default_value = "50%")]
        expires_in: Left,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Verify a certificate with its chain; every reason against it is named. Exit code 0 when it holds, 1 when not.
    ///
    /// With --limbo: path validation of every case of an x509-limbo document from stdin, results document out. Names of peers
    /// are not judged; each case's time, kind of peer, longest path and revocation lists count.
    #[command(after_help = "Examples:
  kasbah cert verify svid.pem --bundle bundle.pem
  kasbah cert verify svid.pem --bundle bundle.pem --crl ca.crl
  kasbah cert verify --limbo < limbo.json > results.json")]
    Verify {
        #[command(flatten)]
        target: VerifyArgs,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Check certificates against the X.509-SVID profile and RFC 5280, in files or one PEM text a line from stdin.
    #[command(
        after_help = "With --lines, each line is a JSON string, or {\"pem\": \"…\", \"profile\": \"x509-svid\"|\"rfc5280\"};
the answer is `ok` or `err CODE,CODE…`.

Examples:
  kasbah cert lint leaf.pem ca.pem
  jq -Rs . leaf.pem | kasbah cert lint --lines
  kasbah help reasons                         what each code means"
    )]
    Lint {
        /// PEM files.
        #[arg(value_name = "FILE", required_unless_present = "lines", conflicts_with = "lines")]
        files: Vec<PathBuf>,
        /// Read one JSON value a line from stdin.
        #[arg(long)]
        lines: bool,
    },
    /// Replace a certificate and its key in files, by showing the old one; once or for ever.
    #[command(after_help = "Examples:
  kasbah cert renew --cert svid.pem --key svid.key                          when less than half of its life is left
  kasbah cert renew --cert svid.pem --key svid.key --force --exec 'nginx -s reload'
  kasbah cert renew --cert svid.pem --key svid.key --bundle bundle.pem --server ca.example:15012 --daemon --signal 123")]
    Renew(RenewArgs),
    /// Issue a certificate as an administrator: for a CSR, or with a new key.
    #[command(after_help = "Examples:
  kasbah cert issue --spiffe-id spiffe://cluster.local/ns/shop/sa/job --write ./identity
  kasbah cert issue --csr request.pem --ttl 1h > svid.pem")]
    Issue {
        #[command(flatten)]
        ca: CaArg,
        /// The identity; with --csr it stands in the request.
        #[arg(long, value_name = "ID", required_unless_present = "csr", conflicts_with = "csr", requires = "write")]
        spiffe_id: Option<String>,
        /// A certificate signing request (PEM).
        #[arg(long, value_name = "FILE")]
        csr: Option<PathBuf>,
        /// DNS name to put into the certificate; may be given more than once.
        #[arg(long, value_name = "NAME", conflicts_with = "csr")]
        dns: Vec<String>,
        /// Life of the certificate [default: as the CA decides].
        #[arg(long, value_parser = ttl, value_name = "TIME")]
        ttl: Option<Duration>,
        /// Write svid.pem, svid.key (with a new key) and bundle.pem into this folder.
        #[arg(long, value_name = "FOLDER")]
        write: Option<PathBuf>,
        #[command(flatten)]
        output: OutputArg,
    },
}

/// A pair of files to be renewed.
#[derive(Debug, Args)]
pub(crate) struct RenewArgs {
    /// The certificate (PEM, leaf first); it is replaced.
    #[arg(long, value_name = "FILE")]
    pub(crate) cert: PathBuf,
    /// Its key (PEM, PKCS#8); it is replaced by a new one.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: PathBuf,
    /// The trust bundle (PEM), to know the authority by; it is replaced by that of now [default: that of the mesh in DIR, not
    /// replaced].
    #[arg(long, value_name = "FILE")]
    pub(crate) bundle: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) dir: DirArg,
    /// The authority's CSR API [default: that of the mesh in DIR].
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) server: Option<String>,
    /// Renew when less is left: a time such as `1h`, or a share of the whole life such as `33%`.
    #[arg(long, value_name = "TIME|PERCENT", default_value = "50%")]
    pub(crate) expires_in: Left,
    /// Renew now, however much is left.
    #[arg(long)]
    pub(crate) force: bool,
    /// Life to ask for [default: as the authority decides].
    #[arg(long, value_parser = ttl, value_name = "TIME")]
    pub(crate) ttl: Option<Duration>,
    /// Go on for ever.
    #[arg(long)]
    pub(crate) daemon: bool,
    /// How often a daemon looks.
    #[arg(long, default_value = "10s", value_parser = ttl, value_name = "TIME")]
    pub(crate) every: Duration,
    /// Shell command to run after each renewal.
    #[arg(long, value_name = "COMMAND")]
    pub(crate) exec: Option<String>,
    /// Process to signal after each renewal, such as `123` (HUP) or `123:USR1`.
    #[arg(long, value_parser = signal, value_name = "PID[:SIGNAL]")]
    pub(crate) signal: Option<(i32, Signal)>,
}

fn signal(text: &str) -> Result<(i32, Signal), String> {
    let (pid, name) = text.split_once(':').unwrap_or((text, "HUP"));
    let pid = pid.parse::<i32>().ok().filter(|pid| *pid > 0).ok_or("write PID or PID:SIGNAL, such as 123:USR1")?;
    let signal = match name.trim_start_matches("SIG") {
        "HUP" => Signal::HUP,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        "TERM" => Signal::TERM,
        "INT" => Signal::INT,
        _ => return Err("the signal is HUP, USR1, USR2, TERM or INT".to_owned()),
    };
    Ok((pid, signal))
}

/// A certificate, wherever it is.
#[derive(Debug, Args)]
pub(crate) struct TargetArgs {
    /// PEM file, `-`, HOST:PORT, `unix:PATH` of a Workload API, or a workload's name.
    #[arg(value_name = "TARGET")]
    pub(crate) target: String,
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
    /// The name to ask a server for (SNI) [default: HOST].
    #[arg(long, value_name = "NAME")]
    pub(crate) server_name: Option<String>,
    /// Ask a server for TLS in its own protocol first.
    #[arg(long, value_enum, value_name = "PROTOCOL")]
    pub(crate) starttls: Option<StartTls>,
    /// Application protocols to offer (ALPN), such as `h2`; may be given more than once.
    #[arg(long, value_name = "PROTOCOL")]
    pub(crate) alpn: Vec<String>,
}

/// What a certificate is judged by.
#[derive(Debug, Args)]
pub(crate) struct TrustArgs {
    #[command(flatten)]
    pub(crate) dir: DirArg,
    /// Trust bundle, PEM or SPIFFE JSON [default: that of the mesh in DIR].
    #[arg(long, value_name = "FILE")]
    pub(crate) bundle: Option<PathBuf>,
}

/// A certificate to judge, or the cases of an x509-limbo document.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// PEM file with the leaf first, or `-` for stdin.
    #[arg(value_name = "FILE", required_unless_present = "limbo", conflicts_with = "limbo")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
    /// Revocation list (PEM or DER); may be given more than once.
    #[arg(long, value_name = "FILE")]
    pub(crate) crl: Vec<PathBuf>,
    /// Read an x509-limbo document from stdin.
    #[arg(long)]
    pub(crate) limbo: bool,
}

/// Protocols that begin in clear text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StartTls {
    Postgres,
}
