//! A small HTTP/2 server (RFC 9113) for gRPC on this machine's own sockets.
//!
//! A node agent holds a connection for each of thousands of workloads, at rest nearly all of the time. This server keeps a
//! few hundred bytes for one that rests, where a general one keeps its buffers; and it asks nothing of `:authority`, in which
//! clients write the path of the socket in forms that a general one must refuse. What comes over the network is served by
//! hyper (`serve::run`).
//!
//! One task runs a connection with all its streams. A client that sends faster than it is served, reads slower than it asks,
//! or breaks the rules costs no more than fixed sizes: 32 kB of answers, 32 kB of a head, `Limits::unanswered_max` of requests.

mod body;
mod connection;
mod frame;
mod head;
mod hpack;
mod huffman;
mod outgoing;
mod stream;

use std::convert::Infallible;
use std::error::Error;
use std::future::{Future as _, poll_fn};
use std::pin::pin;

use bytes::Bytes;
use http::{Extensions, Request, Response};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};
use tower::Service;

pub use body::{Incoming, Interrupted};
use connection::Connection;

use crate::serve::Limits;
use crate::shutdown::Shutdown;

/// Serves one connection until it ends. On `shutdown` no new requests are taken, and those at hand are completed.
pub(crate) async fn serve<S, B>(
    socket: impl AsyncRead + AsyncWrite,
    facts: Extensions,
    service: S,
    limits: Limits,
    shutdown: &Shutdown,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let mut connection = Connection::new(service, facts, limits);
    let (mut socket, mut asked_to_end) = (pin!(socket), pin!(shutdown.requested()));
    poll_fn(|cx| {
        if !connection.is_ending() && asked_to_end.as_mut().poll(cx).is_ready() {
            connection.drain();
        }
        connection.poll(socket.as_mut(), cx)
    })
    .await;
}

#[cfg(test)]
mod tests;
