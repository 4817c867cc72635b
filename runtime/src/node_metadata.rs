//! What a proxy tells its agent beside SDS requests, as node metadata. An agent that does not know a name passes it over.

/// A boolean: it has connections which rest on a root that its own SVID has left.
pub const RESTS_ON_LEFT_ROOT: &str = "KASBAH_RESTS_ON_LEFT_ROOT";
/// A structure: by kind of resource (`cds`, `eds`, `lds`, `rds`), discovery's version of the last answer that it has put in force.
pub const CONFIGURED: &str = "KASBAH_CONFIGURED";
