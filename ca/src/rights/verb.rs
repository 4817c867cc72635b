//! The verbs of administration.

use std::fmt;

/// Something that may be done to an authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// See registration entries.
    EntryRead,
    /// Create, change and delete them.
    EntryWrite,
    /// The same for entries that say `admin` or `downstream`, beside `entry.write`.
    EntryAdmin,
    /// See nodes.
    NodeRead,
    /// Forget nodes.
    NodeEvict,
    /// Ban nodes.
    NodeBan,
    /// Create join tokens; for certain IDs: with an alias among them.
    TokenCreate,
    /// Issue SVIDs by name.
    Mint,
    /// Revoke SVIDs.
    Revoke,
    /// See bundles of other trust domains.
    BundleRead,
    /// Set and delete them.
    BundleWrite,
    /// See federation relationships.
    FederationRead,
    /// Create, change, delete and refresh them.
    FederationWrite,
    /// See signing authorities and rotations.
    AuthorityRead,
    /// Prepare and activate authorities; start, resume and abort rotations; waive nodes.
    AuthorityRotate,
    /// Taint authorities.
    AuthorityTaint,
    /// Revoke authorities.
    AuthorityRevoke,
    /// See the audit trail.
    AuditRead,
    /// See the transparency log's entries.
    LogRead,
    /// Ask the issuance policy.
    PolicyRead,
    /// Ask who may what.
    RightsRead,
    /// See facts about the server and its log level.
    ServerRead,
    /// Change the log level.
    ServerWrite,
}

impl Verb {
    /// All of them, in the order of their names' groups.
    pub const ALL: [Self; 23] = [
        Self::EntryRead,
        Self::EntryWrite,
        Self::EntryAdmin,
        Self::NodeRead,
        Self::NodeEvict,
        Self::NodeBan,
        Self::TokenCreate,
        Self::Mint,
        Self::Revoke,
        Self::BundleRead,
        Self::BundleWrite,
        Self::FederationRead,
        Self::FederationWrite,
        Self::AuthorityRead,
        Self::AuthorityRotate,
        Self::AuthorityTaint,
        Self::AuthorityRevoke,
        Self::AuditRead,
        Self::LogRead,
        Self::PolicyRead,
        Self::RightsRead,
        Self::ServerRead,
        Self::ServerWrite,
    ];

    /// As rights files and refusals write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EntryRead => "entry.read",
            Self::EntryWrite => "entry.write",
            Self::EntryAdmin => "entry.admin",
            Self::NodeRead => "node.read",
            Self::NodeEvict => "node.evict",
            Self::NodeBan => "node.ban",
            Self::TokenCreate => "token.create",
            Self::Mint => "mint",
            Self::Revoke => "revoke",
            Self::BundleRead => "bundle.read",
            Self::BundleWrite => "bundle.write",
            Self::FederationRead => "federation.read",
            Self::FederationWrite => "federation.write",
            Self::AuthorityRead => "authority.read",
            Self::AuthorityRotate => "authority.rotate",
            Self::AuthorityTaint => "authority.taint",
            Self::AuthorityRevoke => "authority.revoke",
            Self::AuditRead => "audit.read",
            Self::LogRead => "log.read",
            Self::PolicyRead => "policy.read",
            Self::RightsRead => "rights.read",
            Self::ServerRead => "server.read",
            Self::ServerWrite => "server.write",
        }
    }

    /// The verb of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.as_str() == name)
    }

    /// Whether it can be given for certain IDs only: those of entries, nodes, aliases or SVIDs.
    pub fn is_scoped(self) -> bool {
        matches!(
            self,
            Self::EntryRead
                | Self::EntryWrite
                | Self::NodeRead
                | Self::NodeEvict
                | Self::NodeBan
                | Self::TokenCreate
                | Self::Mint
                | Self::Revoke
        )
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
