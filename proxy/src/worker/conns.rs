//! The open downstream connections of one worker: their age, whether they are idle, and what they must be told.
//!
//! No connection has a timer of its own. A sweep once a second finds those that are idle, that hold back a request
//! head, or whose certificate is about to expire; a change of listeners or trust goes through the same table.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use identity::verify::PeerError;
use identity::{BundleSet, CertificateDer, UnixTime, VerifiedPeer};
use tokio::time::Instant;

use crate::config::ListenerConfig;
use crate::http::audit::Gate;
use crate::http::h1::HEAD_TIMEOUT;
use crate::obs::counters::Counters;
use crate::obs::shard::Fast;
use crate::tls::rests::{Left, Rest};
use crate::worker::Load;

/// What a connection is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Serve.
    Serving,
    /// Finish what runs, take nothing new.
    Draining,
    /// End now.
    Cut,
}

/// What the worker knows of one connection.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) listener: Arc<ListenerConfig>,
    phase: Cell<Phase>,
    waker: RefCell<Option<Waker>>,
    last_active: Cell<Instant>,
    running: Cell<u32>,
    drained_at: Cell<Option<Instant>>,
    drain_at: Cell<Option<Instant>>,
    cut_at: Cell<Option<Instant>>,
    idle: Cell<Option<Duration>>,
    /// It rests on a root that goes or is gone.
    leaving: Cell<Option<Leaving>>,
    /// A TCP or WebSocket stream: draining does not concern it.
    stream: Cell<bool>,
    /// The auditor of an HTTP/1 connection, and the head that was being read at the last sweep.
    heads: OnceCell<Arc<Gate>>,
    slow_head: Cell<Option<(u32, Instant)>>,
    /// What the peer proved itself with.
    chain: RefCell<Vec<CertificateDer<'static>>>,
    /// What both certificates rest on.
    rest: RefCell<Option<Rest>>,
    peer: RefCell<Option<VerifiedPeer>>,
    /// Why it was cut.
    cut_for: Cell<Option<&'static str>>,
}

/// When a connection is left that rests on a root which goes: new requests go elsewhere from the beginning, streams end at a
/// pause, and all is over at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leaving {
    pub(crate) since: Instant,
    pub(crate) end: Instant,
}

/// All connections of a worker.
#[derive(Debug)]
pub(crate) struct Conns {
    lives: RefCell<HashMap<u64, Rc<Life>, Fast>>,
    /// By what the peers were judged last.
    judged: RefCell<Arc<BundleSet>>,
    next: Cell<u64>,
    counters: Arc<Counters>,
}

/// A connection's place in the table; leaving it is dropping this.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) life: Rc<Life>,
    id: u64,
    conns: Rc<Conns>,
    _load: Load,
}

/// One request that runs on a connection.
#[derive(Debug)]
pub(crate) struct Running(Rc<Life>);

impl Life {
    /// What to do now.
    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Ready as soon as the phase is beyond `seen`.
    pub(crate) fn poll_beyond(&self, seen: Phase, cx: &Context<'_>) -> Poll<Phase> {
        let phase = self.phase.get();
        if phase > seen {
            return Poll::Ready(phase);
        }
        self.wait(cx);
        Poll::Pending
    }

    fn wait(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Counts a request until the answer is dropped.
    pub(crate) fn begin_request(self: &Rc<Self>) -> Running {
        self.running.set(self.running.get() + 1);
        Running(self.clone())
    }

    /// Limits the connection by the certificates it was opened with.
    pub(crate) fn expire(
        &self,
        drain_at: Option<Instant>,
        cut_at: Option<Instant>,
        chain: Vec<CertificateDer<'static>>,
        peer: Option<VerifiedPeer>,
        rest: Rest,
    ) {
        self.drain_at.set(drain_at);
        self.cut_at.set(cut_at);
        *self.chain.borrow_mut() = chain;
        *self.peer.borrow_mut() = peer;
        *self.rest.borrow_mut() = Some(rest);
    }

    /// Ready when the connection is being left.
    pub(crate) fn poll_leaving(&self, cx: &Context<'_>) -> Poll<Leaving> {
        if let Some(leaving) = self.leaving.get() {
            return Poll::Ready(leaving);
        }
        self.wait(cx);
        Poll::Pending
    }

    /// Why the connection was cut, if its peer was the reason.
    pub(crate) fn cut_for(&self) -> Option<&'static str> {
        self.cut_for.get()
    }

    /// Whether the peer is trusted yet. Revocation lists are asked first: they also speak of those whose root is gone. When
    /// nothing else has changed, they alone are asked: that costs next to nothing, and a worker may have thousands of
    /// connections.
    fn judge(&self, bundles: &BundleSet, only_lists: bool, now: UnixTime) -> Result<(), PeerError> {
        let peer = self.peer.borrow();
        if let Some(peer) = &*peer {
            identity::verify::check_revocation(peer, bundles, now)?;
        }
        let chain = self.chain.borrow();
        if chain.is_empty() || (only_lists && peer.is_some()) {
            return Ok(());
        }
        identity::verify::verify_peer(&chain, bundles, now).map(drop)
    }

    /// The configured limits of an HTTP connection.
    pub(crate) fn limit(&self, idle: Option<Duration>, age: Option<Duration>) {
        self.idle.set(idle);
        if let Some(age) = age {
            let at = Instant::now() + age;
            self.drain_at.set(Some(self.drain_at.get().map_or(at, |before| before.min(at))));
        }
    }

    /// Follows the request heads of an HTTP/1 connection.
    pub(crate) fn watch_heads(&self, gate: Arc<Gate>) {
        let _ = self.heads.set(gate);
    }

    /// From here on the connection is one long stream.
    pub(crate) fn become_stream(&self) {
        self.stream.set(true);
        if let Some(gate) = self.heads.get() {
            gate.open_tunnel();
        }
    }

    /// Whether the same request head has been arriving for too long.
    fn is_slow(&self, now: Instant) -> bool {
        let head = self.heads.get().and_then(|gate| gate.unfinished_head());
        let since = match (head, self.slow_head.get()) {
            (Some(head), Some((known, since))) if head == known => since,
            _ => now,
        };
        self.slow_head.set(head.map(|head| (head, since)));
        now.duration_since(since) >= HEAD_TIMEOUT
    }

    /// Drains the connection, tells a stream to end, and ends either at the latest after `within`; whether that was news.
    fn leave(&self, within: Duration) -> bool {
        if self.leaving.get().is_some() {
            return false;
        }
        let leaving = Leaving::within(within);
        self.leaving.set(Some(leaving));
        self.cut_at.set(Some(self.cut_at.get().map_or(leaving.end, |before| before.min(leaving.end))));
        self.drain();
        self.wake();
        true
    }

    fn is_on(&self, left: &Left) -> bool {
        self.rest.borrow().as_ref().is_some_and(|rest| rest.is_on(left))
    }

    pub(crate) fn drain(&self) {
        if self.phase.get() == Phase::Serving && !self.stream.get() {
            self.drained_at.set(Some(Instant::now()));
            self.advance(Phase::Draining);
        }
    }

    pub(crate) fn cut(&self) {
        if self.phase.get() < Phase::Cut {
            self.advance(Phase::Cut);
        }
    }

    fn advance(&self, phase: Phase) {
        self.phase.set(phase);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    fn sweep(&self, now: Instant) -> bool {
        let due = |at: Option<Instant>| at.is_some_and(|at| now >= at);
        let before = self.phase.get();
        let idle_for = now.duration_since(self.last_active.get());
        let unused = self.running.get() == 0 && !self.stream.get();
        if due(self.cut_at.get()) || self.is_slow(now) {
            self.cut();
        } else if due(self.drain_at.get()) || (unused && self.idle.get().is_some_and(|idle| idle_for >= idle)) {
            self.drain();
        }
        // An unused connection is closed a while after it was asked to drain, so that a request which was just on its
        // way still meets an open door.
        if unused && before == Phase::Draining && due(self.drained_at.get().map(|at| at + LINGER)) {
            self.cut();
        }
        before == Phase::Serving && self.phase.get() != before
    }
}

impl Leaving {
    pub(crate) fn within(within: Duration) -> Self {
        let since = Instant::now();
        Self { since, end: since + within }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get().saturating_sub(1));
        self.0.last_active.set(Instant::now());
    }
}

impl Conns {
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        Self { lives: RefCell::default(), judged: RefCell::default(), next: Cell::new(0), counters }
    }

    /// Enters a connection.
    pub(crate) fn enter(self: &Rc<Self>, listener: Arc<ListenerConfig>, load: Load) -> Place {
        let life = Rc::new(Life {
            listener,
            phase: Cell::new(Phase::Serving),
            waker: RefCell::default(),
            last_active: Cell::new(Instant::now()),
            running: Cell::new(0),
            drained_at: Cell::new(None),
            drain_at: Cell::new(None),
            cut_at: Cell::new(None),
            idle: Cell::new(None),
            leaving: Cell::new(None),
            stream: Cell::new(false),
            heads: OnceCell::new(),
            slow_head: Cell::new(None),
            chain: RefCell::default(),
            rest: RefCell::default(),
            peer: RefCell::default(),
            cut_for: Cell::new(None),
        });
        let id = self.next.get();
        self.next.set(id.wrapping_add(1));
        self.lives.borrow_mut().insert(id, life.clone());
        self.counters.connections_accepted.fetch_add(1, Ordering::Relaxed);
        self.counters.connections_active.fetch_add(1, Ordering::Relaxed);
        Place { life, id, conns: self.clone(), _load: load }
    }

    /// Looks after all connections.
    pub(crate) fn sweep(&self, now: Instant) {
        let drained = self.lives.borrow().values().filter(|life| life.sweep(now)).count();
        self.counters.drained.fetch_add(drained as u64, Ordering::Relaxed);
    }

    /// Drains the connections for which `gone` says that their listener is not in force any more.
    pub(crate) fn drain_where(&self, gone: impl Fn(&Arc<ListenerConfig>) -> bool) {
        for life in self.lives.borrow().values().filter(|life| gone(&life.listener)) {
            life.drain();
            self.counters.drained.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Judges every peer by the bundles of now: who is not trusted any more loses the connection. A root that was replaced
    /// takes nobody's connection at once: requests move over to new connections, streams get `stream_drain`.
    pub(crate) fn judge(&self, bundles: &Arc<BundleSet>, now: UnixTime, stream_drain: Duration) {
        let before = self.judged.replace(bundles.clone());
        let only_lists = !Arc::ptr_eq(&before, bundles) && !before.is_empty() && before.iter().eq(bundles.iter());
        for life in self.lives.borrow().values() {
            match life.judge(bundles, only_lists, now) {
                Ok(()) => (),
                Err(PeerError::Untrusted { id, .. }) => {
                    if life.leave(stream_drain) {
                        tracing::info!(peer = %id, "the root of the peer is gone, connection drained");
                        self.counters.drained.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Err(error) => {
                    tracing::info!(
                        reason = error.reason(),
                        peer = error.claimed_id().map(tracing::field::display),
                        "peer is not trusted any more, connection cut"
                    );
                    self.counters.refused(error.reason());
                    life.cut_for.set(Some(error.reason()));
                    life.cut();
                }
            }
        }
    }

    /// Leaves the connections that rest on a root which our own SVID has left.
    pub(crate) fn leave(&self, left: &Left, stream_drain: Duration) {
        let lives = self.lives.borrow();
        let news = lives.values().filter(|life| life.is_on(left) && life.leave(stream_drain)).count();
        if news > 0 {
            tracing::info!(count = news, "connections rest on a root that is being replaced, drained");
            self.counters.drained.fetch_add(news as u64, Ordering::Relaxed);
        }
    }

    /// Asks all to end and waits for it, no longer than `within`.
    pub(crate) async fn drain_all(&self, within: Duration) {
        let end = Instant::now() + within;
        for life in self.lives.borrow().values() {
            life.drain();
        }
        while !self.lives.borrow().is_empty() && Instant::now() < end {
            tokio::time::sleep(DRAIN_LOOK).await;
            for life in self.lives.borrow().values().filter(|life| life.running.get() == 0 && !life.stream.get()) {
                life.cut();
            }
        }
        for life in self.lives.borrow().values() {
            life.cut();
        }
        tokio::time::sleep(DRAIN_LOOK).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.conns.lives.borrow_mut().remove(&self.id);
        self.conns.counters.connections_active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long an unused connection stays open after it was asked to drain.
const LINGER: Duration = Duration::from_secs(3);
const DRAIN_LOOK: Duration = Duration::from_millis(50);
