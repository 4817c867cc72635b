//! The connections of one worker to one endpoint of one cluster.
//!
//! HTTP/1 connections are lent one request each, the most recently used first, so that unneeded ones grow idle and are
//! dropped. HTTP/2 connections are shared; while one is being opened, later requests wait for it. A pool belongs to
//! one cluster, hence to one identity and one set of TLS parameters, and a connection opened under an older SVID is
//! not used again.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::dial::{ConnFacts, DialError, Dialed, Dialer};
use super::h1::{Http1, Lease};
use super::h2::{Http2, Share};

/// Which HTTP to speak with an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Speak {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// What TLS negotiates; HTTP/1.1 without TLS.
    Negotiated,
}

/// Connections to one endpoint.
#[derive(Debug)]
pub(crate) struct Pool {
    address: SocketAddr,
    dialer: Rc<Dialer>,
    idle: RefCell<Vec<Http1>>,
    shared: RefCell<Vec<Http2>>,
    dialing: RefCell<Option<watch::Receiver<Option<DialResult>>>>,
    /// What TLS negotiated last, when that was left open.
    negotiated: Cell<Option<Speak>>,
    pending: Cell<usize>,
}

type DialResult = Result<(), Rc<DialError>>;

/// A connection for one request.
#[derive(Debug)]
pub(crate) enum Checked {
    Http1(Lease),
    Http2(Share),
}

impl Pool {
    pub(crate) fn new(address: SocketAddr, dialer: Rc<Dialer>) -> Rc<Self> {
        Rc::new(Self {
            address,
            dialer,
            idle: RefCell::default(),
            shared: RefCell::default(),
            dialing: RefCell::default(),
            negotiated: Cell::new(None),
            pending: Cell::new(0),
        })
    }

    /// A connection that is there already.
    pub(crate) fn reuse(self: &Rc<Self>, speak: Speak) -> Option<Checked> {
        match self.settled(speak) {
            Speak::Http1 => self.reuse_http1(),
            Speak::Http2 => self.reuse_http2(),
            Speak::Negotiated => None,
        }
    }

    /// A connection, opened if there is none.
    pub(crate) async fn checkout(self: &Rc<Self>, speak: Speak) -> Result<Checked, Rc<DialError>> {
        loop {
            if let Some(checked) = self.reuse(speak) {
                return Ok(checked);
            }
            if self.pending.get() >= PENDING_MAX {
                return Err(Rc::new(DialError::TooManyPending));
            }
            let _pending = Count::up(&self.pending);
            if self.settled(speak) == Speak::Http1 {
                let dialed = self.dialer.dial(self.address, Speak::Http1).await.map_err(Rc::new)?;
                return self.lend(dialed).await;
            }
            self.dial_shared(speak).await?;
        }
    }

    /// A connection of its own for a request that becomes a tunnel.
    pub(crate) async fn tunnel(self: &Rc<Self>) -> Result<Lease, Rc<DialError>> {
        let dialed = self.dialer.dial(self.address, Speak::Http1).await.map_err(Rc::new)?;
        let conn = Http1::begin(dialed.io, dialed.facts, true).await.map_err(|e| Rc::new(DialError::Http1(e)))?;
        Ok(Lease::new(conn, std::rc::Weak::new(), false))
    }

    /// Takes an idle connection back.
    pub(crate) fn put(&self, conn: Http1) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < IDLE_MAX {
            idle.push(conn);
        }
    }

    /// Drops what is idle for too long, closed or opened under an older identity. False when nothing is left.
    pub(crate) fn sweep(&self, now: Instant) -> bool {
        let generation = self.dialer.generation();
        self.retire(generation, now);
        self.idle.borrow_mut().retain(|conn| !conn.is_spent(self.dialer.idle_timeout, now));
        self.shared.borrow_mut().retain(|conn| !conn.is_spent() && !conn.is_idle(self.dialer.idle_timeout, now));
        !(self.idle.borrow().is_empty() && self.shared.borrow().is_empty() && self.pending.get() == 0)
    }

    /// Takes connections out of use that were opened under an older identity or are old enough.
    fn retire(&self, generation: u64, now: Instant) {
        let mut retired = 0;
        let mut keep = |facts: &ConnFacts| {
            let gone = facts.is_retired(generation, now);
            retired += u64::from(gone);
            !gone
        };
        self.idle.borrow_mut().retain(|conn| keep(&conn.facts));
        self.shared.borrow_mut().retain(|conn| keep(&conn.facts));
        if retired > 0 {
            self.dialer.counters.upstream_retired.fetch_add(retired, Ordering::Relaxed);
        }
    }

    fn settled(&self, speak: Speak) -> Speak {
        match speak {
            Speak::Negotiated if !self.dialer.negotiates() => Speak::Http1,
            Speak::Negotiated => self.negotiated.get().unwrap_or(Speak::Negotiated),
            speak => speak,
        }
    }

    fn reuse_http1(self: &Rc<Self>) -> Option<Checked> {
        if self.idle.borrow().is_empty() {
            return None;
        }
        let (generation, now) = (self.dialer.generation(), Instant::now());
        self.retire(generation, now);
        let mut idle = self.idle.borrow_mut();
        idle.retain(|conn| !conn.is_spent(self.dialer.idle_timeout, now));
        let at = idle.iter().rposition(Http1::is_ready)?;
        let conn = idle.remove(at);
        Some(Checked::Http1(Lease::new(conn, Rc::downgrade(self), true)))
    }

    fn reuse_http2(&self) -> Option<Checked> {
        if self.shared.borrow().is_empty() {
            return None;
        }
        let (generation, now) = (self.dialer.generation(), Instant::now());
        self.retire(generation, now);
        let mut shared = self.shared.borrow_mut();
        shared.retain(|conn| !conn.is_spent());
        shared.iter().find_map(Http2::share).map(Checked::Http2)
    }

    /// Waits until an HTTP/2 (or negotiated) connection was opened, by us or by a request before us.
    async fn dial_shared(self: &Rc<Self>, speak: Speak) -> Result<(), Rc<DialError>> {
        let under_way = self.dialing.borrow().clone();
        let mut opened = under_way.unwrap_or_else(|| self.begin_dialing(speak));
        let result = opened.wait_for(Option::is_some).await.ok().and_then(|result| result.clone());
        result.unwrap_or_else(|| Err(Rc::new(DialError::Abandoned)))
    }

    /// Opens in a task of its own, so that a request that gives up does not take the others with it.
    fn begin_dialing(self: &Rc<Self>, speak: Speak) -> watch::Receiver<Option<DialResult>> {
        let (done, opened) = watch::channel(None);
        *self.dialing.borrow_mut() = Some(opened.clone());
        let pool = self.clone();
        tokio::task::spawn_local(async move {
            let result = pool.open_shared(speak).await.map_err(Rc::new);
            *pool.dialing.borrow_mut() = None;
            done.send_replace(Some(result));
        });
        opened
    }

    async fn open_shared(self: &Rc<Self>, speak: Speak) -> Result<(), DialError> {
        let dialed = self.dialer.dial(self.address, speak).await?;
        if speak == Speak::Negotiated {
            self.negotiated.set(Some(dialed.speaks));
        }
        match dialed.speaks {
            Speak::Http2 => {
                let conn = Http2::begin(dialed.io, dialed.facts).await.map_err(DialError::Http2)?;
                self.shared.borrow_mut().push(conn);
            }
            _ => {
                let conn = Http1::begin(dialed.io, dialed.facts, false).await.map_err(DialError::Http1)?;
                self.put(conn);
            }
        }
        Ok(())
    }

    async fn lend(self: &Rc<Self>, dialed: Dialed) -> Result<Checked, Rc<DialError>> {
        let conn = Http1::begin(dialed.io, dialed.facts, false).await.map_err(|e| Rc::new(DialError::Http1(e)))?;
        Ok(Checked::Http1(Lease::new(conn, Rc::downgrade(self), false)))
    }
}

struct Count<'a>(&'a Cell<usize>);

impl<'a> Count<'a> {
    fn up(cell: &'a Cell<usize>) -> Self {
        cell.set(cell.get() + 1);
        Self(cell)
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// How long an unused connection is kept.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Idle HTTP/1 connections kept for one endpoint by one worker.
const IDLE_MAX: usize = 512;
/// Requests of one worker that may wait for a connection to one endpoint.
const PENDING_MAX: usize = 1024;
