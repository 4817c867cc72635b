//! The open connections of one worker to mesh endpoints, so that those to a peer that is revoked can be cut.
//!
//! A connection belongs to hyper, h2 or a relay; what is held here is a leash: when it is cut, the next read or write on
//! the connection fails, and a read that waits is woken.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Waker};

use identity::{BundleSet, UnixTime, VerifiedPeer};

use crate::obs::counters::Counters;

/// All leashes of a worker.
#[derive(Debug, Default)]
pub(crate) struct Live {
    leashes: RefCell<Vec<Weak<Leash>>>,
}

/// What a connection to a proven peer hangs on.
#[derive(Debug)]
pub(crate) struct Leash {
    peer: VerifiedPeer,
    address: SocketAddr,
    cut: AtomicBool,
    reader: Mutex<Option<Waker>>,
}

impl Live {
    /// Enters a connection.
    pub(crate) fn enter(self: &Rc<Self>, peer: VerifiedPeer, address: SocketAddr) -> Arc<Leash> {
        let leash = Arc::new(Leash { peer, address, cut: AtomicBool::new(false), reader: Mutex::default() });
        let mut leashes = self.leashes.borrow_mut();
        // Those that are gone are swept out before the table has to grow.
        if leashes.len() == leashes.capacity() {
            leashes.retain(|known| known.strong_count() > 0);
        }
        leashes.push(Arc::downgrade(&leash));
        leash
    }

    /// Cuts the connections to peers that are revoked by now.
    pub(crate) fn judge(&self, bundles: &BundleSet, now: UnixTime, counters: &Counters) {
        self.leashes.borrow_mut().retain(|known| {
            let Some(leash) = known.upgrade() else { return false };
            let Err(error) = identity::verify::check_revocation(&leash.peer, bundles, now) else { return true };
            tracing::info!(
                reason = error.reason(),
                peer = %leash.peer.spiffe_id(),
                serial = leash.peer.leaf_serial(),
                address = %leash.address,
                "endpoint is revoked, connection cut"
            );
            counters.refused(error.reason());
            leash.cut();
            false
        });
    }
}

impl Leash {
    /// Whether the connection is to be used no more.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// Fails once the leash is cut.
    pub(crate) fn check(&self) -> io::Result<()> {
        if self.is_cut() {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "CERT_REVOKED: the endpoint's certificate is revoked",
            ));
        }
        Ok(())
    }

    /// Has the one who waits for bytes woken when the leash is cut.
    pub(crate) fn wait(&self, cx: &Context<'_>) {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if !reader.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            *reader = Some(cx.waker().clone());
        }
    }

    fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        if let Some(reader) = self.reader.lock().unwrap_or_else(PoisonError::into_inner).take() {
            reader.wake();
        }
    }
}
