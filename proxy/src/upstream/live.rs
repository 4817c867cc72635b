//! The open connections of one worker to mesh endpoints, so that those to a peer that is revoked can be cut, and those that
//! rest on a root which is being replaced can be left.
//!
//! A connection belongs to hyper, h2 or a relay; what is held here is a leash: when it is cut, the next read or write on
//! the connection fails, and a read that waits is woken.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use identity::{BundleSet, UnixTime, VerifiedPeer};
use tokio::time::Instant;

use crate::obs::counters::Counters;
use crate::tls::rests::{Left, Rest};
use crate::worker::conns::Leaving;

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
    /// What both certificates rest on.
    rest: Rest,
    leaving: OnceLock<Leaving>,
    cut: AtomicBool,
    reader: Mutex<Option<Waker>>,
}

impl Live {
    /// Enters a connection.
    pub(crate) fn enter(self: &Rc<Self>, peer: VerifiedPeer, address: SocketAddr, rest: Rest) -> Arc<Leash> {
        let (leaving, cut, reader) = (OnceLock::new(), AtomicBool::new(false), Mutex::default());
        let leash = Arc::new(Leash { peer, address, rest, leaving, cut, reader });
        let mut leashes = self.leashes.borrow_mut();
        // Those that are gone are swept out before the table has to grow.
        if leashes.len() == leashes.capacity() {
            leashes.retain(|known| known.strong_count() > 0);
        }
        leashes.push(Arc::downgrade(&leash));
        leash
    }

    /// Cuts the connections to peers that are revoked by now, and leaves those to peers whose root is gone.
    pub(crate) fn judge(&self, bundles: &BundleSet, now: UnixTime, stream_drain: Duration, counters: &Counters) {
        self.leashes.borrow_mut().retain(|known| {
            let Some(leash) = known.upgrade() else { return false };
            if !identity::verify::is_vouched_for(&leash.peer, bundles) {
                leash.leave(stream_drain);
            }
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

    /// Leaves the connections that rest on a root which our own SVID has left.
    pub(crate) fn leave(&self, left: &Left, stream_drain: Duration, counters: &Counters) {
        let leashes = self.leashes.borrow();
        let on = leashes.iter().filter_map(Weak::upgrade).filter(|leash| leash.rest.is_on(left));
        let news = on.filter(|leash| leash.leave(stream_drain)).count();
        if news > 0 {
            tracing::info!(count = news, "connections to endpoints rest on a root that is being replaced, drained");
            counters.drained.fetch_add(news as u64, Ordering::Relaxed);
        }
    }

    /// Ends what has been left for long enough.
    pub(crate) fn sweep(&self, now: Instant) {
        for leash in self.leashes.borrow().iter().filter_map(Weak::upgrade) {
            if leash.leaving.get().is_some_and(|leaving| now >= leaving.end) {
                leash.cut();
            }
        }
    }
}

impl Leash {
    /// Whether the connection is to be used for nothing new.
    pub(crate) fn is_spent(&self) -> bool {
        self.is_cut() || self.leaving.get().is_some()
    }

    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// Fails once the leash is cut.
    pub(crate) fn check(&self) -> io::Result<()> {
        if !self.is_cut() {
            return Ok(());
        }
        let why = match self.leaving.get() {
            Some(_) => "the root that the connection rests on is replaced",
            None => "CERT_REVOKED: the endpoint's certificate is revoked",
        };
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, why))
    }

    /// Has the one who waits for bytes woken when the leash is cut.
    pub(crate) fn wait(&self, cx: &Context<'_>) {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if !reader.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            *reader = Some(cx.waker().clone());
        }
    }

    /// Ready when the connection is being left. For the one who also reads from it.
    pub(crate) fn poll_leaving(&self, cx: &Context<'_>) -> Poll<Leaving> {
        if let Some(leaving) = self.leaving.get() {
            return Poll::Ready(*leaving);
        }
        self.wait(cx);
        Poll::Pending
    }

    fn leave(&self, within: Duration) -> bool {
        let news = self.leaving.set(Leaving::within(within)).is_ok();
        if news {
            self.wake();
        }
        news
    }

    fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        if let Some(reader) = self.reader.lock().unwrap_or_else(PoisonError::into_inner).take() {
            reader.wake();
        }
    }
}
