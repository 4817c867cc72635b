//! One HTTP/1 connection to an endpoint.

use std::rc::{Rc, Weak};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::dial::ConnFacts;
use super::pool::Pool;
use crate::http::body::Body;
use crate::io::Io;

/// A connection that carries one request at a time.
#[derive(Debug)]
pub(crate) struct Http1 {
    pub(crate) send: SendRequest<Body>,
    pub(crate) facts: Rc<ConnFacts>,
    pub(crate) idle_since: Instant,
}

/// A connection in use; [`Lease::give_back`] returns it to its pool.
#[derive(Debug)]
pub(crate) struct Lease {
    conn: Http1,
    pool: Weak<Pool>,
    /// Whether it carried a request before, so that it may have been closed behind our back.
    pub(crate) reused: bool,
}

impl Http1 {
    /// Begins HTTP/1 on `io` and drives the connection on this worker. `tunnel` for a connection that may be
    /// upgraded; such a one is never pooled.
    pub(crate) async fn begin(io: Io, facts: Rc<ConnFacts>, tunnel: bool) -> Result<Self, hyper::Error> {
        let (send, conn) = Builder::new().max_buf_size(RESPONSE_HEAD_BYTES_MAX).handshake(TokioIo::new(io)).await?;
        tokio::task::spawn_local(async move {
            let ended = if tunnel { conn.with_upgrades().await } else { conn.await };
            if let Err(error) = ended {
                tracing::trace!(%error, "upstream connection ended");
            }
        });
        Ok(Self { send, facts, idle_since: Instant::now() })
    }

    /// Whether a request can be sent now.
    pub(crate) fn is_ready(&self) -> bool {
        self.send.is_ready()
    }

    /// Whether it is of no further use.
    pub(crate) fn is_spent(&self, idle: Duration, now: Instant) -> bool {
        self.send.is_closed() || now.duration_since(self.idle_since) >= idle
    }
}

impl Lease {
    pub(crate) fn new(conn: Http1, pool: Weak<Pool>, reused: bool) -> Self {
        Self { conn, pool, reused }
    }

    pub(crate) fn facts(&self) -> &Rc<ConnFacts> {
        &self.conn.facts
    }

    /// Sends one request; the request comes back when not a byte of it was written.
    pub(crate) async fn send(
        &mut self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Body>>> {
        self.conn.facts.begin_request();
        self.conn.send.try_send_request(request).await
    }

    /// Hands the connection to the next request, once the response is complete.
    pub(crate) fn give_back(mut self) {
        if let Some(pool) = self.pool.upgrade()
            && !self.conn.send.is_closed()
        {
            self.conn.idle_since = Instant::now();
            pool.put(self.conn);
        }
    }
}

const RESPONSE_HEAD_BYTES_MAX: usize = 256 * 1024;
