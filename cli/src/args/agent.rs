//! What can be typed after `kasbah agent`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{DirArg, OutputArg, RoleArgs, ttl};

#[derive(Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// Run the agent in the foreground.
    #[command(after_help = "Example:\n  kasbah agent run --config agent.yaml")]
    Run(RoleArgs),
    /// Join a trust domain once, and write the settings to run with.
    #[command(after_help = "Examples:
  kasbah agent join --server ca.example.org:8081 --trust-domain example.org --trust-bundle bundle.pem --token TOKEN --data-dir /var/lib/kasbah
  kasbah agent join --server ca.example.org:8081 --trust-domain example.org --fingerprint SHA256 --x509pop dev.pem,dev.key --data-dir /var/lib/kasbah
  kasbah agent run --config /var/lib/kasbah/agent.yaml")]
    Join(JoinArgs),
    /// Fetch what the calling process gets from the Workload API.
    #[command(subcommand)]
    Fetch(FetchCommand),
    /// Follow the X.509-SVIDs of the calling process, until interrupted.
    #[command(after_help = "Examples:
  kasbah run --name helloworld -- kasbah agent watch
  kasbah run --name web -- kasbah agent watch --write /run/web --signal HUP --pid-file /run/nginx.pid
  kasbah run --name web -- kasbah agent watch --write /run/web --exec nginx --exec -s --exec reload")]
    Watch(WatchArgs),
    /// Have the agent judge a JWT-SVID: exit code 0 when it is valid for the audience, 1 when it is not.
    #[command(after_help = "Example:\n  kasbah run --name db -- kasbah agent validate --audience db TOKEN")]
    Validate {
        #[command(flatten)]
        socket: SocketArg,
        /// For whom the token should be.
        #[arg(long)]
        audience: String,
        /// The token; `-` reads it from standard input.
        token: String,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Show the selectors of a process and the identities it gets, and why.
    #[command(after_help = "Examples:
  kasbah agent whoami --pid 4711
  kasbah agent whoami --pid 4711 --admin 127.0.0.1:15020 -o json")]
    Whoami {
        #[command(flatten)]
        dir: DirArg,
        /// Process to look at.
        #[arg(long)]
        pid: u32,
        /// The agent's admin address [default: that of DIR].
        #[arg(long, value_name = "IP:PORT")]
        admin: Option<SocketAddr>,
        #[command(flatten)]
        output: OutputArg,
    },
}

#[derive(Debug, Args)]
pub(crate) struct SocketArg {
    #[command(flatten)]
    pub(crate) dir: DirArg,
    /// Workload API address [default: $SPIFFE_ENDPOINT_SOCKET, otherwise the agent of DIR].
    #[arg(long, env = "SPIFFE_ENDPOINT_SOCKET", value_name = "ADDRESS")]
    pub(crate) socket: Option<String>,
}

/// How a node joins.
#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// The CA, HOST:PORT.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) server: String,
    /// The trust domain.
    #[arg(long, value_name = "NAME")]
    pub(crate) trust_domain: String,
    /// Where the agent keeps its identity and `agent.yaml`.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) data_dir: PathBuf,
    /// The CA's roots (PEM).
    #[arg(long, value_name = "FILE", required_unless_present = "fingerprint")]
    pub(crate) trust_bundle: Option<PathBuf>,
    /// SHA-256 of a root of the CA, in hex; may be given more than once.
    #[arg(long, value_name = "SHA256")]
    pub(crate) fingerprint: Vec<String>,
    /// Where roots with the fingerprint are fetched [default: from the CA].
    #[arg(long, value_name = "URL", requires = "fingerprint")]
    pub(crate) url: Option<String>,
    #[command(flatten)]
    pub(crate) evidence: EvidenceArg,
    /// Workload API socket of the agent that will run [default: agent.sock in FOLDER].
    #[arg(long, value_name = "PATH")]
    pub(crate) workload_api: Option<PathBuf>,
    /// How long to wait for the CA.
    #[arg(long, default_value = "30s", value_parser = ttl, value_name = "TIME")]
    pub(crate) wait: Duration,
    #[command(flatten)]
    pub(crate) output: OutputArg,
}

/// What the node shows; one of them.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct EvidenceArg {
    /// A join token of `kasbah token create`.
    #[arg(long)]
    pub(crate) token: Option<String>,
    /// A file with the join token.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// A device certificate and its key.
    #[arg(long, value_name = "CERT,KEY", value_delimiter = ',', num_args = 1)]
    pub(crate) x509pop: Vec<PathBuf>,
    /// The name of this Kubernetes cluster; the projected token proves the rest.
    #[arg(long, value_name = "CLUSTER")]
    pub(crate) k8s_psat: Option<String>,
    /// A file with a token of an OIDC issuer.
    #[arg(long, value_name = "FILE")]
    pub(crate) oidc_token_file: Option<PathBuf>,
}

/// Who may read written files.
#[derive(Debug, Args)]
pub(crate) struct AccessArg {
    /// Owner of the files, by name or number.
    #[arg(long, value_name = "USER", requires = "write")]
    pub(crate) owner: Option<String>,
    /// Group of the files, by name or number.
    #[arg(long, value_name = "GROUP", requires = "write")]
    pub(crate) group: Option<String>,
    /// Mode of secret files in octal, nothing for others [default: 0600].
    #[arg(long, value_name = "MODE", requires = "write")]
    pub(crate) mode: Option<String>,
    /// Also write svid.p12 under the password in the first line of this file.
    #[arg(long, value_name = "FILE", requires = "write")]
    pub(crate) pkcs12_password_file: Option<PathBuf>,
}

/// `kasbah agent watch`.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    pub(crate) socket: SocketArg,
    /// Keep svid.pem, svid.key and bundle.pem in this folder, swapped as a whole at each change.
    #[arg(long, value_name = "DIR")]
    pub(crate) write: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) access: AccessArg,
    #[command(flatten)]
    pub(crate) tell: TellArg,
    /// End after so many changes.
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    #[command(flatten)]
    pub(crate) output: OutputArg,
}

/// Who is told of written files.
#[derive(Debug, Args)]
pub(crate) struct TellArg {
    /// A word of the command that is run after each change; may be given more than once.
    #[arg(long, value_name = "WORD", requires = "write", allow_hyphen_values = true)]
    pub(crate) exec: Vec<String>,
    /// The process that gets the signal after each change, by its pid file.
    #[arg(long, value_name = "FILE", requires = "write")]
    pub(crate) pid_file: Option<PathBuf>,
    /// HUP, USR1, USR2 or TERM.
    #[arg(long, default_value = "HUP", value_name = "NAME")]
    pub(crate) signal: String,
}

/// `kasbah agent fetch x509`.
#[derive(Debug, Args)]
pub(crate) struct X509Args {
    #[command(flatten)]
    pub(crate) socket: SocketArg,
    /// Write svid.pem, svid.key and bundle.pem into this folder, all at once.
    #[arg(long, value_name = "DIR")]
    pub(crate) write: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) access: AccessArg,
    /// How long to wait for agent and identity, as init containers need it.
    #[arg(long, value_parser = ttl, value_name = "TIME")]
    pub(crate) wait: Option<Duration>,
    #[command(flatten)]
    pub(crate) output: OutputArg,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FetchCommand {
    /// X.509-SVIDs with keys and bundles.
    #[command(after_help = "Examples:
  kasbah run --name helloworld -- kasbah agent fetch x509 --write ./svid
  kasbah agent fetch x509 --wait 2m --write /run/svid --owner www-data --mode 0400    # an init container")]
    X509(X509Args),
    /// A JWT-SVID for an audience.
    #[command(after_help = "Example:\n  kasbah run --name helloworld -- kasbah agent fetch jwt --audience db")]
    Jwt {
        #[command(flatten)]
        socket: SocketArg,
        /// Who shall accept the token; may be given more than once.
        #[arg(long, required = true)]
        audience: Vec<String>,
        /// Which identity, when there are several.
        #[arg(long, value_name = "ID")]
        spiffe_id: Option<String>,
        #[command(flatten)]
        output: OutputArg,
    },
    /// WIT-SVIDs: tokens bound to a key, of use only with proofs made by that key.
    #[command(after_help = "Example:\n  kasbah run --name helloworld -- kasbah agent fetch wit --write ./wit")]
    Wit {
        #[command(flatten)]
        socket: SocketArg,
        /// Which identity, when there are several.
        #[arg(long, value_name = "ID")]
        spiffe_id: Option<String>,
        /// Write wit.jwt and wit.key.jwk into this folder.
        #[arg(long, value_name = "DIR")]
        write: Option<PathBuf>,
        #[command(flatten)]
        output: OutputArg,
    },
}
