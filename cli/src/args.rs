//! What can be typed: subcommands, options, help texts with examples.

mod agent;
mod analyze;
mod bundle;
mod ca;
mod ca_keys;
mod cert;
mod check;
mod demo;
mod entry;
mod explain;
mod federation;
mod jwt;
mod live;
mod log;
mod node;
mod revoke;
mod rights;
mod rotate;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::output::Format;

pub(crate) use agent::{AccessArg, AgentCommand, FetchCommand, JoinArgs, SocketArg, TellArg, WatchArgs, X509Args};
pub(crate) use analyze::AnalyzeArgs;
pub(crate) use bundle::{BundleCommand, BundleFormat, DeleteMode};
pub(crate) use ca::CaArg;
pub(crate) use ca_keys::{CaCsrArgs, CaImportArgs, CaInstallArgs, CaKeysArgs, CaSignerArgs, WayArgs};
pub(crate) use cert::{CertCommand, RenewArgs, StartTls, TargetArgs, TrustArgs, VerifyArgs};
pub(crate) use check::{CheckArgs, CheckFormat, FailOn};
pub(crate) use demo::{DemoCommand, ServeArgs, ServeKind, TokenArgs, TokenKind};
pub(crate) use entry::{DocumentsArg, EntryArgs, EntryCommand};
pub(crate) use explain::ExplainMeshArgs;
pub(crate) use federation::{EndpointArg, FederationCommand, ProfileArg};
pub(crate) use jwt::{DecodeArgs, JwsCommand, JwtCommand, JwtVerifyArgs, MintArgs};
pub(crate) use live::{BlastRadiusArgs, BugReportArgs, EdgesArgs, TopArgs};
pub(crate) use log::{AuditCommand, LogCommand};
pub(crate) use node::{NodeCommand, NodeFilterArgs};
pub(crate) use revoke::{RevocationsCommand, RevokeArgs};
pub(crate) use rights::{ApprovalsCommand, ExplainRightsArgs, RightsCommand};
pub(crate) use rotate::{RotateArgs, RotateKind, RotateStep};

/// Identity and security for service meshes: certificate authority, node agent, proxies, discovery and policy in one binary.
#[derive(Debug, Parser)]
#[command(name = "kasbah", version, about, disable_help_subcommand = true, after_help = TOP_EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const TOP_EXAMPLES: &str = "Examples:
  kasbah up                                   start a whole mesh on this machine (Ctrl-C stops it)
  kasbah status                               what runs, how healthy, what was refused
  kasbah run --name cart -- ./cart            start a program with an identity of its own
  kasbah demo token --group testers           a token for the demo's protected route
  kasbah help reasons                         every reason code with cause and remedy";

/// Where the mesh of a verb lives.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct DirArg {
    /// Folder of the mesh: configuration, data, logs, sockets.
    #[arg(long, env = "KASBAH_DIR", default_value = ".kasbah", value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct OutputArg {
    /// Form of the result.
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub(crate) output: Format,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the whole mesh with its demo on this machine.
    #[command(after_help = "Examples:
  kasbah up                                   in the foreground; Ctrl-C stops all
  kasbah up --detach --dir /tmp/mesh          in the background; `kasbah down --dir /tmp/mesh` stops it
  kasbah up --leaf-ttl 20s                    watch certificates rotate every ten seconds")]
    Up(UpArgs),
    /// Show the roles of a running mesh, their health, memory and restarts, and refused documents.
    #[command(after_help = "Examples:\n  kasbah status\n  kasbah status -o json --dir /tmp/mesh")]
    Status {
        #[command(flatten)]
        dir: DirArg,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Stop a running mesh.
    #[command(after_help = "Examples:\n  kasbah down\n  kasbah down --dir /tmp/mesh")]
    Down {
        #[command(flatten)]
        dir: DirArg,
    },
    /// Run a program with an identity: the agent knows it, and all it starts, by NAME.
    #[command(after_help = "Examples:
  kasbah run --name cart -- ./cart --port 8080
  kasbah run --name helloworld -- sh -c 'kasbah agent fetch x509'
  kasbah run --name test --sidecar -- sh -c 'curl -s http://helloworld.default.svc.cluster.local/'

The program replaces this process: its output, signals and exit code are its own.
It gets an identity if a registration entry has the selector launch:name:NAME.
With --sidecar this process stays, passes signals on, ends the sidecar with the program and exits with its code; the \
    program finds the sidecar as its HTTP proxy (http_proxy).")]
    Run(RunArgs),
    /// The certificate authority: run it, rotate its keys or import them, policy, rights, backups.
    #[command(subcommand)]
    Ca(CaCommand),
    /// The node agent, and what a workload gets from it.
    #[command(subcommand)]
    Agent(AgentCommand),
    /// The proxy: sidecar, ingress gateway, egress gateway.
    #[command(subcommand)]
    Proxy(RoleCommand),
    /// Discovery: reads operator documents, serves xDS.
    #[command(subcommand)]
    Discovery(RoleCommand),
    /// The policy service: external authorization, rate limits, access logs.
    #[command(subcommand)]
    Policy(RoleCommand),
    /// Join tokens for node agents.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Registration entries: which selectors get which SPIFFE ID.
    #[command(subcommand)]
    Entry(EntryCommand),
    /// Attested nodes.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Trust bundles: the own one, and those of other trust domains.
    #[command(subcommand)]
    Bundle(BundleCommand),
    /// Federation: which trust domains' bundles are fetched, and from where.
    #[command(subcommand)]
    Federation(FederationCommand),
    /// The transparency log over everything that was issued.
    #[command(subcommand)]
    Log(LogCommand),
    /// The audit trail: who did what to the CA, and what was refused.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// The demo's tokens and workloads.
    #[command(subcommand)]
    Demo(DemoCommand),
    /// Check operator documents against schema and semantic rules, without a server.
    #[command(
        after_help = "Examples:\n  kasbah validate .kasbah/config\n  kasbah validate gateway.yaml routes.yaml -o json"
    )]
    Validate {
        /// Files or folders.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Analyse operator documents as one set: what contradicts, leads nowhere, or protects nobody; Istio's codes and our own.
    #[command(after_help = analyze::ANALYZE_EXAMPLES)]
    Analyze(AnalyzeArgs),
    /// Authorization policies, judged offline.
    #[command(subcommand)]
    Authz(AuthzCommand),
    /// Check SPIFFE IDs: one JSON string a line in, `ok TRUST_DOMAIN PATH` or `err CODE` out.
    #[command(after_help = "Example:\n  echo '\"spiffe://example.org/cart\"' | kasbah spiffe-id --lines")]
    SpiffeId {
        /// Read one JSON string a line from stdin.
        #[arg(long, required = true)]
        lines: bool,
    },
    /// Signed objects (JWS) of any kind.
    #[command(subcommand)]
    Jws(JwsCommand),
    /// Signed tokens (JWT).
    #[command(subcommand)]
    Jwt(JwtCommand),
    /// Look at everything that can go wrong with identity in a mesh: values, causes, remedies.
    #[command(after_help = "Exit code 0 when nothing failed, 1 when something did (or warned, with --fail-on warn).

Examples:
  kasbah check
  kasbah check --pre                    before `kasbah up`, on this machine
  kasbah check --only CA --only ID-02 -o json
  kasbah check --wait 30s -o junit > report.xml
  kasbah help checks                    every check with its remedy")]
    Check(CheckArgs),
    /// Certificates: show, list, watch, verify, lint, issue, renew, revoke.
    #[command(subcommand)]
    Cert(CertCommand),
    /// Show who talks to whom: both identities, mTLS or not, requests; as the proxies count them.
    #[command(after_help = live::EDGES_EXAMPLES)]
    Edges(EdgesArgs),
    /// Watch the mesh live: roles, requests, certificates, rotation, warnings.
    #[command(after_help = live::TOP_EXAMPLES)]
    Top(TopArgs),
    /// Say what an identity can reach by policy, and what it did reach.
    #[command(after_help = live::BLAST_RADIUS_EXAMPLES)]
    BlastRadius(BlastRadiusArgs),
    /// Say what becomes of a request, and why: every decision with the document behind it. Or what holds for a workload.
    #[command(after_help = explain::EXPLAIN_EXAMPLES)]
    Explain(Box<ExplainMeshArgs>),
    /// Collect what somebody needs who helps you into one file, without secrets.
    #[command(after_help = live::BUG_REPORT_EXAMPLES)]
    BugReport(BugReportArgs),
    /// Print the completion script of a shell.
    #[command(after_help = "Examples:
  kasbah completions bash > ~/.local/share/bash-completion/completions/kasbah
  kasbah completions zsh > ~/.zfunc/_kasbah
  kasbah completions fish > ~/.config/fish/completions/kasbah.fish")]
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Explanations: `exit-codes`, `reasons`, `checks`, manual pages, or a command's help.
    #[command(after_help = "Examples:
  kasbah help reasons
  kasbah help exit-codes
  kasbah help up
  kasbah help man cert show | man -l -
  kasbah help man --write ~/.local/share/man/man1")]
    Help {
        /// A topic (`exit-codes`, `reasons`, `checks`, `man [COMMAND]`) or a command.
        topic: Vec<String>,
        /// With `man`: write the page of every command into this folder.
        #[arg(long, value_name = "FOLDER")]
        write: Option<PathBuf>,
        #[command(flatten)]
        output: OutputArg,
    },
}

#[derive(Clone, Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) dir: DirArg,
    /// Port of the ingress gateway for HTTP [default: 80 if it may be bound and is free, otherwise 8080].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) ingress_port: Option<u16>,
    /// Return when all is ready and leave the mesh running.
    #[arg(long)]
    pub(crate) detach: bool,
    /// Life of the workloads' certificates, such as `20s` or `1h`.
    #[arg(long, default_value = "1h", value_parser = ttl, value_name = "TTL")]
    pub(crate) leaf_ttl: Duration,
    /// Database of the certificate authority [default: SQLite below DIR/data].
    #[arg(long, value_name = "URL")]
    pub(crate) database: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) dir: DirArg,
    /// Name under which the agent will know the program (selector `launch:name:NAME`).
    #[arg(long)]
    pub(crate) name: String,
    /// The agent's launch socket [default: that of DIR].
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// How long to wait for the agent.
    #[arg(long, default_value = "30s", value_parser = ttl, value_name = "TIME")]
    pub(crate) wait: Duration,
    /// Start a sidecar beside the program and end it with the program, as jobs need it.
    #[arg(long)]
    pub(crate) sidecar: bool,
    /// The loopback address that the sidecar takes [default: a free one].
    #[arg(long, value_name = "IP", requires = "sidecar")]
    pub(crate) address: Option<std::net::IpAddr>,
    /// The workload's namespace towards discovery.
    #[arg(long, default_value = "default", value_name = "NS", requires = "sidecar")]
    pub(crate) namespace: String,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<std::ffi::OsString>,
}

/// What every role can do.
#[derive(Debug, Subcommand)]
pub(crate) enum RoleCommand {
    /// Run the role in the foreground.
    #[command(after_help = "Examples:
  kasbah proxy run --config proxy.yaml
  kasbah discovery run --config discovery.yaml --check
  kasbah policy run --config policy.yaml")]
    Run(RoleArgs),
}

/// The certificate authority as a process and as a database.
#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Run the role in the foreground.
    #[command(after_help = "Examples:
  kasbah ca run --config ca.yaml
  kasbah ca run --config ca.yaml --check    only whether the settings are good")]
    Run(RoleArgs),
    /// Write everything in the database to a file; the authority may run.
    #[command(after_help = "Examples:
  kasbah ca backup /backup/ca.backup --config ca.yaml
  kasbah ca backup ca.backup --dir /tmp/mesh            the authority of `kasbah up`

Keys stay sealed in the file: back up the key file too, and apart from it.")]
    Backup {
        /// The file to write; an existing one is replaced when the new one is whole.
        file: PathBuf,
        #[command(flatten)]
        place: DatabaseArg,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Fill an empty database, of either kind, from a backup.
    #[command(after_help = "Examples:
  kasbah ca restore /backup/ca.backup --config ca.yaml
  kasbah ca restore ca.backup --config ca.yaml --database postgres://kasbah@localhost/kasbah --moved

What was done after the backup is not in it: join tokens are forgotten, numbers jump ahead and the transparency log gets a new \
    key, unless --moved says that nothing was done.")]
    Restore {
        /// The file.
        file: PathBuf,
        #[command(flatten)]
        place: DatabaseArg,
        /// Lose what is in the database.
        #[arg(long)]
        force: bool,
        /// The old server was stopped before the backup was made, and stays so.
        #[arg(long)]
        moved: bool,
        #[command(flatten)]
        output: OutputArg,
    },
    /// The issuance policy, tried out without issuing anything.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Rights: who may administer what.
    #[command(subcommand)]
    Rights(RightsCommand),
    /// Calls that wait for a second person.
    #[command(subcommand)]
    Approvals(ApprovalsCommand),
    /// Replace the root (or the JWT key) everywhere, without anybody noticing; or take one step of it.
    #[command(after_help = "Examples:
  kasbah ca rotate                            the whole rotation; asks once
  kasbah ca rotate --kind jwt --yes           the JWT key, without asking
  kasbah ca rotate prepare                    one step; then activate, taint, revoke
  kasbah ca rotate status -o json             how far, and who holds it up
  kasbah ca rotate activate --waive NODE      go on without a node
  kasbah ca rotate --plan                     what would happen, and what is at risk
  kasbah ca rotate --compromised --yes        distrust the old one now: nobody is waited for longer than --grace
  kasbah ca rotate receipt -o json > r.json   who acknowledged what and when, signed
  kasbah ca rotate receipt --verify r.json    checked anywhere, without the CA

A step that is not yet safe ends with 1 and names the nodes that have not acknowledged.")]
    Rotate(RotateArgs),
    /// Show where the keys of the authorities are, and what is to be done about them.
    #[command(after_help = "Example:\n  kasbah ca keys -o json")]
    Keys(CaKeysArgs),
    /// Take in a root, or an intermediate, with its key: it is checked, tried and prepared.
    #[command(after_help = "Examples:
  kasbah ca import --cert root.pem --key root.key && kasbah ca rotate
  kasbah ca import --cert ca.pem --key ca.key --passphrase-file pw --chain between.pem --root root.pem

A new root is prepared; `kasbah ca rotate` then moves over to it. An intermediate below the present root signs at once.")]
    Import(CaImportArgs),
    /// Make a key for an intermediate, kept by the authority, and print a CSR for an offline root to sign.
    #[command(after_help = "Examples:
  kasbah ca csr --out ca.csr                   in a running authority
  kasbah ca csr --out ca.csr --config ca.yaml  before the first start, with custody.offline_root

Asked again it is the same key, until its certificate is installed.")]
    Csr(CaCsrArgs),
    /// Keep keys for an authority in a process of its own (`custody.keys: external_signer`).
    #[command(after_help = "Example:
  kasbah ca signer --keys /var/lib/kasbah-signer --socket /run/kasbah-signer/signer.sock --mode 660

Run it as another user than the authority, in whose group that one is.")]
    Signer(CaSignerArgs),
    /// Install the certificate that was signed for the CSR.
    #[command(after_help = "Examples:
  kasbah ca install --cert ca.pem             below the present root: signs at once
  kasbah ca install --cert ca.pem --root root.pem && kasbah ca rotate
  kasbah ca install --cert ca.pem --root root.pem --config ca.yaml")]
    Install(CaInstallArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Check a policy file; a bad one is refused with line and column.
    #[command(after_help = "Example:\n  kasbah ca policy check policy.yaml --trust-domain cluster.local")]
    Check {
        /// The file.
        file: PathBuf,
        /// The trust domain of the authority.
        #[arg(long, default_value = "cluster.local", value_name = "TD")]
        trust_domain: String,
    },
    /// Say what a policy would answer, and by which rule: the policy in force, or a file.
    #[command(after_help = "Examples:
  kasbah ca policy explain --spiffe-id spiffe://cluster.local/ns/pay/sa/api --node spiffe://cluster.local/node/local
  kasbah ca policy explain --file policy.yaml --spiffe-id spiffe://cluster.local/ns/pay/sa/api --node local --kind mint_x509")]
    Explain(Box<ExplainArgs>),
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    pub(crate) ca: CaArg,
    /// A policy file; no CA is asked.
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// The identity.
    #[arg(long, value_name = "ID")]
    pub(crate) spiffe_id: String,
    /// Who would ask: a node or an administrator by SPIFFE ID, or `local`.
    #[arg(long, value_name = "ID")]
    pub(crate) node: String,
    /// By which way: x509, jwt, wit, csr, mint_x509, mint_jwt, mint_wit.
    #[arg(long, default_value = "x509")]
    pub(crate) kind: String,
    /// Life that would be asked for.
    #[arg(long, default_value = "1h", value_parser = ttl, value_name = "TTL")]
    pub(crate) ttl: Duration,
    /// DNS name that would be in it.
    #[arg(long = "dns", value_name = "NAME")]
    pub(crate) dns_names: Vec<String>,
    /// Type of its key: P-256, P-384, Ed25519, RSA-BITS.
    #[arg(long, default_value = "P-256", value_name = "TYPE")]
    pub(crate) key_type: String,
    #[command(flatten)]
    pub(crate) output: OutputArg,
}

/// Which authority's database.
#[derive(Clone, Debug, Args)]
pub(crate) struct DatabaseArg {
    #[command(flatten)]
    pub(crate) dir: DirArg,
    /// Settings file of the authority [default: that of the mesh in DIR].
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Another database than that of the settings.
    #[arg(long, value_name = "URL")]
    pub(crate) database: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RoleArgs {
    /// Settings file (YAML).
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Only check the settings.
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuthzCommand {
    /// Judge requests by policies: one JSON question a line in, `allow NS/POLICY/RULE` or `deny NS/POLICY/RULE` out.
    #[command(after_help = AUTHZ_EVAL_EXAMPLE)]
    Eval {
        /// Read one question a line from stdin.
        #[arg(long, required = true)]
        lines: bool,
    },
}

const AUTHZ_EVAL_EXAMPLE: &str = r#"Example:
  echo '{"policies_yaml": "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy,
    metadata: {name: readers, namespace: shop}, spec: {rules: [{to: [{operation: {methods: [GET]}}]}]}}",
    "workload": {"namespace": "shop", "labels": {"app": "cart"}}, "trust_domain": "cluster.local",
    "request": {"peer": "spiffe://cluster.local/ns/shop/sa/web", "method": "GET", "host": "cart", "path": "/"}}' |
    tr -d '\n' | kasbah authz eval --lines

Members but `policies_yaml` and `request` are optional; a request may also have `headers`,
`source_ip`, `destination_port` and `claims` (of a verified token).
`-` stands for no rule; `err CODE` for policies that cannot be used."#;

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Create a join token: one agent may join with it, once.
    #[command(after_help = "Example:\n  kasbah token create --spiffe-id spiffe://cluster.local/node/web-1 --ttl 10m")]
    Create {
        #[command(flatten)]
        ca: CaArg,
        /// A second ID for the node, for entries to name as parent.
        #[arg(long, value_name = "ID")]
        spiffe_id: Option<String>,
        /// Life of the token.
        #[arg(long, default_value = "10m", value_parser = ttl)]
        ttl: Duration,
        #[command(flatten)]
        output: OutputArg,
    },
}

/// Parses a time (RFC 3339) or a time from now (`2h`) into seconds since the epoch.
fn moment(text: &str) -> Result<i64, String> {
    if let Ok(moment) = text.parse::<jiff::Timestamp>() {
        return Ok(moment.as_second());
    }
    let ahead = ttl(text).map_err(|_| "write 2027-01-31T12:00:00Z, or a time from now such as 2h".to_owned())?;
    let ahead = i64::try_from(ahead.as_secs()).unwrap_or(i64::MAX);
    Ok(jiff::Timestamp::now().as_second().saturating_add(ahead))
}

/// Parses a duration such as `20s`, `10m`, `1h30m`; zero is refused.
fn ttl(text: &str) -> Result<Duration, String> {
    let value = humantime::parse_duration(text).map_err(|e| format!("{e} (examples: 20s, 10m, 1h30m)"))?;
    if value.is_zero() { Err("must be longer than zero".into()) } else { Ok(value) }
}

#[cfg(test)]
mod examples;
