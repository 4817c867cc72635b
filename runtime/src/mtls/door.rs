//! Who may try to prove itself: asked for each connection before the handshake, which is work.

use std::net::SocketAddr;
use std::sync::Arc;

/// Lets connections in, or not.
pub trait Door: Send + Sync + 'static {
    /// What is kept until the peer has proven itself, and otherwise for as long as the connection is open. `None`: it is closed; the
    /// reason is the door's to log.
    fn enter(&self, remote: SocketAddr) -> Option<Arc<dyn Pass>>;
}

/// A connection that was let in.
pub trait Pass: Send + Sync + 'static {
    /// The peer showed a certificate that is believed.
    fn proved(&self);
}

/// The pass of a connection whose peer showed none, as an extension of its requests.
#[derive(Clone)]
pub(super) struct Held(#[expect(dead_code, reason = "kept for its end")] pub(super) Arc<dyn Pass>);
