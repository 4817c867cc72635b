//! What can be typed: subcommands, options, help texts with examples.

mod agent;
mod bundle;
mod ca;
mod ca_keys;
mod cert;
mod check;
mod explain;
mod federation;
mod jwt;
mod live;
mod log;
mod revoke;
mod rights;
mod rotate;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::output::Format;

pub(crate) use agent::{AccessArg, AgentCommand, FetchCommand, JoinArgs, SocketArg, TellArg, WatchArgs, X509Args};
pub(crate) use bundle::{BundleCommand, BundleFormat, DeleteMode};
pub(crate) use ca::CaArg;
pub(crate) use ca_keys::{CaCsrArgs, CaImportArgs, CaInstallArgs, CaKeysArgs, CaSignerArgs, WayArgs};
pub(crate) use cert::{CertCommand, RenewArgs, StartTls, TargetArgs, TrustArgs, VerifyArgs};
pub(crate) use check::{CheckArgs, CheckFormat, FailOn};
pub(crate) use explain::ExplainMeshArgs;
pub(crate) use federation::{EndpointArg, FederationCommand, ProfileArg};
pub(crate) use jwt::{DecodeArgs, JwsCommand, JwtCommand, JwtVerifyArgs, MintArgs};
pub(crate) use live::{BlastRadiusArgs, BugReportArgs, EdgesArgs, TopArgs};
pub(crate) use log::{AuditCommand, LogCommand};
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
With --sidecar this process stays, passes signals on, ends the sidecar with the program and exits with its code; the
program finds the sidecar as its HTTP proxy (http_proxy).")]
    Run(RunArgs),
    /// The certificate authority: run it, rotate its authorities.
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
    /// Certificates: show, list, watch, verify, check, issue, revoke.
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

What was done after the backup is not in it: join tokens are forgotten, numbers jump ahead and the transparency log gets a new
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

Members but `policies_yaml` and `request` are optional; a request may also have `headers`, `source_ip`, `destination_port`
and `claims` (of a verified token). `-` stands for no rule; `err CODE` for policies that cannot be used."#;

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

#[derive(Debug, Subcommand)]
pub(crate) enum EntryCommand {
    /// Create an entry; prints its id.
    #[command(after_help = "Example:
  kasbah entry create --spiffe-id spiffe://cluster.local/ns/default/sa/cart \\
    --parent-id spiffe://cluster.local/node/local --selector launch:name:cart")]
    Create {
        #[command(flatten)]
        ca: CaArg,
        #[command(flatten)]
        entry: Box<EntryArgs>,
        #[command(flatten)]
        output: OutputArg,
    },
    /// List entries.
    #[command(after_help = "Examples:
  kasbah entry list --spiffe-id spiffe://cluster.local/ns/default/sa/cart
  kasbah entry list --selector unix:uid:1000 -o json")]
    List {
        #[command(flatten)]
        ca: CaArg,
        /// Only entries with this SPIFFE ID.
        #[arg(long, value_name = "ID")]
        spiffe_id: Option<String>,
        /// Only entries with this parent.
        #[arg(long, value_name = "ID")]
        parent_id: Option<String>,
        /// Only entries that ask for this; all given ones must be among theirs.
        #[arg(long = "selector", value_name = "TYPE:VALUE")]
        selectors: Vec<String>,
        /// Only entries with this hint.
        #[arg(long, value_name = "H")]
        hint: Option<String>,
        /// Only entries that federate with this trust domain; all given ones must be among theirs.
        #[arg(long = "federates-with", value_name = "TD")]
        federates_with: Vec<String>,
        /// Only entries that may (or, with `false`, may not) have a signing authority of their own.
        #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        downstream: Option<bool>,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Show what documents would change; changes nothing.
    #[command(after_help = "Examples:
  kasbah entry plan entries.yaml              what would be created and updated
  kasbah entry plan entries/ --prune          and what would be deleted
  kasbah entry plan entries/ --exit-code      exit 1 when something would change, for scripts")]
    Plan {
        #[command(flatten)]
        documents: DocumentsArg,
        /// Exit with 1 when something would change.
        #[arg(long)]
        exit_code: bool,
    },
    /// Make the CA's entries what documents say.
    #[command(after_help = "Examples:
  kasbah entry apply entries.yaml
  kasbah entry apply entries/ --prune -o json

Entries from documents have ids that begin with kasbah.OWNER. and only such are ever deleted.")]
    Apply {
        #[command(flatten)]
        documents: DocumentsArg,
    },
    /// Explain why a workload gets an identity, or why not.
    #[command(after_help = "Examples:
  kasbah entry explain --selector launch:name:cart --selector unix:uid:1000
  kasbah entry explain --selector unix:uid:1000 --parent spiffe://cluster.local/spire/agent/x509pop/1f
  kasbah entry explain --spiffe-id spiffe://cluster.local/ns/default/sa/cart")]
    Explain {
        #[command(flatten)]
        ca: CaArg,
        /// What the workload shows (`kasbah agent whoami --pid PID` lists it).
        #[arg(long = "selector", value_name = "TYPE:VALUE", required_unless_present = "spiffe_id")]
        selectors: Vec<String>,
        /// The node that it runs on.
        #[arg(long, value_name = "NODE")]
        parent: Option<String>,
        /// Only entries with this SPIFFE ID.
        #[arg(long, value_name = "ID")]
        spiffe_id: Option<String>,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Show one entry.
    #[command(after_help = "Example:\n  kasbah entry show ENTRY_ID -o yaml")]
    Show {
        #[command(flatten)]
        ca: CaArg,
        /// The entry's id.
        id: String,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Replace an entry's content.
    #[command(after_help = "Examples:
  kasbah entry update ENTRY_ID --spiffe-id spiffe://cluster.local/ns/default/sa/cart \\
    --parent-id spiffe://cluster.local/node/local --selector launch:name:cart --x509-svid-ttl 10m")]
    Update {
        #[command(flatten)]
        ca: CaArg,
        /// The entry's id.
        id: String,
        #[command(flatten)]
        entry: Box<EntryArgs>,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Make a document for `plan` and `apply` of a SPIRE server's entries; no CA is asked.
    #[command(after_help = "Examples:
  spire-server entry show -output json | kasbah entry convert > entries.yaml
  kasbah entry convert --spire entries.json \\
    --parent spiffe://example.org/spire/agent/join_token/TOKEN=spiffe://example.org/node/web-1")]
    Convert {
        /// What `spire-server entry show -output json` printed, or a file for its `entry create -data` [default: stdin].
        #[arg(long, value_name = "FILE")]
        spire: Option<PathBuf>,
        /// Whose entries they are: `owner` of the document.
        #[arg(long, default_value = "spire", value_name = "NAME")]
        owner: String,
        /// A parent that has another ID here; may be given more than once.
        #[arg(long = "parent", value_name = "THEIRS=OURS", value_parser = parent)]
        parents: Vec<(String, String)>,
    },
    /// Delete an entry.
    #[command(after_help = "Example:\n  kasbah entry delete ENTRY_ID")]
    Delete {
        #[command(flatten)]
        ca: CaArg,
        /// The entry's id.
        id: String,
    },
}

fn parent(text: &str) -> Result<(String, String), String> {
    let (theirs, ours) = text.split_once('=').ok_or("two SPIFFE IDs with = between them")?;
    for id in [theirs, ours] {
        identity::spiffe_id::SpiffeId::parse(id).map_err(|error| format!("`{id}` is no SPIFFE ID: {error}"))?;
    }
    Ok((theirs.to_owned(), ours.to_owned()))
}

/// Registration documents, and what becomes of entries that none of them names.
#[derive(Clone, Debug, Args)]
pub(crate) struct DocumentsArg {
    #[command(flatten)]
    pub(crate) ca: CaArg,
    /// Files, or folders with `.yaml` files.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Delete entries of the documents' owners that no document names any more.
    #[arg(long)]
    pub(crate) prune: bool,
    #[command(flatten)]
    pub(crate) output: OutputArg,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct EntryArgs {
    /// The identity to give.
    #[arg(long, value_name = "ID")]
    pub(crate) spiffe_id: String,
    /// The node (or alias) whose agent may give it.
    #[arg(long, value_name = "ID")]
    pub(crate) parent_id: String,
    /// A fact that the workload must have, such as `unix:uid:1000`; all given ones must match.
    #[arg(long = "selector", required = true, value_name = "TYPE:VALUE")]
    pub(crate) selectors: Vec<String>,
    /// Life of X.509-SVIDs.
    #[arg(long, value_parser = ttl, value_name = "TTL")]
    pub(crate) x509_svid_ttl: Option<Duration>,
    /// Life of JWT-SVIDs.
    #[arg(long, value_parser = ttl, value_name = "TTL")]
    pub(crate) jwt_svid_ttl: Option<Duration>,
    /// DNS name to put into the certificate.
    #[arg(long = "dns", value_name = "NAME")]
    pub(crate) dns_names: Vec<String>,
    /// Foreign trust domain whose bundle the workload gets too.
    #[arg(long = "federates-with", value_name = "TD")]
    pub(crate) federates_with: Vec<String>,
    /// Word that tells a workload's several identities apart.
    #[arg(long, default_value = "")]
    pub(crate) hint: String,
    /// The identity may administer the CA.
    #[arg(long)]
    pub(crate) admin: bool,
    /// The identity may have a signing authority of its own.
    #[arg(long)]
    pub(crate) downstream: bool,
    /// The SVID goes to a store instead of the Workload API.
    #[arg(long)]
    pub(crate) store_svid: bool,
    /// When the entry ends (RFC 3339), or in how long, such as `2h`.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) expires_at: Option<i64>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List attested nodes.
    #[command(after_help = "Examples:
  kasbah node list --attestation-type k8s_psat --selector k8s_psat:cluster:prod
  kasbah node list --expired
  kasbah node list --expires-before 24h")]
    List {
        #[command(flatten)]
        ca: CaArg,
        #[command(flatten)]
        filter: NodeFilterArgs,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Show one node.
    #[command(after_help = "Example:\n  kasbah node show spiffe://cluster.local/spire/agent/join_token/NAME")]
    Show {
        #[command(flatten)]
        ca: CaArg,
        /// The agent's SPIFFE ID.
        id: String,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Forget a node: its agent must attest again.
    #[command(after_help = "Example:\n  kasbah node evict spiffe://cluster.local/spire/agent/join_token/NAME")]
    Evict {
        #[command(flatten)]
        ca: CaArg,
        /// The agent's SPIFFE ID.
        id: String,
    },
    /// Forget nodes whose SVIDs ran out long ago. Banned nodes stay, and so do nodes that could not attest again.
    #[command(after_help = "Examples:
  kasbah node purge --expired-for 7d --dry-run
  kasbah node purge --expired-for 7d")]
    Purge {
        #[command(flatten)]
        ca: CaArg,
        /// For how long the SVID must have been expired.
        #[arg(long, value_parser = ttl, value_name = "TIME")]
        expired_for: Duration,
        /// Forget also nodes that attested by trust on first use: whoever comes first under their names is believed.
        #[arg(long)]
        include_tofu: bool,
        /// Only show which.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Refuse a node from now on.
    #[command(after_help = "Example:\n  kasbah node ban spiffe://cluster.local/spire/agent/join_token/NAME")]
    Ban {
        #[command(flatten)]
        ca: CaArg,
        /// The agent's SPIFFE ID.
        id: String,
    },
}

/// Which nodes.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct NodeFilterArgs {
    /// Only nodes that attested in this way, such as `join_token` or `k8s_psat`.
    #[arg(long, value_name = "TYPE")]
    pub(crate) attestation_type: Option<String>,
    /// Only nodes with this selector; all given ones must be among theirs.
    #[arg(long = "selector", value_name = "TYPE:VALUE")]
    pub(crate) selectors: Vec<String>,
    /// Only nodes that are (or, with `false`, are not) banned.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) banned: Option<bool>,
    /// Only nodes that may (or, with `false`, may not) attest again.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) can_reattest: Option<bool>,
    /// Only nodes whose SVID ends before this time (RFC 3339), or within this time from now, such as `24h`.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) expires_before: Option<i64>,
    /// Only nodes whose SVID has ended.
    #[arg(long, conflicts_with = "expires_before")]
    pub(crate) expired: bool,
}

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
