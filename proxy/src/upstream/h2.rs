//! One HTTP/2 connection to an endpoint, shared by many requests of one worker.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use tokio::time::Instant;

use super::dial::ConnFacts;
use crate::io::Io;

/// A connection that carries requests side by side.
#[derive(Debug)]
pub(crate) struct Http2 {
    send: SendRequest<Bytes>,
    pub(crate) facts: Rc<ConnFacts>,
    shared: Rc<Shared>,
}

#[derive(Debug)]
struct Shared {
    alive: Cell<bool>,
    in_flight: Cell<usize>,
    idle_since: Cell<Instant>,
}

/// One request's share of a connection.
#[derive(Debug)]
pub(crate) struct Share {
    pub(crate) send: SendRequest<Bytes>,
    pub(crate) facts: Rc<ConnFacts>,
    shared: Rc<Shared>,
}

impl Http2 {
    /// Begins HTTP/2 on `io` and drives the connection on this worker.
    pub(crate) async fn begin(io: Io, facts: Rc<ConnFacts>) -> Result<Self, h2::Error> {
        let (send, conn) = Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(RESPONSE_HEAD_BYTES_MAX)
            .max_send_buffer_size(SEND_BUFFER_BYTES_MAX)
            .initial_max_send_streams(STREAMS_BEFORE_SETTINGS)
            .handshake(io)
            .await?;
        let shared =
            Rc::new(Shared { alive: Cell::new(true), in_flight: Cell::new(0), idle_since: Cell::new(Instant::now()) });
        let of_driver = shared.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = conn.await {
                tracing::trace!(%error, "upstream connection ended");
            }
            of_driver.alive.set(false);
        });
        Ok(Self { send, facts, shared })
    }

    /// Whether new requests may not go here any more.
    pub(crate) fn is_spent(&self) -> bool {
        !self.shared.alive.get()
    }

    /// Whether nothing has used it for `idle`.
    pub(crate) fn is_idle(&self, idle: Duration, now: Instant) -> bool {
        self.shared.in_flight.get() == 0 && now.duration_since(self.shared.idle_since.get()) >= idle
    }

    /// A share for one more request, when the peer's limit leaves room.
    pub(crate) fn share(&self) -> Option<Share> {
        let running = self.shared.in_flight.get();
        if running >= STREAMS_MAX || (running > 0 && running >= self.send.current_max_send_streams()) {
            return None;
        }
        self.shared.in_flight.set(running + 1);
        self.facts.begin_request();
        Some(Share { send: self.send.clone(), facts: self.facts.clone(), shared: self.shared.clone() })
    }
}

impl Share {
    /// The connection told us to go: nobody else should start a request on it.
    pub(crate) fn mark_dead(&self) {
        self.shared.alive.set(false);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let running = self.shared.in_flight.get().saturating_sub(1);
        self.shared.in_flight.set(running);
        if running == 0 {
            self.shared.idle_since.set(Instant::now());
        }
    }
}

const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
const RESPONSE_HEAD_BYTES_MAX: u32 = 256 * 1024;
const SEND_BUFFER_BYTES_MAX: usize = 1024 * 1024;
/// Requests that may be sent before the peer's limit is known.
const STREAMS_BEFORE_SETTINGS: usize = 100;
/// Requests on one connection, whatever the peer allows.
const STREAMS_MAX: usize = 1000;
