//! What can be typed after `kasbah entry`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{CaArg, OutputArg, moment, ttl};

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
    /// Life of X.509-SVIDs [default: as the CA decides].
    #[arg(long, value_parser = ttl, value_name = "TTL")]
    pub(crate) x509_svid_ttl: Option<Duration>,
    /// Life of JWT-SVIDs [default: as the CA decides].
    #[arg(long, value_parser = ttl, value_name = "TTL")]
    pub(crate) jwt_svid_ttl: Option<Duration>,
    /// DNS name to put into the certificate.
    #[arg(long = "dns", value_name = "NAME")]
    pub(crate) dns_names: Vec<String>,
    /// Foreign trust domain whose bundle the workload gets too.
    #[arg(long = "federates-with", value_name = "TD")]
    pub(crate) federates_with: Vec<String>,
    /// Word that tells a workload's several identities apart.
    #[arg(long, default_value = "", hide_default_value = true)]
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
