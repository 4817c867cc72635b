//! What a proxy tells its agent beside SDS requests, as node metadata: that it has connections which rest on a root that its
//! own SVID has left. An agent that does not know the name passes it over.

/// A boolean of the node's metadata.
pub const NODE_METADATA: &str = "KASBAH_RESTS_ON_LEFT_ROOT";
